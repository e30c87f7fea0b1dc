"""MoLA (arXiv 2402.08562): different numbers of experts in different layers, top-2.

    p = softmax(W x)    y = W0 x + (alpha / r) sum_{e in top-2} p_e / (sum of the two) B_e A_e x

One router per linear, on all projections of attention and MLP. The released README gives 2, 4, 6, 8
experts to the four quarters of the layers ("inverted triangle"); the NAACL 2025 text prefers more
in the middle, so the allocation is a free list (`num_experts`).

Loss: E * sum_e f_e P_e per layer, f over the choices of all its linears, summed over layers, weight
0.001 (released code, where it is optional). Here per sample, then averaged, so that it adds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place, at_layer, largest
from llava_mole.mole.context import RouteContext
from llava_mole.mole.losses import balance_per_router
from llava_mole.mole.router import LinearRouter


@dataclass(frozen=True)
class MoLA(MoleConfig):
    """Config of method "mola"."""

    method: str = "mola"
    num_experts: PerLayer = (2, 4, 6, 8)
    r: PerLayer = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    target_modules: str | tuple[str, ...] = ALL_LINEARS
    top_k: PerLayer = 2
    """Experts per token; a list as `num_experts`."""
    balance_coef: float = 0.001
    """Weight of the balance loss, summed over layers; 0 switches it off."""

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "top-k of softmax(W x), renormalised, per linear; E differs by layer"

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self.not_whole("top_k"),
            *self.below("balance_coef"),
            *self.not_above("top_k", "num_experts"),
        ]

    def top_k_at(self, layer: int | None, layers: int) -> int | None:
        return at_layer(self.top_k, layer, layers, "top_k")

    def build_router(self, place: Place) -> LinearRouter:
        return self.new_linear_router(place, "renormalised")

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        if not self.balance_coef:
            return {}
        loss = balance_per_router(context, num_samples, pool="layer", reduction="sum")
        return {} if loss is None else {"balance": self.balance_coef * loss}

    def routers_learn(self) -> bool:
        # A single chosen expert's weight is p / p.
        weighted = largest(self.top_k) > 1
        return largest(self.num_experts) > 1 and (weighted or self.balance_coef > 0)
