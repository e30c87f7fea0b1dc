"""The folder of one run, and what its files say of how far it has come.

recipe.json, log.jsonl, model/     as every run of `llava-mole train` has them
stages/                            until the run is done, for going on
output.log                         what the run's process said
run.json                           arm, seed, digest of the recipe, the recipe
attempts.jsonl                     a line each time that it was started, to train or to score
order.json                         what it draws (`order.py`)
trained.json                       parameters, steps, times, memory; training is over
predictions/dev/DOMAIN.jsonl       a line for every question
predictions/dev/scored.json        which questions were asked, hashes of the files
done.json                          it is done: the run's figures, in one place
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import remove_folder, writing_file
from llava_mole.sweeping.plan import PlannedRun, resolved
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.training.resume import differences, filled, only_run

RUN, ATTEMPTS, ORDER = "run.json", "attempts.jsonl", "order.json"
TRAINED, SCORED, DONE = "trained.json", "scored.json", "done.json"
PREDICTIONS, OUTPUT = "predictions", "output.log"


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file.

    Raises:
        CheckpointError: it holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); it was written whole, so something changed it. "
            "A run's: --again puts the run aside and does it anew"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    with writing_file(path) as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.write("\n")


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """One write, on disk when it returns: lines of several processes do not mix. Whole or not at
    all.

    Raises:
        CheckpointError: there is no room for it, or it may not be written.
    """
    line = (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):  # a disk that is full takes a part
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of such a file. Raises CheckpointError for one that is no JSON object."""
    if not path.is_file():
        return []
    found = []
    lines = path.read_text(encoding="utf-8").split("\n")  # no other character ends a line of JSON
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}:{number}: expected a JSON object")
        found.append(values)
    return found


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------- how far it has come


def split_folder(folder: Path, split: str) -> Path:
    return folder / PREDICTIONS / split


def is_done(run: PlannedRun) -> bool:
    """Whether the run was done, under the same recipe."""
    done = read_json(run.folder / DONE)
    return done is not None and done.get("digest") == own_digest(run)


def own_digest(run: PlannedRun) -> str:
    """The digest that the folder's run goes by: that of an earlier version of this program, which
    had fewer keys or hashes, if its recipe is this one; else the run's."""
    about = about_run(run.folder)
    return run.digest if about is None or changed(run) else about["digest"]


def about_run(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where nothing is there.

    Raises:
        CheckpointError: it lacks digest or recipe.
    """
    about = read_json(folder / RUN)
    if about is not None and not (
        isinstance(about.get("digest"), str) and isinstance(about.get("recipe"), dict)
    ):
        raise CheckpointError(
            f"{folder / RUN}: no digest with a recipe; something changed it. --again puts the run "
            "aside and does it anew"
        )
    return about


def changed(run: PlannedRun) -> list[str]:
    """What differs between the recipe that the folder's run has and this one; both digests first.
    Empty: the same, or nothing is there."""
    about = about_run(run.folder)
    if about is None or about["digest"] == run.digest:
        return []
    here = resolved(run.recipe)
    keys = differences(filled(about["recipe"], run.recipe, here["content"]), here)
    return [f"digest: {about['digest']} -> {run.digest}", *keys] if keys else []


def check_unchanged(runs: list[PlannedRun]) -> None:
    """Raises ConfigError listing every run whose recipe is not the one in its folder."""
    lines = []
    for run in runs:
        for number, line in enumerate(changed(run)):
            lines.append(f"  {run.name}: {line}" if number == 0 else f"    {line}")
    if lines:
        shown = "\n".join(lines)
        raise ConfigError(
            f"these runs are there with another recipe:\n{shown}\n"
            "Take the change back, choose another output_dir, or do them anew with --again "
            "(what is there is put aside)"
        )


def put_aside(sweep: Sweep, run: PlannedRun) -> Path:
    """Move a run's folder out of the way; where to.

    Raises:
        ConfigError: a process is doing that run.
    """
    with only_run(run.folder / PREDICTIONS):
        pass
    number = 1
    while (sweep.out / "earlier" / str(number) / run.name).exists():
        number += 1
    aside = sweep.out / "earlier" / str(number) / run.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.rename(run.folder, aside)
    return aside


def begin(run: PlannedRun) -> None:
    """Say whose folder it is, and that the run was started."""
    about = {
        "arm": run.arm,
        "seed": run.seed,
        "digest": own_digest(run),
        "about": run.about.about,
        "other_data": run.about.other_data,
        "set": run.about.set,
        "recipe": resolved(run.recipe),
    }
    write_json(run.folder / RUN, about)
    trains = not (run.folder / TRAINED).is_file()
    attempt = {"started": now(), "process": os.getpid(), "trains": trains}
    append_line(run.folder / ATTEMPTS, attempt)


def tidy(folder: Path, keep: str) -> None:
    """Remove what a finished run need not keep."""
    if keep != "everything":
        remove_folder(folder / "stages")
    if keep == "nothing":
        remove_folder(folder / "model")
