"""Kernels: one contract, (bank, x, route) -> delta, and as many ways to compute it as pay.

`reference` is the definition: a loop over experts, each a plain LoRA on its own tokens.
`masked` is one wide pair of matmuls with the units of absent experts multiplied by zero. It
computes E times the rank it needs, which is the fastest choice while E * r stays small next to
the linear itself (the whole grid that ships so far); sorting tokens costs more than it saves there.

Adapter weights are cast to the input's dtype: float32 master weights compute in the base's bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank
    from llava_mole.mole.route import Route

Kernel = Callable[["ExpertBank", Tensor, "Route"], Tensor]


def reference(bank: ExpertBank, x: Tensor, route: Route) -> Tensor:
    """A loop over experts that a reader understands.

    Args:
        bank: R rank units, (R, d_in) and (d_out, R).
        x: (tokens, d_in).
        route: one entry per token.

    Returns:
        (tokens, d_out). Every expert is called, also on an empty selection, so that each parameter
        has a gradient (zero where unused) on every rank.
    """
    gates = route.gates(bank.num_experts)
    delta = x.new_zeros(x.shape[0], bank.lora_B.shape[0])
    start = 0
    for expert, rank in enumerate(bank.ranks):
        a = bank.lora_A[start : start + rank].to(x.dtype)
        b = bank.lora_B[:, start : start + rank].to(x.dtype)
        rows = route.rows_of(expert)
        weight = gates[rows, expert].to(x.dtype).unsqueeze(1)
        update = F.linear(F.linear(x[rows], a) * (weight * bank.scaling), b)
        delta = delta.index_add(0, rows, update.to(delta.dtype))
        start += rank
    return delta


def masked(bank: ExpertBank, x: Tensor, route: Route) -> Tensor:
    """All experts at once; the gate zeroes the units of experts that are off. Same contract."""
    hidden = F.linear(x, bank.lora_A.to(x.dtype))
    gates = (bank.unit_gates(route) * bank.scaling).to(hidden.dtype)
    return F.linear(hidden * gates, bank.lora_B.to(x.dtype)).to(x.dtype)


KERNELS: dict[str, Kernel] = {"reference": reference, "masked": masked}
