"""A small run of experts under transformers' Trainer, for the tests of the mixin."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel, Trainer, TrainingArguments

from llava_mole.mole import (
    AuxiliaryLossMixin,
    MoleConfig,
    add_experts,
    mark_trainable,
)
from tests.helpers import awaken, language_model, random_ids

STEPS, ROWS = 3, 4
EXPERTS = {"num_experts": 3, "r": 2, "balance_coef": 10.0}


class MoleTrainer(AuxiliaryLossMixin, Trainer):
    pass


class Rows(torch.utils.data.Dataset):
    """Rows of different lengths, a third of each the prompt."""

    def __init__(self, count: int, length: int | None = None) -> None:
        self.rows = []
        for index in range(count):
            ids = random_ids(1, length or 4 + 3 * (index % 4), seed=index)[0]
            labels = ids.clone()
            labels[: len(ids) // 3] = -100
            self.rows.append({"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def pad(key: str, value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], True, value)

    real = [{"mask": torch.ones_like(row["input_ids"])} for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence([row["mask"] for row in real], True, 0)
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}


def unpadded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All samples in one row, told apart by their positions, as TRL's padding-free batches."""
    labels = [torch.cat([torch.tensor([-100]), row["labels"][1:]]) for row in rows]
    return {
        "input_ids": torch.cat([row["input_ids"] for row in rows]).unsqueeze(0),
        "labels": torch.cat(labels).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None],
    }


def routed(**changes: Any) -> PreTrainedModel:
    model = language_model("llama")
    config = changes if "method" in changes else {**EXPERTS, **changes}
    add_experts(model, MoleConfig(**config))
    awaken(model)
    mark_trainable(model)
    return model


def trainer_of(
    out: Path, model: PreTrainedModel | None = None, micro: int = ROWS, **options: Any
) -> MoleTrainer:
    """Ready to run, ROWS rows per optimizer step in micro-batches of `micro`."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own = {key: options.pop(key) for key in ("callbacks", "eval_dataset") if key in options}
    rows = options.pop("rows", None) or Rows(STEPS * ROWS)
    collator = options.pop("collator", padded)
    arguments = TrainingArguments(
        output_dir=str(out),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": ROWS // micro // world,
            "optim": "sgd",
            "learning_rate": 0.05,
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "seed": 3,
            **options,
        },
    )
    return MoleTrainer(
        model=routed() if model is None else model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        **own,
    )


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    """All that a run of experts changes, buffers included."""
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if "mole_" in name
    }


def trained(out: Path, *arguments: Any, **options: Any) -> tuple[dict[str, Tensor], list[dict]]:
    """State after the run, and what was logged at each step."""
    trainer = trainer_of(out, *arguments, **options)
    trainer.train()
    return state(trainer.model), [e for e in trainer.state.log_history if "loss" in e]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Three SGD steps of 0.05, float32 sums in another order: one value in 200 is off by 3e-6 where
    rows are packed; a token that saw another sample would be off by a thousand times that."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-4, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")
