"""FeatureStore: the tower's own features, the same bits from memory, from disk and anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from llava_mole.errors import DataError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_folder import list_keys
from llava_mole.feature_key import feature_key
from llava_mole.features import FeatureStore
from llava_mole.folding import folded
from tests import helpers

Make = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number:02}.png" for number in range(11)]
    for number, path in enumerate(paths):
        helpers.picture(number, side=40).save(path)
    return paths


@pytest.fixture(params=["vit", "cnn"])
def parts(request: pytest.FixtureRequest, tiny_model: Make) -> tuple[Any, Any]:
    """A model and its image processor."""
    model, processor = tiny_model("llama", tower=request.param)
    return model, processor.image_processor


@pytest.fixture
def vit(tiny_model: Make) -> tuple[Any, Any]:
    model, processor = tiny_model("llama", tower="vit")
    return model, processor.image_processor


def on_disk(parts: tuple[Any, Any], folder: Path, **options: Any) -> FeatureStore:
    cache = FeatureCache(folder, feature_key(*parts), **options)
    return FeatureStore(*parts, batch_size=4, cache=cache)


def in_memory(parts: tuple[Any, Any]) -> FeatureStore:
    return FeatureStore(*parts, batch_size=4)


# ---------------------------------------------------------------------- the tower's features


def test_features_are_those_of_a_direct_pass(parts: Any, pictures: list[Path]) -> None:
    """Bit for bit in evaluation mode with folded norms, the store's batches being of one size."""
    model, image_processor = parts
    pixels = image_processor(pictures[:4])["pixel_values"]
    with torch.no_grad():
        plain = model.encode_images(pixels)
        expected = folded(model.vision_tower, pixels[:1])(pixels).to(torch.bfloat16)
    found = in_memory(parts)(pictures[:4])
    assert torch.equal(found, expected)
    # Folded batch norms round elsewhere, so a value may fall on the next bfloat16: 2^-7.
    assert_close(found.float(), plain, rtol=2**-7, atol=2**-7 * plain.abs().max().item())


def test_the_same_bits_with_and_without_a_cache(
    parts: Any, pictures: list[Path], tmp_path: Path
) -> None:
    """Empty, half full, full, and filled in another order."""
    expected = in_memory(parts)(pictures)
    first = on_disk(parts, tmp_path)
    assert torch.equal(first(pictures[3:8]), expected[3:8])
    assert torch.equal(first(pictures), expected)
    first.fill(pictures)
    second = on_disk(parts, tmp_path)
    assert second.fill(pictures, progress=False) == 0
    assert torch.equal(second(pictures), expected)
    backwards = on_disk(parts, tmp_path / "other")
    assert torch.equal(backwards(pictures[::-1]), expected.flip(0))


def test_a_lone_picture_has_the_bits_it_has_in_company(parts: Any, pictures: list[Path]) -> None:
    together, alone = in_memory(parts), in_memory(parts)
    assert torch.equal(together(pictures), torch.cat([alone([picture]) for picture in pictures]))


def test_only_what_is_missing_is_computed(vit: Any, pictures: list[Path], tmp_path: Path) -> None:
    assert on_disk(vit, tmp_path).fill(pictures[:7], progress=False) == 7
    assert on_disk(vit, tmp_path).fill([*pictures, *pictures], progress=False) == 4


def test_features_can_be_trained_on(vit: Any, pictures: list[Path], tmp_path: Path) -> None:
    """They are neither inference tensors nor views of the file."""
    for store in (in_memory(vit), on_disk(vit, tmp_path), on_disk(vit, tmp_path)):
        found = store(pictures[:2])
        scale = torch.ones(1, requires_grad=True)
        (found * scale).sum().backward()
        found.zero_()
        assert store(pictures[:2]).abs().sum() > 0


def test_no_pictures_have_no_features(vit: Any) -> None:
    assert in_memory(vit)([]).shape == (0, 5, 16)


# ---------------------------------------------------------------------- which picture


def test_a_picture_is_known_by_its_content(vit: Any, pictures: list[Path], tmp_path: Path) -> None:
    """A file, a copy, and the same bytes from inside a container."""
    content = pictures[0].read_bytes()
    (tmp_path / "copy.png").write_bytes(content)
    store = on_disk(vit, tmp_path / "cache")
    assert store.fill([pictures[0], tmp_path / "copy.png", content], progress=False) == 1
    found = store([content, pictures[0]])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[:1], in_memory(vit)([content]))


