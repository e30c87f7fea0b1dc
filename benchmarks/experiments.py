"""All experiments of docs/results.md anew, in one command that can be stopped and goes on.

    python benchmarks/experiments.py --list          # every step, and what it took here
    python benchmarks/experiments.py                 # all of them; `make experiments` installs too
    python benchmarks/experiments.py --only domain-mix language-84-english

Data are built, stage 1 is trained, every sweep that has a pack in configs/experiments/results is
run for the arms that the pack holds, in an order in which each finds the model that it starts
from, and packed into OUT/packs; routing is measured again where the pack has it. In the end
OUT/results.md and OUT/results-development.md are the pages with tables and pictures of these runs;
words between them are of the runs that are committed. Steps that are done are not done again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from a clone, installed or not

from llava_mole.sweeping import SPLITS, TEST  # noqa: E402
from llava_mole.sweeping.sweep_file import Sweep, read_sweep  # noqa: E402

EXPERIMENTS = Path("configs/experiments")
PACKS = EXPERIMENTS / "results"
DOMAINS = ("charts", "documents", "flags", "digits", "openmoji")
STYLES = {"documents": "sentence", "flags": "capitals", "digits": "json"}
LONG = "stages.warm_start.steps=4000"
PARROT = "stages.warm_start.parrot=true"
UNSTEERED = "model.parrot.condition_on=nothing"
EVEN = "data.language_weights={en: 1, zh: 1, pt: 1, tr: 1, ru: 1, ar: 1}"
STAGE_1: dict[str, tuple[str, ...]] = {
    "base": ("base.yaml",),
    "base-english": ("base-english.yaml",),
    "base-84-english": ("base-84-english.yaml",),
    "base-84-english-parrot": ("base-84-english.yaml", PARROT),
    "long-84": ("base-84-english.yaml", LONG),
    "long-84-parrot": ("base-84-english.yaml", LONG, PARROT),
    "long-84-nothing": ("base-84-english.yaml", LONG, PARROT, UNSTEERED),
    "base-even": ("base-84-english.yaml", EVEN),
    "base-even-parrot": ("base-84-english.yaml", EVEN, PARROT),
}
"""Folder in runs/ -> recipe and what is changed in it."""
STAGE_1_HOURS = {False: 0.1, True: 0.2}
"""Of 1500 and of 4000 steps, about."""
SWEEPS = (
    "domain-mix-dev",
    "domain-oracle-dev",
    "domain-low-rank-dev",
    "domain-styles-dev",
    "domain-steps-dev",
    "domain-methods-dev",
    "domain-regimes-dev",
    "domain-mix",
    "language-ten-kinds-dev",
    "language-84-english-dev",
    "language-84-english",
    "language-84-english-short",
)
"""In the order of the page's story; domain-oracle-dev starts from a run of domain-mix-dev."""
COPIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "domain-methods-dev": ("domain-steps-dev", ("lora-5e-4", "shared-5e-4", "published-5e-4")),
    "domain-regimes-dev": ("domain-steps-dev", ("lora-1e-3",)),
    "language-84-english-short": ("language-84-english", ("first",)),
}
"""Sweep -> another, and the arms that both have: trained once."""
PAGES = ("results.md", "results-development.md")
BY_HAND = "images/results/tokens.png"
"""Cut from a page of `routing_report.py`: the new pages show the old one."""
START = re.compile(r"start_from: runs/([\w.-]+)/model")
OTHER = re.compile(r"start_from: runs/sweeps/([\w.-]+)/")
DATA = re.compile(r"datasets/([\w.-]+)")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the data, the stage 1 or the sweep.
        words: after the interpreter.
        made: where this is there, the step is done; None: the command itself knows.
        hours: of one core that it took; None: not known.
        ends: what the command leaves, where it is called whether it is done or not.
    """

    name: str
    words: tuple[str, ...]
    made: Path | None = None
    hours: float | None = None
    ends: Path | None = None

    @property
    def done(self) -> bool:
        return self.made is not None and self.made.exists()

    @property
    def ended(self) -> bool:
        """As far as can be seen without the command."""
        return self.done or (self.ends is not None and self.ends.exists())


def packed(name: str) -> dict[str, dict[str, Any]]:
    """Split -> what the committed pack of an experiment says of its runs."""
    return {
        split: json.loads(path.read_text("utf-8"))["runs"]
        for split in SPLITS
        if (path := ROOT / PACKS / name / f"{split}.json").is_file()
    }


def text_of(name: str) -> str:
    """A sweep file and the recipe below it."""
    path = ROOT / EXPERIMENTS / f"{name}-sweep.yaml"
    return path.read_text("utf-8") + (ROOT / read_sweep(path).base).read_text("utf-8")


def with_others(names: Sequence[str]) -> list[str]:
    """And the sweeps whose runs they start from or share, in order."""
    others = {other for name in names for other in OTHER.findall(text_of(name))}
    others |= {COPIES[name][0] for name in names if name in COPIES}
    return [name for name in SWEEPS if name in {*names, *others}]


def needs(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Data sets and stages 1 that sweeps read."""
    texts = [text_of(name) for name in names]
    starts = {start for text in texts for start in START.findall(text)}
    stages = [name for name in STAGE_1 if name in starts]
    texts += [(ROOT / EXPERIMENTS / STAGE_1[name][0]).read_text("utf-8") for name in stages]
    return sorted({found for text in texts for found in DATA.findall(text)}), stages


