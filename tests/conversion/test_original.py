"""Folders of the LLaVA authors' own code, and their projector files."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaTokenizer,
)

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.vision import TINY_TEXT
from tests.conversion.tiny import (
    TINY,
    TOLERANCE,
    assert_same_logits,
    convert,
    ids_with,
    load,
    logits,
    pixels_of,
    wide,
)
from tests.helpers import write_tower

Make = Callable[..., Path]
NAMES = (
    ("language_model.lm_head", "lm_head"),
    ("language_model.model.", "model."),
    ("multi_modal_projector.linear_1", "model.mm_projector.0"),
    ("multi_modal_projector.linear_2", "model.mm_projector.2"),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
)


def authors_name(name: str) -> str:
    for theirs, authors in NAMES:
        if name.startswith(theirs):
            return authors + name.removeprefix(theirs)
    raise AssertionError(name)


def write_original(
    source: Path,
    out: Path,
    *,
    tower_inside: bool = True,
    image_token: bool = False,
    rows: int | None = None,
    **values: Any,
) -> Path:
    """A Hugging Face LLaVA as the authors' code would have saved it.

    Args:
        image_token: keep `<image>` in the tokenizer; theirs has none.
        rows: of embedding and head; the rest is cut off.
    """
    config = json.loads((source / "config.json").read_text())
    core = config["text_config"]["model_type"]
    out.mkdir()
    tensors = {authors_name(n): t for n, t in load_file(source / "model.safetensors").items()}
    if not tower_inside:
        tensors = {n: t for n, t in tensors.items() if "vision_tower" not in n}
    text = dict(config["text_config"])
    if rows is not None:
        text["vocab_size"] = rows
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:rows].contiguous()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    text |= {
        "model_type": f"llava_{'qwen' if core == 'qwen2' else core}",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 64,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        **values,
    }
    (out / "config.json").write_text(json.dumps(text))
    TINY.tokenizer(image_token).save_pretrained(out)
    return out


def write_clip(source: Path, out: Path, *, whole: bool = False) -> Path:
    """The tower of a Hugging Face LLaVA as a CLIP folder: alone, or with a text tower beside."""
    config = json.loads((source / "config.json").read_text())["vision_config"]
    tensors = {
        f"vision_model.{name.removeprefix('vision_tower.')}": tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if name.startswith("vision_tower.")
    }
    if whole:
        tensors["text_model.final_layer_norm.weight"] = torch.ones(8)
        tensors["visual_projection.weight"] = torch.ones(8, 64)
        tensors["logit_scale"] = torch.ones(())
        tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        config = {"model_type": "clip", "vision_config": config, "text_config": {}}
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("core", ["llama", "mistral", "qwen2"])
def test_a_folder_with_its_tower_inside_computes_the_same(
    tiny_llava: Make, tmp_path: Path, core: str
) -> None:
    source = tiny_llava(core=core)
    original = write_original(source, tmp_path / "o", image_token=True)
    ours, processor = load(convert(original, tmp_path / "m", chat_template="vicuna_v1"))
    assert_same_logits(load(source)[0], ours, processor)


def test_pictures_are_padded_as_the_config_says(tiny_llava: Make, tmp_path: Path) -> None:
    for aspect, expected in (("pad", [122, 116, 104]), ("square", None), (None, None)):
        original = write_original(
            tiny_llava(), tmp_path / f"o{aspect}", image_token=True, image_aspect_ratio=aspect
        )
        folder = convert(original, tmp_path / f"m{aspect}")
        preprocess = AutoProcessor.from_pretrained(folder).image_processor.preprocess
        assert preprocess.get("pad_to_square") == expected
        assert preprocess["resize_mode"] == "shortest"


@pytest.mark.parametrize("whole", [False, True])
def test_a_tower_may_be_named_by_its_folder(tiny_llava: Make, tmp_path: Path, whole: bool) -> None:
    source = tiny_llava(hidden_act="gelu")  # which shapes alone would not show
    original = write_original(source, tmp_path / "o", tower_inside=False, image_token=True)
    tower = write_clip(source, tmp_path / "clip", whole=whole)
    ours, processor = load(convert(original, tmp_path / "m", vision_tower=str(tower)))
    assert_same_logits(load(source)[0], ours, processor)


def test_without_a_tower_the_message_says_which(tiny_llava: Make, tmp_path: Path) -> None:
    original = write_original(tiny_llava(), tmp_path / "o", tower_inside=False)
    with pytest.raises(CheckpointError, match=r"--vision-tower openai/clip-vit-large-patch14-336"):
        convert(original, tmp_path / "m")


def test_a_spare_row_of_the_embedding_becomes_the_placeholder(
    tiny_llava: Make, tmp_path: Path
) -> None:
    original = write_original(tiny_llava(), tmp_path / "o")  # 261 tokens, 272 rows
    folder = convert(original, tmp_path / "m")
    ours, processor = load(folder)
    assert processor.image_token == "<image>"
    assert processor.image_token_id == 261
    assert ours.config.text_config.vocab_size == 272
    row = processor(images=[wide()], text="a <image>")["input_ids"].tolist()[0]
    assert row[-16:] == [261] * 16


def test_a_full_vocabulary_grows_and_the_old_logits_stay(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava()
    original = write_original(source, tmp_path / "o", rows=261)
    folder = convert(original, tmp_path / "m")
    ours, processor = load(folder)
    assert processor.image_token_id == 261
    assert ours.config.text_config.vocab_size == 320  # the next multiple of 64
    record = json.loads((folder / "conversion.json").read_text())
    assert "320 rows from 261" in record["notes"][0]
    ids = ids_with(processor, 2)
    their_ids = ids.where(ids != 261, 3)  # where the source has its placeholder
    pixels = pixels_of(2)
    expected = logits(load(source)[0], their_ids, pixels)[..., :261]
    found = logits(ours, ids, pixels)
    torch.testing.assert_close(found[..., :261], expected, **TOLERANCE)
    # A new token's logit is the mean of the others, and never the largest.
    torch.testing.assert_close(
        found[..., 261:], found[..., :261].mean(-1, keepdim=True).expand(-1, -1, 59), **TOLERANCE
    )
    assert bool((found.argmax(-1) < 261).all())


def test_a_linear_projector_is_kept(tiny_llava: Make, tmp_path: Path) -> None:
    original = write_original(tiny_llava(), tmp_path / "o", mm_projector_type="linear")
    tensors = load_file(original / "model.safetensors")
    for kind in ("weight", "bias"):
        tensors[f"model.mm_projector.{kind}"] = tensors.pop(f"model.mm_projector.0.{kind}")
        del tensors[f"model.mm_projector.2.{kind}"]
    save_file(tensors, original / "model.safetensors")
    model, _ = load(convert(original, tmp_path / "m"))
    assert model.config.projector_part.type == "linear"
    features = torch.randn(1, 3, 64)
    expected = (
        features @ tensors["model.mm_projector.weight"].T + tensors["model.mm_projector.bias"]
    )
    torch.testing.assert_close(model.projector(features), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, "tiles of several resolutions"),
        ({"image_aspect_ratio": "anyres_max_9"}, "tiles of several resolutions"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type='mlp3x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"s2": True}, "several resolutions"),
        ({"model_type": "llava_mpt"}, "'llava_mpt' model"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_refused_by_name(
    tiny_llava: Make, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    original = write_original(tiny_llava(), tmp_path / "o", **values)
    with pytest.raises(CheckpointError, match=message):
        convert(original, tmp_path / "m")


# ---------------------------------------------------------------------- a projector alone


def write_projector(source: Path, file: Path, prefix: str = "model.mm_projector.") -> Path:
    tensors = load_file(source / "model.safetensors")
    torch.save(
        {
            f"{prefix}{place}.{kind}": tensors[f"multi_modal_projector.{name}.{kind}"]
            for place, name in ((0, "linear_1"), (2, "linear_2"))
            for kind in ("weight", "bias")
        },
        file,
    )
    return file


def write_language_model(source: Path, out: Path, image_token: bool = True) -> Path:
    """The core of a Hugging Face LLaVA as a folder of its own."""
    llava = AutoModelForImageTextToText.from_pretrained(source)
    model = AutoModelForCausalLM.from_config(llava.config.text_config)
    model.model.load_state_dict(llava.model.language_model.state_dict())
    model.lm_head.load_state_dict(llava.lm_head.state_dict())
    model.save_pretrained(out)
    TINY.tokenizer(image_token).save_pretrained(out)
    return out


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "mm_projector."])
def test_a_projector_file_between_named_parts_computes_the_same(
    tiny_llava: Make, tmp_path: Path, prefix: str
) -> None:
    source = tiny_llava()
    file = write_projector(source, tmp_path / "mm_projector.bin", prefix)
    base = write_language_model(source, tmp_path / "base")
    tower = write_clip(source, tmp_path / "clip")
    folder = convert(file, tmp_path / "m", language_model=str(base), vision_tower=str(tower))
    assert not (folder / "language_model").exists()  # by reference
    ours, processor = load(folder)
    assert_same_logits(load(source)[0], ours, processor)


def test_a_first_stages_folder_is_read_with_its_config(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava()
    stage = tmp_path / "stage"
    stage.mkdir()
    write_projector(source, stage / "mm_projector.bin")
    (stage / "config.json").write_text(
        json.dumps(
            {"model_type": "llava_llama", "mm_vision_tower": "x", "mm_projector_type": "mlp2x_gelu",
             "mm_vision_select_layer": -3, "mm_vision_select_feature": "cls_patch"}
        )
    )  # fmt: skip
    base = write_language_model(source, tmp_path / "base")
    tower = write_clip(source, tmp_path / "clip")
    folder = convert(stage, tmp_path / "m", language_model=str(base), vision_tower=str(tower))
    vision = load(folder)[0].config.vision_part
    assert (vision.layer, vision.select) == (-3, "cls_patch")


def test_an_open_clip_tower_is_kept_by_reference(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava(vision={"hidden_size": 16, "image_size": 16, "patch_size": 8})
    file = write_projector(source, tmp_path / "mm_projector.bin")
    base = write_language_model(source, tmp_path / "base")
    tower = write_tower(tmp_path / "vit", "vit")
    folder = convert(
        file, tmp_path / "m", language_model=str(base), vision_model=f"local-dir:{tower}"
    )
    ours, processor = load(folder)
    vision = ours.config.vision_part
    assert vision.source is not None
    assert vision.layer == -2
    assert processor.tokens_per_image == 4
    names = load_file(folder / "model.safetensors")
    assert not any(name.startswith("vision_tower") for name in names)


def test_a_full_vocabulary_copies_the_language_model(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava(text={"vocab_size": 261})
    base = write_language_model(source, tmp_path / "base", image_token=False)
    file = write_projector(source, tmp_path / "mm_projector.bin")
    tower = write_clip(source, tmp_path / "clip")
    folder = convert(file, tmp_path / "m", language_model=str(base), vision_tower=str(tower))
    head = load_file(folder / "language_model" / "model.safetensors")["lm_head.weight"]
    assert head.shape == (320, 64)


def test_a_projector_alone_says_what_it_needs(tiny_llava: Make, tmp_path: Path) -> None:
    file = write_projector(tiny_llava(), tmp_path / "mm_projector.bin")
    with pytest.raises(ConfigError, match="--language-model and --vision-model"):
        convert(file, tmp_path / "m")


def test_another_width_is_refused_by_shape(tiny_llava: Make, tmp_path: Path) -> None:
    source = tiny_llava()
    file = write_projector(source, tmp_path / "mm_projector.bin")
    base = write_language_model(source, tmp_path / "base")
    tower = shutil.copytree(write_tower(tmp_path / "vit", "vit"), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight is \(64, 64\), .*\(64, 16\)"):
        convert(file, tmp_path / "m", language_model=str(base), vision_model=f"local-dir:{tower}")


def test_a_timm_tower_is_read_at_the_same_layer(tiny_llava: Make, tmp_path: Path) -> None:
    """open_clip's SigLIP towers are of this kind: blocks of a timm trunk."""
    tower = tmp_path / "timm"
    cfg = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 160}
    config = {"embed_dim": 64, "vision_cfg": cfg, "text_cfg": TINY_TEXT}
    clip = open_clip.CustomTextCLIP(**config)
    tower.mkdir()
    preprocess = {"size": 160, "mean": [0.5] * 3, "std": [0.5] * 3}
    (tower / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess})
    )
    save_file(clip.state_dict(), tower / "open_clip_model.safetensors")
    source = tiny_llava()
    folder = convert(
        write_projector(source, tmp_path / "mm_projector.bin"),
        tmp_path / "m",
        language_model=str(write_language_model(source, tmp_path / "base")),
        vision_model=f"local-dir:{tower}",
        vision_layer=3,
        image_aspect_ratio="pad",
    )
    model, processor = load(folder)
    assert model.config.vision_part.layer == 2  # hidden_states[3] is what block 2 gives
    assert processor.image_processor.preprocess["pad_to_square"] == [127, 127, 127]
    pixels = pixels_of(1, side=160)
    seen: list[torch.Tensor] = []
    trunk = model.vision_tower.visual.trunk
    trunk.blocks[2].register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.inference_mode():
        features = model.encode_images(pixels)
    torch.testing.assert_close(features[:, 1:], seen[0][:, trunk.num_prefix_tokens :])


def test_a_llama_tokenizer_takes_the_placeholder(tiny_llava: Make, tmp_path: Path) -> None:
    """Vicuna's kind: byte fallback, and a vocabulary as large as the embedding."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    letters = ["▁", *string.ascii_letters, *".,:?'"]
    vocabulary = {token: place for place, token in enumerate(specials + letters)}
    source = tiny_llava(text={"vocab_size": len(vocabulary)})
    original = write_original(source, tmp_path / "o")
    LlamaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(original)
    _, processor = load(convert(original, tmp_path / "m"))
    assert type(processor.tokenizer) is LlamaTokenizer
    row = processor(images=[wide()], text="USER: <image>\nwhat?")["input_ids"].tolist()[0]
    assert row.count(len(vocabulary)) == 16
