"""A Hugging Face CLIP vision tower as an open_clip one, tensor by tensor, and back.

Both compute the same: patches without a bias, class token first, learnt positions, a LayerNorm
before the blocks, pre-norm blocks, QuickGELU or GELU as the config says. The only difference is
that open_clip keeps queries, keys and values in one matrix. The projection into CLIP's joint space
is no part of a vision tower; where open_clip wants one there is a column of zeros, never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPVisionConfig

from llava_mole.configuration import VisionConfig
from llava_mole.conversion.plan import Piece, constant, joined
from llava_mole.errors import CheckpointError

EPS = 1e-5
"""torch's LayerNorm, which open_clip takes unless told otherwise."""
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "quick_gelu": {"quick_gelu": True},
    "gelu": {},
    "gelu_pytorch_tanh": {"act_kwargs": {"approximate": "tanh"}},
    "gelu_new": {"act_kwargs": {"approximate": "tanh"}},
}
"""`hidden_act` -> what open_clip's config says instead."""

PLAIN = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
"""open_clip's name -> Hugging Face's (whose spelling of layernorm is theirs)."""
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
QKV = ("q_proj", "k_proj", "v_proj")


def plain_names(layers: int) -> dict[str, str]:
    """open_clip's name -> Hugging Face's, of all tensors but queries, keys and values."""
    names = dict(PLAIN)
    for n in range(layers):
        for ours, theirs in IN_BLOCK.items():
            for kind in ("weight", "bias"):
                names[f"transformer.resblocks.{n}.{ours}.{kind}"] = (
                    f"encoder.layers.{n}.{theirs}.{kind}"
                )
    return names


def joined_names(layers: int) -> dict[str, list[str]]:
    """open_clip's name -> Hugging Face's three."""
    return {
        f"transformer.resblocks.{n}.attn.in_proj_{kind}": [
            f"encoder.layers.{n}.self_attn.{part}.{kind}" for part in QKV
        ]
        for n in range(layers)
        for kind in ("weight", "bias")
    }


# ---------------------------------------------------------------------- import


def structure(config: CLIPVisionConfig) -> dict[str, Any]:
    """open_clip's model config for a Hugging Face one.

    Raises:
        CheckpointError: an activation that open_clip's ViT does not have.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"vision tower with hidden_act={config.hidden_act!r}: only {', '.join(ACTIVATIONS)} "
            "can be built with open_clip"
        )
    said = ACTIVATIONS[config.hidden_act]
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) != config.intermediate_size:  # what open_clip computes
        ratio = (config.intermediate_size + 0.5) / config.hidden_size
    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "head_width": config.hidden_size // config.num_attention_heads,
        "mlp_ratio": ratio,
    }
    if config.layer_norm_eps != EPS:
        vision["norm_kwargs"] = {"eps": config.layer_norm_eps}
    if "act_kwargs" in said:
        vision["act_kwargs"] = said["act_kwargs"]
    return {"embed_dim": 1, "quick_gelu": "quick_gelu" in said, "vision_cfg": vision}


def block_index(layer: int, layers: int) -> int:
    """`hidden_states[layer]` of a Hugging Face tower as the index of an open_clip block.

    hidden_states begins with the embeddings: entry k is the output of block k - 1. Negative ones
    count from the end in both.

    Raises:
        CheckpointError: the embeddings themselves, or no such layer.
    """
    if -layers <= layer <= -1:
        return layer
    if 1 <= layer <= layers:
        return layer - 1
    raise CheckpointError(
        f"vision_feature_layer={layer}: of a tower with {layers} layers, -{layers} to -1 and 1 to "
        f"{layers} can be read (0 is what goes into the first)"
    )


def pieces(found: Mapping[str, Piece], layers: int) -> dict[str, Piece]:
    """Tensors of a Hugging Face tower under open_clip's names; what is unknown keeps its own.

    Args:
        found: by Hugging Face's names, without prefix.
        layers: of the tower.
    """
    rest = dict(found)
    out = {ours: rest.pop(theirs) for ours, theirs in plain_names(layers).items() if theirs in rest}
    for ours, three in joined_names(layers).items():
        if all(name in rest for name in three):
            out[ours] = joined([rest.pop(name) for name in three])
    if out:
        one = next(iter(out.values()))
        width = out["class_embedding"].shape[0] if "class_embedding" in out else 0
        out["proj"] = constant(torch.zeros(width, 1, dtype=one.dtype))
    return {**out, **rest}


# ---------------------------------------------------------------------- export


def to_huggingface(vision: VisionConfig) -> CLIPVisionConfig:
    """The Hugging Face config of an open_clip ViT.

    Raises:
        CheckpointError: a tower that Hugging Face's CLIP does not have.
    """
    model = vision.model_cfg or {}
    cfg = dict(model.get("vision_cfg", {}))
    known = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio"}
    known |= {"norm_kwargs", "act_kwargs", "patch_dropout"}
    strange = sorted(key for key in cfg if key not in known)
    if vision.features != "tokens" or "timm_model_name" in cfg or strange:
        raise CheckpointError(
            f"the vision tower {vision.model!r} is no plain CLIP ViT "
            f"({', '.join(strange) or 'no tokens'}): Hugging Face's LLaVA could not run it"
        )
    image = cfg.get("image_size", 224)
    if not isinstance(image, int) or not isinstance(cfg.get("layers", 12), int):
        raise CheckpointError(f"the vision tower {vision.model!r} is no square ViT")
    tanh = (cfg.get("act_kwargs") or {}).get("approximate") == "tanh"
    plain = "gelu_pytorch_tanh" if tanh else "gelu"
    width = cfg.get("width", 768)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * cfg.get("mlp_ratio", 4.0)),
        num_hidden_layers=cfg.get("layers", 12),
        num_attention_heads=width // cfg.get("head_width", 64),
        image_size=image,
        patch_size=cfg.get("patch_size", 16),
        hidden_act="quick_gelu" if model.get("quick_gelu") else plain,
        layer_norm_eps=(cfg.get("norm_kwargs") or {}).get("eps", EPS),
    )


def huggingface_pieces(found: Mapping[str, Piece], layers: int) -> dict[str, Piece]:
    """Tensors of an open_clip ViT under Hugging Face's names; `proj` has no place there."""
    out = {theirs: found[ours] for ours, theirs in plain_names(layers).items()}
    for ours, three in joined_names(layers).items():
        whole = found[ours]
        rows = whole.shape[0] // 3
        for place, name in enumerate(three):
            out[name] = part_of(whole, place, rows)
    return out


def part_of(whole: Piece, place: int, rows: int) -> Piece:
    """Rows `place * rows` and after, of a stacked matrix."""

    def read() -> torch.Tensor:
        return whole.read()[place * rows : (place + 1) * rows].contiguous()

    return Piece((rows, *whole.shape[1:]), whole.dtype, read)
