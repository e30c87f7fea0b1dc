"""MultiLoRA (arXiv 2311.11501): several LoRAs side by side, each with a learnt output scale.

    y = W0 x + (alpha / r) sum_e c_e * (B_e A_e x)        c_e: (d_out,), starts at 0

There is no router, so the experts merge into the weights exactly. B does not start at 0 but as any
matrix that reads r units, within 1 / sqrt(r): at step 0 only c has a gradient. The shape of c (a
vector), its start and n = 3 are from memory of the paper; the parameters it adds (+2.5 %) are from
its abstract.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place
from llava_mole.mole.route import Route, spread
from llava_mole.mole.router import Router

if TYPE_CHECKING:
    from llava_mole.mole.context import RouteContext


@dataclass(frozen=True)
class MultiLora(MoleConfig):
    """Config of method "multilora"."""

    method: str = "multilora"
    num_experts: PerLayer = 3
    target_modules: str | tuple[str, ...] = ALL_LINEARS

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "all experts, no router; learnt output scales"

    def build_bank(self, place: Place) -> ExpertBank:
        return self.new_bank(place, ScaledBank)

    def build_router(self, place: Place) -> ConstantRouter:
        return ConstantRouter(place.num_experts, place.context)

    def routers_learn(self) -> bool:
        return False  # there are none

    def refuses_merge(self) -> str | None:
        return None


class ConstantRouter(Router):
    """All experts, always, at weight 1."""

    def __init__(self, num_experts: int, context: RouteContext) -> None:
        super().__init__(num_experts, context)

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route:
        return Route()


class ScaledBank(ExpertBank):
    """A bank whose B is multiplied by an output scale per expert.

    Attributes:
        output_scale: (E, d_out).
    """

    def __init__(self, in_features: int, out_features: int, ranks: Any, **options: Any) -> None:
        super().__init__(in_features, out_features, ranks, **options)
        self.output_scale = nn.Parameter(
            torch.zeros(
                len(self.ranks), out_features, dtype=self.lora_B.dtype, device=self.lora_B.device
            )
        )
        for block in self.lora_B.detach().split(list(self.ranks)):
            nn.init.kaiming_uniform_(block.T, a=math.sqrt(5))  # (d_out, r_e)

    @property
    def B(self) -> Tensor:
        return self.lora_B * spread(self.output_scale.T, self.ranks).T
