"""Route: which experts are on for each token, and how strongly.

A router makes a route once per scope (linear, MLP block, layer or sequence) and every bank in that
scope follows it. Two kinds cover the methods here:

- `Route`: weights over experts, sparse (top-k) or dense. Its core is diagonal: one gate per unit.
- `PairedRoute`: rank units of A and of B chosen separately and paired by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Route:
    """A decision over E experts for `tokens` flattened tokens.

    Attributes:
        indices: (tokens, k) experts that are on, or None: all of them, in order.
        weights: (tokens, k), or (tokens, E) without indices: what multiplies each expert's output.
            None: 1. Carries the task's gradient if the method's gate does.
        probs: (tokens, E) what the router believes, for losses and statistics; or None.
        extras: what a method's own loss needs besides.
        layout: set where the tokens of the scope arrive sorted by expert (see `Layout`).
    """

    indices: Tensor | None = None
    weights: Tensor | None = None
    probs: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    layout: Layout | None = None
    _units: dict[tuple, Tensor] = field(default_factory=dict, repr=False, compare=False)
    kernels: dict[tuple, str] = field(default_factory=dict, repr=False, compare=False)
    _host: list[int] = field(default_factory=list, repr=False, compare=False)

    @property
    def tokens(self) -> int | None:
        """How many it was decided for; None: any number."""
        for decided in (self.indices, self.weights):
            if decided is not None:
                return len(decided)
        return None

    @property
    def top_k(self) -> int | None:
        return None if self.indices is None else self.indices.shape[1]

    def gates(self, num_experts: int, like: Tensor) -> Tensor:
        """Dense form, (tokens, E), zero where an expert is off. `like`: device; tokens if none."""
        if self.indices is None:
            if self.weights is not None:
                return self.weights
            return torch.ones(like.shape[0], num_experts, device=like.device)
        if self.weights is None:
            gates = torch.zeros(self.indices.shape[0], num_experts, device=self.indices.device)
            return gates.scatter_(1, self.indices, 1.0)
        empty = self.weights.new_zeros(self.weights.shape[0], num_experts)
        return empty.scatter(1, self.indices, self.weights)

    def unit_gates(
        self,
        ranks: Sequence[int],
        scaling: float,
        dtype: torch.dtype,
        like: Tensor,
        shared_rank: int = 0,
    ) -> Tensor:
        """(tokens, R) gates times `scaling`, without gradient; before them (tokens, shared_rank)
        of a shared expert, which is always on; banks of a scope share it."""
        key = (tuple(ranks), scaling, dtype, shared_rank)
        if key not in self._units:
            with torch.no_grad():
                if self.indices is not None and self.weights is None and len(set(ranks)) == 1:
                    tokens, k = self.indices.shape
                    empty = like.new_zeros(tokens, len(ranks), ranks[0], dtype=dtype)
                    own = self.indices.unsqueeze(2).expand(tokens, k, ranks[0])
                    self._units[key] = empty.scatter_(1, own, scaling).flatten(1)
                else:
                    gates = (self.gates(len(ranks), like) * scaling).to(dtype)
                    self._units[key] = spread(gates, ranks)
                if shared_rank:
                    self._units[key] = F.pad(self._units[key], (shared_rank, 0), value=scaling)
        return self._units[key]

    def chosen_on_host(self) -> list[int]:
        """Experts of a single token, for the CPU; read once for all banks of the scope."""
        assert self.indices is not None
        if not self._host:
            self._host.extend(self.indices[0].tolist())
        return self._host

    def chosen(self, num_experts: int) -> Tensor:
        """(tokens, E) 1 / k where an expert is on (its weight is not 0); rows sum to 1."""
        if self.indices is not None:
            tokens, k = self.indices.shape
            empty = torch.zeros(tokens, num_experts, device=self.indices.device)
            return empty.scatter_(1, self.indices, 1 / k)
        assert self.weights is not None
        on = (self.weights != 0).float()
        return on / on.sum(dim=1, keepdim=True).clamp(min=1)

    def shares(self, num_experts: int, like: Tensor) -> Tensor:
        """(tokens, E) each expert's part of a token's gates, by size; rows sum to 1. Without gates
        (LLaVA-MoLE's) 1 / k where an expert is on. `like`: as in `gates`."""
        return normalised(self.gates(num_experts, like).detach())


@dataclass(frozen=True)
class PairedRoute:
    """Rank units of A and of B, chosen per sequence and paired by position.

    Token t of sequence s gets sum_j weights[s, j] * b[units_b[s, j]] * (a[units_a[s, j]] . x_t).

    Attributes:
        sequence: (tokens,) the sequence of each token.
        units_a, units_b: (S, r) units that are on, in order; the j-th of one feeds the j-th of the
            other.
        weights: (S, r) or None: 1.
        probs: (S, E) of the choice in B, for statistics.
    """

    sequence: Tensor
    units_a: Tensor
    units_b: Tensor
    weights: Tensor | None = None
    probs: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return len(self.sequence)

    def core(self, hidden: Tensor, scaling: float) -> Tensor:
        """(tokens, R) values of A's units -> (tokens, R) inputs of B's."""
        taken = hidden.gather(1, self.units_a[self.sequence])
        if self.weights is not None:
            taken = taken * self.weights[self.sequence].to(taken.dtype)
        return torch.zeros_like(hidden).scatter_add(1, self.units_b[self.sequence], taken * scaling)

    def chosen(self, num_experts: int) -> Tensor:
        """(tokens, R) 1 / r where a unit of B is on."""
        on = F.one_hot(self.units_b, num_experts).sum(1).float() / self.units_b.shape[1]
        return on[self.sequence]

    def shares(self, num_experts: int, like: Tensor) -> Tensor:
        """(tokens, R) each unit of B's part of its sequence's gates; rows sum to 1."""
        weights = torch.ones_like(self.units_b) if self.weights is None else self.weights.detach()
        on = torch.zeros(len(self.units_b), num_experts, device=self.units_b.device)
        return normalised(on.scatter_add(1, self.units_b, weights.float().abs()))[self.sequence]


def normalised(gates: Tensor) -> Tensor:
    """(n, E) -> sizes of the gates as shares; a row of zeros stays one."""
    sizes = gates.float().abs()
    return sizes / sizes.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)


