"""StageTrainer: what may not change the result (how a step is cut), and what must come back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainerCallback

from llava_mole import LlavaMoleForConditionalGeneration
from llava_mole.training.log import JsonLog, gathered
from llava_mole.training.parts import part_of
from llava_mole.training.resume import latest_checkpoint, mark_checkpoint
from llava_mole.training.trainer import StageTrainer
from tests.training.stage import RATES, stage, weights, write_pictures


@pytest.fixture(scope="module")
def paths(tiny_parts: Any) -> dict[str, Path]:
    pictures = tiny_parts.root / "pictures"
    write_pictures(pictures)
    return {
        "language_model": tiny_parts.language_model("gemma3_text"),
        "tower": tiny_parts.tower("vit"),
        "pictures": pictures,
    }


@pytest.fixture
def trained(paths: dict[str, Path], tmp_path: Path) -> Callable[..., StageTrainer]:
    def run(name: str, **options: Any) -> StageTrainer:
        trainer = stage(tmp_path / name, **paths, **options)
        trainer.train()
        return trainer

    return run


def history(trainer: StageTrainer) -> list[dict[str, Any]]:
    return [gathered(entry) for entry in trainer.state.log_history if "loss" in entry]


def by_loss(entries: list[dict[str, Any]]) -> list[list[float]]:
    return [[e["loss_language"], e["loss_balance"], e["grad_norm"]] for e in entries]


def assert_same_run(found: Any, expected: Any) -> None:
    """Weights after three SGD steps of float32 sums in another order, and what was logged."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------- how a step is cut


@pytest.mark.parametrize("share_prefix", [True, False])
def test_accumulated_micro_batches_train_like_one_batch(
    trained: Callable[..., StageTrainer], share_prefix: bool
) -> None:
    """Rows differ in supervised tokens and in samples: losses are means over the whole step."""
    whole = trained("whole", rows_per_step=4, share_prefix=share_prefix)
    parts = trained(
        "parts", rows_per_step=1, gradient_accumulation_steps=4, share_prefix=share_prefix
    )
    assert_same_run(weights(parts), weights(whole))
    assert_close(by_loss(history(parts)), by_loss(history(whole)), rtol=1e-4, atol=1e-5)


def test_shared_pictures_train_like_separate_rows(trained: Callable[..., StageTrainer]) -> None:
    tree = trained("tree", share_prefix=True)
    rows = trained("rows", share_prefix=False)
    assert_same_run(weights(tree), weights(rows))
    assert_close(by_loss(history(tree)), by_loss(history(rows)), rtol=1e-4, atol=1e-5)
    for key in ("experts_en", "experts_tr"):
        assert [e[key] for e in history(tree)] == [e[key] for e in history(rows)]


