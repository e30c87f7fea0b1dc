"""A folder of the LLaVA authors' own code -> plan.

Its config.json is the language model's with `mm_` keys; its weights hold the projector, and the
tower too where it was trained. Else the tower is named on the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPConfig, CLIPVisionConfig

from llava_mole.configuration import VisionConfig
from llava_mole.conversion import clip
from llava_mole.conversion.assemble import (
    Language,
    Tower,
    assemble,
    load_tokenizer,
    read_json,
    split,
)
from llava_mole.conversion.hub import local_folder
from llava_mole.conversion.llava import clip_tower, not_clip
from llava_mole.conversion.pictures import described, mean_colour, preprocess_of
from llava_mole.conversion.plan import Options, Piece, Plan, stored
from llava_mole.conversion.tensors import TensorFiles, weights_of
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.vision import load_vision

CORES = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
}
"""The authors' `model_type` -> the language model's."""
OWN_KEYS = (
    "mm_", "image_", "tune_", "use_mm_proj", "freeze_mm", "unfreeze_mm", "tokenizer_",
    "pretrain_mm", "vision_tower", "s2", "architectures", "model_type", "auto_map",
    "_name_or_path", "transformers_version",
)  # fmt: skip
"""Beginnings of keys that are no part of the language model's config."""
PROJECTORS = ("linear", "mlp2x_gelu")
ASPECTS = {None: None, "square": "crop", "pad": "pad"}
"""image_aspect_ratio -> ours; "square" is the tower's own resize and crop."""
CLIP_336 = "--vision-model ViT-L-14-336-quickgelu --vision-pretrained openai"
INSIDE = ("visual_projection.weight", "text_projection.weight", "logit_scale")
"""Of a whole CLIP folder, beside its towers: no part of what LLaVA reads."""


def plan_original(source: str, folder: Path, options: Options) -> Plan:
    """Raises CheckpointError, ConfigError: what cannot be converted, and why."""
    values = read_json(folder / "config.json")
    check_config(values, source)
    files = weights_of(folder)
    parts = split(files, source)
    if not parts.projector:
        raise CheckpointError(f"{source}: its weights hold no mm_projector")
    tower, tower_files = tower_of(values, parts.tower, source, options)
    core = text_config(values)
    notes = []
    if parts.tower and (options.vision_tower or options.vision_model):
        notes.append(
            "the tower inside the source was left out, as another one was named on the command line"
        )
    return assemble(
        source,
        folder,
        language=Language(core, parts.language),
        tower=tower,
        projector=parts.projector,
        projector_type=values.get("mm_projector_type") or "linear",
        tokenizer=load_tokenizer(folder, core),
        options=options,
        files=[files, *tower_files],
        kind="original LLaVA",
        notes=notes,
    )


def check_config(values: dict[str, Any], source: str) -> None:
    """Raises CheckpointError naming every setting that has no counterpart here."""
    problems = []
    kind = values.get("model_type")
    if kind not in CORES:
        problems.append(f"model_type={kind!r}: {', '.join(CORES)} can be converted")
    projector = values.get("mm_projector_type") or "linear"
    if projector not in PROJECTORS:
        problems.append(f"mm_projector_type={projector!r}: {', '.join(PROJECTORS)} can be")
    aspect = values.get("image_aspect_ratio")
    if aspect not in ASPECTS:
        problems.append(
            f"image_aspect_ratio={aspect!r}: pictures are cut into tiles of several resolutions "
            "(LLaVA-NeXT, OneVision); here a picture has one size and one number of tokens"
        )
    merge = values.get("mm_patch_merge_type", "flat")
    if merge != "flat":
        problems.append(f"mm_patch_merge_type={merge!r}: only 'flat', one grid per picture")
    if values.get("mm_use_im_start_end"):
        problems.append("mm_use_im_start_end=true: tokens around each picture are not supported")
    if values.get("s2"):
        problems.append("s2=true: features of several resolutions side by side")
    if values.get("mm_vision_select_feature", "patch") not in ("patch", "cls_patch"):
        problems.append(
            f"mm_vision_select_feature={values['mm_vision_select_feature']!r}: patch or cls_patch"
        )
    if problems:
        raise CheckpointError(f"{source} cannot be converted\n  " + "\n  ".join(problems))


def text_config(values: dict[str, Any]) -> Any:
    """The language model's own config."""
    kept = {key: value for key, value in values.items() if not key.startswith(OWN_KEYS)}
    return AutoConfig.for_model(CORES[values["model_type"]], **kept)


