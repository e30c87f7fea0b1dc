"""The methods in all their named options, for the tests that every method must pass.

An *arm* is a method with options, small enough for the tiny models: `build` puts it on one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llava_mole.mole import (
    MoleConfig,
    add_experts,
    append_task,
    auxiliary_losses,
    mark_trainable,
    mole_context,
)
from llava_mole.mole.adapters import DEFAULT
from llava_mole.mole.config import ALL_LINEARS
from tests.helpers import awaken, gradients, language_model, random_ids

SPARSE = ("masked", "gathered", "tiled", "grouped", "auto")
RANK_ONE = ("masked", "gathered", "auto")  # not worth sorting for
DENSE = ("masked", "auto")
ALL = (*SPARSE, "reference")


@dataclass(frozen=True)
class Arm:
    """A method with options.

    Attributes:
        options: for MoleConfig.
        kernels: that it accepts beside `reference`.
        losses: the auxiliary losses that it reports, with the coefficients in `options`.
        single: further options that make it a plain LoRA of rank 4, or None if nothing does.
        tasks: of AM-LoRA; all but the last are appended to and frozen.
        extensive: micro-batches' losses add up to the whole batch's; not so a statistic of a batch.
    """

    options: dict[str, Any]
    kernels: tuple[str, ...]
    losses: tuple[str, ...] = ()
    single: dict[str, Any] | None = field(default_factory=lambda: {"num_experts": 1, "r": 4})
    tasks: int = 1
    extensive: bool = True

    def config(self, **changes: Any) -> MoleConfig:
        return MoleConfig(**(self.options | changes))

    def without_losses(self) -> dict[str, float]:
        """Changes that switch every auxiliary loss off."""
        return {key: 0.0 for key in self.config().to_dict() if key.endswith("_coef")}

    def is_paired(self) -> bool:
        return self.options["method"] == "conditional_mixlora"


# Whole models in float32, computed in another order: each of some hundred sums has an error of a
# few 2^-24 of its largest term, and layers pass it on.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}


def options(method: str, num_experts: Any = 4, r: int = 2, **more: Any) -> dict[str, Any]:
    small = {"num_experts": num_experts, "r": r, "lora_alpha": 4.0, "lora_dropout": 0.0}
    if MoleConfig(method=method).target_modules == ALL_LINEARS:
        small["target_modules"] = ("q_proj", "o_proj", "up_proj", "down_proj")
    return {"method": method, **small, **more}


def llava_mole(**more: Any) -> Arm:
    kernels = DENSE if more.get("routing") == "dense" else SPARSE
    single = {"num_experts": 1, "r": 4, "shared_expert_r": 0}
    return Arm(options("llava_mole", balance_coef=0.5, **more), kernels, ("balance",), single)


def dynmole(**more: Any) -> Arm:
    more = {"entropy_coef": 0.5, "balance_coef": 0.5, "keep_top_k": 1, **more}
    single = {"num_experts": 1, "r": 4, "keep_top_k": 1}
    return Arm(options("dynmole", **more), DENSE, ("entropy", "balance"), single)


def smora(**more: Any) -> Arm:
    kernels = RANK_ONE if more.get("r", 1) == 1 else SPARSE
    single = {"num_experts": 1, "top_k": 1, "r": 4}
    values = {"num_experts": 6, "r": 1, "top_k": 2, "bias_update": 0.01, **more}
    return Arm(options("smora", **values), kernels, single=single)


def loramoe(**more: Any) -> Arm:
    values = options("loramoe", balance_coef=0.5, **more)
    return Arm(values, DENSE, ("balance",), extensive=False)


def conditional(**more: Any) -> Arm:
    single = {"num_experts": 1, "r": 1}
    return Arm(options("conditional_mixlora", 5, **more), DENSE, single=single)


def amlora(tasks: int = 1, **more: Any) -> Arm:
    single = None if tasks > 1 or more.get("mix") == "sigmoid" else {"r": 4}
    return Arm(options("amlora", 1, l1_coef=0.5, **more), DENSE, ("l1",), single, tasks)


TOP_1 = {"num_experts": 1, "r": 4, "top_k": 1}

ARMS: dict[str, Arm] = {
    "llava_mole": llava_mole(),
    "llava_mole straight_through": llava_mole(gate="straight_through"),
    "llava_mole scaled": llava_mole(gate="scaled"),
    "llava_mole dense": llava_mole(routing="dense"),
    "llava_mole shared expert": llava_mole(gate="straight_through", shared_expert_r=3),
    "mola": Arm(options("mola", (2, 4), balance_coef=0.5), SPARSE, ("balance",), TOP_1),
    "mola top-1": Arm(options("mola", top_k=1, balance_coef=0.5), SPARSE, ("balance",), TOP_1),
    "dynmole tsallis": dynmole(entropy_threshold=0.7),
    "dynmole renyi": dynmole(entropy_threshold=0.7, entropy="renyi", entropy_index=2.0),
    "dynmole shannon": dynmole(entropy_threshold=0.7, entropy_index=1.0),
    "dynmole always dense": dynmole(entropy_threshold=0.0),
    "dynmole always sparse": dynmole(entropy_threshold=1.0, keep_top_k=2),
    "smora": smora(),
    "smora selection": smora(bias_in="selection"),
    "smora blocks": smora(r=2, num_experts=4),
    "loramoe": loramoe(),
    "loramoe variance": loramoe(dispersion="variance_over_mean"),
    "hydralora": Arm(options("hydralora"), DENSE),
    "malora": Arm(
        options("malora", shared_r=8, balance_coef=0.5),
        SPARSE,
        ("balance",),
        {**TOP_1, "shared_r": 4},
    ),
    "multilora": Arm(options("multilora"), DENSE),
    "conditional_mixlora": conditional(),
    "conditional_mixlora straight_through": conditional(gate="straight_through"),
    "conditional_mixlora scaled": conditional(gate="scaled"),
    "amlora": amlora(),
    "amlora sigmoid": amlora(mix="sigmoid"),
    "amlora 2 tasks": amlora(2),
    "amlora sigmoid 2 tasks": amlora(2, mix="sigmoid"),
}
ONE_OF_EACH = [
    "llava_mole",
    "mola",
    "dynmole tsallis",
    "smora blocks",
    "loramoe",
    "hydralora",
    "malora",
    "multilora",
    "conditional_mixlora scaled",
    "amlora 2 tasks",
]
"""Of each method, the arm that has most to go wrong."""
WITH_LOSSES = [name for name, arm in ARMS.items() if arm.losses]


@cache
def original(family: str) -> nn.Module:
    return language_model(family)


def base_model(family: str) -> Any:
    """A tiny random model of a family, in eval mode; the same each time."""
    return copy.deepcopy(original(family))


def put(model: nn.Module, arm: Arm, name: str = DEFAULT, *, awake: bool = True, **changes: Any):
    """Add an arm to a model; `awake` gives all that starts at zero weights that matter."""
    torch.manual_seed(2)
    add_experts(model, arm.config(**changes), name)
    for _ in range(arm.tasks - 1):
        awaken(model)
        append_task(model, name)
    return rouse(model) if awake else model


@torch.no_grad()
def rouse(model: nn.Module) -> nn.Module:
    """`awaken`, buffers included: SMoRA's bias is not at its start either."""
    awaken(model)
    generator = torch.Generator().manual_seed(5)
    for name, buffer in model.named_buffers():
        if name.endswith("balance_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def build(name: str, family: str = "llama", *, awake: bool = True, **changes: Any) -> Any:
    """A tiny model with an arm, in eval mode; only what the method trains has a gradient."""
    model = put(base_model(family), ARMS[name], awake=awake, **changes)
    mark_trainable(model)
    return model


# ---------------------------------------------------------------------- inputs


def batch(padding: str | None = None, rows: tuple[int, ...] = (12, 7)) -> dict[str, Tensor]:
    """Rows with labels, the first four tokens of each unsupervised.

    Args:
        padding: "left" or "right" makes rows of the lengths `rows`; None: of the longest.
    """
    longest = max(rows)
    ids, mask, labels = [], [], []
    for seed, length in enumerate(rows):
        length = longest if padding is None else length
        row, empty = random_ids(1, length, seed)[0], torch.zeros(longest - length, dtype=torch.long)
        on, target = torch.ones_like(row), row.clone()
        target[:4] = -100
        parts = ((row, empty), (on, empty), (target, empty - 100))
        for into, (real, pad) in zip((ids, mask, labels), parts, strict=True):
            into.append(torch.cat([pad, real] if padding == "left" else [real, pad]))
    inputs = {"input_ids": torch.stack(ids), "labels": torch.stack(labels)}
    if padding is not None:
        inputs["attention_mask"] = torch.stack(mask)
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return inputs


def prompt(model: nn.Module, length: int, rows: int, total: int) -> None:
    """Tell sequence-level routers that the first tokens of the next pass are the prompt."""
    mask = torch.zeros(rows, total, dtype=torch.bool)
    mask[:, :length] = True
    mole_context(model)[0].provide(prompt_mask=mask)


# ---------------------------------------------------------------------- results


def step(model: Any, inputs: dict[str, Tensor], autocast: bool = False) -> dict[str, Tensor]:
    """Logits, losses and every gradient of one training step, by name."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs)
        losses = auxiliary_losses(model)
    (out.loss + sum(losses.values())).backward()
    found = {"logits": out.logits, "loss": out.loss, **losses}
    return {name: value.detach() for name, value in found.items()} | gradients(model)


def assert_near(
    found: dict[str, Tensor], expected: dict[str, Tensor], error: float, floor: float = 1e-6
) -> None:
    """Each tensor within `error` of the norm of what is expected, or `floor` where that is 0."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value, other = value.float(), found[name].float()
        difference, size = float((other - value).norm()), float(value.norm())
        assert difference <= error * size + floor, f"{name}: {difference:.2e} of {size:.2e}"


def unit_counts(model: nn.Module) -> dict[str, Tensor]:
    """SMoRA's counts since the last step, and clear them."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "counts", None) is not None:
            found[name], module.counts = module.counts, None
    return found


def train_inputs(model: Any) -> Any:
    """Input embeddings that need a gradient: then every linear's input does."""
    model.get_input_embeddings().weight.requires_grad_(True)
    return model
