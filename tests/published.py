"""The published recipes in miniature: their own files, over parts of another width and depth.

Families, templates, placeholders, the number of visual tokens and the stages stay as the recipe
has them. Towers keep their pictures' and patches' size: a picture is as many tokens as published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llava_mole.structure import PUBLISHED
from tests.helpers import picture

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
TINY_TEXT = {"context_length": 2, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
TIMM_SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2.0}


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's and Vicuna's: bytes to fall back to, no reserved token, <unk> as number 0."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary["▁"] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def qwen_tokenizer(*, pictures: bool) -> PreTrainedTokenizerFast:
    """As Qwen's: byte level, chat marks; from Qwen2.5 on with <|image_pad|>."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + ["<|image_pad|>"] * pictures
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=marks[1:],
    )


def write_language_model(folder: Path, name: str) -> Path:
    """The family of a published model, its heads' proportion, and a tokenizer of its kind."""
    shape = dict(PUBLISHED[name])
    heads = shape["num_attention_heads"] // shape["num_key_value_heads"]
    family = shape.pop("model_type")
    if family == "llama":
        tokenizer, rows = llama_tokenizer(), 260
    else:
        tokenizer = qwen_tokenizer(pictures="1.5" not in name)
        rows = len(tokenizer) + 5  # rounded up, as theirs
    small = {
        **shape, **SMALL, "vocab_size": rows, "num_attention_heads": 4,
        "num_key_value_heads": 4 if heads == 1 else 1, "max_position_embeddings": 1024,
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tower(folder: Path, name: str, tag: str) -> Path:
    """A tower of as many patches as `name` has."""
    cfg = open_clip.get_model_config(name)
    vision = dict(cfg["vision_cfg"])
    if "timm_model_name" in vision:
        trunk = folder / "trunk"  # timm's own way to name an architecture with other arguments
        trunk.mkdir(parents=True)
        arguments = {**TIMM_SMALL, "img_size": vision["image_size"]}
        described = {"architecture": vision["timm_model_name"], "model_args": arguments}
        (trunk / "config.json").write_text(json.dumps({**described, "pretrained_cfg": {}}))
        vision["timm_model_name"] = f"local-dir:{trunk}"
    else:
        vision |= {"layers": 3, "width": 32, "head_width": 8}
    small = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TINY_TEXT}
    if "quick_gelu" in cfg:
        small["quick_gelu"] = cfg["quick_gelu"]
    torch.manual_seed(0)
    model = open_clip.CLIP(**small)
    published = open_clip.get_pretrained_cfg(name, tag)
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {key: published[key] for key in keys if key in published}
    preprocess["size"] = vision["image_size"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": small, "preprocess_cfg": preprocess})
    )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def write_data(folder: Path) -> Path:
    """Four pictures that are not square, a question each, and a conversation without a picture."""
    (folder / "images").mkdir(parents=True)
    items: list[dict[str, Any]] = []
    for number in range(4):
        picture(number, side=40).crop((0, 0, 40, 25)).save(folder / "images" / f"{number}.png")
        turns = [("human", "<image>\nWhat is it?"), ("gpt", f"thing {number}")]
        items.append({"image": f"images/{number}.png", "conversations": turns})
    items.append({"conversations": [("human", "Say hello."), ("gpt", "Hello.")]})
    for item in items:
        item["conversations"] = [
            {"from": who, "value": text} for who, text in item["conversations"]
        ]
    path = folder / "train.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def overrides(recipe: Any, folder: Path, data: Path, *, steps: int = 2) -> list[str]:
    """What makes a recipe small; everything else stays the file's own."""
    model = recipe.model
    source = f"[{{path: {data}, domain: general, language: en}}]"
    changes = [
        f"output_dir={folder / 'run'}", f"data.sources={source}", "data.length=null",
        "training.logging_steps=1", "training.disable_tqdm=true", "training.save_steps=100",
        "training.dataloader_num_workers=0",
    ]  # fmt: skip
    if "language_model" in vars(model) and model.language_model in PUBLISHED:
        language_model = write_language_model(folder / "lm", model.language_model)
        tower = write_tower(folder / "tower", model.vision_model, model.vision_pretrained)
        changes += [f"model.language_model={language_model}", "model.vision_pretrained=null"]
        changes += [f"model.vision_model=local-dir:{tower}"]
    if model.parrot is not None and model.parrot.hidden_size is not None:
        changes.append("model.parrot.hidden_size=32")
    for stage in recipe.stages:
        path = f"stages.{stage.name}"
        if stage.data is not None:
            changes += [f"{path}.data.sources={source}", f"{path}.data.length=null"]
        changes += [f"{path}.passes=null", f"{path}.steps={steps}", f"{path}.pictures_per_step=2"]
    return changes
