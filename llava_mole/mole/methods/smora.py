"""SMoRA (arXiv 2501.15103): every rank unit is an expert; a token uses k of them.

    z = sigmoid(W x) + b    I = the k largest    g = k z_I / sum z_I
    y = W0 x + (alpha / k) B[:, I] (g * A[I] x)

Here `num_experts` is the number of units (the paper's rank, 64) and `r` is 1; r above 1 makes
experts of r units that share a gate (the code's rank_partition), and k counts experts then.
One router per linear, on all projections.

b balances the units without a loss: after each optimizer step b += u * sign(mean count - count).
The released code adds b before the gates are computed, so b leaks into their values
(`bias_in: "gates"`, the default); `"selection"` uses it to choose only, as DeepSeek-V3 does. The
code's update is local to a process and repeats under activation checkpointing; here counts are
summed over processes and once per step: call `router_step(model)` (`MoleCallback` does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place, at_layer, largest
from llava_mole.mole.context import RouteContext
from llava_mole.mole.route import Route
from llava_mole.mole.router import Router, float32_linear

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank


@dataclass(frozen=True)
class SMoRA(MoleConfig):
    """Config of method "smora"."""

    method: str = "smora"
    num_experts: PerLayer = 64
    """Rank units, or blocks of r of them."""
    r: PerLayer = 1
    lora_alpha: float = 16.0
    """The output is scaled by lora_alpha / (top_k * r)."""
    target_modules: str | tuple[str, ...] = ALL_LINEARS
    top_k: PerLayer = 8
    bias_in: str = "gates"
    """Where the balancing bias acts: "gates" (released code) or "selection"."""
    bias_update: float = 1e-5
    """u; 0 switches balancing off."""

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "top-k rank units of sigmoid(W x) + b, per linear; b balances"

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self.not_whole("top_k"),
            *self.not_among("bias_in", ("gates", "selection")),
            *self.below("bias_update"),
            *self.not_above("top_k", "num_experts"),
        ]

    def top_k_at(self, layer: int | None, layers: int) -> int | None:
        return at_layer(self.top_k, layer, layers, "top_k")

    def scaling_at(self, place: Place) -> float:
        assert place.top_k is not None
        return self.lora_alpha / (place.top_k * place.r)

    def routers_learn(self) -> bool:
        return largest(self.top_k) > 1  # a single chosen unit's gate is z / z

    def build_router(self, place: Place) -> UnitRouter:
        assert place.top_k is not None
        return UnitRouter(
            place.in_features,
            place.num_experts,
            top_k=place.top_k,
            bias_in=self.bias_in,
            bias_update=self.bias_update,
            context=place.context,
            device=place.device,
        )


class UnitRouter(Router):
    """See the module.

    Attributes:
        balance_bias: (E,) b, a buffer: saved, never trained by gradient.
        counts: (E,) choices since the last optimizer step, in training.
    """

    balance_bias: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        top_k: int,
        bias_in: str,
        bias_update: float,
        context: RouteContext,
        device: Any = None,
    ) -> None:
        super().__init__(num_experts, context)
        self.top_k, self.bias_in, self.bias_update = top_k, bias_in, bias_update
        self.weight = nn.Parameter(torch.empty(num_experts, width, device=device))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_buffer("balance_bias", torch.zeros(num_experts, device=device))
        # No buffer: DistributedDataParallel would overwrite it with the first process's.
        self.counts: Tensor | None = None

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route:
        scores = float32_linear(x, self.weight).sigmoid()
        biased = scores + self.balance_bias
        indices = biased.detach().topk(self.top_k, dim=1).indices
        values = biased if self.bias_in == "gates" else scores
        chosen = values.gather(1, indices)
        # A token may be far from all units: sigmoids that underflow must not divide 0 by 0.
        tiny = torch.finfo(chosen.dtype).tiny
        weights = self.top_k * (chosen + tiny) / (chosen + tiny).sum(dim=1, keepdim=True)
        if self.training and self.context.recording and self.bias_update:
            self.count(indices)
        return Route(indices, weights, scores / scores.sum(dim=1, keepdim=True))

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Padding is not counted."""
        segments = self.context.segments_of(len(indices), indices.device)
        real = (segments.reshape(-1) >= 0).float().unsqueeze(1).expand_as(indices)
        if self.counts is None or self.counts.device != indices.device:
            self.counts = torch.zeros(self.num_experts, device=indices.device)
        self.counts.scatter_add_(0, indices.reshape(-1), real.reshape(-1))

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        if not self.bias_update:
            return
        counts = self.counts
        if counts is None:
            counts = torch.zeros_like(self.balance_bias)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        self.balance_bias += self.bias_update * torch.sign(counts.mean() - counts)
        self.counts = None
