"""Projector: patch features -> language-model width, at the scale of the language model's own.

A language model that sees inputs ten times larger than its embeddings is lost for hundreds of
steps, so the scale is matched once, before training: inputs to unit size, outputs to the mean and
spread of the embeddings that the decoder receives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_mole.configuration import ProjectorConfig


class Projector(nn.Module):
    """`linear`, or `mlp2x_gelu` (linear, GELU, linear) as LLaVA-1.5.

    Args:
        in_features: D_v.
        out_features: D.
        config: type and dropout.
    """

    def __init__(self, in_features: int, out_features: int, config: ProjectorConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.input_scale: Tensor
        self.register_buffer("input_scale", torch.ones(()))
        if config.type == "linear":
            self.layers = nn.Sequential(nn.Linear(in_features, out_features))
        else:
            self.layers = nn.Sequential(
                nn.Linear(in_features, out_features),
                nn.GELU(),
                nn.Linear(out_features, out_features),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, P, D_v) -> (N, P, D)."""
        return self.layers(self.dropout(features * self.input_scale))

    @torch.no_grad()
    def match_scale(self, features: Tensor, mean: Tensor, std: float) -> None:
        """Bring inputs to unit root mean square and outputs to the embeddings' mean and spread.

        Args:
            features: (N, P, D_v) of real pictures.
            mean: (D,) mean of the decoder's input embeddings.
            std: their standard deviation around it.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        self.input_scale.fill_(1 / features.float().pow(2).mean().sqrt().clamp(min=1e-12))
        x = features.to(last.weight.dtype)
        out = self(x).float()
        last.weight.mul_(std / (out - out.mean((0, 1))).std().clamp(min=1e-12))
        last.bias.add_(mean.to(last.bias) - self(x).float().mean((0, 1)))
