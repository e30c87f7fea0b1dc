"""A Hugging Face LLaVA and its conversion compute the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from llava_mole.errors import CheckpointError, ConfigError
from tests.conversion.tiny import (
    TOLERANCE,
    assert_same_logits,
    convert,
    ids_with,
    load,
    logits,
    pixels_of,
    wide,
)

Make = Callable[..., Path]


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_the_towers_activation_is_kept(tiny_llava: Make, tmp_path: Path, hidden_act: str) -> None:
    source = tiny_llava(hidden_act=hidden_act)
    ours, processor = load(convert(source, tmp_path / "m"))
    assert_same_logits(load(source)[0], ours, processor)


def test_the_activations_can_be_told_apart(tiny_llava: Make, tmp_path: Path) -> None:
    """Else the test above could not fail."""
    source = tiny_llava()
    folder = convert(source, tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    values["vision"]["model_cfg"]["quick_gelu"] = False
    (folder / "config.json").write_text(json.dumps(values))
    ours, processor = load(folder)
    ids = ids_with(processor, 1)
    expected = logits(load(source)[0], ids, pixels_of(1))
    assert (logits(ours, ids, pixels_of(1)) - expected).abs().max() > 100 * TOLERANCE["atol"]


@pytest.mark.parametrize("core", ["mistral", "qwen2"])
def test_other_cores_are_kept(tiny_llava: Make, tmp_path: Path, core: str) -> None:
    source = tiny_llava(core=core)
    ours, processor = load(convert(source, tmp_path / "m", chat_template="chatml"))
    assert_same_logits(load(source)[0], ours, processor)


@pytest.mark.parametrize(
    ("changes", "patches"),
    [
        ({"vision_feature_select_strategy": "full"}, 17),
        ({"vision_feature_layer": -1}, 16),
        ({"vision_feature_layer": 2}, 16),
        ({"vision": {"layer_norm_eps": 1e-3}}, 16),
        ({"vision": {"intermediate_size": 100}}, 16),
        ({"multimodal_projector_bias": False}, 16),
        ({"text": {"tie_word_embeddings": True}}, 16),
    ],
    ids=str,
)
def test_settings_are_kept(
    tiny_llava: Make, tmp_path: Path, changes: dict[str, Any], patches: int
) -> None:
    source = tiny_llava(**changes)
    ours, processor = load(convert(source, tmp_path / "m"))
    assert processor.tokens_per_image == patches
    assert_same_logits(load(source)[0], ours, processor, patches)


def relayout(source: Path, out: Path, rename: Callable[[str], str]) -> Path:
    """The same model, its tensors under other names."""
    shutil.copytree(source, out)
    tensors = {rename(name): t for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def version_5(name: str) -> str:
    name = name.removeprefix("language_model.") if "lm_head" in name else name
    name = name.replace("language_model.model.", "language_model.")
    return name if name.startswith("lm_head") else f"model.{name}"


def hub(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.")


@pytest.mark.parametrize("rename", [version_5, hub])
def test_each_layout_of_names_gives_the_same_model(
    tiny_llava: Make, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    source = tiny_llava()
    other = relayout(source, tmp_path / "other", rename)
    assert not load_file(other / "model.safetensors").keys() & {
        name for name in load_file(source / "model.safetensors") if "vision_tower" in name
    }
    one, two = convert(source, tmp_path / "one"), convert(other, tmp_path / "two")
    for file in ("model.safetensors", "language_model/model.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_shards_and_pickled_weights_give_the_same_model(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava()
    tensors = load_file(source / "model.safetensors")
    shards, pickled = tmp_path / "shards", tmp_path / "pickled"
    for folder in (shards, pickled):
        shutil.copytree(source, folder)
        (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}, shards / f"model-{number}.safetensors")
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save(tensors, pickled / "pytorch_model.bin")
    expected = load_file(convert(source, tmp_path / "m") / "model.safetensors")
    for folder in (shards, pickled):
        found = load_file(convert(folder, tmp_path / f"{folder.name}-m") / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named(tiny_llava: Make, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").rename(source / "model-1.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files are missing.*model-2"):
        convert(source, tmp_path / "m")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/tmp/x.safetensors", 3, ["a"]])
def test_an_index_names_shards_beside_it_only(
    tiny_llava: Make, tmp_path: Path, shard: object
) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    (source / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"a": shard}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names the shard .* which is not beside it"):
        convert(source, tmp_path / "m")


def test_the_same_picture_through_both_processors_gives_the_same_logits(
    tiny_llava: Make, tmp_path: Path
) -> None:
    source = tiny_llava()
    ours, processor = load(convert(source, tmp_path / "m"))
    theirs, _ = load(source)
    text = "USER: <image>\nand <image>\nwhat? ASSISTANT:"
    # The first leaves a margin of 3 pixels: halves are rounded down, not to even.
    pictures = [wide(1, (56, 59)), wide(2, (131, 58))]
    # PIL is what open_clip scales with; transformers' default backend scales with torchvision.
    pil = AutoProcessor.from_pretrained(source, backend="pil")
    expected = pil(images=pictures, text=text, return_tensors="pt")
    found = processor(images=pictures, text=text)
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    # One rounds x / 255 and then (x - mean) / std, the other x * (1 / 255): the last bit.
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits(ours, found["input_ids"], found["pixel_values"]),
        logits(theirs, expected["input_ids"], expected["pixel_values"]),
        **TOLERANCE,
    )


def test_transformers_default_backend_gives_pixels_within_two_levels(
    tiny_llava: Make, tmp_path: Path
) -> None:
    source = tiny_llava()
    ours = AutoProcessor.from_pretrained(convert(source, tmp_path / "m"))
    theirs = AutoProcessor.from_pretrained(source)
    picture = wide(3)
    found = ours.image_processor([picture])["pixel_values"]
    expected = theirs.image_processor([picture], return_tensors="pt")["pixel_values"]
    # Both scale in 8 bits with the same kernel, in another order of passes: 2 of 255 levels, in
    # units of the smallest standard deviation (0.26).
    assert (found - expected).abs().max() <= 2 / 255 / 0.26 + 1e-6


@pytest.mark.parametrize("size", [(90, 57), (57, 90), (56, 131)])
def test_padding_to_a_square_is_llavas(
    tiny_llava: Make, tmp_path: Path, size: tuple[int, int]
) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    path = source / "processor_config.json"
    values = json.loads(path.read_text())
    values["image_processor"] |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    path.write_text(json.dumps(values))
    ours = AutoProcessor.from_pretrained(convert(source, tmp_path / "m"))
    theirs = AutoProcessor.from_pretrained(source, backend="pil")
    assert ours.image_processor.preprocess["pad_to_square"] == [122, 116, 104]
    picture = wide(4, size)
    torch.testing.assert_close(
        ours.image_processor([picture])["pixel_values"],
        theirs.image_processor([picture], return_tensors="pt")["pixel_values"],
        rtol=0,
        atol=1e-6,
    )


def test_padding_may_be_asked_for(tiny_llava: Make, tmp_path: Path) -> None:
    folder = convert(tiny_llava(), tmp_path / "m", image_aspect_ratio="pad")
    processor = AutoProcessor.from_pretrained(folder)
    values = processor.image_processor([wide(0, (112, 56))])["pixel_values"][0]
    mean = torch.tensor(processor.image_processor.preprocess["mean"])
    corner = values[:, 0, 0] * torch.tensor(processor.image_processor.preprocess["std"]) + mean
    torch.testing.assert_close(corner * 255, torch.tensor([122.0, 116.0, 104.0]))


def test_half_precision_weights_are_kept_bit_by_bit(tiny_llava: Make, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, source / "model.safetensors", metadata={"format": "pt"})
    folder = convert(source, tmp_path / "m")
    own = load_file(folder / "model.safetensors")
    assert own["projector.layers.0.weight"].dtype == torch.float32  # as trained parts are here
    assert torch.equal(
        own["projector.layers.0.weight"].half(), half["multi_modal_projector.linear_1.weight"]
    )
    language = load_file(folder / "language_model" / "model.safetensors")
    assert torch.equal(language["lm_head.weight"], half["language_model.lm_head.weight"])
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.language_model.dtype == torch.float16
    assert next(model.vision_tower.parameters()).dtype == torch.float16


# ---------------------------------------------------------------------- what is refused, by name


def changed(source: Path, out: Path, **values: Any) -> Path:
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    for key, value in values.items():
        if isinstance(value, dict):
            config[key] = {**config[key], **value}
        else:
            config[key] = value
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llava_next"}, r"anyres.*one size"),
        ({"model_type": "llava_onevision"}, "anyres"),
        ({"model_type": "vipllava"}, "several layers"),
        ({"model_type": "qwen2_vl"}, r"'qwen2_vl' model: Hugging Face's `llava`"),
        ({"vision_feature_layer": [-2, -5]}, "features of several layers"),
        ({"projector_hidden_act": "silu"}, "projector_hidden_act='silu'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "exact GELU"),
        ({"text_config": {"model_type": "gemma2"}}, "'gemma2'; llama, mistral, qwen2"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act='relu'"),
        ({"vision_config": {"image_size": 70}}, "makes pictures of"),
        ({"text_config": {"intermediate_size": 96}}, r"mlp.*is \(.*the config says \(96"),
        ({"text_config": {"num_hidden_layers": 3}}, r"missing: model\.layers\.2"),
        ({"text_config": {"num_hidden_layers": 1}}, r"unexpected: model\.layers\.1"),
        ({"vision_config": {"num_hidden_layers": 3}}, r"unexpected: visual\.encoder\.layers\.3"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_refused_by_name(
    tiny_llava: Make, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    source = changed(tiny_llava(), tmp_path / "source", **values)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_missing_and_unknown_tensors_are_named_with_their_shapes(
    tiny_llava: Make, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "image_newline": torch.zeros(64)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"belong to no part.*image_newline \(64,\)"):
        convert(source, tmp_path / "m")
    del tensors["multi_modal_projector.linear_2.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: layers\.2\.weight \(64, 64\)"):
        convert(source, tmp_path / "m")


def test_weights_pickled_in_the_old_format_are_read(tiny_llava: Make, tmp_path: Path) -> None:
    """They cannot be mapped, and are held until the end."""
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = load_file(convert(source, tmp_path / "m") / "language_model" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], tensors["language_model.lm_head.weight"])


def test_pickled_code_is_not_run(tiny_llava: Make, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_llava(), tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save({"a": Path("x")}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never run here"):
        convert(source, tmp_path / "m")


def test_a_mistral_needs_its_chat_format_named(tiny_llava: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--chat-template"):
        convert(tiny_llava(core="mistral"), tmp_path / "m")
