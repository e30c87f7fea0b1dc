"""Several processes, one run: who am I, wait for the others, share what each worked out.

On CPUs, processes that each own their cores beat threads that share every small operation: a step
of the starter is full of them. `launch` starts a command once per rank on this machine and tears
all down when one fails; torchrun does the same across machines. In a process that was not started
in either way every function here is a no-op.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

WORKERS = "LLAVA_MOLE_WORKERS"
LAUNCHER = "LLAVA_MOLE_LAUNCHER"

PATIENCE = timedelta(hours=6)
"""How long a rank waits for another that builds data or warms up alone."""


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """0 is the one that writes files and talks to the user."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if size() > 1:
        distributed.barrier()


def gather(value: Any) -> list[Any]:
    """Every rank's value, in order of ranks, on every rank. A collective: all must call it."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The main rank's value, on every rank. A collective."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def same_weights(module: torch.nn.Module) -> None:
    """Give every rank the main rank's parameters and buffers. A collective."""
    if size() > 1:
        state = {name: value.cpu() for name, value in module.state_dict().items()}
        module.load_state_dict(from_main(state if is_main() else None))


def join() -> None:
    """Join the group that `launch` (or torchrun) started this process in, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        if LAUNCHER in os.environ:
            threading.Thread(
                target=_end_with, args=(int(os.environ[LAUNCHER]),), daemon=True
            ).start()
        cpu = not torch.accelerator.is_available()
        # accelerate would not ask DeepSpeed where it is told that the device is a CPU.
        told = cpu and not by_deepspeed()
        PartialState(cpu=told, timeout=PATIENCE, **({"backend": "gloo"} if cpu else {}))
        if not is_main():
            quiet()


def by_deepspeed() -> bool:
    """Whether `accelerate launch` was told to train with DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def quiet() -> None:
    """Notices and bars are the main rank's, which has the same to say; errors are everyone's."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def leave() -> None:
    """Leave the group when the work is done, all together: a thread of gloo whose peers are gone
    may abort its process. A collective; a no-op without a group."""
    if distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()


LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "peer process")
"""What gloo and NCCL say of a process that is gone."""


def lost_another(error: RuntimeError) -> bool:
    """Whether a process failed only because another one had ended: that one says why."""
    return size() > 1 and any(words in str(error) for words in LOST)


def _end_with(parent: int) -> None:
    """A launcher that was killed outright cannot end its ranks: they watch it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def workers() -> int:
    """Ranks that `launch` started, which share what a recipe asks of one machine; else 1."""
    return int(os.environ.get(WORKERS, "1"))


def affordable(wanted: int) -> int:
    """How many of the wanted workers this machine should start: a divisor, so that they can share
    what the wanted ones could."""
    if torch.accelerator.is_available():
        return 1
    return next(n for n in range(min(wanted, cores()), 0, -1) if wanted % n == 0)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """A port of this machine for a group of processes that will be bound in some seconds.

    Not one that the system would give: those it gives to others meanwhile, as the near end of a
    connection too.
    """
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port between 20000 and 32000")


def launch(command: Sequence[str], processes: int) -> int:
    """Run `python -m llava_mole.cli COMMAND…` once per rank on this machine; its exit code.

    Rank 0 has the terminal. The others' words are kept, and shown if one of them is the first to
    fail. When any rank fails or the user interrupts, all end.
    """
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        WORKERS: str(processes), LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": str(max(1, cores() // processes)),
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    stack = ExitStack()
    said = [
        stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        for _ in range(processes - 1)
    ]
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, before)
    try:
        for index in range(processes):
            mine = {"RANK": str(index), "LOCAL_RANK": str(index)}
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "llava_mole.cli", *command],
                    env={**shared, **mine},
                    stdout=said[index - 1] if index else None,
                    stderr=subprocess.STDOUT if index else None,
                )
            )
        while not any(process.poll() for process in running):
            if all(process.poll() == 0 for process in running):
                return 0
            time.sleep(0.1)
        time.sleep(1)  # when one fails the others soon miss it; see who had a reason
        codes = [process.poll() or 0 for process in running]
        first = blamed(codes)
        if first:
            said[first - 1].seek(0)
            sys.stderr.write(said[first - 1].read()[-8000:].decode(errors="replace"))
        if codes[first] < 0:
            hint = ": out of memory? Try workers=1" if codes[first] == -signal.SIGKILL else ""
            sys.stderr.write(f"rank {first} was ended by signal {-codes[first]}{hint}\n")
        return codes[first] if codes[first] > 0 else 128 - codes[first]
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        stack.close()


def blamed(codes: Sequence[int]) -> int:
    """Which rank failed of itself: one of our errors (2), else a signal, else the first failure."""
    failed = [index for index, code in enumerate(codes) if code]
    for reason in (lambda code: code == 2, lambda code: code < 0, bool):
        for index in failed:
            if reason(codes[index]):
                return index
    raise ValueError("no rank failed")
