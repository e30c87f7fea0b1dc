"""Do the runs of a sweep: one after the other, or several at once, each a process of its own.

A process a run keeps peaks of memory apart, frees all of it, and lets a run fail alone. On
accelerators several runs take a device each; on CPUs they share the cores between them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from llava_mole import ranks
from llava_mole.errors import ConfigError
from llava_mole.sweeping import TEST
from llava_mole.sweeping.expected import beyond_budget, past, seconds_left
from llava_mole.sweeping.one_run import changed_folder, is_finished
from llava_mole.sweeping.plan import PlannedRun
from llava_mole.sweeping.reusing import copy_runs
from llava_mole.sweeping.run_folder import OUTPUT, check_unchanged, put_aside
from llava_mole.sweeping.scoring import check_choice, check_files, scored
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.sweeping.watching import STARTED_BY, ending_all
from llava_mole.training.progress import duration

TAIL, LINES, WIDTH = 2**22, 12, 2000
"""Bytes of a failed run's output that are read; lines that are shown, characters of a line."""
BAR = re.compile(
    r"(?:[^:]{0,60}:)? *\d{1,3}%\|[^|\[\]]{0,400}\| *[\d.]+\w{0,2}/[\d.]+\w{0,2} *"
    r"\[[^\[\]]{0,200}\]"
    r"|(?:[^:]{0,60}: *)?\b\d+\w{1,20} \[\d[\d:]{3,12}, [^\[\]]{0,200}\]"
)
"""A progress bar as tqdm draws it, with an end that is known and without."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What moves a terminal's cursor, clears or colours it."""


