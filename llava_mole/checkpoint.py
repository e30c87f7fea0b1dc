"""One folder is one model: writing it, and reading it back with nothing missing.

    config.json, generation_config.json
    model.safetensors        projector, Parrot's module, and the tower if it was trained
    adapters/experts/        banks and routers, in PEFT's folder shape
    adapters/lora/           plain LoRA; PEFT opens it too
    language_model/          an ordinary Hugging Face folder, only if it was trained or asked for
    README.md, NOTICE        model card, what its parts' licences ask
    licences/                copies of its parts' licence files

The frozen language model and tower are references (name, revision, hash), checked at load. The
folder is written beside its place and renamed, so a reader never meets half of one. Nothing is
unpickled.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from llava_mole import hub, ranks, sharding
from llava_mole.configuration import LlavaMoleConfig, WeightSource
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import replacing_folder
from llava_mole.language_model import (
    LANGUAGE_MODEL,
    load_language_model,
    locate,
    weights_hash,
)
from llava_mole.licences import FOLDER as LICENCES
from llava_mole.modelcard import copy_licences, write_card
from llava_mole.mole import mole_context
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.mole.io import check_tensors, put_experts
from llava_mole.mole.io import load as load_experts
from llava_mole.mole.io import save as save_experts
from llava_mole.plain_lora import load_lora, lora_config, lora_tensors, put_lora
from llava_mole.provenance import completed, folders
from llava_mole.tensor_file import read_tensors
from llava_mole.vision import build_structure, load_referenced

OWN_WEIGHTS = "model.safetensors"
EXPERTS = "adapters/experts"
LORA = "adapters/lora"
ADAPTER_MARKS = ("lora_A", "lora_B", "lora_embedding", "lora_magnitude", BANK, ROUTER)


# ---------------------------------------------------------------------- writing


def own_tensors(model: Any, include_tower: bool) -> dict[str, Tensor]:
    """What goes into model.safetensors."""
    parts = ["projector", "parrot"] + ["vision_tower"] * include_tower
    return {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in model.state_dict().items()
        if name.split(".", 1)[0] in parts
    }


def base_tensors(language_model: nn.Module) -> dict[str, Tensor]:
    """The language model's own weights, adapters taken off, under their original names."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in language_model.state_dict().items()
        if not any(mark in name for mark in ADAPTER_MARKS)
    }


def base_is_trained(language_model: nn.Module) -> bool:
    return any(
        parameter.requires_grad and not any(mark in name for mark in ADAPTER_MARKS)
        for name, parameter in language_model.named_parameters()
    )


