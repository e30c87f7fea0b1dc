"""What a source is, and the plan for it."""

from __future__ import annotations

from pathlib import Path

from llava_mole.configuration import LlavaMoleConfig
from llava_mole.conversion.assemble import read_json
from llava_mole.conversion.hub import local_folder
from llava_mole.conversion.llava import plan_llava
from llava_mole.conversion.original import CORES, plan_original
from llava_mole.conversion.plan import Options, Plan
from llava_mole.conversion.projector_file import NAMES, plan_projector
from llava_mole.conversion.tensors import named
from llava_mole.errors import CheckpointError

TILES = (
    "it cuts pictures into tiles of several resolutions (anyres), with line-break tokens between "
    "them; here a picture has one size and one number of tokens. LLaVA-1.5 models can be converted"
)
OWN_PARTS = (
    "language_model", "vision_tower", "vision_model", "vision_pretrained", "vision_layer",
    "vision_select", "image_token",
)  # fmt: skip
"""Options that a Hugging Face LLaVA has no use for: its config says it all."""
REFUSED = {
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "vipllava": "its projector reads several layers of the tower at once, behind a LayerNorm",
    "video_llava": "it has a second tower for videos",
}
"""model_type -> why it cannot be converted."""


def plan_import(source: str, options: Options) -> Plan:
    """Look at a source and plan its conversion; nothing is written.

    Args:
        source: a folder, a projector file, or a hub id.
        options: of the command line.

    Raises:
        CheckpointError, ConfigError: what it is instead, or what does not fit.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".bin", ".safetensors"):
            raise CheckpointError(f"{source}: expected a model folder, or mm_projector.bin")
        return plan_projector(source, path, options)
    folder = local_folder(source, options.revision)
    alone = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    whole = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if alone is not None and not whole:
        return plan_projector(source, alone, options)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{source} has no config.json: expected a LLaVA folder; it holds {named(folder)}"
        )
    values = read_json(folder / "config.json")
    kind = values.get("model_type")
    if kind == LlavaMoleConfig.model_type:
        raise CheckpointError(
            f"{source} is a model folder of this project already; --export hf turns it into a "
            "Hugging Face LLaVA, model.start_from of a recipe trains from it"
        )
    if kind in CORES and ("mm_vision_tower" in values or "mm_projector_type" in values):
        unread("--language-model", options.language_model)
        return plan_original(source, folder, options)
    if kind == "llava":
        for option in OWN_PARTS:
            unread(f"--{option.replace('_', '-')}", getattr(options, option))
        return plan_llava(source, folder, options)
    if kind in REFUSED:
        raise CheckpointError(f"{source} is a {kind!r} model: {REFUSED[kind]}")
    raise CheckpointError(
        f"{source} is a {kind!r} model: Hugging Face's `llava` (LLaVA-1.5 and its like), the LLaVA "
        f"authors' {', '.join(CORES)}, and mm_projector.bin can be converted"
    )


def unread(option: str, value: object) -> None:
    """Raises CheckpointError for an option that this source has no use for."""
    if value is not None:
        raise CheckpointError(f"{option}={value}: this source holds its own; leave it out")
