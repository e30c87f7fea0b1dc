"""The language model that a folder or a recipe names: where it lies, its hash, and loading it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from llava_mole import hub
from llava_mole.errors import CheckpointError
from llava_mole.folders import sha256_file
from llava_mole.quantization import keep_layout, to_config

LANGUAGE_MODEL = "language_model"


def locate(name: str, revision: str | None = None, folder: Path | None = None) -> Path:
    """The local folder of a language model: the starter's, a folder, or a hub snapshot.

    Args:
        name: "starter", a folder (relative ones are looked for in `folder` too), or a hub id.
        revision: of the hub repository.
        folder: of the model that refers to it.

    Raises:
        CheckpointError: nothing there, and the hub cannot be asked.
    """
    if name == "starter":
        from llava_mole.starter import ensure_starter

        return ensure_starter().language_model
    if ".." in Path(name).parts and not Path(name).is_absolute() and folder is not None:
        raise CheckpointError(
            f"{folder}/config.json names its language model {name!r}: a relative name must stay "
            "inside the model folder; give an absolute one"
        )
    for candidate in ([folder / name] if folder else []) + [Path(name)]:
        if (candidate / "config.json").is_file():
            return candidate
    if Path(name).is_absolute() or name.startswith(".") or name == LANGUAGE_MODEL:
        raise CheckpointError(f"language model {name!r}: no config.json in that folder")
    return hub.fetch(name, revision, what="language model", without=["*.bin", "*.pth", "*.gguf"])


def weights_hash(folder: Path) -> str:
    """sha256 over the safetensors files of a folder, by sorted name."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no *.safetensors; pickled weights are not loaded")
    for file in files:
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    check_shards(folder)
    return digest.hexdigest()


def check_shards(folder: Path) -> None:
    """Raises CheckpointError for an index that names shards outside of its folder: they would be
    read, and no hash would cover them."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of shards: {error}") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{index} names the shard {shard!r}, which is not beside it")


def load_language_model(
    folder: Path,
    *,
    dtype: Any = None,
    attn_implementation: str | None = None,
    quantization: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """A Hugging Face causal language model from a local folder.

    Args:
        quantization: keyword arguments of BitsAndBytesConfig; None loads the weights as they are.

    Raises:
        CheckpointError: unreadable, or weights are missing in it.
        ConfigError: it cannot be quantised so, or not here.
    """
    options: dict[str, Any] = {"dtype": dtype} if dtype is not None else {}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options["quantization_config"] = to_config(quantization, folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"language model in {folder} cannot be loaded: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise CheckpointError(
            f"language model in {folder}: missing {sorted(report['missing_keys'])[:3]}, of another "
            f"shape {sorted(report['mismatched_keys'])[:3]}"
        )
    if quantization is not None:
        keep_layout(model)
    return model
