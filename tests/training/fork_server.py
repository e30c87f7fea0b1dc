"""A process that has imported everything once and forks a child for each run that it is told of.

    python -m tests.training.fork_server      one JSON line in: {"config": …, "out": …, …}
                                              one line out: the child's process id

The child runs the recipe and ends with `os._exit`; its exit status comes as a second line. The
server itself never trains: no thread of autograd is there to be lost in a fork.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

import torch

from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe


def child(order: dict) -> None:
    code = 1
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        torch.set_num_threads(1)
        run_recipe(load_recipe(order["config"], order["overrides"]), resume=order["resume"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        traceback.print_exc()
    os._exit(code)


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    for line in sys.stdin:
        number = os.fork()
        if not number:
            child(json.loads(line))
        say(number)

        def report(number: int = number) -> None:
            _, status = os.waitpid(number, 0)
            say(os.waitstatus_to_exitcode(status))

        threading.Thread(target=report, daemon=True).start()


if __name__ == "__main__":
    main()
