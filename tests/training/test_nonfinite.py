"""A loss or a gradient that is no number ends the run before it reaches a weight."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from llava_mole import LlavaMoleForConditionalGeneration
from llava_mole.errors import TrainingError
from llava_mole.training.nonfinite import scaled_down
from llava_mole.training.replay import main as replay_main
from llava_mole.training.replay import read_record, replay
from llava_mole.training.resume import latest_checkpoint
from tests.processes import together
from tests.training.stage import Poison, stage, weights, write_pictures


@pytest.fixture(scope="module")
def paths(tiny_parts: Any) -> dict[str, Path]:
    write_pictures(tiny_parts.root / "pictures")
    return {
        "language_model": tiny_parts.language_model("gemma3_text"),
        "tower": tiny_parts.tower("vit"),
        "pictures": tiny_parts.root / "pictures",
    }


class Watcher(TrainerCallback):
    """Weights before and after each optimizer step that was taken."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.steps = 0

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps += 1


OPTIONS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "rows_per_step": 2,
           "gradient_accumulation_steps": 2, "dropout": 0.2}  # fmt: skip


def test_a_loss_that_is_no_number_stops_before_the_step_and_can_be_seen_again(
    paths: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = stage(tmp_path, **paths, **OPTIONS)
    trainer.add_callback(Poison(trainer, step=3, where="weight"))
    watcher = Watcher(trainer)
    trainer.add_callback(watcher)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message, folder = str(caught.value), tmp_path / "nonfinite" / "stage-step-3"
    for expected in ("stage stage, step 3: the loss is no number (language nan", "tiny.json:",
                     f"llava_mole.training.replay {folder}", "training.max_grad_norm (now 1)",
                     f"--resume {tmp_path / 'checkpoint-2'}"):  # fmt: skip
        assert expected in message
    assert watcher.steps == trainer.state.global_step == 2
    # The last good checkpoint is whole and holds numbers.
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    good = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    assert all(bool(p.isfinite().all()) for p in good.parameters())
    # What was kept: both micro-batches, their samples, the weights as they were.
    batches, _, about = read_record(folder, 0)
    assert len(batches) == len(about["micro_batches"]) == 2
    assert all(entry["samples"] for entry in about["micro_batches"])
    kept = dict(
        LlavaMoleForConditionalGeneration.from_pretrained(folder / "model").named_parameters()
    )
    for name, value in weights(trainer).items():
        assert torch.equal(kept[name], value), name
    losses, wrong = replay(folder)
    assert all(math.isnan(entry["language"]) for entry in losses)
    assert wrong.keys() == about["gradients"].keys()
    assert "projector" in wrong
    assert replay_main([str(folder)]) == 0
    assert "<- no number" in capsys.readouterr().out


def test_a_step_is_done_again_with_the_same_losses(paths: dict[str, Path], tmp_path: Path) -> None:
    """Dropout masks included: only the gradient was wrong, so the losses are numbers to compare."""
    trainer = stage(tmp_path, **paths, **OPTIONS)
    trainer.add_callback(Poison(trainer, step=2, where="gradient"))
    with pytest.raises(TrainingError, match=r"the gradient's norm is (nan|inf)"):
        trainer.train()
    _, _, about = read_record(tmp_path / "nonfinite" / "stage-step-2", 0)
    losses, wrong = replay(tmp_path / "nonfinite" / "stage-step-2")
    assert [entry["losses"] for entry in about["micro_batches"]] == losses
    assert list(about["gradients"]) == ["lora"]
    assert not wrong  # what poisoned it was a hook, and is not in the kept model


def test_weights_that_overflowed_are_not_saved(paths: dict[str, Path], tmp_path: Path) -> None:
    trainer = stage(tmp_path, **paths, **OPTIONS)
    trainer.add_callback(Poison(trainer, step=3, where="after"))
    with pytest.raises(TrainingError, match=r"no checkpoint was written.*checkpoint-2"):
        trainer.train()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_gradients_that_a_scaler_made_overflow_do_not_count() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, backoff_factor=0.5)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    answers = []
    for _ in range(4):  # a gradient that is truly no number: the scale falls until it counts
        scaler.scale(weight.sum() * float("inf")).backward()
        scaler.unscale_(optimizer)
        answers.append(scaled_down(scaler))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert answers == [True, True, True, False]
    assert weight.item() == 1.0
    assert not scaled_down(None)
    assert not scaled_down(torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.thorough), "fsdp"])
def test_all_ranks_stop_where_one_has_no_number(
    engine: str, paths: dict[str, Path], tmp_path: Path
) -> None:
    """In pieces too: what is kept is the whole model, and one process sees the step again."""
    run = {"rows_per_step": 2, "poison": {"rank": 1, "step": 2, "where": "weight"},
           "save_strategy": "steps", "save_steps": 1, "fsdp": engine == "fsdp"}  # fmt: skip
    options = {**{k: str(v) for k, v in paths.items()}, "runs": {"run": run}}
    said = together("tests.training.stage", [str(tmp_path), json.dumps(options)], expected=1)
    assert all("TrainingError: stage stage, step 2" in one for one in said), "\n".join(said)
    out = tmp_path / "run"
    assert all(f"--resume {out / 'checkpoint-1'}" in one for one in said)
    assert latest_checkpoint(out) == out / "checkpoint-1"
    folder = out / "nonfinite" / "stage-step-2"
    mine, other = ([entry["losses"]["language"] for entry in read_record(folder, rank)[2]
                    ["micro_batches"]] for rank in range(2))  # fmt: skip
    assert all(value == "nan" for value in other)
    if engine == "ddp":
        assert all(math.isfinite(value) for value in mine)
    else:  # a piece was spoilt, and all ranks compute with it
        assert all(value == "nan" for value in mine)
        losses, wrong = replay(folder)
        assert all(math.isnan(entry["language"]) for entry in losses)
        assert "projector" in wrong
