"""Ranks end without the taking down of the interpreter, with all that a program may count on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_mole.exiting import end

ROOT = Path(__file__).resolve().parents[1]

BUSY = """
import atexit, sys, threading, time
import torch
from llava_mole.exiting import end

def work():  # a thread that is forever inside of torch, as gloo's may be when a run is over
    ones = torch.ones(100)
    while True:
        ones + ones

def late():
    time.sleep(0.2)
    print("joined")

atexit.register(print, "handler")
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
threading.Thread(target=late).start()
time.sleep(0.1)
print("done", end=" ")
sys.exit(end(int(sys.argv[1])))
"""


def run(code: int, size: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BUSY, str(code)],
        env={**os.environ, "WORLD_SIZE": str(size), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 3])
def test_a_rank_ends_with_its_code_whatever_its_threads_do(code: int) -> None:
    ended = run(code, size=2)
    assert (ended.returncode, ended.stdout.split()) == (code, ["done", "joined", "handler"]), (
        ended.stderr
    )


def test_any_other_program_is_given_its_code_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert end(3) == 3
