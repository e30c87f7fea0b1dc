"""`llava-mole merge`: adapters that are constant become part of the language model's weights.

The result is a model folder without them: to start another fine-tuning from (`model.start_from`),
to serve without their cost, or to export.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole import checkpoint, mole
from llava_mole.errors import CheckpointError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.provenance import completed


def merge_folder(folder: Path, out: Path) -> list[str]:
    """Write `out`, the model of `folder` with its adapters merged; returns what was merged.

    Raises:
        ConfigError: experts whose route depends on the token.
        CheckpointError: no model folder, nothing to merge, or a quantised language model.
    """
    config = checkpoint.read_config(folder)
    if config.lora is None and config.mole_part is None:
        raise CheckpointError(f"{folder} has neither LoRA nor experts: there is nothing to merge")
    if config.quantization is not None:
        raise CheckpointError(
            f"{folder}: its language model is quantised; packed weights take no sums"
        )
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    notes = merge_adapters(model)
    model.save_pretrained(out, processor=processor)
    return notes


def merge_adapters(model: LlavaMoleForConditionalGeneration) -> list[str]:
    """Merge in place; the model's config then has no adapters, and a language model of its own.

    Raises:
        ConfigError: as `mole.merge`. Nothing is changed then.
    """
    config = model.config
    config.provenance = completed(config)  # names the parts; the reference to one of them goes
    notes = []
    experts = config.mole_part
    if experts is not None:
        mole.merge(model.language_model)
        notes.append(f"experts of {experts.method}: merged")
        model.mole, config.mole = None, None
    if config.lora is not None:
        layers = merge_lora(model.language_model)
        notes.append(f"LoRA of rank {config.lora.get('r', 8)}: merged into {layers} linears")
        config.lora = None
    config.text_source = None
    return notes


@torch.no_grad()
def merge_lora(language_model: nn.Module) -> int:
    """Replace PEFT's layers by their linears, the update added in float32; returns how many."""
    found = [
        (name, module)
        for name, module in language_model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    for name, layer in found:
        base = layer.get_base_layer()
        dtype = next(base.parameters()).dtype
        cast(nn.Module, layer).to(torch.promote_types(dtype, torch.float32))
        layer.merge(safe_merge=True)
        base.to(dtype)
        parent, _, own = name.rpartition(".")
        setattr(language_model.get_submodule(parent), own, base)
    return len(found)
