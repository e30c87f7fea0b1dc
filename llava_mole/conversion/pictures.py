"""Hugging Face image processors of CLIP and LLaVA as open_clip preprocessing, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from transformers import CLIPImageProcessor, LlavaImageProcessor

from llava_mole.errors import CheckpointError, ConfigError

CLIP_KINDS = ("CLIPImageProcessor", "CLIPFeatureExtractor")
LLAVA_KINDS = ("LlavaImageProcessor",)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers -> open_clip's names."""
ASPECTS = ("pad", "crop")
DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": list(OPENAI_DATASET_MEAN),
    "image_std": list(OPENAI_DATASET_STD),
}
"""What Hugging Face's CLIP and LLaVA processors do unless told otherwise."""


def described(folder: Path) -> dict[str, Any] | None:
    """A folder's image processor, as its JSON says it; None if it has none."""
    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        path = folder / name
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            values = values if key is None else values.get(key)
            if values:
                return values
    return None


def preprocess_of(
    values: dict[str, Any] | None, image_size: int, source: str, aspect: str | None = None
) -> dict[str, Any]:
    """open_clip's preprocessing, with what `preprocess.py` adds.

    Args:
        values: of an image processor's JSON; None: CLIP's defaults at the tower's size.
        image_size: of the tower.
        source: for messages.
        aspect: "pad" (to a square of the mean colour first) or "crop", in place of what it says.

    Raises:
        CheckpointError: steps that cannot be done here, or another size than the tower's.
    """
    if aspect not in (None, *ASPECTS):
        raise ConfigError(f"--image-aspect-ratio={aspect!r}: allowed are {', '.join(ASPECTS)}")
    said = {**DEFAULTS, **{k: v for k, v in (values or {}).items() if v is not None}}
    kind = str(said.get("image_processor_type", said.get("feature_extractor_type", "")))
    plain = kind.removesuffix("Fast").removesuffix("Pil")
    if plain not in ("", *CLIP_KINDS, *LLAVA_KINDS):
        raise CheckpointError(
            f"{source}: image processor {kind!r}; those of CLIP and LLaVA can be converted"
        )
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not said[key]:
            raise CheckpointError(f"{source}: image processor with {key}=false is not supported")
    if abs(said["rescale_factor"] * 255 - 1) > 1e-6:
        raise CheckpointError(f"{source}: image processor with rescale_factor is not 1/255")
    if said["resample"] not in INTERPOLATIONS:
        raise CheckpointError(
            f"{source}: image processor with resample={said['resample']}: 2 (bilinear) and 3 "
            "(bicubic) are supported"
        )
    size = said.get("size", {"shortest_edge": image_size})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = said.get("crop_size", image_size)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if "shortest_edge" in size and said["do_center_crop"]:
        found = [size["shortest_edge"], crop["height"], crop["width"]]
        mode = "shortest"
    elif "height" in size:
        found = [size["height"], size["width"]]
        found += [crop["height"], crop["width"]] if said["do_center_crop"] else []
        mode = "squash"
    else:
        raise CheckpointError(
            f"{source}: image processor with size={size}, do_center_crop="
            f"{said['do_center_crop']} does not give squares"
        )
    if set(found) != {image_size}:
        raise CheckpointError(
            f"{source}: image processor makes pictures of {found}, the tower takes {image_size}; "
            "positions are not interpolated here"
        )
    mean = [float(v) for v in said["image_mean"]]
    preprocess: dict[str, Any] = {
        "size": image_size,
        "mode": "RGB",
        "mean": mean,
        "std": [float(v) for v in said["image_std"]],
        "interpolation": INTERPOLATIONS[said["resample"]],
        "resize_mode": mode,
        "fill_color": 0,
        "crop": "floor",
    }
    pads = plain in LLAVA_KINDS and said.get("do_pad", False)
    if aspect == "pad" or (aspect is None and pads):
        preprocess["pad_to_square"] = mean_colour(mean)
    return preprocess


def mean_colour(mean: list[float]) -> list[int]:
    """The colour that LLaVA pads with."""
    return [int(value * 255) for value in mean]


def to_huggingface(
    preprocess: dict[str, Any],
) -> tuple[CLIPImageProcessor | LlavaImageProcessor, list[str]]:
    """The Hugging Face image processor, and where its pixels can differ.

    Raises:
        CheckpointError: steps that it does not have.
    """
    size, mode = preprocess["size"], preprocess.get("resize_mode", "shortest")
    size = size[0] if isinstance(size, list | tuple) and len(set(size)) == 1 else size
    if not isinstance(size, int) or mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"preprocessing with size={preprocess['size']}, resize_mode={mode!r}: Hugging Face's "
            "image processors of CLIP and LLaVA have no such step"
        )
    names = {name: number for number, name in INTERPOLATIONS.items()}
    options: dict[str, Any] = {
        "size": {"shortest_edge": size} if mode == "shortest" else {"height": size, "width": size},
        "crop_size": {"height": size, "width": size},
        "do_center_crop": mode == "shortest",
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
        "resample": names[preprocess.get("interpolation", "bicubic")],
    }
    notes = []
    if preprocess.get("crop") != "floor" and mode == "shortest":
        notes.append(
            "centred crops of an odd margin may lie one pixel beside: torchvision rounds halves to "
            "even, Hugging Face's processors round down"
        )
    colour = preprocess.get("pad_to_square")
    if colour is None:
        return CLIPImageProcessor(**options), notes
    if list(colour) != mean_colour(options["image_mean"]):
        raise CheckpointError(
            f"preprocessing pads with {colour}, Hugging Face's LLaVA with the mean colour "
            f"{mean_colour(options['image_mean'])}"
        )
    return LlavaImageProcessor(do_pad=True, **options), notes