@dataclass(frozen=True, eq=False)
class Slot:
    """What one run at a time may use.

    Attributes:
        cores: CPU cores; None: all.
        environment: more of it.
    """

    cores: tuple[int, ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def make_slots(parallel: int | None) -> list[Slot]:
    """A slot for each run that may go on at once.

    Args:
        parallel: runs at once; None: one a device, or one where there is no accelerator.

    Raises:
        ConfigError: there are fewer devices, or fewer cores, than that.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    wanted = parallel if parallel is not None else max(1, devices)
    if wanted == 1 and devices < 2:
        return [Slot()]
    if devices:
        if wanted > devices:
            raise ConfigError(f"--parallel {wanted}: there are {devices} devices, a run needs one")
        if not torch.cuda.is_available():
            raise ConfigError("several devices that are not CUDA's: start each run with --one")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(devices)]
        return [Slot(environment={"CUDA_VISIBLE_DEVICES": name}) for name in names[:wanted]]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = len(cores) or ranks.cores()
    if wanted > count:
        raise ConfigError(f"--parallel {wanted}: there are {count} cores, a run needs one")
    each = count // wanted
    shares = [tuple(cores[i * each : (i + 1) * each]) or None for i in range(wanted)]
    return [Slot(share, {"OMP_NUM_THREADS": str(each)}) for share in shares]


@dataclass
class Started:
    """A run that is going on, since when, and the minutes that it was expected to take."""

    run: PlannedRun
    slot: Slot
    process: subprocess.Popen[bytes]
    since: float
    minutes: float = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


def check_before(sweep: Sweep, arms: Sequence[str], split: str, parallel: int | None) -> list[Slot]:
    """What can be known before anything is started; slots for runs.

    Raises:
        ConfigError, DataError: the protocol does not name an arm whose test is asked for, question
            files are missing, more at once than there are devices.
    """
    if split == TEST:
        check_choice(sweep, arms)
    check_files(sweep.evaluate, split)
    return make_slots(parallel)


def do_runs(
    sweep: Sweep,
    path: Path,
    runs: Sequence[PlannedRun],
    *,
    split: str,
    parallel: int | None = 1,
    again: bool = False,
    console: Console,
) -> int:
    """Do what is left of the runs.

    Returns:
        How many failed. Others go on; the next call takes failed ones up again.

    Raises:
        ConfigError, DataError: before anything is started: other recipes' runs are there, the
            protocol does not name an arm whose test is asked for, question files are missing, more
            at once than there are devices.
    """
    slots = check_before(sweep, list(dict.fromkeys(run.arm for run in runs)), split, parallel)
    if again:
        for run in runs:
            if changed_folder(run):
                aside = put_aside(sweep, run)
                console.print(f"{run.name}: what was there is now in {aside}", markup=False,
                              soft_wrap=True)  # fmt: skip
    copy_runs(sweep, runs, split, console)
    check_unchanged(list(runs))
    left = [run for run in runs if not is_finished(sweep, run, split)]
    if len(left) < len(runs):
        console.print(f"{len(runs) - len(left)} of {len(runs)} runs are done already")
    going: list[Started] = []
    failed, ended = 0, len(runs) - len(left)
    known = past(sweep, split)
    with ending_all(going):
        while left or going:
            free = [slot for slot in slots if slot not in [one.slot for one in going]]
            while left and free:
                problem = beyond_budget(sweep, left[0], going, known)
                if problem is not None:
                    names = ", ".join(run.name for run in left)
                    console.print(f"{problem}: not started: {names}", soft_wrap=True)
                    left = []
                    break
                minutes = known.expected(left[0])
                going.append(start(sweep, path, left.pop(0), free.pop(0), split, minutes))
                console.print(f"{going[-1].run.name}: started, {going[-1].run.folder / OUTPUT}",
                              markup=False, soft_wrap=True)  # fmt: skip
            time.sleep(0.1)
            for one in [one for one in going if one.process.poll() is not None]:
                going.remove(one)
                failed += one.process.returncode != 0
                report(split, one, console)
                ended += 1
                known = past(sweep, split)
                if left or going:
                    said = f"{ended} of {len(runs)} runs have ended"
                    said += f" ({failed} failed)" if failed else ""
                    ahead = seconds_left(left, going, len(slots), known)
                    console.print(f"{said}, about {duration(ahead)} left" if ahead else said)
    return failed


def start(
    sweep: Sweep, path: Path, run: PlannedRun, slot: Slot, split: str, minutes: float
) -> Started:
    """The run's process: the same command that a person gives for one run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    words = ["sweep", str(path), "--out", str(sweep.out), "--one", run.name, "--split", split]
    environment = os.environ | slot.environment | {STARTED_BY: str(os.getpid())}
    with (run.folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llava_mole.cli", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    if slot.cores is not None:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)  # before it has made a thread
    return Started(run, slot, process, time.monotonic(), minutes)


def report(split: str, one: Started, console: Console) -> None:
    """How a run ended, in a line; a failed one's last words."""
    took = duration(one.seconds)
    if one.process.returncode == 0:
        found = scored(one.run.folder, split)["domains"].items()
        marks = ", ".join(f"{domain} {100 * values['accuracy']:.0f}" for domain, values in found)
        console.print(f"{one.run.name}: done in {took}; {split}: {marks} %", soft_wrap=True)
        return
    code = one.process.returncode
    how = f"ended by signal {-code}" if code < 0 else f"failed (exit code {code})"
    last = "\n".join(f"  {line}" for line in last_words(one.run.folder / OUTPUT))
    console.print(f"{one.run.name}: {how} after {took}; it goes on with the same command:\n{last}",
                  markup=False, soft_wrap=True)  # fmt: skip


def last_words(output: Path) -> list[str]:
    """The end of what a process said, without progress bars and what moves the cursor."""
    if not output.is_file():
        return []
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    found: list[str] = []
    for line in reversed(re.split(r"[\r\n]+", text)):
        said = BAR.sub("", ESCAPES.sub("", line[-WIDTH:])).rstrip()
        if said:
            found.append(said)
        if len(found) == LINES:
            break
    return found[::-1]
