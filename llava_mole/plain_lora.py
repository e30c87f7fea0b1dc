"""Plain LoRA on the language model, PEFT's own: put on, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor
from transformers import PreTrainedModel

from llava_mole.errors import ConfigError
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.mole.io import check_tensors
from llava_mole.tensor_file import read_tensors


def add_lora(language_model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Put PEFT's LoRA on the language model, in place and in its dtype; on a float16 base in
    float32, for float16 gradients cannot be unscaled.

    Raises:
        ConfigError: PEFT refuses the options.
    """
    try:
        inject_adapter_in_model(LoraConfig(task_type="CAUSAL_LM", **options), language_model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"lora: {error}") from error
    if language_model.dtype == torch.float16:
        cast_adapter_dtype(language_model, "default")


def lora_config(language_model: PreTrainedModel, options: dict[str, Any], base: str) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True, **options
    )


def lora_tensors(language_model: PreTrainedModel) -> dict[str, Tensor]:
    """PEFT's own state. Experts on a linear that has plain LoRA too carry its marks, but are
    saved by themselves."""
    state = get_peft_model_state_dict(language_model, adapter_name="default")
    return {
        name: tensor for name, tensor in state.items() if BANK not in name and ROUTER not in name
    }


def load_lora(language_model: PreTrainedModel, options: dict[str, Any], folder: Path) -> None:
    add_lora(language_model, options)
    put_lora(language_model, folder)


def put_lora(language_model: PreTrainedModel, folder: Path) -> None:
    """Load a saved LoRA into the one that is there."""
    path = folder / "adapter_model.safetensors"
    tensors = {
        key.removeprefix("base_model.model."): value for key, value in read_tensors(path).items()
    }
    expected = lora_tensors(language_model)
    check_tensors(tensors, expected, path)
    with torch.no_grad():  # into the parameters themselves, which `state_dict` gives
        for name, value in expected.items():
            value.copy_(tensors[name])
