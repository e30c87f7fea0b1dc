"""Memory that runs out is answered with the keys to change. No accelerator is needed to see it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_mole.cli import main
from llava_mole.errors import TrainingError
from llava_mole.training.memory import OWN_SETTINGS, memory_advice, ran_out
from llava_mole.training.recipe import Recipe
from llava_mole.training.schema import load_recipe


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file, ["stages.instruct.packing=256", "workers=2"])


def too_much_for_torch() -> None:
    torch.empty(10**15)


def too_much_for_numpy() -> None:
    np.empty(10**16)


def too_much_for_python() -> None:
    bytearray(10**17)


def as_an_accelerator_says_it() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    "allocate",
    [too_much_for_torch, too_much_for_numpy, too_much_for_python, as_an_accelerator_says_it],
)
def test_running_out_of_memory_names_the_keys_their_values_and_the_peak(
    recipe: Recipe, allocate: object
) -> None:
    stage = recipe.stages[1]
    with pytest.raises(TrainingError) as caught, memory_advice(recipe, stage):
        allocate()
    message = str(caught.value)
    order = [
        "stages.instruct.pictures_per_step=1 (now 2) with training.gradient_accumulation_steps=2 "
        "(now 1)",
        "training.activation_checkpointing=true (now false)",
        "workers=1 (now 2)",
        "data.feature_cache={}",
        "stages.instruct.packing=128 (now 256)",
        "stages.instruct.questions_per_picture=1 (now 2)",
        "training.optim=adamw_8bit",
        "model.dtype=bfloat16 (now float32)",
        "data.max_length",
    ]
    places = [message.index(line) for line in order]
    assert places == sorted(places)  # the cheapest first
    assert "stage instruct: memory ran out (peak so far: process " in message
    assert isinstance(caught.value.__cause__, MemoryError | RuntimeError)


def test_what_is_set_already_is_not_advised(recipe_file: Path) -> None:
    changes = ["training.activation_checkpointing=true", "data.feature_cache={}"]
    changes += ["model.dtype=bfloat16", "training.optim=adamw_8bit", "stages.instruct.steps=4"]
    changes += ["stages.instruct.pictures_per_step=1", "stages.instruct.questions_per_picture=1"]
    recipe = load_recipe(recipe_file, changes)
    with pytest.raises(TrainingError) as caught, memory_advice(recipe, recipe.stages[1]):
        too_much_for_torch()
    advised = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(advised) == 1
    assert "data.max_length" in advised[0]


def test_other_errors_pass_as_they_are(recipe: Recipe) -> None:
    expected = pytest.raises(RuntimeError, match="shapes cannot be multiplied")
    with expected as caught, memory_advice(recipe, recipe.stages[1]):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(caught.value, TrainingError)
    assert not ran_out(caught.value)


def test_a_warm_start_has_keys_of_its_own(recipe: Recipe) -> None:
    expected = pytest.raises(TrainingError, match=r"stages\.warm\.warm_start\.pictures_per_step=64")
    with expected, memory_advice(recipe, recipe.stages[0]):
        too_much_for_torch()


def test_a_run_that_runs_out_ends_in_one_message(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator itself refuses, in the first step of a real run."""
    from llava_mole.training.trainer import StageTrainer

    step = StageTrainer.training_step

    def greedy(self: StageTrainer, *args: object, **options: object) -> object:
        too_much_for_torch()
        return step(self, *args, **options)

    monkeypatch.setattr(StageTrainer, "training_step", greedy)
    assert main(["train", "--config", str(recipe_file), "stages.warm=null"]) == 2
    said = capsys.readouterr().err
    assert "stage instruct: memory ran out" in said
    assert "Traceback" not in said


KEEPS = """
import json, resource, torch
from llava_mole.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        parts = [torch.ones(2**20) for _ in range(8)]  # 4 MiB each, all freed at once
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, kept = faults(), keep_freed_memory()
faults()
print(json.dumps([first, kept, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="of runs on the CPU")
def test_what_is_freed_is_kept_unless_the_environment_says_otherwise() -> None:
    """A page that the system gives is a fault; 4 x 8 blocks of 4 MiB have 32,768 of 4 KiB."""

    def run(**more: str) -> list[int]:
        plain = {key: value for key, value in os.environ.items() if key not in OWN_SETTINGS}
        program = [sys.executable, "-c", KEEPS]
        return json.loads(subprocess.check_output(program, env={**plain, **more}, text=True))

    before, kept, after = run()
    assert kept
    assert after < 0.05 * before
    assert run(MALLOC_TRIM_THRESHOLD_="131072")[1] is False
