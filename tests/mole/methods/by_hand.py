"""The NumPy side of the method tests: what each linear read and what its experts added.

Tests write a method's formula with these arrays and compare. Models compute in float64, so that
agreement means the formula and not a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_mole.mole import MoleConfig, add_experts
from tests.helpers import awaken, language_model, random_ids

Array = NDArray[Any]
IDS = random_ids(2, 7)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
"""Sums of at most 50 float64 products of order 1, subtracted from outputs of order 10."""
SINGLE = {"rtol": 1e-5, "atol": 1e-6}
"""For float32 routers and losses: a few dozen roundings of 6e-8."""


@dataclass(frozen=True)
class Seen:
    """One linear with experts in one pass.

    Attributes:
        name: of the linear.
        bank, router: its own; the router may be its block's.
        x: (tokens, d_in) what it read.
        delta: (tokens, d_out) what the experts added to W x.
    """

    name: str
    bank: Any
    router: Any
    x: Array
    delta: Array

    @property
    def experts(self) -> list[tuple[Array, Array]]:
        """A (r, d_in) and B (d_out, r) of each expert that has both."""
        return experts_of(self.bank)


def experts_of(bank: Any) -> list[tuple[Array, Array]]:
    A = torch.split(bank.lora_A.detach(), list(bank.ranks))
    B = torch.split(bank.lora_B.detach(), list(bank.ranks))
    return [(array(a), array(b).T) for a, b in zip(A, B, strict=True)]


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def model_with(config: MoleConfig, **changes: Any) -> PreTrainedModel:
    """A tiny float64 Llama whose experts and routers have random weights."""
    model = language_model("llama", **changes)
    add_experts(model, config)
    awaken(model)
    return model.double()


def see(model: nn.Module, ids: Tensor = IDS, **inputs: Any) -> list[Seen]:
    """Run the model and look at every linear that has experts."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    routers = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not (isinstance(module, nn.Linear) and "mole_bank" in module._modules):
            continue
        parent = modules[name.rpartition(".")[0]]
        scope = module if "mole_router" in module._modules else parent
        routers[name] = scope.mole_router["default"]

        def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            calls[name] = (args[0].flatten(0, -2), out.flatten(0, -2).clone())

        handles.append(module.register_forward_hook(keep))
    try:
        model(ids, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Seen(
            name,
            modules[name].mole_bank["default"],
            routers[name],
            array(x),
            array(out) - array(x) @ array(modules[name].weight).T,
        )
        for name, (x, out) in calls.items()
    ]


def softmax(scores: Array, axis: int = -1) -> Array:
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def sigmoid(scores: Array) -> Array:
    return 1 / (1 + np.exp(-scores))


def mixture(x: Array, experts: list[tuple[Array, Array]], gates: Array, scale: float) -> Array:
    """scale * sum_e gates[t, e] B_e A_e x_t, token by token."""
    total = np.zeros((len(x), len(experts[0][1])))
    for t, token in enumerate(x):
        for e, (A, B) in enumerate(experts):
            total[t] += scale * gates[t, e] * (B @ (A @ token))
    return total


def top(scores: Array, k: int) -> Array:
    """(tokens, E) 1 at the k largest of each row."""
    mask = np.zeros_like(scores)
    for row, values in zip(mask, scores, strict=True):
        row[np.argsort(-values)[:k]] = 1
    return mask


def per_sample(values: Array, mask: Tensor) -> list[Array]:
    """(tokens, C) of a padded batch -> per row, the values of its attended tokens."""
    rows = values.reshape(*mask.shape, -1)
    return [row[keep.numpy().astype(bool)] for row, keep in zip(rows, mask, strict=True)]


PADDED = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
"""An attention mask for IDS: the second row is three tokens shorter."""
