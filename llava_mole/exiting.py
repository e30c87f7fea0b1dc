"""How a program of ours ends: as Python does, unless it is one of several processes of a run."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable


def run_to_end(program: Callable[[], int]) -> int:
    """The exit code of a program, which a rank does not return from: it ends here.

    A rank does all that Python does at its end, but not the taking down of the interpreter: a
    thread of torch or gloo that asks for its lock meanwhile would abort the process
    (https://github.com/pytorch/pytorch/issues/38228), and a run that was finished, or that ends for
    a reason, would count as aborted. Children of `multiprocessing` end in the same way.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return program()
    try:
        code = program()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
