"""MALoRA (arXiv 2410.22782), reconstructed from the abstract: a shared down-projection.

    p = softmax(W x)
    y = W0 x + (alpha / r) sum_{e in top-k} p_e / (sum of the chosen) B_e P_e (S x)

S: (shared_r, d_in) is common to all experts; each has a small P_e: (r, shared_r) and B_e:
(d_out, r). What S saves may go into a larger r on B's side.

Reconstructed; to be verified against the paper: how S and P start (here as LoRA's A; the paper is
said to derive them from a singular value decomposition), the rule for r and shared_r, top-2 of 8,
and the weight of its balance loss (here MoLA's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place, at_layer, largest
from llava_mole.mole.context import RouteContext
from llava_mole.mole.losses import balance_per_router
from llava_mole.mole.router import LinearRouter


@dataclass(frozen=True)
class MaLora(MoleConfig):
    """Config of method "malora"."""

    method: str = "malora"
    num_experts: PerLayer = 8
    r: PerLayer = 16
    """Rank units of one expert, on B's side."""
    target_modules: str | tuple[str, ...] = ALL_LINEARS
    shared_r: PerLayer = 32
    """Rows of S."""
    top_k: PerLayer = 2
    balance_coef: float = 0.001

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "top-k of softmax(W x), renormalised; experts B_e P_e share S"

    def problems(self) -> list[str]:
        problems = [*super().problems(), *self.below("balance_coef")]
        problems += self.not_above("top_k", "num_experts")
        problems += self.one_rank("the experts of this method are of one rank")
        for key in ("shared_r", "top_k"):
            problems += self.not_whole(key)
        return problems

    def top_k_at(self, layer: int | None, layers: int) -> int | None:
        return at_layer(self.top_k, layer, layers, "top_k")

    def build_bank(self, place: Place) -> ExpertBank:
        return self.new_bank(place, down_features=place.per_layer(self.shared_r, "shared_r"))

    def build_router(self, place: Place) -> LinearRouter:
        return self.new_linear_router(place, "renormalised")

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        if not self.balance_coef:
            return {}
        loss = balance_per_router(context, num_samples)
        return {} if loss is None else {"balance": self.balance_coef * loss}

    def routers_learn(self) -> bool:
        # A single chosen expert's weight is p / p.
        weighted = largest(self.top_k) > 1
        return largest(self.num_experts) > 1 and (weighted or self.balance_coef > 0)
