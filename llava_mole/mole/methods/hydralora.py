"""HydraLoRA (arXiv 2404.19245): one A for all experts, a B for each, weighted by a softmax router.

    p = softmax(W x)    y = W0 x + (alpha / r) sum_e p_e B_e (A x)

It is MALoRA's bank with P_e the identity, and all experts instead of the best k. On the linears of
the MLP; rank 4, alpha 32, 4 experts as in the released code. Its choice of the number of experts
by clustering the data beforehand is the user's (`num_experts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig, PerLayer, Place, largest
from llava_mole.mole.router import LinearRouter


@dataclass(frozen=True)
class HydraLora(MoleConfig):
    """Config of method "hydralora"."""

    method: str = "hydralora"
    num_experts: PerLayer = 4
    r: PerLayer = 4
    lora_alpha: float = 32.0

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "all experts, softmax(W x), per linear; experts share A"

    def problems(self) -> list[str]:
        return [*super().problems(), *self.one_rank("the experts share A")]

    def build_bank(self, place: Place) -> ExpertBank:
        return self.new_bank(place, down_features=place.r, identity_A=True)

    def build_router(self, place: Place) -> LinearRouter:
        return self.new_linear_router(place, "scaled")

    def routers_learn(self) -> bool:
        return largest(self.num_experts) > 1

    def refuses_merge(self) -> str | None:
        if largest(self.num_experts) == 1:
            return None
        return "each token weights the experts its own way"
