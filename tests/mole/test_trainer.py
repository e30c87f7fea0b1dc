"""Experts under transformers' Trainer: what may not change the gradient, what must be in the log,
and what a checkpoint holds and brings back."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from llava_mole import ranks
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.exiting import run_to_end
from llava_mole.mole import (
    AuxiliaryLossMixin,
    MoleCallback,
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    load,
    router_parameters,
)
from llava_mole.mole.trainer import count_samples
from tests.helpers import awaken, byte_tokenizer, language_model, random_ids
from tests.mole.trainers import (
    EXPERTS,
    ROWS,
    STEPS,
    MoleTrainer,
    Rows,
    assert_same,
    padded,
    routed,
    state,
    trained,
    trainer_of,
    unpadded,
)
from tests.processes import together

# ---------------------------------------------------------------------- the gradient


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict]]:
    """One micro-batch per step."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_the_first_step_is_the_gradient_of_language_plus_balance_loss(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1)
    by_hand = routed()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    out = by_hand.train()(**batch)
    balance = auxiliary_losses(by_hand)["balance"]
    assert balance > 0.3 * out.loss  # large enough to be seen where it goes missing
    (out.loss + balance).backward()
    for name, parameter in by_hand.named_parameters():
        if parameter.grad is not None:
            expected = parameter - 0.05 * parameter.grad
            # One step of float32 sums.
            assert_close(
                trainer.model.get_parameter(name), expected, rtol=1e-5, atol=1e-6, msg=name
            )


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_changes_neither_weights_nor_log(
    micro: int, tmp_path: Path, whole: tuple[dict[str, Tensor], list[dict]]
) -> None:
    weights, logged = trained(tmp_path, micro=micro)
    assert_same(weights, whole[0])
    for found, expected in zip(logged, whole[1], strict=True):
        for name in ("loss", "loss_balance", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_accumulation_is_right_too_where_the_model_averages_each_micro_batch(
    tmp_path: Path,
) -> None:
    results = []
    for micro in (4, 1):
        model = routed()
        model.accepts_loss_kwargs = False  # as Qwen2.5-VL's and Gemma 3's
        # Rows of one length: only then is a mean of means the mean.
        results.append(trained(tmp_path / str(micro), model, micro, rows=Rows(STEPS * ROWS, 9)))
    (whole, logged), (cut, logged_cut) = results
    assert_same(cut, whole)
    for found, expected in zip(logged_cut, logged, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_last_step_of_fewer_rows_is_divided_by_its_own(tmp_path: Path) -> None:
    rows = Rows(ROWS + 2)  # a whole step, then half of one
    options: dict[str, Any] = {"rows": rows, "max_steps": -1, "num_train_epochs": 1}
    whole, _ = trained(tmp_path / "4", **options)
    cut, _ = trained(tmp_path / "1", micro=1, **options)
    assert_same(cut, whole)


def test_rows_packed_without_padding_train_as_padded_rows(tmp_path: Path) -> None:
    # A sample's first token is never predicted; in a packed row it would be, from the one before.
    rows = Rows(STEPS * ROWS)
    expected, logged = trained(tmp_path / "padded", rows=rows)
    found, packed = trained(tmp_path / "packed", rows=rows, collator=unpadded)
    assert_same(found, expected)
    assert packed[-1]["loss_balance"] == pytest.approx(logged[-1]["loss_balance"], rel=1e-4)


def test_samples_are_rows_with_a_token_or_what_is_packed_in_them() -> None:
    rows = Rows(3).rows
    batch = padded(rows)
    assert count_samples(batch) == 3
    assert (
        count_samples(
            {**batch, "attention_mask": batch["attention_mask"] * torch.tensor([[0], [1], [1]])}
        )
        == 2
    )
    assert count_samples({"input_ids": batch["input_ids"]}) == 3
    assert count_samples(unpadded(rows)) == 3


def test_smoras_bias_moves_once_per_optimizer_step(tmp_path: Path) -> None:
    model = routed(method="smora", num_experts=8, r=1, top_k=2, bias_update=0.25)
    trained(tmp_path, model, micro=1)
    for router in adapter_of(model).routers:
        steps = router.balance_bias / 0.25
        assert_close(steps, steps.round())
        assert steps.abs().max() <= STEPS
        assert steps.abs().max() > 0


def test_only_experts_and_routers_move(tmp_path: Path) -> None:
    model = routed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(tmp_path, model)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {*expert_parameters(model), *router_parameters(model)}


@pytest.mark.slow
def test_two_processes_train_as_one(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[dict]]
) -> None:
    together("tests.mole.test_trainer", [str(tmp_path)])
    assert_same(load_file(tmp_path / "state.safetensors"), whole[0])
    for found, expected in zip(
        json.loads((tmp_path / "log.json").read_text()), whole[1], strict=True
    ):
        for name in ("loss", "loss_balance"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


# ---------------------------------------------------------------------- the log


def test_losses_are_logged_by_name_and_averaged_over_steps(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[dict]]
) -> None:
    _, logged = trained(tmp_path, logging_steps=STEPS)
    for name in ("loss", "loss_balance"):
        mean = sum(entry[name] for entry in whole[1]) / STEPS
        assert logged[0][name] == pytest.approx(mean, rel=1e-5)


def test_evaluation_reports_the_tasks_loss_and_the_others_beside_it(tmp_path: Path) -> None:
    rows = Rows(5)
    trainer = trainer_of(tmp_path, eval_dataset=rows, per_device_eval_batch_size=2)
    found = trainer.evaluate()
    model = routed()
    alone = [auxiliary_losses(model)["balance"] for row in rows.rows if model(**padded([row]))]
    assert found["eval_loss_balance"] == pytest.approx(torch.stack(alone).mean().item(), rel=1e-4)
    plain = Trainer(model=model, args=trainer.args, data_collator=padded, eval_dataset=rows)
    assert found["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


def test_predicting_between_two_evaluations_changes_neither(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=Rows(3))
    before = trainer.evaluate()["eval_loss_balance"]
    trainer.predict(Rows(7, length=20))
    assert trainer.evaluate()["eval_loss_balance"] == before


class Stream(torch.utils.data.IterableDataset):
    """Rows whose number is not known before they end."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.rows.rows)


def test_where_a_stream_ends_its_losses_are_averaged_over_what_it_gave(tmp_path: Path) -> None:
    rows = Rows(6)  # two micro-batches, then one, then from the start
    options: dict[str, Any] = {"micro": 2, "learning_rate": 0.0, "rows": Stream(rows)}
    _, logged = trained(tmp_path, **options)
    model = routed().train()
    balance = []
    for start in (0, 2, 4):
        model(**padded(rows.rows[start : start + 2]))
        balance.append(auxiliary_losses(model)["balance"].item())
    full, short = (balance[0] + balance[1]) / 2, balance[2]
    found = [entry["loss_balance"] for entry in logged]
    # The trainer takes no step where a stream ends: what is left over belongs to the next.
    both = (short + full) / 2
    assert found == pytest.approx([full, both, both], rel=1e-4)


# ---------------------------------------------------------------------- where prompts end

POOLING = {"method": "conditional_mixlora", "num_experts": 6, "r": 3}


def prompts_in_training(out: Path, **options: Any) -> list[Tensor]:
    """What routers could pool in each pass."""
    model, seen = routed(**POOLING), []
    context = adapter_of(model).context
    model.model.layers[1].register_forward_hook(lambda *_: seen.append(context.prompt_mask))
    trained(out, model, **options)
    return seen


def test_prompts_end_where_answers_begin_though_the_trainer_keeps_the_labels(
    tmp_path: Path,
) -> None:
    expected = prompts_in_training(tmp_path / "plain")
    found = prompts_in_training(tmp_path / "smoothed", label_smoothing_factor=0.1)
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert 0 < other.sum() < other.numel() / 2  # a third of each row


def test_prompts_end_where_answers_begin_however_labels_are_given() -> None:
    model = routed(**POOLING).eval()
    ids = random_ids(2, 9)
    labels = torch.where(torch.arange(9) < 3, -100, ids)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).logits
        assert torch.equal(model(ids, None, None, None, None, labels).logits, expected)
        assert not torch.equal(model(ids).logits, expected)


# ---------------------------------------------------------------------- folders


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


@pytest.mark.parametrize("method", ["llava_mole", "smora"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    def model() -> PreTrainedModel:
        smora = {"method": "smora", "num_experts": 8, "r": 1, "top_k": 2, "bias_update": 0.01}
        return routed(**smora) if method == "smora" else routed(lora_dropout=0.1)

    # Momentum and dropout, so that the optimizer's state and the random numbers count too.
    options: dict[str, Any] = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1}
    expected, _ = trained(tmp_path / "whole", model(), **options)
    trained(tmp_path / "cut", model(), callbacks=[StopAt(1)], **options)
    trainer = trainer_of(tmp_path / "cut", model(), **options)
    trainer.train(resume_from_checkpoint=True)
    found = state(trainer.model)
    for name, value in expected.items():
        assert_close(found[name], value, rtol=0, atol=0, msg=name)


def test_a_checkpoint_holds_the_experts_and_not_the_frozen_base(tmp_path: Path) -> None:
    model = routed()
    trained(tmp_path, model, save_strategy="steps", save_steps=STEPS)
    folder = tmp_path / f"checkpoint-{STEPS}"
    assert not list(folder.glob("*.safetensors"))
    experts = folder / "adapters" / "default"
    assert {path.name for path in experts.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    fresh = language_model("llama")
    load(fresh, experts)
    ids = random_ids(2, 9)
    assert_close(fresh(ids).logits, model.eval()(ids).logits, rtol=0, atol=0)


def test_save_model_writes_every_adapter_and_the_tokenizer(tmp_path: Path) -> None:
    model = routed()
    add_experts(model, MoleConfig(num_experts=2, r=2), "second")
    trainer = trainer_of(tmp_path, model)
    trainer.processing_class = byte_tokenizer()
    trainer.save_model(str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out" / "adapters").iterdir()} == {
        "default",
        "second",
    }
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_base_that_trains_is_saved_without_the_experts_and_resumes(tmp_path: Path) -> None:
    def model() -> PreTrainedModel:
        whole = routed()
        whole.lm_head.weight.requires_grad_(True)
        return whole

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    first = trainer_of(tmp_path / "whole", model(), **options)
    first.train()
    trained(tmp_path / "cut", model(), callbacks=[StopAt(1)], **options)
    checkpoint = tmp_path / "cut" / "checkpoint-1"
    base = load_file(checkpoint / "model.safetensors")
    assert base.keys() == language_model("llama").state_dict().keys()
    second = trainer_of(tmp_path / "cut", model(), **options)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert not torch.equal(first.model.lm_head.weight, model().lm_head.weight)
    for name, value in first.model.state_dict().items():
        assert_close(second.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_pefts_lora_is_saved_beside_the_experts_and_resumes(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        wrapped = get_peft_model(language_model("llama"), lora)
        add_experts(wrapped, MoleConfig(**EXPERTS))
        return awaken(wrapped)

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    first = trainer_of(tmp_path / "whole", model(), **options)
    first.train()
    trained(tmp_path / "cut", model(), callbacks=[StopAt(1)], **options)
    checkpoint = tmp_path / "cut" / "checkpoint-1"
    assert all("mole_" not in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    second = trainer_of(tmp_path / "cut", model(), **options)
    second.train(resume_from_checkpoint=str(checkpoint))
    moved = dict(model().named_parameters())
    for name, value in first.model.state_dict().items():
        assert_close(second.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
        if "lora_B" in name or "mole_router" in name:
            assert not torch.equal(value, moved[name]), name


def test_the_best_checkpoint_is_brought_back_at_the_end(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps",
                               "eval_steps": 1, "load_best_model_at_end": True}  # fmt: skip
    # Training lowers the loss, so the highest is that of the first step.
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(tmp_path, eval_dataset=Rows(4), **options)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    fresh = language_model("llama")
    load(fresh, tmp_path / "checkpoint-1" / "adapters" / "default")
    for name, value in state(fresh).items():
        assert_close(state(trainer.model)[name], value, rtol=0, atol=0, msg=name)


def test_a_checkpoint_without_the_experts_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=STEPS)
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}" / "adapters" / "default")
    with pytest.raises(CheckpointError, match=r"adapters/default/adapter_config\.json is missing"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_resuming_with_another_config_says_what_changed(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="steps", save_steps=1, callbacks=[StopAt(1)])
    trainer = trainer_of(tmp_path, routed(lora_alpha=4.0))
    with pytest.warns(UserWarning, match=r"lora_alpha.*\(32\.0, 4\.0\)"):
        trainer.train(resume_from_checkpoint=True)


# ---------------------------------------------------------------------- refusals and order


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="call add_experts first"):
        trainer_of(tmp_path, language_model("llama"))


def test_the_mixin_after_the_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match="name AuxiliaryLossMixin first"):

        class Wrong(Trainer, AuxiliaryLossMixin):
            pass


def test_a_trainer_made_of_a_mixed_one_may_override_what_it_likes() -> None:
    class Mine(MoleTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            return super().compute_loss(*arguments, **options)

    assert issubclass(Mine, AuxiliaryLossMixin)


def test_the_callback_is_there_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, callbacks=[MoleCallback()])
    assert sum(isinstance(c, MoleCallback) for c in trainer.callback_handler.callbacks) == 1


def test_experts_that_learnt_before_a_trainer_wrapped_the_model_still_do(tmp_path: Path) -> None:
    class Wrapping(Trainer):
        """As TRL's trainers do with `peft_config`."""

        def __init__(self, model: Any = None, **options: Any) -> None:
            lora = LoraConfig(r=2, target_modules=["q_proj"])
            super().__init__(get_peft_model(model, lora), **options)

    class Both(AuxiliaryLossMixin, Wrapping):
        pass

    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    model = routed()
    trainer = Both(model=model, args=arguments)
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {n for n in learning if "mole_" in n} == {
        *expert_parameters(trainer.model),
        *router_parameters(trainer.model),
    }
    assert any("q_proj.lora_A" in name for name in learning)


def test_experts_that_peft_froze_after_they_were_added_are_told_of(tmp_path: Path) -> None:
    wrapped = get_peft_model(routed(), LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = trainer_of(tmp_path, wrapped, max_steps=1)
    with pytest.warns(UserWarning, match="no expert or router learns"):
        trainer.train()


def one_of_several(folder: Path) -> int:
    torch.set_num_threads(1)
    weights, log = trained(folder / os.environ["RANK"], micro=1)
    if os.environ["RANK"] == "0":
        save_file(weights, folder / "state.safetensors")
        (folder / "log.json").write_text(json.dumps(log))
    ranks.leave()
    return 0


if __name__ == "__main__":
    run_to_end(lambda: one_of_several(Path(sys.argv[1])))