@pytest.mark.parametrize("disk", [False, True])
def test_a_picture_that_changes_under_its_name_has_new_features(
    disk: bool, vit: Any, tmp_path: Path
) -> None:
    """At once, and though neither size nor time of modification tell."""
    path = tmp_path / "a.bmp"
    store = on_disk(vit, tmp_path / "cache") if disk else in_memory(vit)
    helpers.picture(0).save(path)
    before, state = store([path]), path.stat()
    helpers.picture(1).save(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    after = store([path])
    assert not torch.equal(before, after)
    assert torch.equal(after, in_memory(vit)([path]))


def test_bytes_are_not_kept(vit: Any, tmp_path: Path) -> None:
    store = on_disk(vit, tmp_path)
    content = Path(tmp_path / "a.png")
    helpers.picture(0).save(content)
    store([content.read_bytes()])
    assert not store.memory
    assert {len(digest) for digest in store.cache.pending} == {32}  # type: ignore[union-attr]


@pytest.mark.parametrize("disk", [False, True])
def test_a_broken_picture_is_named_and_what_came_before_is_kept(
    disk: bool, vit: Any, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    store = on_disk(vit, tmp_path / "cache") if disk else in_memory(vit)
    with pytest.raises(DataError, match=r"broken\.png"):
        store.fill([*pictures[:8], broken], progress=False)
    with pytest.raises(DataError, match=r"gone\.png': no such file"):
        store([tmp_path / "gone.png"])
    again = on_disk(vit, tmp_path / "cache") if disk else store
    assert again.fill(pictures[:8], progress=False) == 0


# ---------------------------------------------------------------------- which tower


def changed_weight(model: Any, image_processor: Any) -> None:
    with torch.no_grad():
        for parameter in model.vision_tower.parameters():
            parameter.add_(0.1)


def changed_buffer(model: Any, image_processor: Any) -> None:
    norm = next(m for m in model.vision_tower.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_mean.add_(0.01)


def changed_transform(model: Any, image_processor: Any) -> None:
    image_processor.preprocess = {**image_processor.preprocess, "mean": [0.4] * 3}


@pytest.mark.parametrize("change", [changed_weight, changed_buffer, changed_transform])
def test_what_changes_the_features_changes_the_key(
    change: Callable[[Any, Any], None], tiny_model: Make
) -> None:
    model, processor = tiny_model("llama", tower="cnn")
    before = feature_key(model, processor.image_processor)
    assert feature_key(model, processor.image_processor) == before
    change(model, processor.image_processor)
    assert feature_key(model, processor.image_processor) != before


def test_layer_grid_and_precision_change_the_key(tiny_model: Make) -> None:
    keys = []
    for options in ({}, {"vision_layer": -2}, {"vision_grid": 1}, {"vision_dtype": "bfloat16"}):
        model, processor = tiny_model("llama", tower="vit", **options)
        keys.append(json.dumps(feature_key(model, processor.image_processor)))
    assert len(set(keys)) == len(keys)


def test_the_language_model_does_not_change_the_key(tiny_model: Make) -> None:
    keys = [
        feature_key(model, processor.image_processor)
        for model, processor in (tiny_model("llama", mole=True), tiny_model("qwen3", parrot=True))
    ]
    assert keys[0] == keys[1]


def test_a_trained_tower_never_gets_its_old_features(
    vit: Any, pictures: list[Path], tmp_path: Path
) -> None:
    """Though nobody called `clear`; and when it is put back, they are there."""
    store = on_disk(vit, tmp_path)
    before = store(pictures[:3])
    tower = vit[0].vision_tower
    kept = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    tower.requires_grad_(True)
    tower(torch.randn(1, 3, 16, 16)).pow(2).mean().backward()
    torch.optim.SGD(tower.parameters(), lr=1.0).step()
    after = store(pictures[:3])
    assert not torch.equal(before, after)
    assert torch.equal(after, in_memory(vit)(pictures[:3]))
    store.fill(pictures[:3])
    tower.load_state_dict(kept)
    assert store.fill(pictures[:3], progress=False) == 0
    assert torch.equal(store(pictures[:3]), before)
    assert len(list_keys(tmp_path)) == 2


def test_a_store_without_a_cache_forgets_when_told(vit: Any, pictures: list[Path]) -> None:
    store = in_memory(vit)
    before = store(pictures[:2])
    changed_weight(*vit)
    assert torch.equal(store(pictures[:2]), before)
    store.clear()
    assert not torch.equal(store(pictures[:2]), before)


def test_a_cache_of_another_model_is_not_believed(
    parts: Any, pictures: list[Path], tmp_path: Path
) -> None:
    """Whatever key the cache came with, the store takes its own model's."""
    cache = FeatureCache(tmp_path, {"shape": [1, 1]})
    store = FeatureStore(*parts, batch_size=4, cache=cache)
    assert torch.equal(store(pictures), in_memory(parts)(pictures))


# ---------------------------------------------------------------------- bounds and damage


def test_with_a_cache_rows_are_not_in_memory(
    vit: Any, pictures: list[Path], tmp_path: Path
) -> None:
    store = on_disk(vit, tmp_path)
    store.fill(pictures, progress=False)
    store(pictures)
    assert not store.memory
    assert not store.cache.pending  # type: ignore[union-attr]


def test_what_the_cache_cannot_take_stays_in_bounded_memory(
    vit: Any, pictures: list[Path], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, feature_key(*vit), max_bytes=100)
    store = FeatureStore(*vit, batch_size=4, cache=cache, memory_bytes=3 * 5 * 16 * 2)
    store.fill(pictures, progress=False)
    assert len(store.memory) == 3
    assert torch.equal(store(pictures), in_memory(vit)(pictures))
    assert len(store.memory) == 3


def test_damaged_features_are_computed_again(
    vit: Any, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk(vit, tmp_path).fill(pictures, progress=False)
    [path] = tmp_path.rglob("*.safetensors")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert torch.equal(on_disk(vit, tmp_path)(pictures), in_memory(vit)(pictures))
    assert "computed again" in caplog.text
