"""Kernels: one contract, several ways to compute what a bank and a route mean.

    compute(bank, x, route, out, weight) -> out + s * B^T C (A x)

- `reference` is the definition: a loop over experts (or over sequences, where units are paired).
- `masked` is one wide pair of products; the units of absent experts are multiplied by zero. It
  computes E times the rank it needs and is still the fastest while E * r stays small. Units that
  every token uses are in it; before the other kernels they are added by themselves.
- `gathered` fetches each token's own A and B: for a few tokens.
- `tiled` and `grouped` (`sorted_kernels.py`) work on tokens sorted by expert.
- `auto` is `choose`, below; and, for one token on a CPU without a graph, `single`.

Adapter weights are cast to the dtype of `out`: float32 master weights compute in the base's bf16.
`masked`, `tiled` and `grouped` add to `out` in place and save, of their own, only gates and A x, or
what gates make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_mole.errors import ConfigError
from llava_mole.mole.route import HAS_AMX, PairedRoute, Route, spread, tile_count

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank

PRODUCTS = ("AddmmBackward0", "MmBackward0", "ViewBackward0", "UnsafeViewBackward0")
"""What a plain linear's output comes from."""
Kernel = Callable[["ExpertBank", Tensor, Any, Tensor, Tensor | None], Tensor]
SORTED = ("tiled", "grouped")
WIDE_UNITS = {"amx": 384, "cpu": 48, "gpu": 1024}
"""Up to this many rank units `masked` beats sorting: on a CPU with AMX, on one whose products are
plain, and on a GPU (benchmarks/README.md)."""


def choose(
    *,
    tokens: int,
    top_k: int | None,
    ranks: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    sortable: bool,
    aligned: bool = True,
) -> str:
    """`auto`: the kernel expected to be fastest.

    Args:
        tokens: of this call.
        top_k: experts per token; None: dense.
        ranks: of the experts; a shared one costs every kernel alike.
        dtype: computed in.
        sortable: the tokens of a whole block can be sorted at once.
        aligned: all widths are multiples of 8, as `grouped` needs.
    """
    experts, units = len(ranks), sum(ranks)
    if top_k is None or len(set(ranks)) > 1 or experts == 1:
        return "masked"
    on_cpu = device.type == "cpu"
    is_wide = units > WIDE_UNITS["gpu" if not on_cpu else "amx" if HAS_AMX else "cpu"]
    # A GPU is done with a few tokens before the next launch: the fewest launches are the fastest.
    if 2 * tokens * top_k <= experts and (on_cpu or is_wide):
        return "gathered"
    if not is_wide or not sortable or top_k > 1:
        return "masked"
    if on_cpu:  # one tile is `masked`, and sorting
        return "tiled" if tile_count(tokens, experts) > 1 else "masked"
    # In other dtypes grouped_mm loops over the groups and reads their ends on the host.
    return "grouped" if dtype == torch.bfloat16 and aligned else "masked"


