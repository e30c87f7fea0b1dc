"""VisionTower: which features an open_clip model gives, and how it is found again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from llava_mole.configuration import VisionConfig
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.preprocess import MAX_SQUARE, PadToSquare
from llava_mole.vision import (
    VisionTower,
    build_structure,
    feature_kind,
    load_referenced,
    load_vision,
    tower_hash,
)
from tests.helpers import write_tower


def pixels(config: Any, images: int = 2) -> torch.Tensor:
    side = config.preprocess["size"]
    side = side if isinstance(side, int) else side[0]
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_a_vit_gives_the_tokens_of_the_chosen_block(tiny_parts: Any, layer: int) -> None:
    tower, config = load_vision(f"local-dir:{tiny_parts.tower('vit')}", layer=layer)
    seen = []
    block = tower.visual.transformer.resblocks[layer]
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    # open_clip's own forward runs all blocks: what the chosen one gives, class token first.
    x = pixels(config)
    tower.visual(x)
    handle.remove()
    assert_close(tower(x), seen[0], rtol=1e-5, atol=1e-5)
    assert (config.width, config.num_patches) == (16, 4)


def test_without_a_layer_the_final_norm_is_applied(tiny_parts: Any) -> None:
    tower, config = load_vision(f"local-dir:{tiny_parts.tower('vit')}")
    x = pixels(config)
    last, _ = load_vision(f"local-dir:{tiny_parts.tower('vit')}", layer=-1)
    assert_close(tower(x), tower.visual.ln_post(last(x)), rtol=1e-5, atol=1e-5)


def test_cls_patch_makes_the_class_token_a_visual_token(tiny_parts: Any) -> None:
    name = f"local-dir:{tiny_parts.tower('vit')}"
    assert load_vision(name)[1].tokens_per_image == 4
    tower, config = load_vision(name, select="cls_patch")
    assert config.tokens_per_image == 5
    assert tower.keep_class_token


def test_clips_own_resnet_gives_its_last_map() -> None:
    visual = ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=2, image_size=64, width=8).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kind = feature_kind(visual, x)
    tower = VisionTower(visual, VisionConfig.from_dict({"model": "RN", "features": kind}))
    with torch.no_grad():
        last = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
        found = tower(x)
    assert_close(found[:, 1:], last.flatten(2).transpose(1, 2))
    assert_close(found[:, 0], last.mean((2, 3)))


@pytest.mark.parametrize("part", ["cnn", "vit"])
def test_a_grid_averages_neighbouring_patches(tiny_parts: Any, part: str) -> None:
    name = f"local-dir:{tiny_parts.tower(part)}"
    fine, config = load_vision(name)
    coarse, pooled = load_vision(name, grid=1)
    x = pixels(config)
    with torch.no_grad():
        every, mean = fine(x), coarse(x)
    assert (config.num_patches, pooled.num_patches) == (4, 1)
    assert_close(mean[:, 0], every[:, 0])  # the summary does not change
    assert_close(mean[:, 1], every[:, 1:].mean(1))
    assert_close(load_referenced(pooled)(x), mean)
    for wrong in (0, 3):
        with pytest.raises(ConfigError, match="grid"):
            load_vision(name, grid=wrong)


def test_a_convolutional_trunk_gives_its_last_map_row_by_row(tiny_parts: Any) -> None:
    tower, config = load_vision(f"local-dir:{tiny_parts.tower('cnn')}")
    x = pixels(config)
    with torch.no_grad():
        grid = tower.visual.trunk.forward_features(x)
        found = tower(x)
    assert config.features == "map"
    assert grid.shape == (2, config.width, 2, 2)
    for place, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert_close(found[:, 1 + place], grid[:, :, row, column])
    assert_close(found[:, 0], grid.mean((2, 3)))  # no class token: the summary is the mean


@pytest.mark.parametrize("options", [{"layer": -2}, {"select": "cls_patch"}], ids=str)
def test_what_a_convolutional_trunk_lacks_is_refused(
    tiny_parts: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="convolutional: it has no class token"):
        load_vision(f"local-dir:{tiny_parts.tower('cnn')}", **options)


@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_the_config_alone_rebuilds_the_structure(tiny_parts: Any, kind: str) -> None:
    tower, config = load_vision(f"local-dir:{tiny_parts.tower(kind)}")
    rebuilt = build_structure(config).eval()
    rebuilt.load_state_dict(tower.state_dict())
    x = pixels(config)
    assert_close(rebuilt(x), tower(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-Z-99", None, "is not an open_clip model"),
        ("ViT-B-32", "openay", "vision.pretrained='openay': ViT-B-32 has"),
        ("ViT-B-32", None, "random weights; ViT-B-32 has openai"),
        ("local-dir:/nowhere/at/all", None, "no open_clip_config.json in /nowhere/at/all"),
    ],
)
def test_an_unknown_tower_is_refused_with_what_to_do(
    name: str, pretrained: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_vision(name, pretrained)


def test_a_square_is_never_larger_than_memory_allows() -> None:
    pad = PadToSquare((0, 0, 255))
    square = pad(Image.new("RGB", (40_000, 200), "white"))
    assert square.size == (MAX_SQUARE, MAX_SQUARE)
    assert square.getpixel((0, MAX_SQUARE // 2)) == (255, 255, 255)
    assert square.getpixel((0, MAX_SQUARE // 2 - 41)) == (0, 0, 255)  # it is 80 high now
    assert pad(Image.new("RGB", (300, 200))).size == (300, 300)


def test_other_weights_behind_the_same_name_are_refused(tmp_path: Path) -> None:
    folder = write_tower(tmp_path / "tower", "vit")
    tower, config = load_vision(f"local-dir:{folder}")
    assert_close(load_referenced(config).state_dict(), tower.state_dict(), rtol=0, atol=0)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match="this model was trained on"):
        load_referenced(config)


def test_the_hash_covers_buffers(tiny_parts: Any) -> None:
    tower, _ = load_vision(f"local-dir:{tiny_parts.tower('cnn')}")
    before = tower_hash(tower)
    next(b for n, b in tower.named_buffers() if n.endswith("running_mean")).add_(1)
    assert tower_hash(tower) != before
