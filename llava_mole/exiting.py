"""How a program of ours ends: as Python does, unless it is one of several processes of a run."""

from __future__ import annotations

import atexit
import os
import sys
import threading


def end(code: int) -> int:
    """The last call of a program that may be a rank: ends that one, gives any other its code back.

    A rank does all that Python does at its end, but not the taking down of the interpreter: a
    thread of torch or gloo that asks for its lock meanwhile would abort the process
    (https://github.com/pytorch/pytorch/issues/38228), and a run that was finished would count as
    failed. Children of `multiprocessing` end in the same way.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
