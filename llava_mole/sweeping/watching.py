"""Processes that a sweep has started end when it does, whatever ends it. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

STARTED_BY = "LLAVA_MOLE_SWEEP"
"""Environment: process id of the sweep that started this one."""


def watch_sweep() -> None:
    """A sweep that was killed outright cannot end its runs: they watch it. For the process that the
    sweep started; ranks that it launches watch that one."""
    parent = int(os.environ.get(STARTED_BY, "0"))
    if not parent:
        return
    if os.getppid() != parent:  # it was killed while this process was starting
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Child(Protocol):
    """What has a process that ends with the sweep."""

    process: subprocess.Popen[bytes]


@contextmanager
def ending_all(going: Sequence[Child]) -> Iterator[None]:
    """Whatever ends the sweep, its runs are told to end, write a checkpoint, and are waited for."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        for one in going:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        for one in going:
            one.process.wait()
