"""Routers: from a block's input to a Route.

`LinearRouter` is LLaVA-MoLE's: a linear on the MLP's input (after the norm), softmax, and the best
expert per token. One router per MLP block; gate, up and down projections share its decision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.mole.route import Route, RouteContext


class LinearRouter(nn.Module):
    """softmax(W x + b), top-1 or dense.

    The router computes in float32 whatever the model's dtype: in bf16, near-ties flip between
    a cached decode step and the full sequence.

    Args:
        width: D, width of the block's input.
        num_experts: E.
        routing: "top1" or "dense" (`MoleConfig.routing`).
        gate: "none", "straight_through" or "scaled" (`MoleConfig.gate`).
        context: shared by all routers of the model.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        routing: str,
        gate: str,
        context: RouteContext,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.routing = routing
        self.gate = gate
        self.context = context
        self.current: Route | None = None
        self.weight = nn.Parameter(torch.empty(num_experts, width, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(num_experts, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.Linear's initialisation of the weight; the bias starts at zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Route:
        """x: (tokens, D) -> a Route over `tokens`."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float(), self.bias.float())
        probs = logits.softmax(dim=-1)
        if self.routing == "dense":
            indices = torch.arange(probs.shape[1], device=probs.device).expand_as(probs)
            return Route(indices, probs, probs)
        best, indices = probs.max(dim=-1, keepdim=True)
        if self.gate == "scaled":
            weights = best
        elif self.gate == "straight_through":
            weights = 1 + best - best.detach()
        else:
            weights = torch.ones_like(best)
        return Route(indices, weights, probs)

    # Bound methods, not closures: copy.deepcopy(model) then rebinds them to the copied router.
    def before_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the block: decide the route of its input."""
        if not self.context.enabled:
            self.current = None
            return
        x = args[0] if args else next(iter(kwargs.values()))
        self.current = self(x.reshape(-1, x.shape[-1]))
        self.context.record(self.current)

    def after_block(self, block: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the block: drop the route, so that nothing outlives its pass."""
        self.current = None
