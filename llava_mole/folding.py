"""Fold batch norms into the convolutions before them, for a tower that is frozen anyway.

An evaluation-mode batch norm is an affine map per channel, and so is the end of a convolution:
W' = W g / sqrt(v + eps). On CPUs a small convolutional tower pays dearly for unfolded norms and for
a memory layout that its depthwise convolutions do not like. Pairs are found by running the tower
once and watching which tensors go where, so this works for any architecture; what does not fit the
pattern is left alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from llava_mole.vision import VisionTower


def conv_norm_pairs(tower: nn.Module, pixels: Tensor) -> list[tuple[str, str]]:
    """Names of (convolution, batch norm) where the norm's input is that convolution's output, and
    each of the two runs once."""
    produced: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}
    alive: list[Any] = []  # keeps ids unique while we watch

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            alive.append(output)
            if isinstance(module, nn.Conv2d):
                produced[id(output)] = name
            elif id(args[0]) in produced:
                pairs.append((produced.pop(id(args[0])), name))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in tower.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        tower(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


class _AfterNorm(nn.Module):
    """What is left of a timm norm-and-activation layer once its norm is folded away."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.rest = nn.Sequential(
            *(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x)


@torch.no_grad()
def folded(tower: VisionTower, pixels: Tensor) -> VisionTower:
    """A copy of `tower` that computes the same (to rounding) in evaluation mode, faster.

    Args:
        tower: in evaluation mode.
        pixels: (1, 3, H, W), to find the pairs with.
    """
    faster = copy.deepcopy(tower).eval()
    modules = dict(faster.named_modules())
    for conv_name, norm_name in conv_norm_pairs(faster, pixels):
        conv, norm = modules[conv_name], modules[norm_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.running_mean is None or norm.running_var is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias,
        )  # fmt: skip
        parent_name, _, leaf = norm_name.rpartition(".")
        setattr(modules[parent_name], leaf, _AfterNorm(norm))
    return faster.to(memory_format=torch.channels_last) if faster.is_convolutional else faster
