"""Save and load experts in PEFT's folder shape: adapter_config.json + adapter_model.safetensors.

Keep such a folder below a model's root (`adapters/<name>/`), never in it: transformers takes any
folder with an adapter_config.json for a PEFT adapter and fails on a type it does not know. PEFT
itself opens plain LoRAs only. As in PEFT's files, names carry no adapter name and B is (d_out, R).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole.adapters import DEFAULT, Adapter, adapter_of
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.mole.inject import add_experts

PEFT_TYPE = "LLAVA_MOLE"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
TRANSPOSED = ("lora_B", "frozen_B")


def expert_state(adapter: Adapter) -> dict[str, Tensor]:
    """Parameters and buffers of banks and routers, by the names that files use."""
    state = {}
    for name, tensor in adapter.root.state_dict(keep_vars=True).items():
        for kind in (BANK, ROUTER):
            mark = f".{kind}.{adapter.name}."
            if mark in f".{name}":
                plain = f".{name}".replace(mark, f".{kind}.").removeprefix(".")
                state[plain.replace(".base_layer.", ".")] = tensor
    return state


def as_in_file(name: str, tensor: Tensor) -> Tensor:
    return tensor.T if name.endswith(TRANSPOSED) else tensor


def save(
    model: nn.Module, folder: str | Path, base: str | None = None, adapter_name: str | None = None
) -> None:
    """Write experts and routers into `folder`, each file beside its place and then renamed.

    Args:
        model: with experts.
        folder: made if missing.
        base: name of the base model, for the reader's information.
        adapter_name: which, where there are several.
    """
    adapter = adapter_of(model, adapter_name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        PREFIX + name: as_in_file(name, tensor.detach()).contiguous().cpu()
        for name, tensor in expert_state(adapter).items()
    }
    described = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **adapter.config.to_dict(),
    }
    writing = folder / f".{WEIGHTS_FILE}.writing"
    save_file(tensors, writing, metadata={"format": "pt"})
    text = folder / f".{CONFIG_FILE}.writing"
    text.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    writing.replace(folder / WEIGHTS_FILE)
    text.replace(folder / CONFIG_FILE)


def load(model: nn.Module, folder: str | Path, adapter_name: str = DEFAULT) -> None:
    """Add the experts saved in `folder` to `model`, in place.

    Raises:
        CheckpointError: a file or a tensor is missing, or a shape belongs to another base.
        ConfigError: the name is taken, or the base has no such linears.
    """
    folder = Path(folder)
    config = read_config(folder)
    # Read before the model changes.
    tensors = read_tensors(folder)
    add_experts(model, config, adapter_name)
    try:
        put_tensors(adapter_of(model, adapter_name), tensors, folder / WEIGHTS_FILE)
    except CheckpointError:
        from llava_mole.mole.adapters import delete_adapter

        delete_adapter(model, adapter_name)
        raise


def read_config(folder: Path) -> MoleConfig:
    """Raises CheckpointError if the file is missing or not an expert folder's."""
    values = read_json(folder / CONFIG_FILE)
    path = folder / CONFIG_FILE
    if values.pop("peft_type", None) != PEFT_TYPE:
        raise CheckpointError(
            f"{path}: not an expert folder (peft_type is not {PEFT_TYPE}); open plain LoRAs with "
            "PEFT, or make experts of them: llava_mole.mole.import_loras"
        )
    values.pop("task_type", None)
    values.pop("base_model_name_or_path", None)
    try:
        return MoleConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; an adapter folder holds it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no mapping")
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; an adapter folder holds it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def put_experts(model: nn.Module, folder: Path, adapter_name: str | None = None) -> None:
    """Load saved weights into experts that are there.

    Raises:
        CheckpointError: as `load`.
    """
    put_tensors(adapter_of(model, adapter_name), read_tensors(folder), folder / WEIGHTS_FILE)


def put_tensors(adapter: Adapter, tensors: dict[str, Tensor], path: Path) -> None:
    own = expert_state(adapter)
    check_tensors(tensors, {name: as_in_file(name, value) for name, value in own.items()}, path)
    with torch.no_grad():
        for name, value in own.items():
            as_in_file(name, value.data).copy_(tensors[name])


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
