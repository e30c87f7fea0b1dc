"""build_model: assemble a model and its processor from pretrained parts, by name.

What a recipe's `model:` section does. The result computes exactly what its language model computed
before, for text: experts, LoRA and Parrot's module all start as the identity.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from llava_mole import provenance, quantization, starting
from llava_mole.attention import ATTENTIONS, check_installed
from llava_mole.configuration import (
    LlavaMoleConfig,
    ParrotConfig,
    ProjectorConfig,
    VisionConfig,
    WeightSource,
)
from llava_mole.errors import ConfigError
from llava_mole.language_model import load_language_model, locate, weights_hash
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.config import MoleConfig
from llava_mole.placeholder import placeholder
from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor, load_tokenizer
from llava_mole.templates.choosing import end_of_turn, template_source
from llava_mole.vision import RESIZES, VisionTower, load_vision

DEFAULT_TEMPLATE = "qa"
END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>")


@dataclass
class ModelRecipe:
    """The `model:` section of a recipe."""

    language_model: str = "starter"
    """"starter", a local folder, or a hub id."""
    language_model_revision: str | None = None
    """Branch, tag or commit of a hub id; a commit never changes."""
    vision_model: str = "starter"
    """"starter", an open_clip model name, "hf-hub:org/name", or "local-dir:FOLDER"."""
    vision_pretrained: str | None = None
    """open_clip tag of the weights, e.g. "openai"."""
    vision_revision: str | None = None
    """Branch, tag or commit of a "hf-hub:" tower."""
    vision_layer: int | None = None
    """Token towers: which block's output; LLaVA takes -2. Empty: the last."""
    vision_select: str = "patch"
    """"patch", or "cls_patch" as Parrot's released code."""
    vision_resize: str | None = field(default=None, metadata={"choices": RESIZES})
    """How a picture becomes the tower's square: "longest" pads it with the mean colour, as LLaVA
    and Parrot do; "shortest" cuts its ends off; "squash" changes its proportions. Empty: as
    published with the tower's weights, which is "shortest" for CLIP."""
    vision_grid: int | None = field(default=None, metadata={"min": 1})
    """Patches are averaged to grid x grid visual tokens: 4 makes 16 of the starter's 49."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """From the tower's width to the language model's."""
    parrot: ParrotConfig | None = None
    """The language-conditioned MoE; a stage with `parrot: true` switches it on."""
    experts: MoleConfig | None = None
    """The mixture of LoRA experts; null: none."""
    lora: dict[str, Any] | None = None
    """peft.LoraConfig's own arguments, e.g. {r: 16, lora_alpha: 32, target_modules: [q_proj]}."""
    chat_template: str | None = None
    """A name from llava_mole/templates/formats (docs/templates.md), the path of a .jinja file, or
    "tokenizer" for the tokenizer's own. Empty: qa, or that of the folder under start_from."""
    image_token: str | None = None
    """A token that text never holds; found by itself, see placeholder.py."""
    dtype: str = "bfloat16"
    """Of the language model, and of plain LoRA on it (float32 on a float16 base). Experts, routers,
    projector and Parrot are float32 and compute in this."""
    vision_dtype: str = "float32"
    """Of the tower."""
    attn_implementation: str = field(default="sdpa", metadata={"choices": ATTENTIONS})
    """Of the language model. flex_attention trains on accelerators only; flash_attention_2 needs
    its package and takes neither share_prefix nor packing."""
    quantization: dict[str, Any] | None = None
    """transformers.BitsAndBytesConfig's own arguments for the frozen language model, e.g.
    {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}."""
    start_from: str | None = None
    """A model folder of this project, converted or trained before, that brings language model,
    tower, projector and processor; only adapters are added (see `starting.py`)."""


def from_anywhere(name: str, scheme: str = "") -> str:
    """A local folder by its absolute path, for the model folder that refers to it is read from
    other working directories; other names as they are.

    Args:
        name: of a part.
        scheme: what a folder's name begins with, where other names could be folders too.
    """
    folder = Path(name.removeprefix(scheme))
    if name == "starter" or not name.startswith(scheme) or not folder.is_dir():
        return name
    return f"{scheme}{folder.resolve()}"


