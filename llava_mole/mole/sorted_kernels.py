"""Kernels on tokens sorted by expert: `tiled` for CPUs, `grouped` for GPUs.

An MLP is token-wise, so its hook sorts the tokens once at the entry and restores them at the exit;
the banks inside see sorted tokens (`Route.layout`). A router of a single linear sorts around it.

`grouped` is `torch.nn.functional.grouped_mm`, nothing read on the host. On a CPU that function is
one product per expert, each of another length: the math library prepares (and caches) a program
for every shape it meets, routes change every step, and preparing costs more than computing.
`tiled` therefore goes by tiles of few lengths: neighbouring experts, whose units are one slice of
A and of B, and a mask keeps each token to its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_mole.errors import ConfigError
from llava_mole.mole.kernels import check_sparse
from llava_mole.mole.route import Layout, Route

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank


def tiled(bank: ExpertBank, x: Tensor, route: Route, out: Tensor, weight: Tensor | None) -> Tensor:
    """See the module; same contract as every kernel."""

    def run(x: Tensor, out: Tensor, layout: Layout, gate: Tensor | None, base: Any) -> Tensor:
        return _Tiled.apply(out, x, base, bank.A, bank.B, gate, layout, bank.ranks[0], bank.scaling)

    return _on_sorted(bank, "tiled", x, route, out, weight, run)


def grouped(
    bank: ExpertBank, x: Tensor, route: Route, out: Tensor, weight: Tensor | None
) -> Tensor:
    """See the module; same contract as every kernel.

    Raises:
        ConfigError: float64, or widths whose rows are not a multiple of 16 bytes: grouped_mm takes
            neither. Ranks are padded; so are parameters that are views into the middle of others.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"kernel='grouped' cannot compute in {x.dtype}; use masked or tiled")
    multiple = 16 // x.element_size()
    odd = [width for width in (x.shape[1], bank.out_features) if width % multiple]
    if odd:
        raise ConfigError(
            f"kernel='grouped' needs widths that are multiples of {multiple} in {x.dtype}, found "
            f"{odd[0]}; use masked or tiled"
        )

    def run(x: Tensor, out: Tensor, layout: Layout, gate: Tensor | None, base: Any) -> Tensor:
        def stacked(matrix: Tensor) -> Tensor:
            matrix = matrix.to(x.dtype).view(bank.num_experts, bank.ranks[0], -1)
            short = -bank.ranks[0] % multiple
            if not short and not torch.compiler.is_compiling() and matrix.data_ptr() % 16 == 0:
                return matrix
            return F.pad(matrix, (0, 0, 0, short))  # a copy, which begins at whole 16 bytes

        return _Grouped.apply(
            out, x, base, stacked(bank.A), stacked(bank.B), gate, layout.ends, bank.scaling
        )

    return _on_sorted(bank, "grouped", x, route, out, weight, run)


def _on_sorted(
    bank: ExpertBank,
    kernel: str,
    x: Tensor,
    route: Route,
    out: Tensor,
    weight: Tensor | None,
    run: Any,
) -> Tensor:
    if route.layout is not None:
        gate = None if route.weights is None else route.weights.reshape(-1)
        return run(x, out, route.layout, gate, weight)
    check_sparse(kernel, bank.ranks, route.top_k)
    assert route.indices is not None
    layout = Layout(route.indices, bank.num_experts, kernel)
    gate = None if route.weights is None else route.weights.reshape(-1)[layout.order]
    rows = x[layout.rows]
    delta = run(rows, rows.new_zeros(len(rows), bank.out_features), layout, gate, None)
    return out.view(-1, out.shape[-1]).index_add(0, layout.rows, delta).view_as(out)


