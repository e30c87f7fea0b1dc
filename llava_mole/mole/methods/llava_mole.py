"""LLaVA-MoLE (arXiv 2401.16160): one router per MLP block, each token uses one expert.

    p = softmax(W h + b)    e = argmax p    y = W0 x + (alpha / r) B_e A_e x

h is the MLP's input; gate, up and down projections share e. The chosen expert is not multiplied by
its probability, so only the balance loss trains the router: that is the released code (and the
author's article), and the default here. `gate` offers the two usual alternatives.

`shared_expert_r` adds an expert of that rank that every token uses beside its own, at weight 1, as
DeepSeekMoE (arXiv 2401.06066) has shared experts: y = W0 x + (alpha / r) (B_s A_s x + B_e A_e x).
It is what a plain LoRA on the same linears would be. Not of the paper.

Loss: `losses.balance_loss`, per sample over its attended tokens, all layers pooled (code). Its
weight has no default in the released code; 0.01 is a third party's reading of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig, Place
from llava_mole.mole.context import RouteContext
from llava_mole.mole.losses import balance_loss
from llava_mole.mole.router import LinearRouter

GATES = ("none", "straight_through", "scaled")


@dataclass(frozen=True)
class LlavaMole(MoleConfig):
    """Config of method "llava_mole"."""

    method: str = "llava_mole"
    routing: str = "top1"
    """"top1": as the paper. "dense": every expert weighted by its probability, which is what the
    released inference script switches on."""
    gate: str = "none"
    """What multiplies the chosen expert. "none" (paper and code): nothing, so only the balance
    loss trains the router. "straight_through": 1 forward, the probability's gradient backward.
    "scaled": the probability itself. Ignored by "dense" routing, which always weights."""
    balance_coef: float = 0.01
    """Weight of the balance loss."""
    shared_expert_r: int = 0
    """Rank of an expert that every token uses beside its own, scaled as they are; 0: none."""

    scope: ClassVar[str] = "block"
    rule: ClassVar[str] = "top-1 of softmax(W h), one router per MLP"

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self.not_among("routing", ("top1", "dense")),
            *self.not_among("gate", GATES),
            *self.below("balance_coef"),
            *self.not_count("shared_expert_r"),
        ]

    def top_k_at(self, layer: int | None, layers: int) -> int | None:
        return 1 if self.routing == "top1" else None

    def build_bank(self, place: Place) -> ExpertBank:
        return self.new_bank(place, shared_rank=self.shared_expert_r)

    def build_router(self, place: Place) -> LinearRouter:
        return self.new_linear_router(place, self.gate, bias=True)

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        loss = balance_loss(context, num_samples) if self.balance_coef else None
        return {} if loss is None else {"balance": self.balance_coef * loss}

    def routers_learn(self) -> bool:
        gated = self.gate != "none" or self.routing == "dense"
        return self.num_experts != 1 and (self.balance_coef > 0 or gated)
