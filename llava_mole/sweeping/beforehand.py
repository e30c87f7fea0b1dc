"""Models that the arms of a sweep start from: trained before them, where they are not there."""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llava_mole.errors import ConfigError
from llava_mole.sweeping.plan import NO_START, as_overrides, problems_in
from llava_mole.sweeping.sweep_file import Start, Sweep
from llava_mole.sweeping.watching import STARTED_BY, ending_all
from llava_mole.training.reading import apply_override, beside, read_mapping
from llava_mole.training.resume import compared, described_recipe
from llava_mole.training.schema import load_recipe


@dataclass(frozen=True)
class Training:
    """How an entry of `starts` is made: the same command that a person gives.

    Attributes:
        key: its folder, as the sweep file names it.
        changes: of the recipe, `key=value`; the last is its output_dir.
    """

    key: str
    recipe: Path
    changes: tuple[str, ...]

    @classmethod
    def of(cls, key: str, start: Start, path: Path) -> Training:
        """Of a sweep file's entry; `path`: of the sweep file."""
        changes = as_overrides(start.set | {"output_dir": str(Path(key).expanduser())})
        return cls(key, beside(start.recipe, path), tuple(changes))

    @property
    def model(self) -> Path:
        """Where it leaves the model; it appears there whole."""
        return Path(self.key).expanduser() / "model"

    @property
    def words(self) -> list[str]:
        return ["train", "--config", str(self.recipe), *self.changes]

    def there(self, starts: Collection[str | None]) -> bool:
        """Whether its model is there.

        Args:
            starts: real paths of the models that `starts` makes; where it starts from one that is
                not there, the recipe is not looked at further.

        Raises:
            ConfigError: the recipe is none, or what is there was made by another.
        """
        made = self.model.is_dir()
        try:
            recipe = load_recipe(self.recipe, list(self.changes))
        except ConfigError as error:
            own = start_of(read_mapping(self.recipe, "recipe"), self.changes)
            if own in starts and all(NO_START in one for one in problems_in(error)):
                return made
            raise
        if made or (self.model.parent / "stages").is_dir():
            _, lines = compared(recipe, described_recipe(recipe))
            lines = [line for line in lines if not is_elsewhere(line)]
            if lines:
                shown = "".join(f"\n    {line}" for line in lines)
                raise ConfigError(
                    f"what is there was trained by another recipe:{shown}\n"
                    "  Take the change back, name another folder, or move this one away to have it "
                    "made anew"
                )
        return made


def is_elsewhere(line: str) -> bool:
    """Of `compared`: the same folder in other words, or data that are not there any more."""
    key, _, change = line.partition(": ")
    return key == "output_dir" or (key.startswith("content.") and change.endswith("-> null"))


def start_of(recipe: Mapping[str, Any], changes: Sequence[str]) -> str | None:
    """Real path of the model that a recipe starts from, before it is there; None: none."""
    values = copy.deepcopy(dict(recipe))
    for change in changes:
        apply_override(values, change, [])  # `load_recipe` tells of what is wrong with it
    model = values.get("model")
    start = model.get("start_from") if isinstance(model, dict) else None
    return None if start is None else real(Path(str(start)))


def real(path: Path) -> str:
    return os.path.realpath(path.expanduser())


def starts_of_arms(sweep: Sweep, path: Path, arms: Iterable[str]) -> dict[str, str | None]:
    """Arm -> `start_of` its recipe. `path`: of the sweep file."""
    base = read_mapping(beside(sweep.base, path), "recipe")
    return {arm: start_of(base, as_overrides(sweep.set | sweep.arm(arm).set)) for arm in arms}


def to_train(sweep: Sweep, path: Path, arms: Iterable[str]) -> list[Training]:
    """What is missing of `starts` for these arms, in the order in which they need each other.

    Args:
        path: of the sweep file.

    Raises:
        ConfigError: naming the entry: its recipe is none, it needs itself, or what is there was
            made by another recipe.
    """
    if not sweep.starts:
        return []
    every = [Training.of(key, start, path) for key, start in sweep.starts.items()]
    known = {real(one.model): one for one in every}
    found: dict[str, Training] = {}

    def need(start: str | None, above: tuple[str, ...]) -> None:
        one = None if start is None else known.get(start)
        if one is None or one.key in found:
            return
        if one.key in above:
            raise ConfigError(f"{path}: starts.{one.key}: it starts from itself")
        try:
            if one.there(known.keys()):
                return
            further = start_of(read_mapping(one.recipe, "recipe"), one.changes)
        except ConfigError as error:
            raise ConfigError(f"{path}: starts.{one.key}: {error}") from error
        need(further, (*above, one.key))
        found[one.key] = one

    for start in starts_of_arms(sweep, path, arms).values():
        need(start, ())
    return list(found.values())


def waiting(
    sweep: Sweep, path: Path, arms: Iterable[str], missing: Sequence[Training]
) -> list[str]:
    """Arms that start from a model that is yet to be trained."""
    if not missing:
        return []
    models = {real(one.model) for one in missing}
    return [arm for arm, start in starts_of_arms(sweep, path, arms).items() if start in models]


@dataclass
class Going:
    """A training that ends with the sweep."""

    process: subprocess.Popen[bytes]


def train_starts(missing: Sequence[Training], console: Console) -> int:
    """One after the other, each as `llava-mole train` does.

    Returns:
        The exit status of the first that failed, after which no other is begun; else 0.
    """
    for number, one in enumerate(missing, start=1):
        console.print(f"first, {number} of {len(missing)}: llava-mole {shlex.join(one.words)}",
                      markup=False, soft_wrap=True)  # fmt: skip
        going: list[Going] = []
        with ending_all(going):
            going.append(Going(subprocess.Popen(
                [sys.executable, "-m", "llava_mole.cli", *one.words],
                stdin=subprocess.DEVNULL, env=os.environ | {STARTED_BY: str(os.getpid())},
            )))  # fmt: skip
            status = going[0].process.wait()
        if status:
            console.print(f"starts.{one.key}: not trained (exit status {status}), so no run is "
                          "begun; the same command takes it up again", markup=False,
                          soft_wrap=True)  # fmt: skip
            return status
    return 0
