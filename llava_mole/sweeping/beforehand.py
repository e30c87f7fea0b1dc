"""What is there before the runs of a sweep: models that they start from, runs of another sweep."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llava_mole.errors import ConfigError
from llava_mole.folders import remove_folder
from llava_mole.sweeping.plan import PlannedRun, as_overrides, run_folder
from llava_mole.sweeping.run_folder import RUN, changed, is_done
from llava_mole.sweeping.scheduling import ending_all
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.sweeping.watching import STARTED_BY
from llava_mole.training.reading import beside, read_mapping
from llava_mole.training.resume import compared, described_recipe
from llava_mole.training.schema import load_recipe

# ---------------------------------------------------------------------- models to start from


@dataclass(frozen=True)
class Training:
    """How a folder of `starts` is made: the same command that a person gives."""

    folder: str
    recipe: Path
    changes: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return ["train", "--config", str(self.recipe), *self.changes]

    def done(self) -> bool:
        """Whether its model is there.

        Raises:
            ConfigError: it is of another recipe.
        """
        if not (Path(self.folder) / "model").is_dir():  # it appears whole
            return False
        recipe = load_recipe(self.recipe, list(self.changes))
        _, lines = compared(recipe, described_recipe(recipe))
        if lines:
            shown = "".join(f"\n  {line}" for line in lines)
            raise ConfigError(
                f"what is there was trained by another recipe:{shown}\n"
                "Take the change back, name another folder, or move this one away to have it made "
                "anew"
            )
        return True


@dataclass
class Going:
    """A training that ends with the sweep."""

    process: subprocess.Popen[bytes]


def trainings(sweep: Sweep, path: Path, arms: Iterable[str]) -> list[Training]:
    """Of `starts`, in the file's order, those that these arms start from, and what those start
    from in turn.

    Args:
        path: of the sweep file.
    """
    base = beside(sweep.base, path)
    starts = [start_of(base, sweep.set | sweep.arm(arm).set) for arm in arms if sweep.starts]
    wanted = {one for one in starts if one is not None}
    found = []
    for folder, start in reversed(sweep.starts.items()):
        if any(Path(folder) in one.parents for one in wanted):
            recipe = beside(start.recipe, path)
            changes = as_overrides(start.set | {"output_dir": folder})
            found.append(Training(folder, recipe, tuple(changes)))
            further = start_of(recipe, start.set)
            if further is not None:
                wanted.add(further)
    return found[::-1]


def start_of(recipe: Path, changes: Mapping[str, Any]) -> Path | None:
    """The model that a recipe starts from, as far as can be seen before it is there."""
    model = read_mapping(recipe, "recipe").get("model")
    own = model.get("start_from") if isinstance(model, dict) else None
    start = changes.get("model.start_from", own)
    return None if start is None else Path(str(start))


def to_train(sweep: Sweep, path: Path, arms: Iterable[str]) -> list[Training]:
    """Those of `trainings` whose model is not there.

    Raises:
        ConfigError: one is there of another recipe.
    """
    found = []
    for one in trainings(sweep, path, arms):
        try:
            if not one.done():
                found.append(one)
        except ConfigError as error:
            raise ConfigError(f"{path}: starts.{one.folder}: {error}") from error
    return found


def train_starts(sweep: Sweep, path: Path, arms: Iterable[str], console: Console) -> int:
    """Make what is missing of `starts`, one after the other, each as `llava-mole train` does.

    Returns:
        The exit status of the first that failed, after which no other is begun; else 0.
    """
    missing = to_train(sweep, path, arms)
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
            console.print(f"starts.{one.folder}: not trained (exit status {status}); the same "
                          "command goes on with it", markup=False, soft_wrap=True)  # fmt: skip
            return status
    return 0


# ---------------------------------------------------------------------- runs of another sweep


def reusable(sweep: Sweep, run: PlannedRun) -> PlannedRun | None:
    """The same run where another sweep of `reuse` has done it; None if it is here already, begun
    at least, or nowhere.

    Raises:
        CheckpointError: a file there cannot be read.
    """
    if (run.folder / RUN).is_file():
        return None
    for folder, arms in sweep.reuse.items():
        other = replace(run, folder=run_folder(Path(folder), run.arm, run.seed))
        if run.arm in arms and is_done(other) and not changed(other):
            return other
    return None


def copy_runs(sweep: Sweep, runs: Sequence[PlannedRun], console: Console) -> None:
    """Copy what is `reusable`; each appears whole."""
    for run in runs:
        other = reusable(sweep, run)
        if other is None:
            continue
        part = run.folder.with_name(f"{run.folder.name}.part")
        remove_folder(part)  # of a copy that was stopped
        shutil.copytree(other.folder, part)
        remove_folder(run.folder)  # nothing but what was said before it began
        os.rename(part, run.folder)
        console.print(f"{run.name}: copied from {other.folder}", markup=False, soft_wrap=True)