def save_model(
    model: Any,
    folder: str | Path,
    *,
    include_frozen: bool = False,
    processor: Any = None,
    is_main_process: bool = True,
    **_: Any,
) -> None:
    """Write one self-describing folder, whole or not at all.

    A model in pieces (FSDP2, ZeRO-3) is gathered first: all processes must call this, and the main
    one writes.

    Args:
        model: LlavaMoleForConditionalGeneration.
        folder: made or replaced. Other files in it stay.
        include_frozen: also write the frozen language model and tower in full.
        processor: written into the same folder in the same step, so that both appear at once.
        is_main_process: whether this process writes.
        _: what transformers' Trainer also passes.

    Raises:
        CheckpointError: the disk is full; the folder is as it was.
    """
    final = Path(folder)
    config = LlavaMoleConfig.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.provenance = completed(config)
    licence_folders = model.licence_folders or folders(config)
    vision = config.vision_part
    full_tower = (
        include_frozen
        or vision.source is None
        or any(p.requires_grad for p in model.vision_tower.parameters())
    )
    full_language = include_frozen or config.text_source is None
    full_language = full_language or base_is_trained(model.language_model)
    base_name = (config.text_source or {}).get("name")
    if full_tower:
        config.vision = {**vision.to_dict(), "source": None}
    if full_language and config.quantization is not None:
        raise CheckpointError(
            "a quantised language model is saved by reference only: its packed weights are not "
            "those it was made from. Load the base without model.quantization to save it in full"
        )

    def written(name: str) -> bool:
        root = name.split(".", 1)[0]
        if root == "language_model":
            return full_language or any(mark in name for mark in ADAPTER_MARKS)
        return full_tower or root != "vision_tower"

    with ExitStack() as stack:
        if sharding.in_pieces(model):
            is_main_process = is_main_process and ranks.is_main()
            stack.enter_context(sharding.whole(model, written))
        if not is_main_process:
            return
        building = stack.enter_context(
            replacing_folder(final, drop=(LANGUAGE_MODEL, "adapters", LICENCES))
        )
        save_file(own_tensors(model, full_tower), building / OWN_WEIGHTS, metadata={"format": "pt"})
        if full_language:
            model.language_model.save_pretrained(
                building / LANGUAGE_MODEL, state_dict=base_tensors(model.language_model)
            )
            config.text_source = WeightSource(
                LANGUAGE_MODEL, sha256=weights_hash(building / LANGUAGE_MODEL)
            ).to_dict()
        config.save_pretrained(building)
        model.generation_config.save_pretrained(building)
        if config.lora is not None:
            target = building / LORA
            target.mkdir(parents=True)
            lora_config(model.language_model, config.lora, base_name or "").save_pretrained(
                str(target)
            )
            state = lora_tensors(model.language_model)
            save_file(
                {f"base_model.model.{k}": v.detach().contiguous().cpu() for k, v in state.items()},
                target / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
        if model.mole is not None:
            save_experts(model.language_model, building / EXPERTS, base=base_name)
        copied = copy_licences(config, licence_folders, building)
        write_card(building, config, final.name, previous=final, copied=copied)
        if processor is not None:
            processor.save_pretrained(building)


# ---------------------------------------------------------------------- reading


def check_same_language_model(found: Any, expected: Any, folder: Path) -> None:
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        if getattr(found, key) != getattr(expected, key):
            raise CheckpointError(
                f"language model in {folder} has {key}={getattr(found, key)!r}, this model was "
                f"trained on one with {getattr(expected, key)!r}"
            )


def read_config(folder: Path) -> LlavaMoleConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: is it a model folder?")
    values, _ = LlavaMoleConfig.get_config_dict(folder)
    if values.get("model_type") != LlavaMoleConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a {values.get('model_type')!r} model, expected "
            f"{LlavaMoleConfig.model_type!r}; load it with its own class"
        )
    return LlavaMoleConfig.from_dict(values)


