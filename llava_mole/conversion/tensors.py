"""The weights of a folder, tensor by tensor: names and shapes first, values only when asked for.

safetensors files are read lazily. Pickled ones (`pytorch_model*.bin`, `mm_projector.bin`) are
loaded with `weights_only=True`, which executes nothing, and memory-mapped where their format allows
it. Nothing else of a folder is opened.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_mole.errors import CheckpointError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
OTHERS = ("adapter_model.safetensors", "mm_projector.safetensors", "training_args.bin")
"""Never a model's own weights."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class TensorFiles:
    """Tensors of one or several weight files.

    Attributes:
        files: in the order of their names.
        entries: tensor name -> where it lies.
    """

    files: list[Path]
    entries: dict[str, Entry] = field(default_factory=dict)
    _open: dict[Path, Any] = field(default_factory=dict)
    _held: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        for file in self.files:
            for name, entry in self._entries_of(file):
                if name in self.entries:
                    raise CheckpointError(
                        f"tensor {name} is in {self.entries[name].file.name} and in {file.name}: "
                        f"which one is meant? ({file.parent} holds the weights of two models)"
                    )
                self.entries[name] = entry

    def _entries_of(self, file: Path) -> list[tuple[str, Entry]]:
        handle = self._handle(file)
        if isinstance(handle, dict):
            return [(n, Entry(file, tuple(t.shape), t.dtype)) for n, t in handle.items()]
        found = []
        for name in handle.keys():  # noqa: SIM118 (no mapping)
            part = handle.get_slice(name)
            kind = part.get_dtype()
            if kind not in DTYPES:
                raise CheckpointError(f"{file}: {name} holds {kind}, which cannot be converted")
            found.append((name, Entry(file, tuple(part.get_shape()), DTYPES[kind])))
        return found

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            if file.suffix == ".bin":
                self._open[file], mapped = load_pickled(file)
                self._held |= set() if mapped else {file}
            else:
                self._open[file] = open_lazily(file)
        return self._open[file]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        handle = self._handle(self.entries[name].file)
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def release(self) -> None:
        """Close mapped files, so that the pages that were read no longer count as this process's.
        What had to be loaded as a whole stays."""
        self._open = {file: self._open[file] for file in self._held}


def open_lazily(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def load_pickled(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a .bin file, nothing in it being executed; and whether they are only mapped.

    Raises:
        CheckpointError: it holds more than tensors, or cannot be read.
    """
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    mapped = True
    try:
        try:
            values = torch.load(file, mmap=True, **options)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            values, mapped = torch.load(file, **options), False
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({reason}). Pickled code is never run here: "
            "save the weights as safetensors where you trust them"
        ) from error
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, expected named tensors")
    strange = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{file} holds more than tensors: {listed(strange)}")
    return dict(values), mapped


def weights_of(folder: Path) -> TensorFiles:
    """A folder's weights: one safetensors file, shards with an index, or .bin files.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    for index in INDEXES:
        path = folder / index
        if not path.is_file():
            continue
        try:
            shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is no index of weights: {error!r}") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{path} names the shard {shard!r}, which is not beside it")
        wanted = sorted(set(shards))
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(wanted)} weight files are missing, first "
                f"{missing[0]}; finish the download"
            )
        return TensorFiles([folder / name for name in wanted])
    for pattern in WEIGHTS:
        files = [f for f in sorted(folder.glob(pattern)) if f.name not in OTHERS]
        if files:
            return TensorFiles(files)
    raise CheckpointError(
        f"{folder} has no weights: expected model.safetensors, shards with "
        f"model.safetensors.index.json, or pytorch_model.bin; it holds {named(folder)}"
    )


def named(folder: Path) -> str:
    """What a folder holds, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first few of a list, and how many more."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