def build_model(
    recipe: ModelRecipe,
) -> tuple[LlavaMoleForConditionalGeneration, LlavaMoleProcessor]:
    """Load the named parts and put them together.

    Raises:
        ConfigError: a name or option is wrong.
        CheckpointError: a part's files are.
    """
    if recipe.start_from is not None:
        model, processor = starting.start_model(recipe, ModelRecipe())
        put_template(processor, recipe.chat_template)
        return model, processor
    dtype = getattr(torch, recipe.dtype)
    check_installed(recipe.attn_implementation, recipe.dtype)
    packed = None
    if recipe.quantization is not None:
        packed = quantization.resolved(recipe.quantization, recipe.dtype)
    processor, tower, vision = build_processor(recipe)  # a wrong template costs no loading
    base = locate(recipe.language_model, recipe.language_model_revision)
    language_model = load_language_model(
        base,
        dtype=dtype,
        attn_implementation=recipe.attn_implementation,
        quantization=packed,
    )
    tokenizer = processor.tokenizer
    vocabulary = language_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"tokenizer of {recipe.language_model!r} has {len(tokenizer)} tokens, the embedding "
            f"only {vocabulary} rows: they do not belong together, or the embedding was not resized"
        )
    # A copy: a config sets its attention implementation on its sub-configs.
    text_config = copy.deepcopy(language_model.config)
    if packed is not None:
        del text_config.quantization_config  # said once, in `quantization`
    config = LlavaMoleConfig(
        text_config=text_config,
        text_source=WeightSource(
            from_anywhere(recipe.language_model),
            recipe.language_model_revision,
            weights_hash(base),
        ).to_dict(),
        vision=vision.to_dict(),
        projector=recipe.projector.to_dict(),
        parrot=recipe.parrot.to_dict() if recipe.parrot else None,
        mole=recipe.experts.to_dict() if recipe.experts else None,
        lora=recipe.lora,
        quantization=packed,
        image_token_id=processor.image_token_id,
    )
    model = LlavaMoleForConditionalGeneration(
        config, language_model=language_model, vision_tower=tower
    )
    model.config.provenance = provenance.completed(config)
    model.licence_folders = provenance.folders(config)
    model.requires_grad_(False)
    model.add_adapters()
    if packed is not None:
        model.to(language_model.device)  # a packed base is where it was packed
    stops = [stop for stop in [end_of_turn(processor)] if stop is not None]
    model.generation_config = generation_config(tokenizer, processor.pad_id, stops)
    return model.eval(), processor


def generation_config(
    tokenizer: PreTrainedTokenizerBase, pad_id: int, stops: Iterable[int] = ()
) -> GenerationConfig:
    """Generation stops at the end of a turn, by any name.

    Args:
        tokenizer: of the language model.
        pad_id: of the processor.
        stops: further tokens to stop at.
    """
    # A base model has these tokens too, untrained; stopping at one costs nothing.
    known = [tokenizer.convert_tokens_to_ids(token) for token in END_OF_TURN]
    ends = {token for token in known if token not in (None, tokenizer.unk_token_id)}
    ends |= {tokenizer.eos_token_id, *stops}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(end for end in ends if end is not None),
        pad_token_id=pad_id,
    )


def context_length(recipe: ModelRecipe) -> int:
    """Tokens that the language model has positions for; its weights are not read."""
    if recipe.start_from is not None:
        return int(starting.read_start(recipe.start_from).text_config.max_position_embeddings)
    base = locate(recipe.language_model, recipe.language_model_revision)
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return int(config.get_text_config().max_position_embeddings)


def build_processor(
    recipe: ModelRecipe,
) -> tuple[LlavaMoleProcessor, VisionTower, VisionConfig]:
    """Tokenizer, preprocessing and tower, without the language model's weights.

    Raises:
        ConfigError: a name or option is wrong.
        CheckpointError: a part's files are.
    """
    if recipe.start_from is not None:
        tower, vision = starting.start_tower(recipe.start_from, recipe.vision_dtype)
        processor = LlavaMoleProcessor.from_pretrained(recipe.start_from)
        put_template(processor, recipe.chat_template)
        if recipe.parrot is not None:
            processor.condition_on = recipe.parrot.condition_on
        return processor, tower, vision
    base = locate(recipe.language_model, recipe.language_model_revision)
    tokenizer = load_tokenizer(base, local_files_only=True)
    rows = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config().vocab_size
    image_token = placeholder(tokenizer, rows, recipe.image_token)
    tower, vision = load_vision(
        from_anywhere(recipe.vision_model, "local-dir:"),
        recipe.vision_pretrained,
        layer=recipe.vision_layer,
        select=recipe.vision_select,
        grid=recipe.vision_grid,
        revision=recipe.vision_revision,
        resize=recipe.vision_resize,
        dtype=recipe.vision_dtype,
    )
    processor = LlavaMoleProcessor(
        LlavaMoleImageProcessor(vision.preprocess),
        tokenizer,
        tokens_per_image=vision.tokens_per_image,
        image_token=image_token,
        condition_on=recipe.parrot.condition_on if recipe.parrot else "turn",
        chat_template=template_source(
            recipe.chat_template or DEFAULT_TEMPLATE, tokenizer, image_token
        ),
    )
    return processor, tower, vision


def put_template(processor: LlavaMoleProcessor, name: str | None) -> None:
    """Another chat template than that of the folder a model starts from; None keeps it."""
    if name is not None:
        processor.chat_template = template_source(name, processor.tokenizer, processor.image_token)
