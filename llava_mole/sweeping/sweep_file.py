"""A sweep file: one YAML file that says which arms are trained with which seeds, and the claims.

Dataclasses with one docstring per key; configs/experiments/example-sweep.yaml has a comment on each
knob. Every problem is listed at once, each with its line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_mole.errors import ConfigError
from llava_mole.evaluation.conditions import NORMALIZATIONS
from llava_mole.languages import LANGUAGES
from llava_mole.nearest import nearest
from llava_mole.sweeping import DEVELOPMENT
from llava_mole.sweeping.lines import key_lines, with_line
from llava_mole.training.reading import beside, counted, read_mapping
from llava_mole.training.schema import build

KEEP = ("everything", "model", "nothing")
MEASURES = ("accuracy", "gain")
NOT_WORSE = "not_worse"
DIRECTIONS = ("greater", "less", "different", NOT_WORSE)
LARGEST = 1000
"""Of an arm's weight in a claim."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
GRID = "+"
"""Between an arm and the label of a grid's axis: moe+r16."""
FOLDERS = ("starts", "reuse")
"""Sections whose names are folders."""
OWN_KEYS = {"output_dir": "the sweep's output_dir", "seed": "seeds"}
"""Keys of a recipe that a sweep sets itself -> where."""


@dataclass
class Arm:
    """One entry of `arms:`."""

    set: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of the recipe -> values, as on the command line of `llava-mole train`:
    `stages.instruct.steps: 50`; null drops a list's entry."""
    about: str = ""
    """For the report."""
    other_data: str | None = None
    """Why this arm's samples or their order differ ("twice the samples", "charts alone"). Without
    it a run that draws other samples than the other arms of its seed is refused."""
    domains: list[str] | None = None
    """Scored on these of `evaluate.domains` only, as a specialist is on its own; all if empty."""


@dataclass
class Start:
    """One entry of `starts:`: how the model of a folder is trained that arms start from."""

    recipe: str
    """Its recipe; from here, or from the sweep file's folder."""
    set: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of the recipe -> values, as an arm's."""


@dataclass
class Evaluation:
    """The `evaluate:` section: what is asked of each trained model."""

    domains: dict[str, str]
    """Name -> folder with eval_dev.tsv and eval_test.tsv, as the builders in data/ write."""
    items: int | None = field(default=50, metadata={"min": 1})
    """Questions of each language and kind, the first of the file; null: all."""
    languages: list[str] | None = None
    """Only these; null: all."""
    kinds: list[str] | None = None
    """Only these kinds of question; null: all."""
    withheld: bool = False
    """Ask each question as text alone too; claims may then be about the gain."""
    normalization: str = field(default="mean", metadata={"choices": NORMALIZATIONS})
    """How likelihoods of options are compared, see NORMALIZATIONS in evaluation/scoring.py."""


@dataclass
class Claim:
    """One entry of `claims:`, made before the runs: the first against the second."""

    first: str | dict[str, float]
    """An arm, a composed arm, or a weighted sum of them: {moe: 1, lora: -1}."""
    second: str | dict[str, float]
    """The other side, alike."""
    about: str = ""
    """In words, for the report."""
    direction: str = field(default="greater", metadata={"choices": DIRECTIONS})
    """Of the first side less the second; "not_worse": it is above -no_worse, in each domain too."""
    measure: str = field(default="accuracy", metadata={"choices": MEASURES})
    """"accuracy" with the picture; "gain": less accuracy without it (`evaluate.withheld`)."""
    domains: list[str] | None = None
    """The mean over these; null: all. Within a domain: mean over languages."""
    languages: list[str] | None = None
    """Only these; null: all."""
    kinds: list[str] | None = None
    """Only these kinds of question; null: all."""
    smallest: float = field(default=0.0, metadata={"min": 0, "max": 1})
    """The smallest difference that matters. An interval that lies below it speaks against the
    claim, even where it lies above 0."""
    no_worse: float | None = field(default=None, metadata={"min": 0, "max": 1})
    """Moreover, in no domain may the first side be worse by this much; 0.02 is two points."""
    exploratory: bool = False
    """Thought of after answers were looked at: shown with its interval, decides nothing, and does
    not count for Holm's correction."""


