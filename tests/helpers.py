"""Real parts in miniature: a byte tokenizer, random language models of each family, vision towers.

Everything is built from the libraries' own config classes and saved as ordinary folders, so tests
go through the same doors as a user: `build_model`, `save_pretrained`, the Auto classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llava_mole.mole import mole_context

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<start_of_turn>", "<end_of_turn>")
SPECIAL += ("<|im_start|>", "<|im_end|>")
BYTES = 256
VOCABULARY = 272  # a little larger than the tokenizer, as published models are
WINDOW = 8

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # transformers' 0.02 would leave attention and MLPs next to nothing at this width.
    "initializer_range": 0.2,
}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
GEMMA |= {"num_hidden_layers": 3, "layer_types": MIXED_LAYERS}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": None},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "qwen2": {"max_window_layers": 1, "use_sliding_window": True, "sliding_window": WINDOW},
    "qwen3": {"head_dim": 8},
    "gemma2": {**GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "tie_word_embeddings": True},
}
"""Families that are proved: Phi-3 fuses gate and up, Granite scales its logits, Gemma 2 caps them,
Mistral and both Gemmas have windows shorter than the tests' rows."""

ATTENTION = dict.fromkeys(FAMILIES, "sdpa") | {"gemma2": "eager"}  # its soft cap has no sdpa

MLP_LINEARS = {family: ["gate_proj", "up_proj", "down_proj"] for family in FAMILIES}
MLP_LINEARS["phi3"] = ["gate_up_proj", "down_proj"]


# ---------------------------------------------------------------------- language side


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; ids 0 to 7 are the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[3:]),
    )


def language_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family, in eval mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **changes})
    options = {"attn_implementation": ATTENTION[family]}
    return AutoModelForCausalLM.from_config(config, **options).eval()


def write_language_model(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, **changes: Any
) -> Path:
    """An ordinary Hugging Face folder: config, safetensors, tokenizer."""
    language_model(family, **changes).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------- vision side

TOWERS: dict[str, dict[str, Any]] = {
    # a ViT with a class token: 16 px, 4 patches
    "vit": {"image_size": 16, "patch_size": 8, "layers": 3, "width": 16, "head_width": 8},
    # a convolutional trunk with batch norms: 64 px, a 2 x 2 map
    "cnn": {"timm_model_name": "test_efficientnet", "timm_model_pretrained": False,
            "timm_pool": "avg", "timm_proj": "none", "image_size": 64},
}  # fmt: skip
EMBED_DIM = {"vit": 16, "cnn": 256}


def write_tower(folder: Path, kind: str, seed: int = 0) -> Path:
    """An open_clip folder that `local-dir:FOLDER` opens."""
    torch.manual_seed(seed)
    config = {
        "embed_dim": EMBED_DIM[kind],
        "vision_cfg": TOWERS[kind],
        "text_cfg": {"context_length": 2, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    }
    model = open_clip.CLIP(**config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    preprocess = {
        "size": TOWERS[kind]["image_size"],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def picture(seed: int = 0, side: int = 24) -> Image.Image:
    """A picture of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---------------------------------------------------------------------- conversations


def user(text: str, *pictures: Image.Image | Path) -> dict[str, Any]:
    """A user message, its pictures first."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": item} for item in pictures]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def training_batch(processor: Any, chats: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Right-padded rows with labels, as a Trainer would get them."""
    encoded = [processor.encode(chat) for chat in chats]
    pictures = [
        part["image"]
        for chat in chats
        for message in chat
        for part in message["content"]
        if part["type"] == "image"
    ]
    return dict(processor.batch(encoded, pictures, labels=True))


# ---------------------------------------------------------------------- weights and gradients


@torch.no_grad()
def awaken(model: nn.Module, seed: int = 1, scale: float = 0.3) -> nn.Module:
    """Give every adapter weights that matter: what starts at zero gets random values.

    Routers are spread out too, so that every expert has tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        starts_at_zero = (
            "lora_B" in name
            or "output_scale" in name
            or (".down.weight" in name and "parrot" in name)
        )
        if starts_at_zero or "mole_router" in name or "parrot.router" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(scale * noise)
    return model


def gradients(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Copies of the gradients, by parameter name."""
    wanted = None if names is None else set(names)
    return {
        name: parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and (wanted is None or name in wanted)
    }


def random_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """(rows, length) ordinary tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), len(SPECIAL) + BYTES, (rows, length), generator=generator)


def last_context(model: nn.Module) -> Any:
    """The route context of a model with experts."""
    return mole_context(model)[0]
