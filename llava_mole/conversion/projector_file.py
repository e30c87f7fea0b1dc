"""A projector alone (`mm_projector.bin`), between a language model and a tower that are named.

What LLaVA's first stage leaves. Language model and tower stay where they are: the model folder
refers to them by name and hash.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from llava_mole.building import from_anywhere
from llava_mole.configuration import WeightSource
from llava_mole.conversion.assemble import (
    Language,
    assemble,
    check_core,
    load_tokenizer,
    read_json,
    split,
)
from llava_mole.conversion.hub import local_folder
from llava_mole.conversion.original import CORES, check_config, tower_of
from llava_mole.conversion.placeholder import ensure_placeholder
from llava_mole.conversion.plan import Options, Plan
from llava_mole.conversion.tensors import TensorFiles, weights_of
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.language_model import weights_hash

NAMES = ("mm_projector.bin", "mm_projector.safetensors")
TYPES = {2: "linear", 4: "mlp2x_gelu"}
"""Tensors of a projector -> its type."""


def plan_projector(source: str, file: Path, options: Options) -> Plan:
    """Raises CheckpointError, ConfigError: what is missing, and how to name it."""
    missing = [
        option
        for option, value in (
            ("--language-model", options.language_model),
            ("--vision-model (with --vision-pretrained) or --vision-tower",
             options.vision_model or options.vision_tower),
        )
        if not value
    ]  # fmt: skip
    if missing:
        raise ConfigError(
            f"{source} is a projector alone: name what it was trained between with "
            + " and ".join(missing)
        )
    assert options.language_model is not None
    beside = file.parent / "config.json"  # the authors' first stage leaves one
    values = read_json(beside) if beside.is_file() else {}
    values = values if "mm_projector_type" in values or "mm_vision_tower" in values else {}
    if values:
        check_config({"model_type": next(iter(CORES)), **values}, source)
    files = TensorFiles([file])
    parts = split(files, source)
    strange = [*parts.language, *parts.tower]
    if strange or len(parts.projector) not in TYPES:
        raise CheckpointError(
            f"{source}: {len(parts.projector)} tensors of a projector and {len(strange)} others; a "
            "linear one has 2, mlp2x_gelu 4, named model.mm_projector.0.weight and so on"
        )
    base = local_folder(options.language_model, options.revision)
    text_config = AutoConfig.from_pretrained(base, local_files_only=True)
    tokenizer = load_tokenizer(base, text_config)
    rows = text_config.vocab_size
    language = Language(text_config, {})
    if ensure_placeholder(tokenizer, rows, options.image_token)[1] == rows:
        language.reference = WeightSource(
            from_anywhere(options.language_model), options.revision, weights_hash(base)
        )
    else:
        check_core(text_config, options.language_model)
        weights = weights_of(base)
        language.pieces = split(weights, options.language_model).language
    tower, tower_files = tower_of(values, {}, source, options)
    return assemble(
        source,
        base,
        language=language,
        tower=tower,
        projector=parts.projector,
        projector_type=TYPES[len(parts.projector)],
        tokenizer=tokenizer,
        options=options,
        files=[files, *tower_files],
        kind="LLaVA projector",
    )
