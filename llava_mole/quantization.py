"""`model.quantization`: the frozen language model in 4 or 8 bits (QLoRA, arXiv 2305.14314).

The keys are transformers.BitsAndBytesConfig's own. Only the language model's linears are packed:
its embeddings and head, the vision tower and everything that is trained stay in floating point. A
saved model keeps the keys beside the reference to its base, which is packed again at load; the same
weights give the same bits.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.quantizers import AutoHfQuantizer

from llava_mole.errors import ConfigError
from llava_mole.nearest import nearest

logger = logging.getLogger(__name__)

KEYS = tuple(
    name
    for name in inspect.signature(BitsAndBytesConfig).parameters
    if name.startswith(("load_in_", "llm_int8_", "bnb_4bit_"))
)
CHOICES: dict[str, tuple[Any, ...]] = {
    "load_in_4bit": (True, False),
    "load_in_8bit": (True, False),
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_compute_dtype": ("bfloat16", "float16", "float32"),
    "bnb_4bit_quant_storage": ("uint8", "bfloat16", "float16", "float32"),
    "bnb_4bit_use_double_quant": (True, False),
}
REFUSED = {
    "llm_int8_has_fp16_weight": "it is for training the base itself, which stays frozen here",
    "llm_int8_enable_fp32_cpu_offload": "the model loads onto one device",
}


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """True is not 1 here."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def problems(values: dict[str, Any], path: str = "model.quantization") -> list[str]:
    """What is wrong with the keys themselves; nothing is imported or loaded."""
    found = []
    for key, value in values.items():
        if key not in KEYS:
            found.append(f"{path}.{key}: no argument of BitsAndBytesConfig{nearest(key, KEYS)}")
        elif key in REFUSED:
            found.append(f"{path}.{key}: {REFUSED[key]}; leave it out")
        elif key in CHOICES and not is_one_of(value, CHOICES[key]):
            allowed = ", ".join(str(c).lower() for c in CHOICES[key])
            found.append(f"{path}.{key}={value!r}: allowed are {allowed}")
        elif key == "llm_int8_threshold" and not isinstance(value, int | float):
            found.append(f"{path}.{key}={value!r}: expected a number")
    four, eight = values.get("load_in_4bit") is True, values.get("load_in_8bit") is True
    if four == eight:
        found.append(
            f"{path}: say {{load_in_4bit: true, bnb_4bit_quant_type: nf4}} or {{load_in_8bit: "
            f"true}}, {'not both' if four else 'or leave the section out for a base in full'}"
        )
    unread = "bnb_4bit_" if eight and not four else "llm_int8_threshold" if four else ""
    found += [
        f"{path}.{key}: not read with {'load_in_8bit' if eight else 'load_in_4bit'}"
        for key in values
        if unread and four != eight and key.startswith(unread) and key in KEYS
    ]
    return found


def missing_here() -> str | None:
    """Why this machine cannot pack, or None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return (
            "model.quantization needs bitsandbytes, which is not installed: pip install "
            "'bitsandbytes>=0.48', or leave the section out"
        )
    if importlib.util.find_spec("accelerate") is None:
        return "model.quantization needs accelerate: pip install accelerate"
    quantizer = AutoHfQuantizer.from_config(
        BitsAndBytesConfig(load_in_4bit=True), pre_quantized=False
    )
    try:
        quantizer.validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        return f"model.quantization: bitsandbytes does not work on this machine ({first})"
    return None


def resolved(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The keys with what they leave open: 4-bit products are computed in the model's own dtype,
    where BitsAndBytesConfig takes float32."""
    if values.get("load_in_4bit") and "bnb_4bit_compute_dtype" not in values:
        return {**values, "bnb_4bit_compute_dtype": dtype}
    return dict(values)


def to_config(values: dict[str, Any], folder: Path) -> BitsAndBytesConfig:
    """What from_pretrained takes; checked against this machine and the base.

    Args:
        values: see `problems`.
        folder: of the language model.

    Raises:
        ConfigError: keys are wrong, this machine cannot pack, or the base is packed already.
    """
    found = problems(values)
    if found:
        raise ConfigError("\n".join(found))
    missing = missing_here()
    if missing is not None:
        raise ConfigError(missing)
    if is_packed(folder):
        raise ConfigError(
            f"model.quantization: {folder} is quantised already (quantization_config in its "
            "config.json); leave the section out"
        )
    if not torch.accelerator.is_available():
        logger.warning(
            "the base is quantised on a CPU: it saves memory and costs time, for bitsandbytes "
            "unpacks weights for every product"
        )
    return BitsAndBytesConfig(**values)


def keep_layout(language_model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference.

    On CPUs with AVX512-BF16 the first forward pass in eval mode turns them, in place, into a layout
    that has no backward pass and other rounding: a model that was evaluated once would from then
    on train without the gradients that pass through its base.
    """
    import bitsandbytes

    for module in language_model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def is_packed(folder: Path) -> bool:
    """Whether a language model's folder holds quantised weights."""
    values, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    return values.get("quantization_config") is not None


def numbers(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for: 4-bit ones are packed in twos and more."""
    state = vars(parameter).get("quant_state")
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
