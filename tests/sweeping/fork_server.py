"""A process that has imported everything once and forks a child for each run that it is told of.

    python -m tests.sweeping.fork_server   one JSON line in: {"sweep": …, "run": "lora/seed-0", …}
                                           one line out: the child's process id
                                           a second line: its exit status

The server itself never trains: no thread of autograd is there to be lost in a fork.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import torch

from llava_mole.sweeping.command import one_of
from llava_mole.sweeping.one_run import do_run
from llava_mole.sweeping.plan import plan_runs
from llava_mole.sweeping.sweep_file import read_sweep


def child(order: dict) -> None:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        torch.set_num_threads(1)
        path = Path(order["sweep"])
        sweep = read_sweep(path)
        arm, seed = one_of(sweep, order["run"])
        (run,) = plan_runs(sweep, path, arms=[arm], seeds=[seed])
        do_run(sweep, run, split=order["split"])
        code = 0
    except Exception:
        traceback.print_exc()
    os._exit(code)


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    gc.freeze()  # what was imported: each child would look through it again and again
    for line in sys.stdin:
        number = os.fork()
        if not number:
            child(json.loads(line))
        say(number)
        _, status = os.waitpid(number, 0)
        say(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
