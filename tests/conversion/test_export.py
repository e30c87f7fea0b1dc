"""Export to Hugging Face's LLaVA: the same logits in plain transformers, and back without loss."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from llava_mole.building import ModelRecipe, build_model
from llava_mole.conversion.export import export_huggingface
from llava_mole.errors import CheckpointError
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
from tests.helpers import awaken

Make = Callable[..., Path]


def export(folder: Path, out: Path, **options: Any) -> Path:
    export_huggingface(folder, out, progress=False, **options)
    return out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu", "core": "qwen2", "text": {"tie_word_embeddings": True}},
        {"hidden_act": "gelu_pytorch_tanh", "vision_feature_select_strategy": "full"},
        {"vision": {"intermediate_size": 100, "layer_norm_eps": 1e-3}, "vision_feature_layer": 2},
    ],
    ids=str,
)
def test_import_export_import_changes_no_tensor_and_no_logit(
    tiny_llava: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = tiny_llava(**changes)
    first = convert(source, tmp_path / "first")
    back = export(first, tmp_path / "back")
    second = convert(back, tmp_path / "second")
    before, after = (
        {n.split("/")[1]: t for n, t in tensors_of(f).items()} for f in (first, second)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, two = load(source)[0], load(back)[0]
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(one.state_dict()[n], t) for n, t in two.state_dict().items())
    patches = 17 if "vision_feature_select_strategy" in changes else 16
    ours, processor = load(first)
    assert_same_logits(two, ours, processor, patches)


def test_plain_transformers_opens_it(tiny_llava: Make, tmp_path: Path) -> None:
    back = export(convert(tiny_llava(), tmp_path / "m"), tmp_path / "back")
    assert "license: cc0-1.0" in (back / "README.md").read_text()
    program = (
        "import sys\n"
        "from PIL import Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model, info = AutoModelForImageTextToText.from_pretrained({str(back)!r}, "
        "output_loading_info=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(back)!r})\n"
        "chat = [{'role': 'user', 'content': [{'type': 'image', 'image': "
        "Image.new('RGB', (60, 90), 'red')}, {'type': 'text', 'text': 'What?'}]}]\n"
        "inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True,\n"
        "    add_generation_prompt=True, return_tensors='pt')\n"
        "reply = model.generate(**inputs, max_new_tokens=3, do_sample=False)\n"
        "print(type(model).__name__, type(processor).__name__, len(info['missing_keys']),\n"
        "      len(info['unexpected_keys']), 'llava_mole' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = "LlavaForConditionalGeneration LlavaProcessor 0 0 False"
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("aspect", ["crop", "pad"])
def test_the_exported_processor_makes_the_same_inputs(
    tiny_llava: Make, tmp_path: Path, aspect: str
) -> None:
    folder = convert(tiny_llava(), tmp_path / "m", image_aspect_ratio=aspect)
    back = export(folder, tmp_path / "back")
    ours = AutoProcessor.from_pretrained(folder)
    theirs = AutoProcessor.from_pretrained(back, backend="pil")
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": wide(2, (57, 90))},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    one = ours.apply_chat_template(chat, add_generation_prompt=True, **options)
    two = theirs.apply_chat_template(chat, add_generation_prompt=True, **options)
    assert one["input_ids"].tolist() == two["input_ids"].tolist()
    # Normalised in another order: the last bit of float32.
    torch.testing.assert_close(one["pixel_values"], two["pixel_values"], rtol=0, atol=1e-6)


def test_a_projectors_scale_goes_into_its_weights(tiny_llava: Make, tmp_path: Path) -> None:
    folder = convert(tiny_llava(), tmp_path / "m")
    model, processor = load(folder)
    with torch.no_grad():
        model.projector.input_scale.fill_(0.37)
    model.save_pretrained(tmp_path / "scaled", processor=processor, include_frozen=True)
    theirs, _ = load(export(tmp_path / "scaled", tmp_path / "back"))
    ids = ids_with(processor, 1)
    expected = logits(model, ids, pixels_of(1))
    torch.testing.assert_close(logits(theirs, ids, pixels_of(1)), expected, **TOLERANCE)


def started(folder: Path, out: Path, **parts: Any) -> Path:
    """A folder with adapters that matter, as training leaves one."""
    recipe = ModelRecipe(start_from=str(folder), dtype="float32", **parts)
    model, processor = build_model(recipe)
    awaken(model)
    model.save_pretrained(out, processor=processor)
    return out


LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}


def test_plain_lora_is_added_to_the_weights_if_asked(tiny_llava: Make, tmp_path: Path) -> None:
    converted = convert(tiny_llava(), tmp_path / "m")
    trained = started(converted, tmp_path / "trained", lora=LORA)
    with pytest.raises(CheckpointError, match="--merge-lora"):
        export(trained, tmp_path / "back")
    ours, processor = load(trained)
    theirs, _ = load(export(trained, tmp_path / "back", merge_lora=True))
    assert_same_logits(theirs, ours, processor)
    ids = ids_with(processor, 0)
    assert (logits(theirs, ids) - logits(load(converted)[0], ids)).abs().max() > 0.1


def test_each_part_that_prevents_an_export_is_named(
    tiny_llava: Make, tiny_parts: Any, tmp_path: Path
) -> None:
    from llava_mole.configuration import ParrotConfig
    from llava_mole.mole import MoleConfig

    converted = convert(tiny_llava(), tmp_path / "m")
    trained = started(
        converted,
        tmp_path / "trained",
        experts=MoleConfig(num_experts=2, r=2),
        parrot=ParrotConfig(num_experts=2, hidden_size=8),
    )
    with pytest.raises(CheckpointError, match=r"(?s)experts: each token.*parrot: visual tokens"):
        export(trained, tmp_path / "back")
    model, processor = build_model(tiny_parts.recipe("gemma3_text", tower="cnn"))
    model.save_pretrained(tmp_path / "cnn", processor=processor)
    with pytest.raises(CheckpointError, match=r"(?s)vision.layer is empty.*'gemma3_text'"):
        export(tmp_path / "cnn", tmp_path / "back")
    recipe = tiny_parts.recipe("llama", tower="cnn")
    model, processor = build_model(recipe)
    model.config.vision = {**model.config.vision, "layer": -2}
    model.save_pretrained(tmp_path / "map", processor=processor)
    with pytest.raises(CheckpointError, match="no plain CLIP ViT"):
        export(tmp_path / "map", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_model_built_here_from_open_clip_parts_exports(tiny_parts: Any, tmp_path: Path) -> None:
    """Its language model and tower are references, its tower has a projection of its own."""
    model, processor = build_model(tiny_parts.recipe("llama", tower="vit", vision_layer=-2))
    with torch.no_grad():  # an untrained projector's output would be next to nothing
        for parameter in model.projector.parameters():
            parameter.mul_(5)
    model.save_pretrained(tmp_path / "m", processor=processor)
    theirs, _ = load(export(tmp_path / "m", tmp_path / "back"))
    ids = ids_with(processor, 1, patches=4)
    pixels = pixels_of(1, side=16)
    torch.testing.assert_close(logits(theirs, ids, pixels), logits(model, ids, pixels), **TOLERANCE)
