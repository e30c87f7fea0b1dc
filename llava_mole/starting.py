"""`model.start_from`: go on from a model folder, with new adapters or those that it has.

Language model, tower, projector, tokenizer and chat template are the folder's. What stays frozen is
kept by reference: a model trained from a folder that holds its language model and tower in full
refers to that folder, by its path and the hashes of both, and so must find it where it was.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_mole import checkpoint, quantization
from llava_mole.attention import check_installed
from llava_mole.configuration import (
    LlavaMoleConfig,
    ParrotConfig,
    VisionConfig,
    WeightSource,
)
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.language_model import LANGUAGE_MODEL, weights_hash
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole import add_experts
from llava_mole.parrot import LanguageConditionedMoE
from llava_mole.plain_lora import add_lora
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.vision import (
    MODEL_FOLDER,
    VisionTower,
    folder_tensors,
    load_referenced,
    tensors_hash,
)

if TYPE_CHECKING:
    from llava_mole.building import ModelRecipe


def read_start(folder: str | Path) -> LlavaMoleConfig:
    """The config of a model folder.

    Raises:
        CheckpointError: it is not there, or is something else.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"no folder {folder}; `llava-mole convert` makes one from a LLaVA")
    values = path / "config.json"
    if values.is_file() and '"llava_mole"' not in values.read_text(encoding="utf-8"):
        raise CheckpointError(
            f"{folder} is no model folder of this project; make it one with `llava-mole convert "
            f"{folder} --out NEW` and start from that"
        )
    return checkpoint.read_config(path)


def clashes(recipe: ModelRecipe, default: ModelRecipe, config: LlavaMoleConfig) -> list[str]:
    """What a recipe says otherwise than the folder it starts from.

    Args:
        recipe: its `model:` section.
        default: the same with nothing in it; a key that is as there counts as left out.
        config: of the folder.
    """
    has = brought(recipe, config)
    problems = []
    for key, found in has.items():
        said = getattr(recipe, key)
        if said != getattr(default, key) and said != found:
            problems.append(
                f"model.{key}={plain(said)!r}: start_from={recipe.start_from} has "
                f"{plain(found)!r}; leave the key out, or start from another folder"
            )
    parts = {"experts": config.mole_part, "parrot": config.parrot_part, "lora": config.lora}
    for key, part in parts.items():
        said = getattr(recipe, key)
        if said is not None and part is not None and said != part:
            problems.append(
                f"model.{key}: start_from={recipe.start_from} has its own, {plain(part)}; leave "
                "the key out to train those further"
            )
    if recipe.lora is not None and config.lora is None and config.mole is not None:
        problems.append(
            f"model.lora: start_from={recipe.start_from} has experts, and LoRA is put on before "
            "them; start from the folder that they were trained from, with both"
        )
    return problems


def brought(recipe: ModelRecipe, config: LlavaMoleConfig) -> dict[str, Any]:
    """What the folder has for the keys of a recipe that name parts."""
    vision = config.vision_part
    source = config.text_source or {"name": LANGUAGE_MODEL, "revision": None}
    return {
        "language_model": source["name"],
        "language_model_revision": source["revision"],
        "vision_model": vision.model,
        "vision_pretrained": vision.pretrained,
        "vision_layer": vision.layer,
        "vision_select": vision.select,
        "vision_grid": vision.grid,
        "vision_resize": (vision.preprocess or {}).get("resize_mode"),
        "vision_revision": (vision.source or {}).get("revision"),
        "projector": config.projector_part,
        "image_token": image_token(recipe),
    }


def shown(recipe: ModelRecipe) -> dict[str, Any]:
    """A resolved `model:` section with what the folder that it starts from brings, in place of
    defaults that are not used; the folder's own chat template is no key of it."""
    values = dataclasses.asdict(recipe)
    if recipe.start_from is None:
        return values
    has = brought(recipe, read_start(recipe.start_from))
    values |= {key: plain(value) for key, value in has.items()}
    if recipe.chat_template is None:
        del values["chat_template"]
    return values


def plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def image_token(recipe: ModelRecipe) -> str | None:
    path = Path(str(recipe.start_from)).expanduser() / "processor_config.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("image_token")


def inherited(recipe: ModelRecipe, config: LlavaMoleConfig) -> ModelRecipe:
    """The recipe with the parts that the folder brings, where it names none."""
    return replace(
        recipe,
        projector=config.projector_part,
        experts=recipe.experts or config.mole_part,
        parrot=recipe.parrot or config.parrot_part,
        lora=recipe.lora or config.lora,
    )


def start_model(
    recipe: ModelRecipe, default: ModelRecipe
) -> tuple[LlavaMoleForConditionalGeneration, LlavaMoleProcessor]:
    """The folder's model with the recipe's adapters on it, which start as the identity.

    Raises:
        ConfigError: the recipe and the folder clash.
        CheckpointError: the folder is damaged.
    """
    assert recipe.start_from is not None
    folder = Path(recipe.start_from).expanduser().resolve()
    config = read_start(folder)
    problems = clashes(recipe, default, config)
    if problems:
        raise ConfigError("\n".join(problems))
    check_installed(recipe.attn_implementation, recipe.dtype)
    if recipe.quantization is not None:
        config.quantization = quantization.resolved(recipe.quantization, recipe.dtype)
    model = checkpoint.load_model(
        LlavaMoleForConditionalGeneration,
        folder,
        config=config,
        dtype=recipe.dtype,
        vision_dtype=recipe.vision_dtype,
        attn_implementation=recipe.attn_implementation,
    )
    processor = LlavaMoleProcessor.from_pretrained(folder)
    config = model.config
    config.text_config = copy.deepcopy(model.language_model.config)
    config.text_source = language_reference(config, folder).to_dict()
    config.vision = tower_reference(config.vision_part, folder, recipe.vision_dtype).to_dict()
    model.projector.float()  # trained parts are float32
    model.requires_grad_(False)
    if recipe.lora is not None and config.lora is None:
        config.lora = recipe.lora
        add_lora(model.language_model, recipe.lora)
    if recipe.experts is not None and config.mole is None:
        config.mole = recipe.experts.to_dict()
        model.mole = add_experts(model.language_model, recipe.experts)
    if recipe.parrot is not None and config.parrot is None:
        switch_parrot_on(model, processor, recipe.parrot)
    return model.eval(), processor


def switch_parrot_on(
    model: LlavaMoleForConditionalGeneration, processor: LlavaMoleProcessor, part: ParrotConfig
) -> None:
    width = model.config.text_config.hidden_size
    model.parrot = LanguageConditionedMoE(width, part).to(model.device)
    model.config.parrot = part.to_dict()
    processor.condition_on = part.condition_on


def language_reference(config: LlavaMoleConfig, folder: Path) -> WeightSource:
    """Where the language model is found from any folder."""
    source = WeightSource.from_dict(config.text_source or {"name": LANGUAGE_MODEL})
    inside = folder / source.name
    if not (inside / "config.json").is_file():
        return source
    digest = source.sha256 or weights_hash(inside)
    return WeightSource(str(inside), sha256=digest)


def tower_reference(vision: VisionConfig, folder: Path, dtype: str) -> VisionConfig:
    """The same tower, kept by reference if it was saved with the model."""
    values = {**vision.to_dict(), "dtype": dtype}
    if vision.source is None:
        digest = tensors_hash(folder_tensors(folder))
        values["source"] = WeightSource(f"{MODEL_FOLDER}{folder}", sha256=digest).to_dict()
    return VisionConfig.from_dict(values)


def start_tower(start_from: str, dtype: str) -> tuple[VisionTower, VisionConfig]:
    """The folder's tower alone."""
    folder = Path(start_from).expanduser().resolve()
    vision = read_start(folder).vision_part
    referenced = tower_reference(vision, folder, dtype)
    return load_referenced(referenced), referenced
