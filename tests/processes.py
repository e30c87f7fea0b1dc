"""Start a program of the tests as several processes that form one group, and see that it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llava_mole.ranks import free_port

REPOSITORY = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """For a subprocess: this tree first, one thread, no hub."""
    found = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


def together(
    module: str,
    arguments: Sequence[str],
    processes: int = 2,
    timeout: float = 240,
    expected: int = 0,
) -> list[str]:
    """Run `python -m MODULE ARGUMENTS…` on every rank; what each said.

    Raises:
        AssertionError: one ended with another code than the expected one, or they did not end in
            time: they wait for each other.
    """
    common = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    deadline = time.monotonic() + timeout
    said = []
    try:
        for process in running:
            left = max(1.0, deadline - time.monotonic())
            said.append(process.communicate(timeout=left)[0])
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"no end after {timeout:.0f} s: a deadlock?") from error
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [expected] * processes, "\n".join(said)
    return said