class _Tiled(torch.autograd.Function):
    """out += s * gate * B_e^T A_e x, tokens sorted.

    Shapes: out (..., d_out), x (N, d), weight (d_out, d) or None, A (R, d), B (R, d_out),
    gate (N,) or None: 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        weight: Tensor | None,
        A: Tensor,
        B: Tensor,
        gate: Tensor | None,
        layout: Layout,
        rank: int,
        scaling: float,
    ) -> Tensor:
        flat = out.view(-1, out.shape[-1])
        hiddens = []
        masks = layout.masks(rank, scaling, x.dtype)
        for (start, stop, low, high), mask in zip(layout.tiles(), masks, strict=True):
            units = slice(low * rank, high * rank)
            # Cast by the tile: what is read once stays in the cache.
            hidden = torch.mm(x[start:stop], A[units].to(x.dtype).T).mul_(mask)
            hiddens.append(hidden)
            if gate is not None:
                hidden = hidden * gate[start:stop, None].to(x.dtype)
            flat[start:stop].addmm_(hidden, B[units].to(x.dtype))
        ctx.save_for_backward(x, weight, A, B, gate, *hiddens)
        ctx.layout, ctx.rank, ctx.scaling = layout, rank, scaling
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, A, B, gate, *hiddens = ctx.saved_tensors
        rank, layout = ctx.rank, ctx.layout
        flat = grad.reshape(-1, grad.shape[-1])
        needs = ctx.needs_input_grad
        grad_A = _Rows(A) if needs[3] else None
        grad_B = _Rows(B) if needs[4] else None
        grad_gate = torch.zeros_like(gate) if needs[5] else None
        grad_x = None
        if needs[1]:
            grad_x = torch.zeros_like(x) if weight is None else torch.mm(flat, weight)
        masks = layout.masks(rank, ctx.scaling, x.dtype)
        for (start, stop, low, high), mask, hidden in zip(
            layout.tiles(), masks, hiddens, strict=True
        ):
            units = slice(low * rank, high * rank)
            g = flat[start:stop]
            grad_hidden = torch.mm(g, B[units].to(x.dtype).T)
            if grad_gate is not None:  # `hidden` is masked and scaled already
                grad_gate[start:stop] += (grad_hidden * hidden).to(gate.dtype).sum(1)
            if gate is not None:
                column = gate[start:stop, None].to(x.dtype)
                hidden, grad_hidden = hidden * column, grad_hidden.mul_(column)
            grad_hidden.mul_(mask)
            if grad_B is not None:
                grad_B.put_product(units, hidden.T, g)
            if grad_A is not None:
                grad_A.put_product(units, grad_hidden.T, x[start:stop])
            if grad_x is not None:
                grad_x[start:stop].addmm_(grad_hidden, A[units].to(x.dtype))
        return (
            grad if weight is None else None,
            grad_x,
            None,
            grad_A.finish() if grad_A is not None else None,
            grad_B.finish() if grad_B is not None else None,
            grad_gate,
            None,
            None,
            None,
        )


class _Rows:
    """A gradient whose rows are written once, from the first to the last; zero where none was."""

    def __init__(self, parameter: Tensor) -> None:
        self.value = torch.empty_like(parameter)
        self.done = 0

    def put_product(self, rows: slice, left: Tensor, right: Tensor) -> None:
        if self.done < rows.start:
            self.value[self.done : rows.start].zero_()
        target = self.value[rows]
        if target.dtype == left.dtype:
            torch.mm(left, right, out=target)
        else:
            target.copy_(torch.mm(left, right))
        self.done = rows.stop

    def finish(self) -> Tensor:
        self.value[self.done :].zero_()
        return self.value


class _Grouped(torch.autograd.Function):
    """As `_Tiled`, with A (E, r, d) and B (E, r, d_out) and `ends` (E,) int32 on the device."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        weight: Tensor | None,
        A: Tensor,
        B: Tensor,
        gate: Tensor | None,
        ends: Tensor,
        scaling: float,
    ) -> Tensor:
        hidden = F.grouped_mm(x.contiguous(), A.transpose(1, 2), offs=ends).mul_(scaling)
        units = hidden if gate is None else hidden * gate[:, None].to(x.dtype)
        out.view(-1, out.shape[-1]).add_(F.grouped_mm(units, B, offs=ends))
        ctx.save_for_backward(x, weight, A, B, gate, ends, hidden)
        ctx.scaling = scaling
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, A, B, gate, ends, hidden = ctx.saved_tensors
        needs = ctx.needs_input_grad
        # A gradient may be expanded (of a sum, say); grouped_mm wants rows in memory.
        flat = grad.reshape(-1, grad.shape[-1]).contiguous()
        grad_hidden = F.grouped_mm(flat, B.transpose(1, 2), offs=ends)
        grad_gate = grad_A = grad_B = grad_x = None
        if needs[5]:
            grad_gate = (grad_hidden * hidden).to(gate.dtype).sum(1)
        units = hidden
        if gate is not None:
            column = gate[:, None].to(x.dtype)
            units, grad_hidden = hidden * column, grad_hidden.mul_(column)
        grad_hidden.mul_(ctx.scaling)
        if needs[4]:
            grad_B = F.grouped_mm(units.T, flat, offs=ends)
        if needs[3]:
            grad_A = F.grouped_mm(grad_hidden.T, x.contiguous(), offs=ends)
        if needs[1]:
            grad_x = F.grouped_mm(grad_hidden, A, offs=ends)
            if weight is not None:
                grad_x = torch.mm(flat, weight).add_(grad_x)
        grad_out = grad if weight is None else None
        return grad_out, grad_x, None, grad_A, grad_B, grad_gate, None, None
