"""Projector: patch features -> language-model width, at the scale of the language model's own.

A language model that sees inputs ten times larger than its embeddings is lost for hundreds of
steps, so the last matrix is rescaled once: the projected tokens of the first features seen have
the root mean square of the embeddings that the decoder receives.
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
        return self.layers(self.dropout(features))

    @torch.no_grad()
    def match_scale(self, features: Tensor, target_rms: float) -> float:
        """Rescale the last linear so that `features` project to `target_rms`.

        Args:
            features: (N, P, D_v) of real pictures.
            target_rms: root mean square of the decoder's input embeddings.

        Returns:
            The factor applied.
        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        found = self(features.to(last.weight.dtype)).float().pow(2).mean().sqrt().item()
        factor = target_rms / max(found, 1e-12)
        last.weight *= factor
        last.bias *= factor
        return factor
