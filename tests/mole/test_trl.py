"""Experts under TRL's trainers: passes without a graph, references, preferences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    AuxiliaryLossMixin,
    router_parameters,
)
from tests.helpers import byte_tokenizer, language_model
from tests.mole.trainers import (
    routed,
    state,
)


def trls(name: str) -> Any:
    """Maker of one of TRL's trainers ("SFT", "DPO", …) with the mixin, ready for one step."""
    trl = pytest.importorskip("trl")
    pytest.importorskip("datasets")
    mixed = type(f"Mole{name}", (AuxiliaryLossMixin, getattr(trl, f"{name}Trainer")), {})

    def make(out: Path, model: Any, rows: list[dict[str, str]], **options: Any) -> Any:
        import datasets

        own = ("peft_config", "ref_model", "compute_loss_func", "reward_funcs")
        given = {key: options.pop(key) for key in own if key in options}
        arguments = getattr(trl, f"{name}Config")(
            output_dir=str(out),
            max_steps=1,
            per_device_train_batch_size=len(rows),
            optim="sgd",
            learning_rate=0.05,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **options,
        )
        return mixed(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=byte_tokenizer(),
            **given,
        )

    return make


ASKED = [
    {"prompt": "one and one", "completion": " make two"},
    {"prompt": "two", "completion": " and two make four"},
]
PREFERRED = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " is odd"} for row in ASKED
]


def sum_of_losses(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    logits, after = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(logits, after, reduction="sum")
    return total / num_items_in_batch


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing_factor": 0.1}, {"compute_loss_func": sum_of_losses}],
    ids=["label_smoothing_factor", "compute_loss_func"],
)
def test_a_second_pass_for_metrics_takes_nothing_from_the_balance_loss(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def run(**changes: Any) -> Any:
        trainer = trls("SFT")(tmp_path, routed(), ASKED, loss_type="nll", **changes)
        trainer.train()
        return trainer

    plain, twice = run(), run(**options)
    logged = [trainer.state.log_history[0]["loss_balance"] for trainer in (plain, twice)]
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)
    assert logged[0] > 0.1
    for name, before in router_parameters(routed()).items():
        assert not torch.equal(twice.model.get_parameter(name), before), name


def test_a_reference_that_would_learn_with_the_model_is_refused(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="give a ref_model of its own"):
        trls("DPO")(tmp_path, routed(), PREFERRED, peft_config=lora)


def test_a_trainer_that_needs_no_reference_is_not_asked_for_one(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    asked = [{"prompt": row["prompt"]} for row in ASKED]
    options = {"reward_funcs": lambda completions, **_: [1.0] * len(completions)}
    options |= {"num_generations": 2, "beta": 0.0}
    trainer = trls("GRPO")(tmp_path, routed(), asked, peft_config=lora, **options)
    assert trainer.ref_model is None


def test_experts_that_do_not_learn_may_be_part_of_the_reference(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = routed().requires_grad_(False)
    trainer = trls("DPO")(tmp_path, model, PREFERRED, peft_config=lora)
    learning = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert learning
    assert all("q_proj.lora_" in name for name in learning)


def test_preferences_are_learnt_against_a_reference_of_its_own(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    reference = language_model("llama")
    trainer = trls("DPO")(tmp_path, routed(), PREFERRED, peft_config=lora, ref_model=reference)
    before = state(trainer.model)
    trainer.train()
    assert trainer.state.log_history[0]["loss_balance"] > 0.1
    assert all(not torch.equal(value, before[name]) for name, value in state(trainer.model).items())
    for name, value in language_model("llama").state_dict().items():
        assert torch.equal(reference.state_dict()[name], value), name
