"""Runs that another sweep has done of the same recipe: copied instead of trained again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import replacing_folder
from llava_mole.sweeping import DEVELOPMENT, TEST
from llava_mole.sweeping.plan import PlannedRun, run_folder
from llava_mole.sweeping.run_folder import (
    DONE,
    PREDICTIONS,
    RUN,
    append_line,
    changed,
    is_done,
    read_json,
    write_json,
)
from llava_mole.sweeping.scoring import TEST_SCORINGS, scored, scores_left, scoring_line
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.training.resume import only_run


def begun(run: PlannedRun) -> bool:
    return (run.folder / RUN).is_file()


def donors(sweep: Sweep, run: PlannedRun) -> Iterator[PlannedRun]:
    """The same run in the folders of `reuse` that name its arm."""
    for folder, arms in sweep.reuse.items():
        if run.arm in arms:
            place = run_folder(Path(folder).expanduser(), run.arm, run.seed)
            yield replace(run, folder=place)


def not_reusable(sweep: Sweep, donor: PlannedRun, split: str) -> str | None:
    """Why a donor's run is of no use; None: it is."""
    try:
        if not begun(donor):
            return "no run is there"
        if keys := changed(donor):
            return f"it is of another recipe ({'; '.join(keys[1:] or keys)})"
        if not is_done(donor):
            return "it is not done"
        left = scores_left(sweep, donor, split)
    except (CheckpointError, ConfigError):
        return "its files cannot be read"
    if left and not (donor.folder / "model").is_dir():
        return f"its model is not there any more, and {', '.join(left)} would have to be scored"
    return None


def reusable(sweep: Sweep, run: PlannedRun, split: str = DEVELOPMENT) -> PlannedRun | None:
    """The first donor of a run that is not here yet, if any."""
    if begun(run):
        return None
    found = (one for one in donors(sweep, run) if not_reusable(sweep, one, split) is None)
    return next(found, None)


def copy_runs(sweep: Sweep, runs: Sequence[PlannedRun], split: str, console: Console) -> None:
    """Copy what is reusable, and say of the rest of `reuse` why it is not.

    Raises:
        CheckpointError: there is no room, or a file cannot be read or written; nothing is left of
            the copy.
    """
    for run in runs:
        if begun(run):
            continue
        for donor in donors(sweep, run):
            problem = not_reusable(sweep, donor, split) or copy_run(sweep, run, donor, split)
            said = "copied from" if problem is None else "not copied from"
            why = "" if problem is None else f": {problem}"
            console.print(f"{run.name}: {said} {donor.folder}{why}", markup=False, soft_wrap=True)
            if problem is None:
                break


def copy_run(sweep: Sweep, run: PlannedRun, donor: PlannedRun, split: str) -> str | None:
    """Copy one; it appears whole. Answers on test come along only where `split` is test, whose
    choice has been checked, and then with a line a domain in test_scorings.jsonl.

    Returns:
        Why not, where someone is at work on either; None: it is copied.
    """
    left_out = {Path("stages")} if sweep.keep != "everything" else set()
    if sweep.keep == "nothing" and not scores_left(sweep, donor, split):
        left_out.add(Path("model"))
    if split != TEST:
        left_out.add(Path(PREDICTIONS) / TEST)
    with ExitStack() as stack:
        try:
            stack.enter_context(only_run(donor.folder / PREDICTIONS))
            stack.enter_context(only_run(run.folder / PREDICTIONS))
        except ConfigError:
            return "a process is at work on it"
        if begun(run):
            return "it was begun here meanwhile"
        try:
            with replacing_folder(run.folder) as part:
                copy_files(donor.folder, part, left_out)
                if split == TEST:
                    told_of_test(sweep, run, donor)
                else:
                    without_test(part / DONE)
        except OSError as error:
            raise CheckpointError(f"{run.name}: not copied from {donor.folder}: {error}") from error
    return None


def copy_files(source: Path, target: Path, left_out: set[Path]) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if left_out & {name, *name.parents} or name.name == ".lock" or path.is_dir():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target / name)


def told_of_test(sweep: Sweep, run: PlannedRun, donor: PlannedRun) -> None:
    for domain in scored(donor.folder, TEST)["domains"]:
        line = scoring_line(sweep, run, domain) | {"copied_from": str(donor.folder)}
        append_line(sweep.out / TEST_SCORINGS, line)


def without_test(path: Path) -> None:
    done = read_json(path)
    assert done is not None
    done.get("accuracy", {}).pop(TEST, None)
    write_json(path, done)