def spread(gates: Tensor, ranks: Sequence[int]) -> Tensor:
    """(tokens, E) -> (tokens, R): one value per expert to one per rank unit."""
    if len(set(ranks)) == 1:
        return gates if ranks[0] == 1 else gates.repeat_interleave(ranks[0], dim=1)
    repeats = torch.tensor(ranks, device=gates.device)
    return gates.repeat_interleave(repeats, dim=1, output_size=sum(ranks))


class _Permute(torch.autograd.Function):
    """Rows of (..., D) in another order. Indexing would scatter its gradient, row after row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.reshape(-1, x.shape[-1]).index_select(0, order).view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (inverse,) = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        return flat.index_select(0, inverse).view_as(grad), None, None


TILE_TOKENS, TILE_STEP, TILE_STEPS = 128, 32, 4
"""Tokens that a tile has on average at least; its length is a multiple of so many, or of a fourth
of the average where that is more: the math library keeps a program for every length it meets."""
AMX_TILE_EXPERTS = 16
"""Where products are cheap a tile has so many experts. All as measured: benchmarks/README.md."""


def find_amx() -> bool:
    """Whether the CPU multiplies whole tiles of bf16, as Intel's AMX does: wide products are then
    cheap beside the memory that they read. Torch older than its own answer: no."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16", False))


HAS_AMX = find_amx()


def tile_count(tokens: int, experts: int) -> int:
    """In how many tiles sorted tokens are multiplied on a CPU."""
    count = round(experts / AMX_TILE_EXPERTS) if HAS_AMX else experts
    return max(1, min(count, tokens // TILE_TOKENS))


class Layout:
    """Assignments (token, expert) sorted by expert.

    Attributes:
        rows: (A,) the token of each sorted assignment; A = tokens * k.
        order: (A,) position before sorting, token * k + choice.
        experts: (A,) sorted.
        ends: (E,) int32, one past the last assignment of each expert.
        kernel: "tiled" or "grouped".
    """

    def __init__(self, indices: Tensor, num_experts: int, kernel: str) -> None:
        k = indices.shape[1]
        self.kernel = kernel
        flat = indices.reshape(-1)
        self.experts, self.order = flat.sort(stable=True)
        self.rows = self.order if k == 1 else self.order // k
        self.num_experts = num_experts
        each = torch.arange(num_experts, device=flat.device)
        self.ends = torch.searchsorted(self.experts, each, right=True, out_int32=True)
        self._inverse: Tensor | None = None
        self._tiles: list[tuple[int, int, int, int]] | None = None
        self._masks: dict[tuple, list[Tensor]] = {}

    def inverse(self) -> Tensor:
        """(A,) where each unsorted assignment went."""
        if self._inverse is None:
            places = torch.arange(len(self.order), device=self.order.device)
            self._inverse = torch.empty_like(self.order).scatter_(0, self.order, places)
        return self._inverse

    def sort(self, x: Tensor) -> Tensor:
        """(..., D) of the tokens, in the order of their experts; k must be 1."""
        return _Permute.apply(x, self.order, self.inverse())

    def restore(self, x: Tensor) -> Tensor:
        """Undo `sort`."""
        return _Permute.apply(x, self.inverse(), self.order)

    def tiles(self) -> list[tuple[int, int, int, int]]:
        """(start, stop, first expert, one past the last expert): neighbouring experts, each in one
        tile, and the tokens that chose them. So that few shapes occur, a tile is lengthened to a
        multiple of some tokens (`TILE_STEP`) by others that belong to its neighbours.

        Reads the experts' ends on the host: for the CPU.
        """
        if self._tiles is None:
            total, ends = len(self.experts), [0, *self.ends.tolist()]
            count = tile_count(total, self.num_experts)
            step = TILE_STEP * max(1, total // (count * TILE_STEPS * TILE_STEP))
            bounds = [round(tile * self.num_experts / count) for tile in range(count + 1)]
            self._tiles = []
            for low, high in pairwise(bounds):
                own = [expert for expert in range(low, high) if ends[expert] < ends[expert + 1]]
                if not own:
                    continue
                start, stop = ends[own[0]], ends[own[-1] + 1]
                length = min(total, -(-(stop - start) // step) * step)
                start = min(start, total - length)
                self._tiles.append((start, start + length, own[0], own[-1] + 1))
        return self._tiles

    def masks(self, rank: int, scaling: float, dtype: torch.dtype) -> list[Tensor]:
        """Per tile (stop - start, units of its experts): `scaling` at a token's own units."""
        key = (rank, scaling, dtype)
        if key not in self._masks:
            self._masks[key] = []
            for start, stop, low, high in self.tiles():
                own = torch.arange(low, high, device=self.experts.device).repeat_interleave(rank)
                mask = (self.experts[start:stop, None] == own).to(dtype)
                self._masks[key].append(mask.mul_(scaling))
        return self._masks[key]
