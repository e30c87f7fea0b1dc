"""A run that is killed again and again, at any moment, ends as one that never was.

Every stage and every part takes part: warm start, experts, routers, LoRA, dropout, Parrot, samples
without a picture, accumulation, evaluation, the removal of old checkpoints.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from llava_mole.training.resume import read_mark

ROOT = Path(__file__).resolve().parents[2]
OF_A_PROCESS = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "seconds",
                "eval_seconds", "train_loss"}  # fmt: skip
"""Columns of the log that tell of a process's time; train_loss is a mean whose sum was cut."""


class Server:
    """Runs of a recipe, each in a forked child."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.fork_server"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, config: Path, out: Path, resume: str = "auto") -> int:
        order = {"config": str(config), "overrides": [f"output_dir={out}"], "resume": resume}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the run that was started last; its exit code."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Server()
    yield made
    made.close()


@pytest.fixture
def everything(recipe_file: Path, data: Path) -> Path:
    """The tiny recipe with all that keeps a state."""
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    items = json.loads((data / "train.json").read_text(encoding="utf-8"))
    for number in range(4):
        turns = [{"from": "human", "value": f"{number} and 1?"},
                 {"from": "gpt", "value": str(number + 1)}]  # fmt: skip
        items.append({"conversations": turns, "domain": "sums", "language": "en", "kind": "sum"})
    (data / "train.json").write_text(json.dumps(items), encoding="utf-8")
    (data / "held.json").write_text(json.dumps(items[::3]), encoding="utf-8")
    recipe["data"]["held_out"] = [{"path": str(data / "held.json")}]
    recipe["model"]["experts"]["lora_dropout"] = 0.2
    recipe["model"]["lora"]["lora_dropout"] = 0.2
    recipe["training"] = {"logging_steps": 3, "save_steps": 1, "save_total_limit": 2,
                          "eval_steps": 2, "optim": "adamw_torch", "lr_scheduler_type": "cosine",
                          "gradient_accumulation_steps": 2, "disable_tqdm": True}  # fmt: skip
    _, instruct, parrot = recipe["stages"]
    instruct["steps"], instruct["pictures_per_step"] = 8, 1
    parrot["steps"], parrot["pictures_per_step"] = 5, 1
    parrot["training"] = {"load_best_model_at_end": True, "eval_strategy": "steps",
                          "eval_steps": 1}  # fmt: skip
    parrot["learning_rates"] |= {"experts": 0.01, "routers": 0.01}
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return recipe_file


def tensors(out: Path) -> dict[str, Any]:
    return {
        f"{path.relative_to(out)}:{name}": value
        for path in sorted((out / "model").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def log_lines(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_A_PROCESS} for line in lines]


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in log_lines(out) if "loss" in line]


def files(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Any, child: int) -> None:
    """Until the condition holds, or the child has ended."""
    deadline = time.monotonic() + 120
    while alive(child) and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def progress(out: Path) -> int:
    """Grows with all that a run leaves."""
    log = out / "log.jsonl"
    lines = log.read_bytes().count(b"\n") if log.is_file() else 0
    return lines + sum(1 for _ in out.glob("stages/*/*/config.json"))


def half_made(out: Path) -> list[Path]:
    """What shows that something is being written or removed right now."""
    places = [out, *(out / "stages").glob("*")]
    return [
        path
        for place in places
        for path in place.glob(".*")
        if path.name == ".writing" or ".building-" in path.name or ".removed-" in path.name
    ]


@pytest.mark.slow
def test_killed_twenty_times_a_run_ends_with_the_same_weights_and_log(
    server: Server, everything: Path, tmp_path: Path
) -> None:
    expected, out = tmp_path / "expected", tmp_path / "killed"
    server.start(everything, expected)
    assert server.end() == 0

    rng = random.Random(5)
    kills = during_a_save = 0
    places = set()
    while kills < 20 or (kills < 60 and (during_a_save < 5 or len(places) < 5)):
        child = server.start(everything, out)
        if kills % 2:  # as soon as something is half made, or a moment later
            wait_for(lambda: half_made(out), child)
            time.sleep(rng.random() * 0.004)
        else:  # anywhere, but not before something is done
            aim = progress(out) + rng.randrange(4)
            wait_for(lambda aim=aim: progress(out) >= aim, child)
            time.sleep(rng.random() * 0.2)
        if alive(child):
            os.kill(child, signal.SIGKILL)
        if server.end() == 0:  # it was done before: another one, from the start
            shutil.rmtree(out)
            continue
        kills += 1
        during_a_save += bool(half_made(out))
        places.add(progress(out))
        # What bears the name of a checkpoint is whole.
        for checkpoint in out.glob("stages/*/checkpoint-*"):
            read_mark(checkpoint)
    assert during_a_save >= 5
    assert len(places) >= 5

    server.start(everything, out)
    assert server.end() == 0
    found, wanted = tensors(out), tensors(expected)
    assert found.keys() == wanted.keys()
    differing = [name for name in wanted if not found[name].equal(wanted[name])]
    assert not differing
    assert log_lines(out) == log_lines(expected)
    assert files(out) == files(expected)
    assert not half_made(out)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_told_to_end_writes_a_checkpoint_and_loses_no_step(
    server: Server, everything: Path, tmp_path: Path, sent: int
) -> None:
    """As a cluster does before it takes the machine away; nothing would have been saved by then."""
    recipe = yaml.safe_load(everything.read_text(encoding="utf-8"))
    recipe["training"] |= {"save_strategy": "no", "logging_steps": 1}
    recipe["training"].pop("save_steps")
    recipe["stages"] = [{**recipe["stages"][1], "steps": 200}]
    everything.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = tmp_path / "told"
    child = server.start(everything, out)
    wait_for(lambda: progress(out) >= 2, child)
    os.kill(child, sent)
    assert server.end() == 128 + sent
    steps = steps_of(out)
    (checkpoint,) = out.glob("stages/1-instruct/checkpoint-*")
    assert read_mark(checkpoint)["step"] == steps[-1]
    assert 2 <= steps[-1] < 200
    assert not (out / "model").exists()
    child = server.start(everything, out)
    wait_for(lambda: steps_of(out)[-1] > steps[-1] + 1, child)
    os.kill(child, signal.SIGKILL)
    assert server.end() == -signal.SIGKILL
    assert steps_of(out) == list(range(1, len(steps_of(out)) + 1))
