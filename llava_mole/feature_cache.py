"""Features of pictures on disk: by content, memory-mapped, shared by runs and processes.

A key names all that decides the features: tower, weights, transform. Each process gathers what it
has computed and publishes it as a file of its own, written beside and renamed: readers see all of
it or nothing, and nothing of a writer that was killed. Two processes may compute the same picture;
they never wait for each other's work.

The folder is kept below `max_bytes` by removing the files that were not used for the longest time,
of any key, but none that a run in this process reads. If that does not make room the features are
not stored. Whatever goes wrong with the disk is a warning: without the cache a run is only slower.
A file that has lost its name stays readable to those who map it, as POSIX systems promise.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import time
import uuid
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from llava_mole.digests import Digests
from llava_mole.errors import ConfigError
from llava_mole.feature_folder import (
    BEING_WRITTEN,
    DIGESTS,
    KEY,
    LOCK,
    SUFFIX,
    key_id,
    make_room,
    read_described,
)
from llava_mole.feature_shard import DIGEST, DamagedShard, Shard, UnreadableShard, write_shard

logger = logging.getLogger(__name__)

MAX_BYTES = 20 * 2**30
SHARD_BYTES = 64 * 2**20
"""Rows are gathered to files of about this size."""
PATIENCE_SECONDS = 300
"""Computed rows wait at most about so long for their file to fill up."""
LOCK_SECONDS = 60

_LIVE: weakref.WeakSet[FeatureCache] = weakref.WeakSet()


class FeatureCache:
    """Digest of a picture -> (1 + P, D_v) bfloat16, on disk.

    Not for several threads at once; any number of processes.

    Args:
        folder: of all keys; made if need be.
        key: what the features are of, JSON; `shape` is (1 + P, D_v).
        max_bytes: bound on the folder, all keys together.
        about: names for people, put into key.json; no part of the key.

    Raises:
        ConfigError: `max_bytes` is less than 1.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        *,
        max_bytes: int = MAX_BYTES,
        about: Mapping[str, Any] | None = None,
        digests: Digests | None = None,
    ) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes={max_bytes}: a feature cache needs at least 1 byte")
        self.root = Path(os.path.abspath(folder))
        self.key = json.loads(json.dumps(key))
        self.about = dict(about or {})
        self.max_bytes = max_bytes
        self.id = key_id(self.key)
        self.shape = tuple(int(n) for n in self.key["shape"])
        self.folder = self.root / self.id
        self.shards: dict[str, Shard] = {}
        self.pending: dict[bytes, Tensor] = {}
        self._pending_since = 0.0
        self._said: set[str] = set()
        self._dropped: set[str] = set()
        self._sorted = np.empty(0, f"S{DIGEST}")
        self._places = np.empty((0, 2), np.int64)
        self._order: list[Shard] = []
        self.stores = True
        self.digests = digests or Digests(self.root / DIGESTS)
        self.refresh()
        _LIVE.add(self)

    def with_key(
        self, key: Mapping[str, Any], about: Mapping[str, Any] | None = None
    ) -> FeatureCache:
        """The same folder for another key; this one if the key is its own."""
        if key_id(key) == self.id:
            return self
        self.flush()
        return FeatureCache(
            self.root, key, max_bytes=self.max_bytes, about=about, digests=self.digests
        )

    @property
    def row_bytes(self) -> int:
        """Bytes that one picture takes."""
        return 2 * int(np.prod(self.shape)) + DIGEST + 8

    def __len__(self) -> int:
        """Pictures held."""
        return len(self._sorted) + sum(self._place(d) is None for d in self.pending)

    # ------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """See what other processes have published, and removed."""
        try:
            names = sorted(e.name for e in os.scandir(self.folder) if e.name.endswith(SUFFIX))
        except OSError:
            names = []
        known = set(names)
        kept = {n: shard for n, shard in self.shards.items() if n in known or shard.is_mapped}
        changed = len(kept) != len(self.shards)
        self.shards = kept
        for name in names:
            if name not in self.shards and name not in self._dropped:
                changed = self._open(name) or changed
        if changed:
            self._index()

    def has(self, digest: bytes) -> bool:
        """Whether a row is held; `read` may yet find it damaged."""
        return digest in self.pending or self._place(digest) is not None

    def read(self, digest: bytes) -> Tensor | None:
        """(1 + P, D_v) bfloat16, to be copied and never written to; None if it is not there.

        A damaged file is removed whole, with a warning: its pictures are computed again.
        """
        if digest in self.pending:
            return self.pending[digest]
        while (place := self._place(digest)) is not None:
            shard, number = place
            try:
                return shard.row(number)
            except (DamagedShard, UnreadableShard) as error:
                self._drop(shard.path, error)
                del self.shards[shard.path.name]
                self._index()
        return None

    def _place(self, digest: bytes) -> tuple[Shard, int] | None:
        wanted = np.array(digest, self._sorted.dtype)
        at = int(np.searchsorted(self._sorted, wanted))
        if at == len(self._sorted) or self._sorted[at] != wanted:
            return None
        shard, number = self._places[at]
        return self._order[shard], int(number)

    def _open(self, name: str) -> bool:
        """Whether a file could be opened; what is damaged is removed."""
        try:
            self.shards[name] = Shard(self.folder / name, self.id, self.shape)
        except (DamagedShard, UnreadableShard) as error:
            self._drop(self.folder / name, error)
            return False
        return True

    def _drop(self, path: Path, error: DamagedShard | UnreadableShard) -> None:
        if not path.exists():
            return  # evicted by another process: nothing is wrong
        self._dropped.add(path.name)
        logger.warning("%s: %s; its pictures are computed again", path, error)
        if isinstance(error, DamagedShard):
            discard(path)

    def _index(self) -> None:
        """Sort all digests; of a picture held twice, the file opened first counts."""
        self._order = list(self.shards.values())
        if not self._order:
            self._sorted, self._places = self._sorted[:0], self._places[:0]
            return
        digests = np.concatenate([shard.digests for shard in self._order])
        flat = np.ascontiguousarray(digests).view(f"S{DIGEST}").reshape(-1)
        counts = [len(shard) for shard in self._order]
        shards = np.repeat(np.arange(len(counts)), counts)
        rows = np.concatenate([np.arange(count) for count in counts])
        self._sorted, first = np.unique(flat, return_index=True)
        self._places = np.stack([shards[first], rows[first]], axis=1)

    # ------------------------------------------------------------------ writing

    def add(self, rows: Mapping[bytes, Tensor]) -> dict[bytes, Tensor]:
        """Take rows, to be published with others.

        Args:
            rows: digest -> (1 + P, D_v) bfloat16.

        Returns:
            Those that cannot be stored.
        """
        if not self.stores:
            return dict(rows)
        if not self.pending:
            self._pending_since = time.monotonic()
        self.pending.update(rows)
        # Small enough that eviction frees parts of a small cache, not all of it.
        enough = min(SHARD_BYTES, self.max_bytes // 8)
        waited = time.monotonic() - self._pending_since
        if len(self.pending) * self.row_bytes >= enough or waited > PATIENCE_SECONDS:
            return self.flush()
        return {}

    def flush(self) -> dict[bytes, Tensor]:
        """Publish what was added. Returns the rows that could not be stored."""
        if not self.pending:
            return {}
        rows, self.pending = self.pending, {}
        self.refresh()
        rows = {digest: row for digest, row in rows.items() if self._place(digest) is None}
        if not rows:
            return {}
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}{SUFFIX}"
        beside = self.folder / f"{name}{BEING_WRITTEN}"
        try:
            self._describe()
            mode = (self.folder / KEY).stat().st_mode & 0o666
            write_shard(beside, self.id, rows, mode=mode)
            size = beside.stat().st_size
            with FileLock(self.root / LOCK, timeout=LOCK_SECONDS, mode=0o666):
                ours = {s.path for cache in _LIVE for s in cache.shards.values() if s.in_use}
                published = make_room(self.root, size, self.max_bytes, ours)
                if published:
                    os.replace(beside, self.folder / name)
            beside.unlink(missing_ok=True)
        except Timeout:
            self._say(f"{self.root / LOCK} is held by another process: features are not stored")
            discard(beside)
            return rows
        except FileNotFoundError:
            self._say(f"{self.folder} was removed while features were written: they are not stored")
            return rows
        except (OSError, SafetensorError) as error:
            self._say(f"{self.folder} cannot be written ({error}): nothing new is stored there")
            self.stores = False
            discard(beside)
            return rows
        if not published and size > self.max_bytes:
            self._say(f"max_bytes={self.max_bytes:,}: a batch of features has {size:,}; allow more")
            return rows
        if not published:
            self._say(
                f"{self.root} is full (max_bytes={self.max_bytes:,}) of features that are in use: "
                "the others are not stored; allow more, or clear old ones"
            )
            return rows
        if self._open(name):
            self.shards[name].in_use = True
            self._index()
        return {}

    def _describe(self) -> None:
        """Make the key's folder, and its key.json unless it is there and right."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / KEY
        if read_described(path).get("key") != self.key:
            beside = self.folder / f"{uuid.uuid4().hex}{BEING_WRITTEN}"
            text = json.dumps({"key": self.key, "about": self.about}, indent=2)
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, path)

    def close(self) -> None:
        """Publish what was added and let go of all files."""
        self.flush()
        self.shards = {}
        self._index()

    def _say(self, message: str) -> None:
        """A warning, once."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("feature cache: %s", message)


def discard(path: Path) -> None:
    """Remove a file, unless its folder is only read."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


@atexit.register
def _flush_all() -> None:
    for cache in list(_LIVE):
        cache.flush()
