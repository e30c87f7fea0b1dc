"""A Hugging Face `LlavaForConditionalGeneration` folder -> plan. LLaVA-1.5's shape: one square
picture, one CLIP tower, one layer's features, a projector of two linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlavaConfig

from llava_mole.configuration import VisionConfig
from llava_mole.conversion import clip
from llava_mole.conversion.assemble import (
    Language,
    Tower,
    assemble,
    check_core,
    load_tokenizer,
    read_json,
    split,
)
from llava_mole.conversion.pictures import described, preprocess_of
from llava_mole.conversion.plan import Options, Piece, Plan
from llava_mole.conversion.tensors import weights_of
from llava_mole.errors import CheckpointError

SELECTS = {"default": "patch", "full": "cls_patch"}
"""vision_feature_select_strategy -> ours."""


def plan_llava(source: str, folder: Path, options: Options) -> Plan:
    """Raises CheckpointError, ConfigError: what cannot be converted, and why."""
    values = read_json(folder / "config.json")
    config = LlavaConfig.from_dict(values)
    check_config(config, source)
    text_config = config.text_config
    text_config.tie_word_embeddings = config.tie_word_embeddings
    files = weights_of(folder)
    parts = split(files, source)
    size = config.vision_config.image_size
    preprocess = preprocess_of(described(folder), size, source, options.image_aspect_ratio)
    tower = clip_tower(
        config.vision_config,
        parts.tower,
        layer=config.vision_feature_layer,
        select=SELECTS[config.vision_feature_select_strategy],
        preprocess=preprocess,
    )
    tokenizer = load_tokenizer(folder, text_config)
    token = tokenizer.convert_ids_to_tokens(config.image_token_index)
    if token is None:
        raise CheckpointError(
            f"{source}: image_token_index={config.image_token_index} is no token of its tokenizer "
            f"(it has {len(tokenizer)})"
        )
    return assemble(
        source,
        folder,
        language=Language(text_config, parts.language),
        tower=tower,
        projector=parts.projector,
        projector_type="mlp2x_gelu",
        tokenizer=tokenizer,
        options=options,
        files=[files],
        kind="Hugging Face LLaVA",
        image_token=token,
    )


def check_config(config: LlavaConfig, source: str) -> None:
    """Raises CheckpointError naming every part that has no counterpart here."""
    problems = []
    check_core(config.text_config, source)
    vision: Any = config.vision_config
    if vision.model_type != "clip_vision_model":
        problems.append(not_clip(vision.model_type))
    if not isinstance(config.vision_feature_layer, int):
        problems.append(
            f"vision_feature_layer={config.vision_feature_layer}: features of several layers side "
            "by side; one layer can be read"
        )
    if config.projector_hidden_act != "gelu":
        problems.append(f"projector_hidden_act={config.projector_hidden_act!r}: only 'gelu'")
    if problems:
        raise CheckpointError(f"{source} cannot be converted\n  " + "\n  ".join(problems))


def not_clip(model_type: str) -> str:
    """Why a tower is refused."""
    if model_type.startswith("siglip"):
        return (
            f"vision tower of type {model_type!r}: open_clip runs SigLIP through timm, with exact "
            "GELU where Hugging Face's has the tanh approximation, so features would differ. Where "
            "the tower was frozen, name open_clip's own beside the projector alone: convert "
            "mm_projector.bin --vision-model ViT-SO400M-14-SigLIP-384 --vision-pretrained webli"
        )
    return f"vision tower of type {model_type!r}: CLIP towers can be converted"


def clip_tower(
    config: CLIPVisionConfig,
    found: dict[str, Piece],
    *,
    layer: int,
    select: str,
    preprocess: dict[str, Any],
) -> Tower:
    """A tower whose tensors are copied.

    Args:
        config, found: Hugging Face's config, and its tensors by their names without prefix.
        layer: entry of `hidden_states`.
        select: "patch" or "cls_patch".
        preprocess: see `pictures.py`.
    """
    grid = config.image_size // config.patch_size
    layers = config.num_hidden_layers
    vision = VisionConfig(
        model=f"CLIP ViT, {layers} × {config.hidden_size}, patch {config.patch_size}, "
        f"{config.image_size} px",
        layer=clip.block_index(layer, layers),
        select=select,
        width=config.hidden_size,
        num_patches=grid * grid,
        model_cfg=clip.structure(config),
        preprocess=preprocess,
    )
    pieces = clip.pieces(found, layers)
    if pieces:
        kind = str(next(iter(pieces.values())).dtype).removeprefix("torch.")
        vision = VisionConfig.from_dict({**vision.to_dict(), "dtype": kind})
    return Tower(vision, pieces)