def build(data: Sequence[str]) -> Iterator[Step]:
    plain = {name.partition("-")[0] for name in data}
    for name in DOMAINS:
        if name in plain:
            made = f"datasets/{name}"
            yield Step(made, (f"data/{name}.py", "--out", made), ROOT / made)
    for name, style in STYLES.items():
        if f"{name}-{style}" in data:
            made = f"datasets/{name}-{style}"
            words = ("data/answer_styles.py", "--data", f"datasets/{name}", "--style", style)
            yield Step(made, (*words, "--out", made), ROOT / made)


def train(stages: Sequence[str]) -> Iterator[Step]:
    for name in stages:
        recipe, *changes = STAGE_1[name]
        words = ("-m", "llava_mole.cli", "train", "--config", str(EXPERIMENTS / recipe))
        ends = ROOT / "runs" / name / "model/config.json"
        words = (*words, *changes, f"output_dir=runs/{name}")
        yield Step(f"runs/{name}", words, None, STAGE_1_HOURS[LONG in changes], ends)


def sweep(name: str, parallel: str, packs: Path) -> Iterator[Step]:
    """The runs that the committed pack holds, the same packed anew, their routing."""
    path = EXPERIMENTS / f"{name}-sweep.yaml"
    known = read_sweep(ROOT / path)
    other, shared = COPIES.get(name, ("", ()))
    for arm in shared:
        one, made = (Path("runs/sweeps", sweep, "runs", arm) for sweep in (other, name))
        part = made.with_suffix(".part")
        copy = (
            f"import os, shutil; shutil.copytree({str(one)!r}, {str(part)!r}, dirs_exist_ok=True)"
        )
        copy += f"; os.rename({str(part)!r}, {str(made)!r})"
        yield Step(name, ("-c", copy), ROOT / made)
    for split, runs in packed(name).items():
        arms = {run.partition("/")[0] for run in runs}
        own = [run for name, run in runs.items() if name.partition("/")[0] not in shared]
        hours = sum(run["done"]["minutes"] for run in own) / 60
        words = ("-m", "llava_mole.cli", "sweep", str(path), "--split", split)
        only = ("--only", *(arm for arm in known.arms if arm in arms))
        chosen = () if arms == set(known.arms) or split == TEST else only
        yield Step(name, (*words, "--parallel", parallel, *chosen), None, hours)
        yield Step(name, (*words, "--pack", str(packs / name)))
        yield from route(known, name, split, packs)


def route(known: Sweep, name: str, split: str, packs: Path) -> Iterator[Step]:
    for path in sorted((ROOT / PACKS / name / f"routing-{split}").glob("*.json")):
        arm, _, seed = path.stem.rpartition("-seed-")
        model = Path("runs/sweeps", name, "runs", arm, f"seed-{seed}", "model")
        made = packs / name / f"routing-{split}" / path.name
        data = [f"{one}=datasets/{one}/eval_{split}.tsv" for one in known.evaluate.domains]
        words = ("benchmarks/routing_report.py", "--model", str(model), "--items", "10")
        page = ("--summary", str(made), "--out", f"runs/routing/{name}/{arm}-seed-{seed}")
        yield Step(name, (*words, *page, "--data", *data), ROOT / made)


def steps(names: Sequence[str], parallel: str, out: Path) -> list[Step]:
    data, stages = needs(names)
    found = [*build(data), *train(stages)]
    for name in names:
        found += sweep(name, parallel, out / "packs")
    if list(names) == list(SWEEPS):
        pages = [str(out / name) for name in PAGES]
        page = ("--pages", *pages, "--pictures", str(out / "images/results"))
        packs = ("--packs", str(out / "packs"))
        found.append(Step("page", ("benchmarks/results.py", *packs, *page)))
    return found


def show(found: Sequence[Step]) -> None:
    for step in found:
        took = "" if step.hours is None else f"  # {step.hours:.1f} hours of one core"
        print(f"{'done  ' if step.ended else '      '}python {shlex.join(step.words)}{took}")
    hours = sum(step.hours or 0 for step in found)
    print(f"{hours:.0f} hours of one core, by the clocks of the committed runs; data take minutes")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SWEEPS, metavar="SWEEP", default=SWEEPS,
                        help=f"of {', '.join(SWEEPS)}")  # fmt: skip
    parser.add_argument("--parallel", default="2", metavar="K|gpus",
                        help="runs at once, as llava-mole sweep has it (default 2)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    args = parser.parse_args(argv)
    found = steps(with_others(args.only), args.parallel, args.out)
    if args.list:
        show(found)
        return 0
    (ROOT / args.out / BY_HAND).parent.mkdir(parents=True, exist_ok=True)
    for name in (*PAGES, BY_HAND):
        shutil.copy(ROOT / "docs" / name, ROOT / args.out / name)
    for number, step in enumerate(found, start=1):
        if step.done:
            continue
        print(f"[{number}/{len(found)}] python {shlex.join(step.words)}", flush=True)
        ended = subprocess.run([sys.executable, *step.words], cwd=ROOT).returncode
        if ended:
            print(f"stopped there (exit status {ended}); the same command goes on from it")
            return ended
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
