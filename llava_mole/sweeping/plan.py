"""The runs of a sweep: every arm with every seed, each a recipe in a folder of its own."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llava_mole.errors import ConfigError
from llava_mole.sweeping.lines import KEY, key_lines, with_line
from llava_mole.sweeping.sweep_file import Arm, Sweep, unknown
from llava_mole.training.places import LOCAL
from llava_mole.training.reading import beside, counted
from llava_mole.training.recipe import Recipe
from llava_mole.training.resume import FREE_TO_CHANGE, described_recipe
from llava_mole.training.schema import load_recipe

PLACES = ("language_model", "vision_model", "image_root", "path")
"""Keys of a recipe that name where something lies."""
NO_START = "model.start_from: no folder"
"""Begins what is said of a model folder that another command has yet to make."""


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed.

    Attributes:
        recipe: resolved; its output_dir is `folder`.
        digest: of all that its weights follow from; see `recipe_digest`.
    """

    arm: str
    seed: int
    recipe: Recipe
    folder: Path
    digest: str
    about: Arm

    @property
    def name(self) -> str:
        return run_name(self.arm, self.seed)


def run_name(arm: str, seed: int) -> str:
    return f"{arm}/seed-{seed}"


def run_folder(out: Path, arm: str, seed: int) -> Path:
    return out / "runs" / arm / f"seed-{seed}"


def plan_runs(
    sweep: Sweep,
    path: Path,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    later: Sequence[str] = (),
) -> list[PlannedRun]:
    """Seed by seed, so that a sweep that stops early has whole seeds.

    Args:
        path: of the sweep file.
        arms, seeds: only these; None: all.
        later: without these, as what they start from is yet to be trained; their recipes are
            looked at as far as that goes.

    Raises:
        ConfigError: listing what is wrong with the recipe of any arm, whichever are asked for; only
            of these that a model folder to start from is not there yet.
    """
    check_asked(sweep, arms, seeds)
    recipes = load_recipes(sweep, path, arms, later)
    runs = []
    for seed in sweep.seeds:
        for arm, loaded in recipes.items():
            if (arms is not None and arm not in arms) or (seeds is not None and seed not in seeds):
                continue
            folder = run_folder(sweep.out, arm, seed)
            recipe = copy.deepcopy(loaded)
            recipe.seed, recipe.output_dir = seed, str(folder)
            digest = recipe_digest(recipe)
            runs.append(PlannedRun(arm, seed, recipe, folder, digest, sweep.arm(arm)))
    return runs


def check_asked(sweep: Sweep, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> None:
    """Raises ConfigError for arms and seeds that the sweep does not have."""
    problems = unknown(arms, sweep.arm_names(), "--only")
    problems += [
        f"--seeds: {seed} is none of the sweep's ({', '.join(map(str, sweep.seeds))})"
        for seed in seeds or ()
        if seed not in sweep.seeds
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def load_recipes(
    sweep: Sweep, path: Path, arms: Sequence[str] | None = None, later: Sequence[str] = ()
) -> dict[str, Recipe]:
    """Arm -> its recipe under the first seed. One that starts from a folder that is not there is
    left out if it is among `later` or not among `arms`. Raises ConfigError listing every arm's
    problems."""
    base = beside(sweep.base, path)
    seed = sweep.seeds[0]
    hint = "; --prepare trains what `starts` names" if sweep.starts else ""

    def load(folder: Path, changes: dict[str, Any]) -> Recipe | list[str]:
        overrides = as_overrides(sweep.set | changes)
        overrides += as_overrides({"output_dir": str(folder), "seed": seed})
        try:
            return load_recipe(base, overrides)
        except ConfigError as error:
            return [one + hint if NO_START in one else one for one in problems_in(error)]

    common = load(sweep.out / "runs", {})
    known = common if isinstance(common, list) else []
    told = [one for one in known if not (later and NO_START in one)]
    problems, recipes = [f"{whose(problem, sweep.set)}: {problem}" for problem in told], {}
    left_out = 0
    for name in sweep.arm_names():
        found = load(run_folder(sweep.out, name, seed), sweep.arm(name).set)
        if isinstance(found, list):
            waits = name in later or (arms is not None and name not in arms)
            if waits and all(NO_START in one for one in found):
                left_out += 1
                continue
            problems += [f"arms.{name}: {one}" for one in found if one not in known]
        else:
            recipes[name] = found
    # A base that is no recipe yet may become one.
    if len(recipes) + left_out < len(sweep.arm_names()):
        lines = key_lines(path)
        shown = "".join(f"\n  {with_line(path, problem, lines)}" for problem in problems)
        raise ConfigError(f"{path}: {counted(problems)} with {base}{shown}")
    return recipes


def problems_in(error: ConfigError) -> list[str]:
    """Of a recipe, as `load_recipe` lists them."""
    first, *problems = str(error).splitlines()
    return [problem.strip() for problem in problems] or [first]


def whose(problem: str, common: Mapping[str, Any]) -> str:
    """The key of the sweep file that a problem of the recipe below all arms comes from."""
    match = KEY.match(problem)
    named = match[0] + "." if match else ""
    for key in common:
        if named and (named.startswith(f"{key}.") or f"{key}.".startswith(named)):
            return f"set.{key}"
    return "base"


def as_overrides(changes: dict[str, Any]) -> list[str]:
    """`key=value` as on the command line, values as YAML in one line."""
    return [f"{key}={in_one_line(value)}" for key, value in changes.items()]


def in_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("...\n").strip()


# ---------------------------------------------------------------------- what a run follows from


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it, with the hashes of its data files and of the model that it starts
    from, less its folder."""
    values = described_recipe(recipe)
    values.pop("output_dir")
    return values


def recipe_digest(recipe: Recipe) -> str:
    """16 hex digits of all that moves weights: the recipe less keys that are free to change when a
    run goes on (logging, saving, workers), and the contents of its data files and of its start."""
    text = json.dumps(fixed(resolved(recipe), ""), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def arm_recipe(described: dict[str, Any]) -> dict[str, Any]:
    """Of `resolved`, what an arm's runs have in common on any machine: without seed and free keys,
    files by their hashes and folders by their last name, wherever they lie."""
    hashes: dict[str, str] = described.get("content", {})

    def anywhere(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {
                name: anywhere(one, name)
                for name, one in value.items()
                if not name.startswith(("hub_", "push_to_hub"))
            }
        if isinstance(value, list):
            return [anywhere(one, key) for one in value]
        if isinstance(value, str) and value in hashes:
            return hashes[value]
        if isinstance(value, str) and key in PLACES:
            return Path(value.removeprefix(LOCAL)).name
        return value

    values = {key: one for key, one in described.items() if key not in ("seed", "content")}
    found: dict[str, Any] = anywhere(fixed(values, ""), "")
    return found


def fixed(value: Any, path: str) -> Any:
    """Without the keys that are free to change."""
    if isinstance(value, dict):
        pairs = [(key, f"{path}.{key}" if path else str(key), one) for key, one in value.items()]
        return {k: fixed(one, at) for k, at, one in pairs if not FREE_TO_CHANGE.fullmatch(at)}
    if isinstance(value, list):
        return [fixed(one, f"{path}.{number}") for number, one in enumerate(value)]
    return value