LAYOUTS = {
    "tree rows": {},
    "packed tree rows": {"packing": 96},
    "packed rows": {"packing": 96, "share_prefix": False},
    "parrot": {"parrot": True, "rates": {**RATES, "parrot": 0.03}},
    "packed rows and parrot": {"packing": 96, "parrot": True, "rates": {**RATES, "parrot": 0.03}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activation_checkpointing_trains_alike(
    trained: Callable[..., StageTrainer], layout: str
) -> None:
    """The same numbers are computed twice, so the run is the same to the bit."""
    options = {"dropout": 0.2, "max_steps": 2, **LAYOUTS[layout]}
    plain = trained("plain", **options)
    recomputed = trained("recomputed", activation_checkpointing=True, **options)
    decoder = recomputed.model.language_model.model
    assert decoder.is_activation_checkpointing
    found, expected = weights(recomputed), weights(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert by_loss(history(recomputed)) == by_loss(history(plain))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulation_trains_alike_in_every_layout(
    trained: Callable[..., StageTrainer], layout: str
) -> None:
    whole = trained("whole", rows_per_step=4, max_steps=2, **LAYOUTS[layout])
    options = {"gradient_accumulation_steps": 4, "max_steps": 2, **LAYOUTS[layout]}
    parts = trained("parts", rows_per_step=1, **options)
    assert_same_run(weights(parts), weights(whole))
    assert_close(by_loss(history(parts)), by_loss(history(whole)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed tree rows", "parrot"])
def test_a_base_in_bfloat16_trains_near_one_in_float32(
    trained: Callable[..., StageTrainer], layout: str
) -> None:
    """Activations have 8 bits: the first step's losses, before any weight has moved apart, within
    2^-7 of their size; the balance loss counts routes, of which a few change sides. Recomputed,
    bfloat16 gives what bfloat16 gives."""
    options = {"max_steps": 1, **LAYOUTS[layout]}
    low = trained("low", dtype="bfloat16", **options)
    full = trained("full", **options)
    own = {p.dtype for n, p in low.model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert own == {torch.float32}  # PEFT's LoRA has the dtype of the linear that it is on
    (found,), (expected,) = history(low), history(full)
    assert found["loss_language"] == pytest.approx(expected["loss_language"], rel=2**-7)
    assert found["loss_balance"] == pytest.approx(expected["loss_balance"], rel=0.1)
    again = trained("again", dtype="bfloat16", activation_checkpointing=True, **options)
    assert by_loss(history(again)) == by_loss(history(low))


@pytest.mark.parametrize("part", ["vision", "projector", "parrot", "experts", "routers", "lora",
                                  "language_model"])  # fmt: skip
def test_every_part_moves_at_its_own_rate_and_alone(
    paths: dict[str, Path], tmp_path: Path, part: str
) -> None:
    """Plain SGD without clipping: twice the rate, twice the way."""
    moved = []
    for rate in (0.01, 0.02):
        trainer = stage(
            tmp_path / str(rate), **paths, parrot=True, rates={part: rate}, max_steps=1,
            max_grad_norm=0.0, lr_scheduler_type="constant",
        )  # fmt: skip
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved.append({n: p.detach() - before[n] for n, p in trainer.model.named_parameters()})
    changed = {name for name, way in moved[0].items() if way.any()}
    assert changed
    assert {part_of(name) for name in changed} == {part}
    for name in changed:  # differences of float32 weights of about 1
        assert_close(moved[1][name], 2 * moved[0][name], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------- stop and go on


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


RESUMABLE = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "dropout": 0.3,
    "ignore_data_skip": False,
}


def test_an_interrupted_and_resumed_run_gives_bit_equal_weights(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    """With dropout, momentum and a schedule: random state, optimizer and rate all come back."""
    whole = stage(tmp_path / "whole", **paths, **RESUMABLE)
    whole.train()
    first = stage(tmp_path / "cut", **paths, **RESUMABLE)
    first.add_callback(StopAt(3))
    first.train()
    found = latest_checkpoint(tmp_path / "cut")
    assert found is not None
    shutil.rmtree(tmp_path / "cut" / "checkpoint-3", ignore_errors=True)
    assert latest_checkpoint(tmp_path / "cut").name == "checkpoint-2"
    second = stage(tmp_path / "cut", **paths, **RESUMABLE)
    second.train(resume_from_checkpoint=str(latest_checkpoint(tmp_path / "cut")))
    assert second.state.global_step == 6
    expected = weights(whole)
    for name, value in weights(second).items():
        assert torch.equal(value, expected[name]), name
    assert by_loss(history(second)) == by_loss(history(whole))


def test_a_checkpoint_is_a_model_folder(paths: dict[str, Path], tmp_path: Path) -> None:
    trainer = stage(tmp_path, **paths, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    found = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    own = dict(found.named_parameters())
    for name, value in weights(trainer).items():
        assert torch.equal(own[name], value), name


def test_half_written_checkpoints_are_ignored(paths: dict[str, Path], tmp_path: Path) -> None:
    trainer = stage(tmp_path, **paths, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    whole = tmp_path / "checkpoint-2"
    shutil.copytree(whole, tmp_path / ".writing" / "checkpoint-8")
    shutil.copytree(whole, tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / "trainer_state.json").unlink()
    shutil.copytree(whole, tmp_path / ".checkpoint-7.building-12345678")
    shutil.copytree(whole, tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / "stage.json").unlink()
    shutil.copytree(whole, tmp_path / "checkpoint-11")
    optimizer = tmp_path / "checkpoint-11" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert latest_checkpoint(tmp_path) == whole


def test_nothing_to_resume_from_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "not there") is None


def test_checkpoint_10_is_newer_than_checkpoint_9(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        about = {"stage": "one", "step": step, "resumable": True, "seconds": 1, "ranks": 1}
        about |= {"parts": []}
        mark_checkpoint(tmp_path / f"checkpoint-{step}", about)
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"


def test_only_the_newest_checkpoints_are_kept(paths: dict[str, Path], tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "max_steps": 4}
    stage(tmp_path, **paths, **options).train()
    assert sorted(p.name for p in tmp_path.glob("*point-*")) == ["checkpoint-3", "checkpoint-4"]
    assert not (tmp_path / ".writing").exists()


# ---------------------------------------------------------------------- rates, time, log


def test_each_part_has_its_own_rate_and_vectors_do_not_decay(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    trainer = stage(tmp_path, **paths, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    assert {(group["name"], group["lr"]) for group in groups} == set(RATES.items())
    for group in groups:
        flat = {parameter.dim() <= 1 for parameter in group["params"]}
        assert flat == {group["weight_decay"] == 0.0}
    grouped = sum(len(group["params"]) for group in groups)
    assert grouped == sum(p.requires_grad for p in trainer.model.parameters())


def test_parts_without_a_rate_do_not_move(paths: dict[str, Path], tmp_path: Path) -> None:
    trainer = stage(tmp_path, **paths, rates={"projector": 0.1})
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("projector.")}


def test_a_time_budget_ends_the_stage_with_its_rate_at_zero(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    trainer = stage(
        tmp_path, **paths, max_steps=10_000, trainer={"time_budget": 1.0}, warmup_steps=0
    )
    trainer.train()
    assert 1 <= trainer.state.global_step < 10_000
    rates = [entry["learning_rate"] for entry in history(trainer)]
    assert rates == sorted(rates, reverse=True)
    assert trainer.lr_scheduler.get_last_lr() == [0.0] * len(trainer.optimizer.param_groups)


def test_a_resumed_stage_has_only_the_time_that_was_left(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    options = {
        "max_steps": 10_000,
        "trainer": {"time_budget": 3.0},
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
    }
    first = stage(tmp_path, **paths, **options)
    first.add_callback(StopAt(4))
    first.train()
    second = stage(tmp_path, **paths, **options)
    second.train(resume_from_checkpoint=str(latest_checkpoint(tmp_path)))
    rates = [entry["learning_rate"] for entry in history(second)]
    assert rates == sorted(rates, reverse=True)  # it does not rise again
    assert 0 < first.elapsed < second.elapsed


def test_the_log_names_every_loss_and_the_experts_of_every_language(
    trained: Callable[..., StageTrainer],
) -> None:
    for entry in history(trained("log", logging_steps=1)):
        # "balance" is 0.5 * sum_e f_e p_e, around 0.5 / E; Trainer rounds what it logs.
        assert 0.5 / 4 < entry["loss_balance"] < 0.5
        parts = entry["loss_language"] + entry["loss_balance"]
        assert entry["loss"] == pytest.approx(parts, abs=2e-4)
        for language in ("en", "tr"):
            if f"experts_{language}" in entry:
                assert sum(entry[f"experts_{language}"]) == pytest.approx(1, abs=1e-3)
        assert "experts_en" in entry


class Recorder(TrainerCallback):
    """What a logging integration gets."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.got.append({"step": state.global_step, **logs})


def test_callbacks_get_the_numbers_of_the_log_each_a_scalar(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    trainer = stage(tmp_path, **paths, logging_steps=1)
    recorder, log = Recorder(), JsonLog(tmp_path / "log.jsonl", "stage")
    trainer.add_callback(recorder)
    trainer.add_callback(log)
    trainer.train()
    assert all(isinstance(v, int | float) for got in recorder.got for v in got.values())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [gathered(got) for got in recorder.got] == [
        {k: v for k, v in line.items() if k != "stage"} for line in lines
    ]
    first = recorder.got[0]
    for name in ("loss", "loss_language", "loss_balance", "grad_norm", "learning_rate",
                 "experts_en/0", "experts_en/2", "real_tokens"):  # fmt: skip
        assert name in first
    assert len(lines[0]["experts_en"]) == 3


def test_tensorboard_gets_every_loss_by_name(paths: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = stage(tmp_path, **paths, logging_steps=1)
    from transformers.integrations import TensorBoardCallback

    trainer.add_callback(TensorBoardCallback)
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    for entry in history(trainer):
        (value,) = [
            e.value for e in events.Scalars("train/loss_balance") if e.step == entry["step"]
        ]
        assert value == pytest.approx(entry["loss_balance"])


def test_logged_losses_are_means_over_the_steps_between_logs(
    trained: Callable[..., StageTrainer],
) -> None:
    every = history(trained("every", max_steps=4, logging_steps=1))
    pairs = history(trained("pairs", max_steps=4, logging_steps=2))
    for index, entry in enumerate(pairs):
        both = every[2 * index : 2 * index + 2]
        expected = sum(e["loss_language"] for e in both) / 2
        assert entry["loss_language"] == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss_with_parrot_on(trained: Callable[..., StageTrainer]) -> None:
    rates = {**RATES, "parrot": 0.05}
    constant = {"max_steps": 12, "lr_scheduler_type": "constant"}
    trainer = trained("parrot", parrot=True, rates=rates, **constant)
    losses = [entry["loss_language"] for entry in history(trainer)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert trainer.model.parrot.experts[0].down.weight.abs().max() > 0
