"""Save and load experts in PEFT's folder shape: adapter_config.json + adapter_model.safetensors.

Keep such a folder below a model's root (`adapters/<name>/`), never in it: transformers takes any
folder with an adapter_config.json for a PEFT adapter and fails on a type it does not know. PEFT
itself opens plain LoRAs only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.inject import (
    add_experts,
    decoder_of,
    expert_parameters,
    mole_context,
    router_parameters,
)

PEFT_TYPE = "LLAVA_MOLE"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def expert_state(model: nn.Module) -> dict[str, nn.Parameter]:
    """Banks and routers by their names in the decoder."""
    decoder = decoder_of(model)
    return {**expert_parameters(decoder), **router_parameters(decoder)}


def save_experts(model: nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Write the model's experts and routers into `folder`.

    Args:
        model: with experts.
        folder: made if missing.
        base: name of the base model, for the reader's information.
    """
    _, config = mole_context(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        PREFIX + name: parameter.detach().contiguous().cpu()
        for name, parameter in expert_state(model).items()
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **config.to_dict(),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_experts(model: nn.Module, folder: str | Path) -> None:
    """Add the experts saved in `folder` to `model`, in place.

    Raises:
        CheckpointError: a file or a tensor is missing, or a shape belongs to another base.
    """
    folder = Path(folder)
    add_experts(model, read_config(folder))
    put_experts(model, folder)


def read_config(folder: Path) -> MoleConfig:
    """Raises CheckpointError if the file is missing or not an expert folder's."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; an expert folder holds it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if values.pop("peft_type", None) != PEFT_TYPE:
        raise CheckpointError(
            f"{path}: not an expert folder (peft_type is not {PEFT_TYPE}); "
            "open plain LoRAs with PEFT"
        )
    values.pop("task_type", None)
    values.pop("base_model_name_or_path", None)
    try:
        return MoleConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def put_experts(model: nn.Module, folder: Path) -> None:
    """Load saved weights into experts that are there.

    Raises:
        CheckpointError: as `load_experts`.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; an expert folder holds it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    own = expert_state(model)
    check_tensors({n.removeprefix(PREFIX): t for n, t in tensors.items()}, own, path)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[PREFIX + name])


def check_tensors(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Raises CheckpointError naming what is missing, left over or of another shape."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model has {tuple(expected[name].shape)}"
        for name in sorted(set(found) & set(expected))
        if found[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what}, first {names[0]}"
        for what, names in (("tensors missing", missing), ("tensors unknown", extra))
        if names
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape (another base model?), first {shapes[0]}")
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(problems))
