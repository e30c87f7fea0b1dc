"""ExpertBank: the rank units of all experts of one linear, stacked.

With A: (R, d_in) and B: (d_out, R), expert e owns a block of r_e consecutive units, and

    y = W x + s * B (g * (A x))          g: (R,) per token, constant within an expert

which is one LoRA per expert when g is one-hot over experts. The bank knows which expert each unit
belongs to and nothing about how g is chosen: that is the route's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llava_mole.mole.kernels import KERNELS
from llava_mole.mole.route import Route


class ExpertBank(nn.Module):
    """Experts of one linear.

    Args:
        in_features: d_in of the linear.
        out_features: d_out of the linear.
        ranks: rank of each expert; ragged ranks are allowed.
        scaling: s above, lora_alpha / r.
        dropout: on the input of A, in training.
        kernel: "reference", "masked" or "auto" (see `kernels.py`).
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        units = sum(ranks)
        self.ranks = tuple(ranks)
        self.scaling = scaling
        self.kernel = KERNELS["masked" if kernel == "auto" else kernel]
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(units, in_features, dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, units, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LoRA's own initialisation: A uniform, B zero, so that step 0 is the base model."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    @property
    def num_experts(self) -> int:
        return len(self.ranks)

    def unit_gates(self, route: Route) -> Tensor:
        """Spread a route over rank units: (tokens, E) -> (tokens, R)."""
        gates = route.gates(self.num_experts)
        if len(set(self.ranks)) == 1:
            return gates.repeat_interleave(self.ranks[0], dim=1)
        repeats = torch.tensor(self.ranks, device=gates.device)
        return gates.repeat_interleave(repeats, dim=1, output_size=sum(self.ranks))

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """What the experts add to the linear's output.

        Args:
            x: (..., d_in), the linear's input; its leading axes flatten to the route's tokens.
            route: for those tokens.

        Returns:
            (..., d_out), in the dtype of `x`.
        """
        flat = self.dropout(x).reshape(-1, x.shape[-1])
        delta = self.kernel(self, flat, route)
        return delta.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return (
            f"in={self.lora_A.shape[1]}, out={self.lora_B.shape[0]}, "
            f"experts={self.num_experts}, ranks={self.ranks[:4]}, scaling={self.scaling:g}"
        )
