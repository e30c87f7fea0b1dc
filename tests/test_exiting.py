"""Ranks end without the taking down of the interpreter, with all that a program may count on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_mole.exiting import run_to_end

ROOT = Path(__file__).resolve().parents[1]

BUSY = """
import atexit, sys, threading, time
import torch
from llava_mole.exiting import run_to_end

def work():  # a thread that is forever inside of torch, as gloo's may be when a run is over
    ones = torch.ones(100)
    while True:
        ones + ones

said = threading.Event()

def late():
    said.wait()
    time.sleep(0.2)
    print("joined")

def main():
    atexit.register(print, "handler")
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=late).start()
    time.sleep(0.1)
    print("done", end=" ")
    said.set()
    END

sys.exit(run_to_end(main))
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("raise SystemExit(143)", 143, ""),
        ("raise SystemExit('stopped')", 1, "stopped"),
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
    ],
)
def test_a_rank_ends_with_its_code_whatever_its_threads_do(end: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BUSY.replace("END", end)],
        env={**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.split() == ["done", "joined", "handler"]
    assert said in ended.stderr
    assert "terminate" not in ended.stderr


def test_any_other_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run_to_end(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: 1 // 0)
