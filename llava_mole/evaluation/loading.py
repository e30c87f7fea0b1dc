"""Which model answers: a folder of ours, any of Hugging Face's, a server, a baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_mole.configuration import LlavaMoleConfig
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.evaluation.asks import Unit
from llava_mole.evaluation.models.base import Answerer
from llava_mole.evaluation.models.baselines import MajorityBaseline, RandomBaseline
from llava_mole.evaluation.protocol import Protocol

BASELINES = ("random", "majority")


def load_answerer(
    name: str,
    protocol: Protocol,
    units: Sequence[Unit],
    *,
    device: str,
    dtype: str = "auto",
    served_model: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
) -> Answerer:
    """What `--model` names.

    Args:
        name: "random", "majority", an address (http://…/v1), a model folder of this project, or a
            folder or hub id of a Hugging Face image-text-to-text model.
        units: what will be asked (the majority is counted among them).
        device, dtype: for models that are loaded here; "auto" keeps what was saved.
        served_model: with an address, which of its models.
        key_variable: with an address, the environment variable that holds the key.

    Raises:
        CheckpointError, ConfigError: it cannot be loaded, or not asked in the protocol's way.
    """
    if name == "random":
        return RandomBaseline()
    if name == "majority":
        return MajorityBaseline(units)
    if name.startswith(("http://", "https://")):
        from llava_mole.evaluation.models.server import ServerModel

        if served_model is None:
            raise ConfigError(f"--model {name}: say which of its models with --served-model NAME")
        return ServerModel(name, served_model, protocol, key_variable=key_variable)
    check_device(device, dtype)
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"--model {name}: no config.json there; name a model folder")
    if folder.is_dir() and model_type(folder) == LlavaMoleConfig.model_type:
        from llava_mole.evaluation.models.ours import OurModel

        return OurModel.from_folder(folder, protocol, device=device, dtype=dtype)
    from llava_mole.evaluation.models.huggingface import HuggingFaceModel

    return HuggingFaceModel.from_folder(name, protocol, device=device, dtype=dtype)


def check_device(device: str, dtype: str) -> None:
    """Raises ConfigError for a device that is not here, or a dtype that is none."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "not available"
        raise ConfigError(f"--device {device}: {reason}") from None
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"--dtype {dtype}: try auto, float32, bfloat16 or float16")


def model_type(folder: Path) -> str:
    """Raises CheckpointError for a config that is no JSON object."""
    try:
        found = json.loads((folder / "config.json").read_text("utf-8"))
        return str(found.get("model_type", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from error
