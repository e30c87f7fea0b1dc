"""Routers: from what a scope sees to a Route.

A router's *input* (what it reads) and its *scope* (for which linears it decides) are independent.
The scope is where it is attached: a single linear, or a block whose linears share the decision
(`hooks.py`). `LinearRouter` covers most methods; the others have theirs in `methods/`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.errors import ConfigError
from llava_mole.mole.context import RouteContext
from llava_mole.mole.route import PairedRoute, Route

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank

GATES = ("none", "straight_through", "scaled", "renormalised")


class Router(nn.Module):
    """Base of all routers.

    Args:
        num_experts: E.
        context: shared by the routers of one adapter.
    """

    def __init__(self, num_experts: int, context: RouteContext) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.context = context
        self.name = ""
        """Where it is attached; names its records."""
        self.current: Route | PairedRoute | None = None

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route | PairedRoute:
        """(tokens, D) input of the scope -> a route over `tokens`.

        Args:
            bank: of the linear, where the scope is a single one; None for a block.
        """
        raise NotImplementedError

    def decide(self, x: Tensor, bank: ExpertBank | None = None) -> Route | PairedRoute:
        """Route (..., D) and record it."""
        route = self(x.reshape(-1, x.shape[-1]), bank)
        self.context.record(self.name, route, self.num_experts)
        return route

    def after_optimizer_step(self) -> None:
        """Called once per optimizer step (`router_step`); for what is learnt without gradient."""


LARGE = 2**22
"""Elements of a router's input from which a float32 copy costs more than a few more launches."""


def split(x: Tensor, count: int) -> list[Tensor]:
    """bf16 tensors that sum to a float32 one, the largest first; three hold all of its 24 bits."""
    parts = [x.bfloat16()]
    while len(parts) < count:
        x = x - parts[-1].float()
        parts.append(x.bfloat16())
    return parts


def is_split(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and x.numel() >= LARGE and not torch.version.hip


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Of two bf16 matrices, summed and returned in float32."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())


class _SplitLinear(torch.autograd.Function):
    """`_Float32Linear` for a large bf16 x on a GPU: without a float32 copy of x or of its gradient.

    A bf16 x is multiplied by the three bf16 parts of W at once: each product is exact, sums are the
    GPU's in float32. The gradient of x, bf16 itself, leaves out what is below 2^-16 of it.
    Shapes: x (N, D), weight (E, D), bias (E,) or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        experts = len(weight)
        parts = torch.cat(split(weight.float(), 3))
        parts = F.pad(parts, (0, 0, 0, -len(parts) % 8))  # rows of whole 16 bytes
        found = exact_product(x, parts.T)[:, : 3 * experts].view(len(x), 3, experts).sum(1)
        return found if bias is None else found + bias.float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = grad_weight = None
        high, middle, low = split(grad, 3)
        if needs[0]:
            first, second = split(weight.float(), 2)
            grad_x = torch.cat([high, middle, high], 1) @ torch.cat([first, first, second])
        if needs[1]:
            found = exact_product(torch.cat([high, middle, low], 1).T, x)
            grad_weight = found.view(3, *weight.shape).sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad.sum(0) if needs[2] else None


class _Float32Linear(torch.autograd.Function):
    """W x + b in float32 whatever the dtype of x, saving x as it is instead of a float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            (grad @ weight.float()).to(x.dtype) if needs[0] else None,
            (grad.T @ x.float()).to(weight.dtype) if needs[1] else None,
            grad.sum(0) if needs[2] else None,
        )


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(tokens, D) -> (tokens, E) in float32 (float64 stays).

    In bf16, near-ties would flip between a cached decode step and the full sequence.
    """
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return float32_linear(x, weight, bias)
    if x.dtype == torch.float64:
        return F.linear(x, weight.double(), None if bias is None else bias.double())
    if is_split(x):
        return _SplitLinear.apply(x, weight, bias)
    if not torch.is_grad_enabled():
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return _Float32Linear.apply(x, weight, bias)


def gate_weights(chosen: Tensor, gate: str) -> Tensor | None:
    """What multiplies the chosen experts.

    Args:
        chosen: (tokens, k) their probabilities.
        gate: one of GATES.
    """
    if gate == "scaled":
        return chosen
    if gate == "renormalised":
        return chosen / chosen.sum(dim=1, keepdim=True)
    if gate == "straight_through":
        return 1 + chosen - chosen.detach()
    return None


class LinearRouter(Router):
    """softmax(W x + b), the k most probable experts or all.

    Args:
        width: D, width of its input.
        num_experts: E.
        top_k: experts per token, or None: all, weighted by their probability.
        gate: what multiplies a chosen expert. "none": 1, so that only an auxiliary loss trains the
            router. "straight_through": 1 forward, the probability's gradient backward. "scaled":
            the probability. "renormalised": the probability over the sum of those chosen.
        bias: whether b exists.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        top_k: int | None,
        gate: str,
        context: RouteContext,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_experts, context)
        self.top_k = top_k
        self.gate = gate
        self.weight = nn.Parameter(torch.empty(num_experts, width, dtype=dtype, device=device))
        zeros = torch.zeros(num_experts, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch.nn.Linear's initialisation of the weight; the bias starts at zero."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route:
        if x.shape[-1] != self.weight.shape[1]:
            raise ConfigError(
                f"the router of {self.name!r} reads vectors of {self.weight.shape[1]}, and was "
                f"given {x.shape[-1]}: its block does not hand its input to its linears as it is. "
                "Leave the block out (exclude_modules), or choose a method with a router per linear"
            )
        probs = float32_linear(x, self.weight, self.bias).softmax(dim=-1)
        if self.top_k is None:
            return Route(None, probs, probs)
        if self.top_k == 1:
            chosen, indices = probs.max(dim=-1, keepdim=True)
        else:
            chosen, indices = probs.topk(self.top_k, dim=-1)
        return Route(indices, gate_weights(chosen, self.gate), probs)
