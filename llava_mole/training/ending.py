"""SIGTERM, as sent before a machine is taken away: finish the step, write a checkpoint, end.

`kill`, a scheduler's time limit and a preempted machine send it; SIGUSR1, with which schedulers
warn, does the same. A second one ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
]


class Ended(SystemExit):
    """Raised once the checkpoint is written; its code is the shell's for the signal."""


class Ending:
    """Whether the process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def ask(self, number: int, frame: Any) -> None:
        self.asked = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def told_to_end() -> Iterator[Ending]:
    """Inside, those signals are noted. Only the main thread of a program can; elsewhere they act as
    before."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {number: signal.signal(number, ending.ask) for number in SIGNALS}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