@dataclass
class Choice:
    """The `protocol:` section, or a file of its own: what was decided on the development split."""

    chosen: list[str] = field(default_factory=list)
    """Arms that may be scored on test. Empty: none."""
    reason: str = ""
    """Why these."""
    development: str = field(default=DEVELOPMENT, metadata={"choices": (DEVELOPMENT,)})
    """The split that choices are made on."""


@dataclass
class Sweep:
    """A whole sweep file."""

    base: str
    """The recipe that arms change; from here, or from the sweep file's folder."""
    output_dir: str
    """Folder of the sweep: its runs and its report."""
    arms: dict[str, Arm]
    """Name -> what differs from the base."""
    seeds: list[int]
    """Every arm is trained with each; intervals need two, five are better."""
    evaluate: Evaluation
    """What is asked of each trained model."""
    set: dict[str, Any] = field(default_factory=dict)
    """Overrides of every arm, before its own."""
    grid: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Axis -> label -> overrides: every arm comes with every label of every axis, as ARM+LABEL."""
    starts: dict[str, Start] = field(default_factory=dict)
    """Folder -> the training whose output_dir it is. Where arms start from a model there
    (`model.start_from: FOLDER/model`) that is not there yet, it is trained first."""
    reuse: dict[str, list[str]] = field(default_factory=dict)
    """Folder of another sweep -> arms that both have. A run that is done there is copied instead of
    trained again, if its recipe is the same."""
    composed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Name -> domain -> arm whose answers count there: specialists side by side as one arm. Nothing
    is trained for it."""
    claims: dict[str, Claim] = field(default_factory=dict)
    """Name -> claim. p values are corrected for their number (Holm)."""
    reference: str | None = None
    """Arm that the others are held against: its step time is 1; the first if empty."""
    minutes: float | None = field(default=None, metadata={"above": 0})
    """Budget of all runs together: none is started that would end beyond it."""
    keep: str = field(default="model", metadata={"choices": KEEP})
    """Of a finished run: everything (checkpoints too), the model (parts that were trained, the rest
    by reference), or nothing but predictions and figures (no other split can be scored later)."""
    protocol: Choice = field(default_factory=Choice)
    """Which arms may be scored on test, and why: a section, or the name of a file."""

    def arm_names(self) -> list[str]:
        """Every arm that is trained, grids unfolded."""
        labels = [list(axis) for axis in self.grid.values()]
        return [GRID.join([arm, *more]) for arm in self.arms for more in itertools.product(*labels)]

    def arm(self, name: str) -> Arm:
        """Of `arm_names`, the grid's overrides after its own."""
        first, *labels = name.split(GRID)
        arm = self.arms[first]
        changes = dict(arm.set)
        for axis, label in zip(self.grid.values(), labels, strict=True):
            changes |= axis[label]
        return Arm(changes, arm.about, arm.other_data, arm.domains)

    def domains_of(self, name: str) -> list[str]:
        """What an arm of `arm_names` is scored on, or a composed one answers for."""
        if name in self.composed:
            return list(self.evaluate.domains)
        arm = self.arms.get(name.split(GRID)[0])
        own = None if arm is None else arm.domains
        return [one for one in self.evaluate.domains if own is None or one in own]

    def parts(self, side: str | dict[str, float]) -> dict[str, float]:
        """A side of a claim as arm or composed arm -> weight."""
        return {side: 1.0} if isinstance(side, str) else dict(side)

    def trained_arms(self, side: str | dict[str, float]) -> list[str]:
        """Arms whose runs a side of a claim needs."""
        found: dict[str, None] = {}
        for name in self.parts(side):
            found.update(dict.fromkeys(self.composed.get(name, {"": name}).values()))
        return list(found)

    @property
    def out(self) -> Path:
        return Path(self.output_dir)


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; recipes are looked at by `plan.py`.

    Raises:
        ConfigError: listing every problem, with its line.
    """
    values = read_mapping(path, "sweep")
    lines = key_lines(path)
    problems: list[str] = []
    if isinstance(values.get("protocol"), str):
        name = values.pop("protocol")
        chosen = beside(name, path)
        if chosen.is_file():  # not yet chosen: test is refused, nothing else
            values["protocol"] = read_mapping(chosen, "protocol")
    sweep = build(Sweep, values, "", problems)
    if sweep is not None:
        problems += problems_of(sweep)
    if problems:
        shown = [f"  {with_line(path, problem, lines)}" for problem in problems]
        raise ConfigError(f"{path}: {counted(problems)}\n" + "\n".join(shown))
    assert isinstance(sweep, Sweep)
    return sweep


def problems_of(sweep: Sweep) -> list[str]:
    """What no single key can tell."""
    problems = []
    if not sweep.arms:
        problems.append("arms: empty; name at least one")
    if not sweep.seeds:
        problems.append("seeds: empty; name at least one")
    for seed in sorted({seed for seed in sweep.seeds if sweep.seeds.count(seed) > 1}):
        problems.append(f"seeds: {seed} stands there twice")
    problems += [
        f"seeds={seed}: must be from 0 to {2**32 - 1}"
        for seed in sweep.seeds
        if not 0 <= seed < 2**32
    ]
    named: dict[str, Sequence[str]] = {
        "arms": list(sweep.arms),
        "composed": list(sweep.composed),
        "claims": list(sweep.claims),
        "evaluate.domains": list(sweep.evaluate.domains),
        "starts": list(sweep.starts),
        "reuse": list(sweep.reuse),
        **{f"grid.{axis}": list(labels) for axis, labels in sweep.grid.items()},
    }
    for key, names in named.items():
        for name in names:
            if not isinstance(name, str):
                problems.append(f'{key}.{name}: YAML reads {name!r} here; a name in quotes: "…"')
            elif key in FOLDERS:
                problems += [] if name else [f"{key}: an empty name; name a folder"]
            elif not NAME.fullmatch(name):
                problems.append(
                    f"{key}.{name}: a name is made of letters, digits, '_', '-' and '.'"
                )
    problems += [f"grid.{axis}: empty; name a label" for axis, own in sweep.grid.items() if not own]
    if any(not isinstance(name, str) for names in named.values() for name in names):
        return problems  # what follows puts names together
    changes = [("set", sweep.set), *((f"arms.{n}.set", a.set) for n, a in sweep.arms.items())]
    changes += [
        (f"grid.{axis}.{label}", overrides)
        for axis, labels in sweep.grid.items()
        for label, overrides in labels.items()
    ]
    for key, overrides in changes:
        for own, where in OWN_KEYS.items():
            if own in overrides:
                problems.append(f"{key}.{own}: a sweep sets it; say {where}")
    problems += folder_problems(sweep)
    if not sweep.evaluate.domains:
        problems.append("evaluate.domains: empty; name a folder that a builder in data/ wrote")
    problems += unknown(sweep.evaluate.languages, LANGUAGES, "evaluate.languages")
    for key in ("languages", "kinds"):
        if getattr(sweep.evaluate, key) == []:
            problems.append(f"evaluate.{key}: empty; leave the key out for all")
    for name, one in sweep.arms.items():
        problems += unknown(one.domains, list(sweep.evaluate.domains), f"arms.{name}.domains")
        if one.domains == []:
            problems.append(f"arms.{name}.domains: empty; leave the key out for all")
    arms = sweep.arm_names()
    for name, parts in sweep.composed.items():
        if name in arms:
            problems.append(f"composed.{name}: an arm has that name")
        for domain, arm in parts.items():
            problems += unknown([domain], list(sweep.evaluate.domains), f"composed.{name}")
            problems += unknown([arm], arms, f"composed.{name}.{domain}")
            if arm in arms and domain in sweep.evaluate.domains:
                problems += not_asked(sweep, arm, [domain], f"composed.{name}.{domain}")
        missing = [domain for domain in sweep.evaluate.domains if domain not in parts]
        if missing:
            problems.append(f"composed.{name}: whose answers count in {', '.join(missing)}?")
    for name, claim in sweep.claims.items():
        problems += claim_problems(sweep, claim, f"claims.{name}")
    if sweep.reference is not None:
        problems += unknown([sweep.reference], arms, "reference")
    problems += unknown(sweep.protocol.chosen, arms, "protocol.chosen")
    if sweep.protocol.chosen and not sweep.protocol.reason.strip():
        problems.append("protocol.reason: empty; say why these arms were chosen")
    return problems


def folder_problems(sweep: Sweep) -> list[str]:
    problems = []
    for folder, start in sweep.starts.items():
        if "output_dir" in start.set:
            problems.append(f"starts.{folder}.set.output_dir: it is {folder}")
    for folder, names in sweep.reuse.items():
        problems += unknown(names, sweep.arm_names(), f"reuse.{folder}")
        if Path(folder) == sweep.out:
            problems.append(f"reuse.{folder}: that is this sweep's own output_dir")
    return problems


def claim_problems(sweep: Sweep, claim: Claim, path: str) -> list[str]:
    known = [*sweep.arm_names(), *sweep.composed]
    asked = sweep.evaluate
    problems: list[str] = []
    for side in ("first", "second"):
        value = getattr(claim, side)
        if not isinstance(value, str | dict):
            problems.append(f"{path}.{side}={value!r}: expected an arm, or arms with weights")
            continue
        parts = sweep.parts(value)
        problems += unknown(list(parts), known, f"{path}.{side}")
        wanted = [one for one in claim.domains or asked.domains if one in asked.domains]
        for arm in parts:
            if arm in known:
                problems += not_asked(sweep, arm, wanted, f"{path}.{side}")
        for arm, weight in parts.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not abs(weight) <= LARGEST:
                problems.append(
                    f"{path}.{side}.{arm}={weight!r}: a weight is a number of at most {LARGEST}"
                )
    if not problems and claim.first == claim.second:
        problems.append(f"{path}: both sides are {claim.first!r}")
    if not problems:
        # 1 against 1, or two differences: anything else says nothing about accuracies.
        sums = [sum(sweep.parts(side).values()) for side in (claim.first, claim.second)]
        if abs(sums[0] - sums[1]) > 1e-9:
            problems.append(
                f"{path}: the weights of the first side add up to {sums[0]:g}, of the second to "
                f"{sums[1]:g}; they must be the same"
            )
    problems += unknown(claim.domains, list(asked.domains), f"{path}.domains")
    problems += unknown(claim.languages, LANGUAGES, f"{path}.languages")
    for key in ("languages", "kinds"):
        wanted, there = getattr(claim, key), getattr(asked, key)
        if wanted is not None and there is not None:
            problems += [
                f"{path}.{key}: {name!r} is not among evaluate.{key}"
                for name in wanted
                if name not in there and (key == "kinds" or name in LANGUAGES)
            ]
        if wanted == []:
            problems.append(f"{path}.{key}: empty; leave the key out for all")
    if claim.domains == []:
        problems.append(f"{path}.domains: empty; leave the key out for all")
    if claim.direction == NOT_WORSE and claim.no_worse is None:
        problems.append(f"{path}.no_worse: missing; by how much is worse, for direction: not_worse")
    if claim.direction == "different" and claim.no_worse is not None:
        problems.append(f"{path}.no_worse: direction: different has no better side; leave one out")
    if claim.direction == NOT_WORSE and claim.smallest:
        problems.append(f"{path}.smallest: of direction: not_worse the margin is no_worse")
    if claim.measure == "gain" and not asked.withheld:
        problems.append(f"{path}.measure=gain: needs evaluate.withheld: true")
    return problems


def not_asked(sweep: Sweep, arm: str, domains: Sequence[str], path: str) -> list[str]:
    own = sweep.domains_of(arm)
    missing = [domain for domain in domains if domain not in own]
    if not missing:
        return []
    return [f"{path}: {arm!r} is not scored on {', '.join(missing)} (arms.{arm}.domains)"]


def unknown(names: Sequence[str] | None, known: Sequence[str], path: str) -> list[str]:
    return [
        f"{path}: unknown {name!r}{nearest(str(name), list(known))}"
        for name in names or ()
        if name not in known
    ]
