"""Save and load experts in PEFT's folder shape: adapter_config.json + adapter_model.safetensors.

Keep such a folder below a model's root (`adapters/<name>/`), never in it: transformers takes any
folder with an adapter_config.json for a PEFT adapter and fails on a type it does not know. PEFT
itself opens plain LoRAs only. As in PEFT's files, names carry no adapter name and B is (d_out, R).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole.adapters import DEFAULT, Adapter, adapter_of
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.mole.inject import add_experts, layer_number

PEFT_TYPE = "LLAVA_MOLE"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
CONFIG_KEY = "mole_config"
NEEDED = ("method", "num_experts", "r", "lora_alpha", "target_modules")
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
        base: name of the base model, for the reader's information; by default as its config has
            it.
        adapter_name: which, where there are several.
    """
    adapter = adapter_of(model, adapter_name)
    if len(adapter.banks) != adapter.size:
        raise ConfigError(
            f"{adapter.size - len(adapter.banks)} of {adapter.size} linears have lost the experts "
            f"of {adapter.name!r}: something replaced the linears since, as PEFT's "
            "merge_and_unload does with those it wrapped"
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder for the experts")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        PREFIX + name: as_in_file(name, tensor.detach()).contiguous().cpu()
        for name, tensor in expert_state(adapter).items()
    }
    described = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or name_of_base(model),
        **adapter.config.to_dict(),
    }
    with TemporaryDirectory(prefix=".writing-", dir=folder) as beside:
        writing, text = Path(beside, WEIGHTS_FILE), Path(beside, CONFIG_FILE)
        # The weights know their config: a stop between the two renames is noticed by `load`.
        saved = {"format": "pt", CONFIG_KEY: json.dumps(adapter.config.to_dict())}
        save_file(tensors, writing, metadata=saved)
        text.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        writing.replace(folder / WEIGHTS_FILE)
        text.replace(folder / CONFIG_FILE)


def name_of_base(model: nn.Module) -> str | None:
    """What the model was loaded from, where it says so."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and name else None


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
    check_config(folder, config)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            "load: the model is on the meta device, where nothing can be loaded; give it its "
            "weights first"
        )
    add_experts(model, config, adapter_name)
    try:
        put_tensors(adapter_of(model, adapter_name), tensors, folder / WEIGHTS_FILE)
    except CheckpointError:
        from llava_mole.mole.adapters import delete_adapter

        delete_adapter(model, adapter_name)
        raise


def check_config(folder: Path, config: MoleConfig) -> None:
    """Raises CheckpointError if the weights were written with another config."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        with_weights = (file.metadata() or {}).get(CONFIG_KEY)
    # As configs, not as text: both take the defaults of fields younger than the folder.
    if with_weights is not None and MoleConfig.from_dict(json.loads(with_weights)) != config:
        raise CheckpointError(
            f"{folder}: {CONFIG_FILE} is not the one that {WEIGHTS_FILE} was saved with (was "
            "saving interrupted, or the file edited?); save the experts again"
        )


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
    missing = [key for key in NEEDED if key not in values]
    if missing:
        raise CheckpointError(f"{path}: {', '.join(missing)} is missing, which save writes")
    try:
        return MoleConfig.from_dict(values)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; an adapter folder holds it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
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
    tensors = read_tensors(folder)
    check_config(folder, read_config(folder))
    put_tensors(adapter_of(model, adapter_name), tensors, folder / WEIGHTS_FILE)


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
    unfit = []
    for name, tensor in sorted(found.items()):
        if name not in expected or not expected[name].is_floating_point():
            continue
        if not tensor.is_floating_point():
            unfit.append(f"{name} holds {tensor.dtype}")
        elif not bool(torch.isfinite(tensor).all()):
            unfit.append(f"{name} is not finite")
    problems = [
        f"{len(names)} {what}, first {names[0]}"
        for what, names in (("tensors missing", missing), ("tensors unknown", extra))
        if names
    ]
    if unfit:
        problems.append(f"{len(unfit)} no weights, first {unfit[0]}")
    if shapes:
        problems.append(f"{len(shapes)} of another shape (another base model?), first {shapes[0]}")
    layers = [numbers_of_layers(names) for names in (found, expected)]
    if layers[0] != layers[1]:
        problems.append(
            f"the file is of {layers[0]} layers, the model of {layers[1]} (another base model?)"
        )
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(problems))


def numbers_of_layers(names: Iterable[str]) -> int:
    """How many different numbered layers there are."""
    return len({layer_number(name) for name in names} - {None})
