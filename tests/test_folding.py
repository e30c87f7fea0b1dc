"""Folded towers compute what they were folded from."""

from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llava_mole.folding import conv_norm_pairs, folded
from llava_mole.starter import StarterPaths
from llava_mole.vision import VisionTower, load_vision


def norms(tower: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in tower.modules())


@torch.no_grad()
def settle(tower: VisionTower, side: int) -> None:
    """Statistics and weights that are not 0 and 1, as a trained tower's."""
    generator = torch.Generator().manual_seed(0)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                assert tensor is not None
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            assert module.running_var is not None
            module.running_var.mul_(1 + torch.rand(module.running_var.shape, generator=generator))


def test_the_starters_tower_folds_every_norm_and_computes_the_same(starter: StarterPaths) -> None:
    tower, _ = load_vision(f"local-dir:{starter.vision}")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    with torch.inference_mode():
        faster = folded(tower, pixels[:1])
        assert_close(faster(pixels), tower(pixels), rtol=1e-3, atol=1e-4)
    assert norms(tower) > 40
    assert norms(faster) == 0
    for name, value in tower.state_dict().items():  # the model's own tower is untouched
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP-S1"])
def test_other_convolutional_towers_fold_what_fits(name: str) -> None:
    if name not in open_clip.list_models():
        pytest.skip(f"this open_clip has no {name}")
    visual = open_clip.create_model(name).visual.eval()

    class Alone(nn.Module):
        """Just the tower's forward: what these return does not matter here."""

        is_convolutional = True

        def __init__(self) -> None:
            super().__init__()
            self.visual = visual

        def forward(self, x: torch.Tensor) -> Any:
            return self.visual(x)

    tower: Any = Alone().eval()
    size = visual.image_size if hasattr(visual, "image_size") else 256
    side = size if isinstance(size, int) else size[0]
    settle(tower, side)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert conv_norm_pairs(tower, pixels[:1])
        faster = folded(tower, pixels[:1])
        expected, found = tower(pixels), faster(pixels)
    assert norms(faster) < norms(tower)
    assert_close(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


def test_a_tower_without_norms_is_copied(tiny_parts: Any) -> None:
    tower, config = load_vision(f"local-dir:{tiny_parts.tower('vit')}")
    assert config.preprocess is not None
    size = config.preprocess["size"]
    side = size if isinstance(size, int) else size[0]
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert_close(folded(tower, pixels[:1])(pixels), tower(pixels), rtol=0, atol=0)