def tower_of(
    values: dict[str, Any], inside: dict[str, Piece], source: str, options: Options
) -> tuple[Tower, list[TensorFiles]]:
    """The tower that the projector was trained on: named on the command line, or inside.

    Args:
        values: the authors' `mm_` keys.
        inside: tensors of a tower that the source holds.

    Raises:
        CheckpointError: nothing is named and nothing inside, or it is no CLIP tower.
    """
    layer = options.vision_layer
    layer = values.get("mm_vision_select_layer", -2) if layer is None else layer
    select = options.vision_select or values.get("mm_vision_select_feature", "patch")
    aspect = options.image_aspect_ratio or ASPECTS[values.get("image_aspect_ratio")]
    named = values.get("mm_vision_tower")
    if options.vision_tower and options.vision_model:
        raise ConfigError("--vision-tower and --vision-model name two towers: leave one out")
    if options.vision_model:
        return referenced_tower(options, layer, select, aspect), []
    if options.vision_tower:
        folder = local_folder(options.vision_tower)
        config = clip_config(folder)
        files = weights_of(folder)
        found = {
            name.removeprefix("vision_model."): stored(files, name)
            for name in files.entries
            if not name.startswith("text_model.")
            and name not in INSIDE
            and not name.endswith("position_ids")
        }
        where, all_files = options.vision_tower, [files]
    elif inside:
        config, found = clip_inside(inside, values, source), inside
        folder, where, all_files = None, source, []
    else:
        raise CheckpointError(
            f"{source} has no vision tower inside (it was trained on {named!r}): name a folder or "
            f"hub id with --vision-tower, e.g. --vision-tower {named}, or open_clip's copy, for "
            f"openai/clip-vit-large-patch14-336: {CLIP_336}"
        )
    about = described(folder) if folder else None
    preprocess = preprocess_of(about, config.image_size, where, aspect)
    tower = clip_tower(config, found, layer=layer, select=select, preprocess=preprocess)
    return tower, all_files


def clip_config(folder: Path) -> CLIPVisionConfig:
    """Of a folder that holds a CLIP model, or its vision tower alone."""
    values = read_json(folder / "config.json")
    if values.get("model_type") == "clip":
        return CLIPConfig.from_dict(values).vision_config
    if values.get("model_type") != "clip_vision_model":
        raise CheckpointError(f"{folder}: {not_clip(str(values.get('model_type')))}")
    return CLIPVisionConfig.from_dict(values)


def clip_inside(inside: dict[str, Piece], values: dict[str, Any], source: str) -> CLIPVisionConfig:
    """The config of a tower of which only the tensors are there: OpenAI's CLIP, by its shapes.

    Its heads are 64 wide, its activation is QuickGELU, its pictures are square: what the shapes do
    not show is the same in all of them.
    """
    try:
        patch = inside["embeddings.patch_embedding.weight"].shape
        positions = inside["embeddings.position_embedding.weight"].shape[0]
        hidden = inside["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"{source}: the tower inside has no {error}; is it a CLIP ViT "
            f"(mm_vision_tower={values.get('mm_vision_tower')!r})?"
        ) from error
    described_tower = str(values.get("mm_vision_tower", ""))
    grid = round((positions - 1) ** 0.5)
    if grid * grid + 1 != positions or patch[0] % 64:
        raise CheckpointError(
            f"{source}: the tower inside ({described_tower!r}, {patch[0]} wide, {positions} "
            "positions) is none of OpenAI's CLIP; name its folder with --vision-tower"
        )
    layers = {int(name.split(".")[2]) for name in inside if name.startswith("encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=patch[0],
        intermediate_size=hidden,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=patch[0] // 64,
        image_size=grid * patch[-1],
        patch_size=patch[-1],
        hidden_act="quick_gelu",
    )


def referenced_tower(options: Options, layer: int | None, select: str, aspect: str | None) -> Tower:
    """open_clip's tower of that name, kept by reference; `layer` counts as Hugging Face's does."""
    assert options.vision_model is not None
    from llava_mole.building import from_anywhere

    module, config = load_vision(
        from_anywhere(options.vision_model, "local-dir:"),
        options.vision_pretrained,
        layer=None,
        select="patch",
    )
    if config.features != "tokens":
        raise ConfigError(f"--vision-model={options.vision_model!r}: a ViT is needed")
    if layer is not None:
        layer = clip.block_index(layer, number_of_blocks(module))
    preprocess = dict(config.preprocess or {})
    if aspect == "pad":
        preprocess["pad_to_square"] = mean_colour(preprocess["mean"])
    values = {**config.to_dict(), "layer": layer, "select": select, "preprocess": preprocess}
    return Tower(VisionConfig.from_dict(values), None)


def number_of_blocks(module: Any) -> int:
    visual = module.visual
    if hasattr(visual, "transformer"):
        return len(visual.transformer.resblocks)
    return len(visual.trunk.blocks)
