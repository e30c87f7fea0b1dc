"""Projectors: patch features -> language-model width, at the scale of the language model's own.

A language model that sees inputs ten times larger than its embeddings is lost for hundreds of
steps, so the scale is matched once, before training: inputs to unit size, outputs to the mean and
spread of the embeddings that the decoder receives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.configuration import ProjectorConfig


def build_projector(in_features: int, out_features: int, config: ProjectorConfig) -> nn.Module:
    """The projector that `config.type` names, (N, P, in_features) -> (N, P, out_features)."""
    kind = RadialBasisProjector if config.type == "rbf" else Projector
    return kind(in_features, out_features, config)


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


UNITS = 4096
WIDTH = 0.1


def root(features: Tensor) -> Tensor:
    """Signed square root, element by element; x / sqrt(|x| + 1e-4), which has a slope at zero."""
    return features * (features.abs() + 1e-4).rsqrt()


class RadialBasisProjector(nn.Module):
    """`rbf`: units around drawings that are known, and what each of them stands for.

        k_j(x) = exp((cos(root(x) - mean, c_j) - 1) / width)      j = 1 … units
        y      = offset + scale * unit(V k(x))

    An MLP has to extrapolate where a picture is unlike all it was trained on, and goes wherever its
    directions lead. Here the answer is always a mean over the nearest drawings. The centres c_j are
    drawings, the values V are solved for (`training/ridge.py`), then trained on like any weight;
    until then all pictures look alike. Such networks: Broomhead and Lowe, 1988. The output has unit
    length before `scale`, as embeddings have nearly the same length; what is far from everything
    would otherwise fade. root(x) is about sign(x) sqrt(|x|): a few strong channels would otherwise
    decide the cosine alone (power normalisation: Perronnin et al., 2010).

    Args:
        in_features: D_v.
        out_features: D.
        config: units, width and dropout (of units, in training).
    """

    def __init__(self, in_features: int, out_features: int, config: ProjectorConfig) -> None:
        super().__init__()
        units = UNITS if config.units is None else config.units
        self.width = WIDTH if config.width is None else config.width
        self.dropout = nn.Dropout(config.dropout)
        self.mean: Tensor
        self.centres: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("centres", torch.zeros(units, in_features))
        self.register_buffer("scale", torch.ones(()))
        self.values = nn.Linear(units, out_features, bias=False)
        self.offset = nn.Parameter(torch.zeros(out_features))

    def direction(self, features: Tensor) -> Tensor:
        """(…, D_v) -> the same shape at unit length: root(x) less its mean."""
        return F.normalize(root(features) - self.mean, dim=-1)

    def kernel(self, features: Tensor) -> Tensor:
        """(…, D_v) -> (…, units), from exp(-2 / width) to 1 where a unit's centre is met."""
        cosines = self.direction(features) @ self.centres.T
        return ((cosines - 1) / self.width).exp()

    def forward(self, features: Tensor) -> Tensor:
        """(N, P, D_v) -> (N, P, D)."""
        # The largest is made 1: unit(…) takes it out again, and far pictures do not underflow.
        cosines = self.direction(features) @ self.centres.T
        nearest = cosines.amax(dim=-1, keepdim=True).detach()
        out = self.values(self.dropout(((cosines - nearest) / self.width).exp()))
        return self.offset + self.scale * F.normalize(out, dim=-1)