def compute(
    bank: ExpertBank,
    x: Tensor,
    route: Route | PairedRoute,
    out: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Add a bank's output to a linear's.

    Args:
        bank: R rank units.
        x: (..., d) what the bank's A reads.
        route: for the flattened tokens of `x`.
        out: (..., d_out) the linear's output, or zeros.
        weight: (d_out, d) of the linear, if its part of x's gradient is to be computed here; only
            where `fuses` says so.

    Returns:
        (..., d_out), like `out`, which is overwritten where autograd allows.

    Raises:
        ConfigError: the bank's kernel cannot compute this route.
    """
    if not can_overwrite(out):
        out = out.clone(memory_format=torch.contiguous_format)
    if bank.kernel == "auto" and is_single(x) and isinstance(route, Route):
        return single(bank, x, route, out)
    if torch.is_grad_enabled() and torch.compiler.is_compiling() and not out.requires_grad:
        # Under AOT autograd, writing into a tensor without a gradient loses the function's own.
        out = out.clone().requires_grad_(True) * 1
    name = kernel_of(bank, x, route, out.dtype)
    flat = x.reshape(-1, x.shape[-1])
    if flat.dtype != out.dtype:
        flat = flat.to(out.dtype)
    kind = out.device.type
    kernel = KERNELS[name]
    if bank.shared_rank and name not in ("masked", "reference"):
        kernel = shared_then(kernel)
    # Leaving autocast costs as much as a product; where it would cast to this dtype it is harmless.
    if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) == out.dtype:
        return kernel(bank, flat, route, out, weight)
    with torch.autocast(kind, enabled=False):
        return kernel(bank, flat, route, out, weight)


def shared_then(kernel: Kernel) -> Kernel:
    """A kernel of the experts alone, after the units that every token uses."""

    def both(bank: ExpertBank, x: Tensor, route: Any, out: Tensor, weight: Tensor | None) -> Tensor:
        return kernel(bank, x, route, add_shared_expert(bank, x, out, weight), None)

    return both


def add_shared_expert(bank: ExpertBank, x: Tensor, out: Tensor, weight: Tensor | None) -> Tensor:
    """out + s * B^T A x with the units that every token uses; as every kernel."""
    A, B = bank.shared_factors()
    if not torch.is_grad_enabled():
        hidden = F.linear(x, A.to(x.dtype)).mul_(bank.scaling)
        out.view(-1, out.shape[-1]).addmm_(hidden, B.to(x.dtype))
        return out
    return _Masked.apply(out, x, weight, A, B, None, None, (), bank.scaling, 0)


def fuses(bank: ExpertBank, x: Tensor, route: Route | PairedRoute) -> bool:
    """Whether the kernel for this call can also compute the linear's own gradient."""
    if not bank.reads_input():
        return False
    sorted_here = isinstance(route, Route) and route.layout is not None
    return sorted_here or kernel_of(bank, x, route, x.dtype) == "masked"


def kernel_of(bank: ExpertBank, x: Tensor, route: Route | PairedRoute, dtype: torch.dtype) -> str:
    """The kernel by name, checked against what it can take."""
    if isinstance(route, PairedRoute):
        if bank.shared_rank:
            raise ConfigError("rank units of A and B are paired: not beside a shared expert")
        if bank.kernel in ("auto", "masked"):
            return "masked"
        if bank.kernel == "reference":
            return "reference"
        raise ConfigError(
            f"kernel={bank.kernel!r} cannot pair rank units of A and B; use masked or reference"
        )
    if route.layout is not None:
        return route.layout.kernel
    if bank.kernel == "auto":
        key = (bank.ranks, dtype)
        if key not in route.kernels:
            route.kernels[key] = choose(
                tokens=x.numel() // x.shape[-1],
                top_k=route.top_k,
                ranks=bank.ranks,
                device=x.device,
                dtype=dtype,
                sortable=False,
            )
        return route.kernels[key]
    if bank.kernel in (*SORTED, "gathered"):
        check_sparse(bank.kernel, bank.ranks, route.top_k)
    return bank.kernel


def check_sparse(kernel: str, ranks: tuple[int, ...], top_k: int | None) -> None:
    """Raises ConfigError where a kernel that computes only chosen experts cannot be used."""
    if top_k is None:
        raise ConfigError(
            f"kernel={kernel!r} computes chosen experts only, and this method uses all of them for "
            "each token; use masked, reference or auto"
        )
    if len(set(ranks)) > 1:
        raise ConfigError(
            f"kernel={kernel!r} needs experts of one rank, found {sorted(set(ranks))}; use masked, "
            "reference or auto"
        )
    if ranks[0] == 1 and kernel in SORTED:
        raise ConfigError(
            f"kernel={kernel!r} cannot take experts of rank 1: sorting tokens once for each of "
            f"{len(ranks)} units costs more than all of them at once; use masked, gathered or auto"
        )


def can_overwrite(out: Tensor) -> bool:
    """Whether adding in place is allowed and reaches all of `out`."""
    if not out.is_contiguous() or out._is_view():
        return False
    if out.grad_fn is None:
        return not out.requires_grad
    # Other functions, as tanh, keep their output for the backward pass.
    return type(out.grad_fn).__name__ in PRODUCTS


# ---------------------------------------------------------------------- reference


def reference(
    bank: ExpertBank, x: Tensor, route: Route | PairedRoute, out: Tensor, weight: Tensor | None
) -> Tensor:
    """A loop that a reader understands. Same contract as every kernel; x: (tokens, d).

    Every expert is called, also on an empty selection, so that each parameter has a gradient (zero
    where unused) on every rank.
    """
    A, B = bank.A.to(x.dtype), bank.B.to(x.dtype)
    delta = x.new_zeros(x.shape[0], B.shape[1])
    if isinstance(route, PairedRoute):
        for sequence in range(len(route.units_a)):
            rows = (route.sequence == sequence).nonzero().squeeze(1)
            down = A[route.units_a[sequence]]  # (r, d), in the order of the choice
            up = B[route.units_b[sequence]]  # (r, d_out)
            hidden = F.linear(x[rows], down) * bank.scaling
            if route.weights is not None:
                hidden = hidden * route.weights[sequence].to(x.dtype)
            delta = delta.index_add(0, rows, hidden @ up)
        return out + delta.view_as(out)
    if bank.shared_rank:
        a, b = (matrix.to(x.dtype) for matrix in bank.shared_factors())
        delta = delta + (F.linear(x, a) * bank.scaling) @ b
    gates = route.gates(bank.num_experts, x)
    start = 0
    for expert, rank in enumerate(bank.ranks):
        a, b = A[start : start + rank], B[start : start + rank]
        if route.indices is None:
            rows = torch.arange(len(x), device=x.device)
        else:
            rows = (route.indices == expert).any(dim=1).nonzero().squeeze(1)
        gate = gates[rows, expert].to(x.dtype).unsqueeze(1)
        update = (F.linear(x[rows], a) * (gate * bank.scaling)) @ b
        delta = delta.index_add(0, rows, update)
        start += rank
    return out + delta.view_as(out)


# ---------------------------------------------------------------------- masked


def masked(
    bank: ExpertBank, x: Tensor, route: Route | PairedRoute, out: Tensor, weight: Tensor | None
) -> Tensor:
    """All units at once; the gate zeroes those of experts that are off."""
    if isinstance(route, PairedRoute):
        hidden = F.linear(x, bank.A.to(x.dtype))
        return _AddUnits.apply(out, route.core(hidden, bank.scaling), bank.B, weight, x)
    constant = route.weights is None and (route.indices is None or bank.num_experts == 1)
    unit, gates = None, None
    A, B = bank.all_factors()
    if not constant:
        unit = route.unit_gates(bank.ranks, bank.scaling, out.dtype, x, bank.shared_rank)
        if route.weights is not None and route.weights.requires_grad:
            gates = route.gates(bank.num_experts, x)
    if not torch.is_grad_enabled():
        hidden = F.linear(x, A.to(x.dtype))
        hidden = hidden.mul_(bank.scaling) if unit is None else hidden.mul_(unit)
        out.view(-1, out.shape[-1]).addmm_(hidden, B.to(x.dtype))
        return out
    return _Masked.apply(
        out, x, weight, A, B, gates, unit, bank.ranks, bank.scaling, bank.shared_rank
    )


class _Masked(torch.autograd.Function):
    """out += (x A^T * unit) B, and the linear's own gradient where `weight` is given. The first
    `shared_rank` of the R units have no gate of their own.

    Shapes: out (..., d_out), x (N, d), weight (d_out, d) or None, A (R, d), B (R, d_out),
    gates (N, E) for its gradient alone, unit (N, R) gate times scaling per rank unit or None: 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        weight: Tensor | None,
        A: Tensor,
        B: Tensor,
        gates: Tensor | None,
        unit: Tensor | None,
        ranks: tuple[int, ...],
        scaling: float,
        shared_rank: int,
    ) -> Tensor:
        hidden = torch.mm(x, A.to(x.dtype).T)
        factor = scaling if unit is None else unit
        # The gates' own gradient is of what they multiply; else only the product is needed again.
        units = hidden.mul_(factor) if gates is None else hidden * factor
        out.view(-1, out.shape[-1]).addmm_(units, B.to(x.dtype))
        ctx.save_for_backward(x, weight, A, B, hidden, unit)
        ctx.ranks, ctx.scaling, ctx.shared = ranks, scaling, shared_rank
        ctx.gates_dtype = None if gates is None else gates.dtype
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, A, B, hidden, unit = ctx.saved_tensors
        factor = ctx.scaling if unit is None else unit
        flat = grad.reshape(-1, grad.shape[-1])
        grad_units = torch.mm(flat, B.to(x.dtype).T)
        grad_gates = None
        if ctx.needs_input_grad[5]:
            by_unit = (grad_units * hidden).to(ctx.gates_dtype) * ctx.scaling
            grad_gates = sum_units(by_unit[:, ctx.shared :], ctx.ranks)
        grad_A = grad_B = grad_x = None
        if ctx.needs_input_grad[4]:
            units = hidden if ctx.gates_dtype is None else hidden * factor
            grad_B = torch.mm(units.T, flat)
        grad_hidden = grad_units.mul_(factor)
        if ctx.needs_input_grad[3]:
            grad_A = torch.mm(grad_hidden.T, x)
        if ctx.needs_input_grad[1]:
            if weight is None:
                grad_x = torch.mm(grad_hidden, A.to(x.dtype))
            else:
                grad_x = torch.mm(flat, weight).addmm_(grad_hidden, A.to(x.dtype))
        grad_out = grad if weight is None else None
        return grad_out, grad_x, None, grad_A, grad_B, grad_gates, None, None, None, None


class _AddUnits(torch.autograd.Function):
    """out += units B, for cores that are not diagonal; x and weight as in `_Masked`."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, units: Tensor, B: Tensor, weight: Tensor | None, x: Tensor
    ) -> Tensor:
        out.view(-1, out.shape[-1]).addmm_(units, B.to(units.dtype))
        ctx.save_for_backward(units, B, weight)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        units, B, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_units = torch.mm(flat, B.to(units.dtype).T) if ctx.needs_input_grad[1] else None
        grad_B = torch.mm(units.T, flat) if ctx.needs_input_grad[2] else None
        if weight is None:
            return grad, grad_units, grad_B, None, None
        grad_x = torch.mm(flat, weight) if ctx.needs_input_grad[4] else None
        return None, grad_units, grad_B, None, grad_x