def load_model(
    cls: Any,
    path: str | Path,
    *,
    config: LlavaMoleConfig | None = None,
    dtype: Any = None,
    vision_dtype: Any = None,
    attn_implementation: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    token: str | None = None,
    torch_dtype: Any = None,
    **options: Any,
) -> Any:
    """Read a model folder back.

    Args:
        cls: LlavaMoleForConditionalGeneration.
        path: a folder, or a hub id.
        config: already read, as the Auto classes pass it.
        dtype: of the language model and the tower, e.g. torch.bfloat16 or "bfloat16"; None keeps
            what was saved. Trained parts keep their own.
        vision_dtype: of the tower, where it differs from `dtype`.
        attn_implementation: of the language model.
        device_map: one device ("cpu", "cuda", "cuda:1"), or "auto" for the first accelerator.
        revision, token: of the hub repository.
        options: only what transformers' Auto classes add of their own.

    Raises:
        CheckpointError: a file or key is missing, a referenced part has another hash, or the
            folder is of another architecture.
        ConfigError: an option that is not supported here.
    """
    known = {"local_files_only", "trust_remote_code", "cache_dir", "force_download", "subfolder"}
    known |= {"_from_auto", "adapter_kwargs", "use_safetensors", "_commit_hash", "code_revision"}
    unsupported = sorted(
        key for key, value in options.items() if key not in known and value is not None
    )
    if unsupported:
        raise ConfigError(f"from_pretrained: {unsupported} not supported by LLaVA-MoLE")
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or str(path).startswith("."):
            raise CheckpointError(f"{path} does not exist")
        folder = hub.fetch(str(path), revision, what="model", token=token)
    if not isinstance(config, LlavaMoleConfig):
        config = read_config(folder)
    dtype = dtype if dtype is not None else torch_dtype
    asked = as_dtype(dtype)

    source = WeightSource.from_dict(config.text_source or {"name": LANGUAGE_MODEL})
    base = locate(source.name, source.revision, folder)
    if source.sha256 is not None and (found := weights_hash(base)) != source.sha256:
        raise CheckpointError(
            f"language model {source.name!r} in {base} has sha256 {found[:12]}…, this model was "
            f"trained on {source.sha256[:12]}…: use the same weights"
        )
    language_model = load_language_model(
        base,
        dtype=asked or config.text_config.dtype,
        attn_implementation=attn_implementation,
        quantization=config.quantization,
    )
    check_same_language_model(language_model.config, config.text_config, base)

    tensors = read_tensors(folder / OWN_WEIGHTS)
    vision = config.vision_part
    tower = build_structure(vision) if vision.source is None else load_referenced(vision)
    model = cls(config, language_model=language_model, vision_tower=tower)
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.split(".", 1)[0] in ("projector", "parrot")
        or (vision.source is None and name.startswith("vision_tower."))
    }
    check_tensors(tensors, expected, folder / OWN_WEIGHTS)
    load_into(model, tensors)
    if (of_tower := as_dtype(vision_dtype) or asked) is not None:
        model.vision_tower.to(of_tower)
    if config.lora is not None:
        load_lora(language_model, config.lora, folder / LORA)
    if config.mole is not None:
        load_experts(language_model, folder / EXPERTS)
        model.mole = mole_context(language_model)[0]
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.licence_folders = folders(config, loaded=folder)
    model.name_or_path = str(path)
    if device_map is not None:
        model.to(one_device(device_map))
    elif config.quantization is not None:
        model.to(language_model.device)  # a packed base is where it was packed
    return model.eval()


def as_dtype(value: Any) -> torch.dtype | None:
    """torch.bfloat16, or "bfloat16"; None and "auto": what was saved."""
    if value == "auto":
        return None
    return getattr(torch, value) if isinstance(value, str) else value


def load_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy values and dtypes: a part saved in float32 stays in float32."""
    own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].data = own[name].data.to(tensor.dtype)
            own[name].copy_(tensor)


def one_device(device_map: Any) -> torch.device:
    if device_map == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ConfigError("device_map: this model loads onto one device; give 'cuda' or 'cpu'")
        device_map = device_map[""]
    return torch.device(device_map)


def restore(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into a model of the same shape (resume).

    Raises:
        CheckpointError: a file or key is missing, or a shape differs.
    """
    if sharding.in_pieces(model):
        with sharding.whole(model, write=True):
            put_back(model, folder)
    else:
        put_back(model, folder)


def put_back(model: Any, folder: Path) -> None:
    """`restore`, of a model that is whole."""
    tensors = read_tensors(folder / OWN_WEIGHTS)
    expected = own_tensors(model, any(name.startswith("vision_tower.") for name in tensors))
    check_tensors(tensors, expected, folder / OWN_WEIGHTS)
    load_into(model, tensors)
    if model.config.lora is not None:
        put_lora(model.language_model, folder / LORA)
    if model.mole is not None:
        put_experts(model.language_model, folder / EXPERTS)
    if (folder / LANGUAGE_MODEL).is_dir():
        base = load_language_model(folder / LANGUAGE_MODEL).state_dict()
        own = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in model.language_model.state_dict(keep_vars=True).items()
            if not any(mark in name for mark in ADAPTER_MARKS)
        }
        with torch.no_grad():
            for name, tensor in base.items():
                own[name].copy_(tensor)
