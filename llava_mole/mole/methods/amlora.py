"""AM-LoRA (arXiv 2409.19611), reconstructed from the abstract: one LoRA per task, attention mixes.

    v_e = (alpha / r) B_e A_e x      score_e = w_e . v_e + b_e      a = softmax(scores)
    y = W0 x + sum_e a_e v_e

For a sequence of tasks: `append_task(model)` freezes the LoRAs so far and adds one; the new LoRA
and the selector (w, b) learn. The selector reads the experts' outputs, so it sees what each would
say. w_e . v_e is computed as (A_e x) . (B_e w_e): no output of a single expert is materialised.

An L1 term makes the mixture sparse. Of softmax weights it is 1 whatever they are, without a
gradient; it is therefore taken of sigmoid(score), before the softmax (`mix: "sigmoid"` also mixes
with these).

Reconstructed; to be verified against the paper: the form of the attention, the weights' start and
the weight of the L1 term.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.errors import ConfigError
from llava_mole.mole.adapters import (
    Adapter,
    adapter_names,
    adapter_of,
    delete_adapter,
    rename_adapter,
)
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place
from llava_mole.mole.inject import put_experts_into
from llava_mole.mole.kernels import sum_units
from llava_mole.mole.losses import mean_of_records
from llava_mole.mole.route import Route, spread
from llava_mole.mole.router import Router

if TYPE_CHECKING:
    from llava_mole.mole.context import RouteContext


@dataclass(frozen=True)
class AmLora(MoleConfig):
    """Config of method "amlora"."""

    method: str = "amlora"
    num_experts: PerLayer = 1
    """Tasks so far; all but the last are frozen."""
    r: PerLayer = 8
    target_modules: str | tuple[str, ...] = ALL_LINEARS
    mix: str = "softmax"
    """"softmax" or "sigmoid" of the scores."""
    l1_coef: float = 0.001
    """Weight of the L1 term."""

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "softmax of w_e . (output of e), per linear; append and freeze"

    def problems(self) -> list[str]:
        problems = super().problems() + self.not_among("mix", ("softmax", "sigmoid"))
        problems += self.below("l1_coef") + self.one_rank("a task appended later has r as well")
        if not isinstance(self.num_experts, int):
            problems.append(f"num_experts={self.num_experts!r}: one number of tasks for all layers")
        return problems

    def build_bank(self, place: Place) -> ExpertBank:
        return self.new_bank(place, frozen=place.num_experts - 1)

    def build_router(self, place: Place) -> OutputRouter:
        return OutputRouter(
            place.out_features,
            place.num_experts,
            mix=self.mix,
            context=place.context,
            device=place.device,
        )

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        if not self.l1_coef or not context.records:
            return {}
        mass = [record.route.extras["mass"] for record in context.records]
        return {"l1": self.l1_coef * mean_of_records(context, mass, num_samples)}

    def routers_learn(self) -> bool:
        # The softmax of one score is 1.
        return self.num_experts != 1 or self.mix == "sigmoid" or self.l1_coef > 0

    def refuses_merge(self) -> str | None:
        if self.num_experts == 1 and self.mix == "softmax":
            return None
        return "each token weights the experts its own way"


class OutputRouter(Router):
    """Scores experts by their outputs.

    Attributes:
        weight: (E, d_out) w.
        bias: (E,) b.
    """

    def __init__(
        self,
        out_features: int,
        num_experts: int,
        *,
        mix: str,
        context: RouteContext,
        device: Any = None,
    ) -> None:
        super().__init__(num_experts, context)
        self.mix = mix
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, device=device))
        self.bias = nn.Parameter(torch.zeros(num_experts, device=device))
        nn.init.normal_(self.weight, std=out_features**-0.5)

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route:
        assert bank is not None
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            hidden = F.linear(x.to(wide), bank.A.to(wide))  # (N, R)
            own = spread(self.weight.to(wide).T, bank.ranks).T
            keys = bank.scaling * (bank.B.to(wide) * own).sum(1)  # (R,)
            scores = sum_units(hidden * keys, bank.ranks) + self.bias.to(wide)
        mass = scores.sigmoid()
        weights = scores.softmax(1) if self.mix == "softmax" else mass
        return Route(None, weights, weights, {"mass": mass.sum(1)})


def plain_name(name: str) -> str:
    """Of a linear, whether or not PEFT has wrapped it since its experts were added."""
    return name.replace(".base_layer", "")


def take_over(grown: Adapter, adapter: Adapter) -> None:
    """Give the grown experts and routers what those before have learnt."""
    banks = {plain_name(name): bank for name, bank in adapter.banks.items()}
    for linear, bank in grown.banks.items():
        assert bank.frozen_A is not None
        assert bank.frozen_B is not None
        before = banks[plain_name(linear)]
        bank.frozen_A.data = before.A.detach().clone()
        bank.frozen_B.data = before.B.detach().clone()
        assert bank.lora_A is not None
        bank.to(bank.frozen_A)
    routers: Any = {plain_name(router.name): router for router in adapter.routers}
    for router in grown.routers:
        old, new = routers[plain_name(router.name)], cast(Any, router)
        new.weight[:-1] = old.weight
        new.bias[:-1] = old.bias


@torch.no_grad()
def append_task(model: nn.Module, name: str | None = None) -> None:
    """Freeze the LoRAs so far and add one that starts at zero; make a new optimizer afterwards.

    The selector keeps what it knows of the old tasks; the new one's score starts at 0, for its
    output does.

    Raises:
        ConfigError: the adapter's method is another.
    """
    adapter = adapter_of(model, name)
    config = adapter.config
    if not isinstance(config, AmLora) or not isinstance(config.num_experts, int):
        raise ConfigError(f"append_task is for method 'amlora', these experts are {config.method}")
    banks = {plain_name(name): bank for name, bank in adapter.banks.items()}
    grown = replace(config, num_experts=config.num_experts + 1)
    # The same linears, by name: what found them may mean others since PEFT wrapped the model.
    exactly = "(?:" + "|".join(map(re.escape, banks)) + ")"
    here = replace(
        grown, target_modules=exactly, exclude_modules=(), layers_to_transform=None, root=None
    )
    context, enabled = adapter.context, adapter.context.enabled
    free = f"{adapter.name}-grown"
    while free in adapter_names(model):
        free += "-grown"
    beside = put_experts_into(model, adapter.root, here, free, context)
    try:
        take_over(beside, adapter)
    except Exception:  # no memory, say
        delete_adapter(model, free)
        raise
    # All is there: only now the old experts go.
    delete_adapter(model, adapter.name)
    rename_adapter(model, beside, adapter.name)
    beside.config, context.enabled = grown, enabled
