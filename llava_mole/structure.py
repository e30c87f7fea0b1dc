"""A recipe's model without its weights: every parameter in its place and shape, none in memory.

For counting parameters, for the estimate of memory and time (`training/estimate.py`), and for
looking at a recipe on a machine that does not have the parts. What is built is the model itself,
on torch's meta device; nothing is downloaded but a config.json where neither a folder nor the table
below has it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from llava_mole.building import ModelRecipe, from_anywhere
from llava_mole.configuration import LlavaMoleConfig, VisionConfig
from llava_mole.errors import ConfigError
from llava_mole.language_model import locate
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.starting import read_start
from llava_mole.vision import VisionTower, build_structure, plan_vision

LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
QWEN = {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}

PUBLISHED: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": LLAMA_7B,
    "lmsys/vicuna-13b-v1.5": {
        **LLAMA_7B,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "Qwen/Qwen1.5-7B-Chat": {
        **LLAMA_7B,
        **QWEN,
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        **QWEN,
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-4B-Instruct-2507": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0},
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": True,
    },
}
"""Shapes of the language models that recipes in configs/ name, as in their config.json."""


def text_config_of(recipe: ModelRecipe) -> PreTrainedConfig:
    """The language model's config: of the folder that is started from, of a local folder, of the
    table above, or from the hub.

    Raises:
        ConfigError: there is none.
    """
    if recipe.start_from is not None:
        return read_start(recipe.start_from).text_config
    name = recipe.language_model
    folder = locate(name) if name == "starter" else Path(name)
    if (folder / "config.json").is_file():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    elif name in PUBLISHED:
        shape = dict(PUBLISHED[name])
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    else:
        try:
            config = AutoConfig.from_pretrained(name, revision=recipe.language_model_revision)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.language_model={name!r}: no such folder, and no config.json from the hub "
                f"({type(error).__name__}); shapes that are known without it: "
                f"{', '.join(PUBLISHED)}"
            ) from error
    return config.get_text_config()


def vision_of(recipe: ModelRecipe) -> VisionConfig:
    """The tower's config, its width and number of patches worked out."""
    if recipe.start_from is not None:
        return read_start(recipe.start_from).vision_part
    return plan_vision(
        from_anywhere(recipe.vision_model, "local-dir:"),
        recipe.vision_pretrained,
        layer=recipe.vision_layer,
        select=recipe.vision_select,
        grid=recipe.vision_grid,
        resize=recipe.vision_resize,
        dtype=recipe.vision_dtype,
    )


def model_without_weights(
    recipe: ModelRecipe,
    *,
    text_config: PreTrainedConfig | None = None,
    vision: VisionConfig | None = None,
    layers: int | None = None,
    tower: VisionTower | None = None,
) -> LlavaMoleForConditionalGeneration:
    """The model of a recipe's `model:` section on the meta device, adapters included.

    Args:
        recipe: its `parrot` is built too, where it is given.
        text_config: of the language model, if not the named one's own.
        vision: from `vision_of`, if it was worked out before.
        layers: build so many decoder layers only.
        tower: of `vision`, if it was built before.

    Raises:
        ConfigError: a name or option is wrong.
    """
    text = copy.deepcopy(text_config) if text_config is not None else text_config_of(recipe)
    if layers is not None:
        text.num_hidden_layers = layers
        kinds = text.to_dict().get("layer_types")  # not all families have them
        if kinds is not None:
            text.layer_types = kinds[:layers]
    vision = vision_of(recipe) if vision is None else vision
    config = LlavaMoleConfig(
        text_config=text,
        vision=vision.to_dict(),
        projector=recipe.projector.to_dict(),
        parrot=recipe.parrot.to_dict() if recipe.parrot else None,
        mole=recipe.experts.to_dict() if recipe.experts else None,
        lora=recipe.lora,
        image_token_id=0,  # no tokenizer: nothing is placed by it
    )
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(
            text,
            dtype=getattr(torch, recipe.dtype),
            attn_implementation=recipe.attn_implementation,
        )
        model = LlavaMoleForConditionalGeneration(
            config, language_model=language_model, vision_tower=tower or build_structure(vision)
        )
        model.requires_grad_(False)
        model.add_adapters()
    return model.eval()
