"""A process that a sweep has started ends when the sweep does. Imports nothing heavy."""

from __future__ import annotations

import os
import threading
import time

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
