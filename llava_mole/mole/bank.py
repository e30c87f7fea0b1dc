"""ExpertBank: the rank units of all experts of one linear, stacked.

    y = W x + s * B^T C (A x)        A: (R, d_in), B: (R, d_out), C: the route's core, per token

Rank units are rows in both matrices; expert e owns a block of r_e consecutive ones. With one gate
per unit this is a weighted sum of LoRAs; the bank knows which expert each unit belongs to and
nothing about how gates are chosen: that is the route's business.

Three variations. `shared_rank`: the first units are those of a shared expert, on for every token at
gate 1; `masked` computes them in the same products, other kernels before the experts. (`shared_A`,
below, is another thing.) Of the other two no kernel has to know:
- `down_features`: the experts share a first matrix S: (down_features, d_in) and A reads S x. With
  `identity_A` they share all of A (HydraLoRA), else each has its own small A (MALoRA).
- `frozen`: the first experts do not learn (append and freeze); they are parameters of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.errors import ConfigError
from llava_mole.mole import kernels
from llava_mole.mole.route import PairedRoute, Route


class ExpertBank(nn.Module):
    """Experts of one linear.

    Args:
        in_features: d_in of the linear.
        out_features: d_out of the linear.
        ranks: rank of each expert; ragged ranks are allowed.
        scaling: s above, lora_alpha / r.
        dropout: on the input, in training.
        kernel: "auto" or one of `kernels.KERNELS`.
        down_features: width of the shared first matrix, or None: experts read the input.
        identity_A: experts have no A of their own; needs down_features equal to every rank.
        frozen: how many of the experts, from the first, do not learn.
        shared_rank: of a shared expert, which every token uses beside its own, scaled as they are;
            not with `down_features` or `frozen`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ranks: Sequence[int],
        *,
        scaling: float,
        dropout: float = 0.0,
        kernel: str = "auto",
        down_features: int | None = None,
        identity_A: bool = False,
        frozen: int = 0,
        shared_rank: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.in_features, self.out_features = in_features, out_features
        self.scaling = scaling
        self.kernel = kernel
        self.dropout = nn.Dropout(dropout)
        self.identity_A = identity_A
        self.shared_rank = shared_rank
        if shared_rank and (frozen or down_features is not None):
            raise ConfigError(f"shared_rank={shared_rank}: not with frozen= or down_features=")
        if identity_A and set(self.ranks) != {down_features}:
            raise ConfigError(
                f"a shared A of {down_features} rank units cannot feed experts of ranks {ranks}"
            )

        def new(rows: int, columns: int, trained: bool = True) -> nn.Parameter:
            empty = torch.empty(rows, columns, dtype=dtype, device=device)
            return nn.Parameter(empty, requires_grad=trained)

        width = in_features if down_features is None else down_features
        kept, units = sum(self.ranks[:frozen]), shared_rank + sum(self.ranks[frozen:])
        self.shared_A = None if down_features is None else new(down_features, in_features)
        self.lora_A = None if identity_A else new(units, width)
        self.lora_B = new(units, out_features)
        self.frozen_A = new(kept, width, trained=False) if frozen else None
        self.frozen_B = new(kept, out_features, trained=False) if frozen else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LoRA's own initialisation: A uniform, B zero, so that step 0 is the base model."""
        for matrix in (self.shared_A, self.lora_A, self.frozen_A):
            if matrix is not None:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        for matrix in (self.lora_B, self.frozen_B):
            if matrix is not None:
                nn.init.zeros_(matrix)

    @property
    def num_experts(self) -> int:
        return len(self.ranks)

    @property
    def A(self) -> Tensor:
        """(R, d_in) of the experts, or (R, down_features) where they share a first matrix."""
        if self.identity_A:
            rank = self.ranks[0]
            eye = torch.eye(rank, dtype=self.lora_B.dtype, device=self.lora_B.device)
            return eye.repeat(self.num_experts, 1)
        assert self.lora_A is not None
        if self.frozen_A is not None:
            return torch.cat([self.frozen_A, self.lora_A])
        return self.lora_A[self.shared_rank :] if self.shared_rank else self.lora_A

    @property
    def B(self) -> Tensor:
        """(R, d_out) of the experts."""
        if self.frozen_B is not None:
            return torch.cat([self.frozen_B, self.lora_B])
        return self.lora_B[self.shared_rank :] if self.shared_rank else self.lora_B

    def all_factors(self) -> tuple[Tensor, Tensor]:
        """A and B, before the experts' units those that every token uses."""
        if not self.shared_rank:
            return self.A, self.B
        assert self.lora_A is not None
        return self.lora_A, self.lora_B

    def shared_factors(self) -> tuple[Tensor, Tensor]:
        """(shared_rank, d_in) and (shared_rank, d_out): what every token uses."""
        A, B = self.all_factors()
        return A[: self.shared_rank], B[: self.shared_rank]

    def enter(self, x: Tensor) -> Tensor:
        """(tokens, d_in) -> what A reads."""
        return x if self.shared_A is None else F.linear(x, self.shared_A.to(x.dtype))

    def reads_input(self) -> bool:
        """Whether A reads the linear's input as it is, so that both gradients can be added."""
        return self.shared_A is None and not (self.training and self.dropout.p > 0)

    def forward(
        self,
        x: Tensor,
        route: Route | PairedRoute,
        out: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """What the experts add to the linear's output.

        Args:
            x: (..., d_in), the linear's input; its leading axes flatten to the route's tokens.
            route: for those tokens.
            out: (..., d_out) the linear's output; the experts' is added to it, in place where the
                kernel can. None: zeros.
            weight: (d_out, d_in) of a frozen linear whose `out` was computed without a graph: the
                gradient of x then goes through it here. See `kernels.fuses`.

        Returns:
            (..., d_out), in the dtype of `out`, or else of `x`.
        """
        if out is None:
            out = x.new_zeros(*x.shape[:-1], self.out_features)
        if self.training:
            x = self.dropout(x)
        return kernels.compute(self, self.enter(x), route, out, weight)

    def delta_weight(self) -> Tensor:
        """(d_out, d_in) of all units at gate 1, in float32."""
        A, B = (matrix.float() for matrix in self.all_factors())
        A = A if self.shared_A is None else A @ self.shared_A.float()
        return self.scaling * B.T @ A

    def extra_repr(self) -> str:
        return (
            f"in={self.in_features}, out={self.out_features}, experts={self.num_experts}, "
            f"ranks={self.ranks[:4]}, scaling={self.scaling:g}, kernel={self.kernel}"
            + (f", shared_rank={self.shared_rank}" if self.shared_rank else "")
        )
