"""One file of the feature cache: the features of some pictures, each row checked before its use.

A safetensors file that never changes once it has its name:

    digests    (n, 32) uint8     SHA-256 of each picture's content
    checksums  (n,) int64        CRC-32 of each row, begun with its digest
    rows       (n, 1 + P, D_v) bfloat16
    metadata   key: what the features are of; index: SHA-256 over key, shape, digests, checksums

Digests and checksums are proved when the file is opened, a row when it is first read. Rows are
memory-mapped: what is not read costs no memory.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DIGEST = 32
"""Bytes of a digest."""
TOUCH_SECONDS = 600
"""How often a file in use says so, by its modification time."""


class DamagedShard(Exception):  # noqa: N818 - none of the user's: the features are computed again
    """A file of the cache is not what was written."""


class UnreadableShard(Exception):  # noqa: N818
    """A file of the cache is gone, or the system cannot open it now."""


# What libraries raise of a file that is not what was written, and of one they cannot get at.
DAMAGE = (SafetensorError, ValueError, TypeError, KeyError)
NO_ACCESS = (OSError, RuntimeError, MemoryError)


def write_shard(path: Path, key: str, rows: Mapping[bytes, Tensor], *, mode: int = 0o644) -> None:
    """Write a file and wait until it is on disk.

    Args:
        path: a name that nobody reads yet.
        key: of the cache.
        rows: digest -> (1 + P, D_v) bfloat16, at least one.
        mode: of the file: who may read it.

    Raises:
        OSError, SafetensorError: it cannot be written; nothing is left behind.
    """
    digests = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIGEST)
    stacked = torch.stack([row.detach() for row in rows.values()])
    flat = as_bytes(stacked)
    checksums = np.array(
        [row_checksum(digest, row) for digest, row in zip(rows, flat, strict=True)], np.int64
    )
    tensors = {
        "digests": torch.from_numpy(digests.copy()),
        "checksums": torch.from_numpy(checksums),
        "rows": stacked,
    }
    index = index_hash(key, tuple(stacked.shape), digests, checksums)
    try:
        save_file(tensors, path, metadata={"key": key, "index": index})
        path.chmod(mode)  # the library's own is for its owner alone
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class Shard:
    """A file of features, open for reading.

    Args:
        path: of the file.
        key: of the cache it must belong to.
        shape: (1 + P, D_v) that its rows must have.

    Raises:
        DamagedShard: it is not what was written.
        UnreadableShard: it is gone, or cannot be opened.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.digests: np.ndarray = file.get_tensor("digests").numpy().copy()
                self.checksums: np.ndarray = file.get_tensor("checksums").numpy().copy()
                found = tuple(file.get_slice("rows").get_shape())
                kind = file.get_slice("rows").get_dtype()
        except NO_ACCESS as error:
            raise UnreadableShard(str(error)) from error
        except DAMAGE as error:
            raise DamagedShard(str(error)) from error
        count = len(self.digests)
        if (
            self.digests.dtype != np.uint8
            or self.checksums.dtype != np.int64
            or kind != "BF16"
            or found != (count, *shape)
            or self.digests.shape != (count, DIGEST)
            or self.checksums.shape != (count,)
            or metadata.get("key") != key
            or metadata.get("index") != index_hash(key, found, self.digests, self.checksums)
        ):
            raise DamagedShard("its index does not fit its checksum")
        self.in_use = False
        self._touched = -float("inf")
        self._rows: Tensor | None = None
        self._proved = np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.digests)

    def row(self, number: int) -> Tensor:
        """(1 + P, D_v) bfloat16, a view of the file: copy it, never write to it.

        Raises:
            DamagedShard: the row is not what was written.
            UnreadableShard: the file is gone, or cannot be opened.
        """
        rows = self._mapped()
        if not self._proved[number]:
            digest = self.digests[number].tobytes()
            found = row_checksum(digest, as_bytes(rows[number : number + 1])[0])
            if found != self.checksums[number]:
                raise DamagedShard(f"row {number} does not fit its checksum")
            self._proved[number] = True
        self.in_use = True
        if time.monotonic() - self._touched > TOUCH_SECONDS:
            self._touched = time.monotonic()
            # The least recently used file is evicted first. This one may be gone, or only read.
            with suppress(OSError):
                os.utime(self.path)
        return rows[number]

    @property
    def is_mapped(self) -> bool:
        """Whether rows can be read even if the file has lost its name."""
        return self._rows is not None

    def _mapped(self) -> Tensor:
        if self._rows is None:
            try:
                with safe_open(self.path, framework="pt") as file:
                    rows = file.get_tensor("rows")
            except NO_ACCESS as error:
                raise UnreadableShard(str(error)) from error
            except DAMAGE as error:
                raise DamagedShard(str(error)) from error
            if rows.shape != (len(self), *self.shape):
                raise DamagedShard("it has changed since it was opened")
            self._rows = rows
        return self._rows


def as_bytes(rows: Tensor) -> np.ndarray:
    """(n, …) -> (n, bytes of a row) uint8, the same memory."""
    return rows.reshape(len(rows), -1).view(torch.uint8).numpy()


def row_checksum(digest: bytes, row: np.ndarray) -> int:
    """Of a picture's features: a row under another's digest is wrong too."""
    return zlib.crc32(np.ascontiguousarray(row).data, zlib.crc32(digest))


def index_hash(key: str, shape: tuple[int, ...], digests: np.ndarray, checksums: np.ndarray) -> str:
    head = f"{key} {list(shape)}\n".encode()
    return hashlib.sha256(head + digests.tobytes() + checksums.tobytes()).hexdigest()