def sum_units(values: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """(tokens, R) -> (tokens, E), summed over the units of each expert; undoes `spread`."""
    if len(set(ranks)) == 1:
        return values.reshape(len(values), len(ranks), ranks[0]).sum(dim=2)
    eye = torch.eye(len(ranks), dtype=values.dtype, device=values.device)
    return values @ spread(eye, ranks).T


# ---------------------------------------------------------------------- gathered


def gathered(
    bank: ExpertBank, x: Tensor, route: Route, out: Tensor, weight: Tensor | None
) -> Tensor:
    """Each token fetches its own experts; nothing else is read."""
    assert route.indices is not None
    top_k, rank = route.indices.shape[1], bank.ranks[0]
    own = route.indices.reshape(-1)
    A = bank.A.view(bank.num_experts, rank, -1)[own].to(x.dtype)  # (N k, r, d)
    B = bank.B.view(bank.num_experts, rank, -1)[own].to(x.dtype)
    rows = x if top_k == 1 else x.repeat_interleave(top_k, dim=0)
    hidden = torch.bmm(A, rows.unsqueeze(2)) * bank.scaling  # (N k, r, 1)
    if route.weights is not None:
        hidden = hidden * route.weights.reshape(-1, 1, 1).to(x.dtype)
    delta = torch.bmm(hidden.transpose(1, 2), B).view(len(x), top_k, B.shape[2]).sum(1)
    return out + delta.view_as(out)


def is_single(x: Tensor) -> bool:
    """Whether this call is a step of decoding one sequence on a CPU."""
    return x.numel() == x.shape[-1] and x.device.type == "cpu" and not torch.is_grad_enabled()


def single(bank: ExpertBank, x: Tensor, route: Route, out: Tensor) -> Tensor:
    """`compute` for one token: nothing but its own experts is read, a chosen one as a slice.

    In float32 at least: on CPUs setting up a bf16 product takes longer than one row's arithmetic.
    """
    dtype = torch.promote_types(out.dtype, torch.float32)
    if bank.shared_rank:
        A, B = bank.shared_factors()
        hidden = torch.mv(A.to(dtype), x.reshape(-1).to(dtype)) * bank.scaling
        out.view(-1).add_(torch.mv(B.to(dtype).T, hidden))
    A, B = bank.A, bank.B
    factor: Tensor | float = bank.scaling
    if route.indices is None or len(set(bank.ranks)) > 1:
        if route.weights is not None or route.indices is not None:
            factor = route.unit_gates(bank.ranks, bank.scaling, dtype, x)[0]
    else:
        rank, chosen = bank.ranks[0], route.chosen_on_host()
        if len(chosen) == 1:
            A, B = (matrix.narrow(0, chosen[0] * rank, rank) for matrix in (A, B))
        else:
            own = route.indices[0]
            A, B = (m.view(len(bank.ranks), rank, -1)[own].flatten(0, 1) for m in (A, B))
        if route.weights is not None:
            factor = spread(route.weights.to(dtype), [rank] * len(chosen))[0] * bank.scaling
    hidden = torch.mv(A.to(dtype), x.reshape(-1).to(dtype)) * factor
    out.view(-1).add_(torch.mv(B.to(dtype).T, hidden))
    return out


def _tiled(bank: ExpertBank, x: Tensor, route: Route, out: Tensor, weight: Tensor | None) -> Tensor:
    from llava_mole.mole import sorted_kernels  # it needs this module's names

    return sorted_kernels.tiled(bank, x, route, out, weight)


def _grouped(
    bank: ExpertBank, x: Tensor, route: Route, out: Tensor, weight: Tensor | None
) -> Tensor:
    from llava_mole.mole import sorted_kernels

    return sorted_kernels.grouped(bank, x, route, out, weight)


KERNELS: dict[str, Kernel] = {
    "reference": reference,
    "masked": masked,
    "gathered": gathered,
    "tiled": _tiled,
    "grouped": _grouped,
}
