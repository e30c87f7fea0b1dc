"""The folder of the feature cache, all keys together: what lies in it, and how it stays in bounds.

FOLDER/digests.sqlite        path -> SHA-256 of the picture, see `digests.py`
FOLDER/<key>/key.json        what the features are of, to be read by people
FOLDER/<key>/<shard>.safetensors, see `feature_shard.py`
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llava_mole.errors import ConfigError

SUFFIX = ".safetensors"
BEING_WRITTEN = ".writing"
TEMPORARY = ".tmp"
"""How safetensors calls a file until it is whole."""
ABANDONED_SECONDS = 3600
"""A file that is being written is published within seconds; after this its writer is gone."""
LOCK = ".lock"
DIGESTS = "digests.sqlite"
KEY = "key.json"


@dataclass(frozen=True)
class KeyInfo:
    """One key of the folder."""

    id: str
    """Name of its folder."""
    described: dict[str, Any]
    """key.json: `key` and `about`; empty if it cannot be read."""
    pictures: int
    bytes: int
    last_used: float
    """Seconds since 1970; 0 if it holds nothing."""


def key_id(key: Mapping[str, Any]) -> str:
    """Name of a key's folder: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def read_described(path: Path) -> dict[str, Any]:
    """A key.json; empty if it cannot be read or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("key"), dict) else {}


def is_key(folder: Path) -> bool:
    name = folder.name
    return len(name) == 32 and set(name) <= set("0123456789abcdef") and folder.is_dir()


def list_keys(root: Path) -> list[KeyInfo]:
    """Every key of the folder, last used first."""
    found = []
    for folder in sorted(path for path in root.glob("*") if is_key(path)):
        pictures, size, used = 0, 0, 0.0
        for path in folder.glob(f"*{SUFFIX}"):
            try:
                held = path.stat()
                with safe_open(path, framework="np") as file:
                    pictures += file.get_slice("digests").get_shape()[0]
            except (OSError, SafetensorError):
                continue  # removed just now, or damaged: who reads it removes it
            size += held.st_size
            used = max(used, held.st_mtime)
        found.append(KeyInfo(folder.name, read_described(folder / KEY), pictures, size, used))
    return sorted(found, key=lambda info: -info.last_used)


def remove_keys(root: Path, names: Collection[str] | None = None) -> list[KeyInfo]:
    """Remove keys and all they hold; runs that read them go on.

    Args:
        root: the cache's folder; only folders that are keys are touched, and with all of them what
            is known of pictures' digests.
        names: of keys, or beginnings that are unique; None: all.

    Returns:
        What was removed.

    Raises:
        ConfigError: a name fits no key, or several; nothing is removed then. Or what is there
            cannot be removed.
    """
    held = list_keys(root)
    chosen = held
    if names is not None:
        chosen = []
        for name in names:
            fitting = [info for info in held if name and info.id.startswith(name)]
            if len(fitting) != 1:
                known = ", ".join(info.id for info in held) or "none"
                raise ConfigError(f"{name!r} names {len(fitting)} keys of {root}; held: {known}")
            chosen += [info for info in fitting if info not in chosen]
    there = [path for info in chosen for path in (root / info.id).glob("*")]
    if names is None:
        there += root.glob(f"{DIGESTS}*")
    for info in chosen:
        shutil.rmtree(root / info.id, ignore_errors=True)
    for path in there:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    if left := [path for path in there if path.exists()]:
        raise ConfigError(
            f"{len(left)} of {len(there)} files could not be removed, the first is {left[0]}; "
            "may you write in that folder?"
        )
    return chosen


def make_room(root: Path, needed: int, max_bytes: int, in_use: Collection[Path]) -> bool:
    """Remove the files used longest ago until `needed` bytes fit; none if they still would not.

    For the holder of the folder's lock. What a killed writer left is removed as well.

    Args:
        in_use: files that must stay.

    Returns:
        Whether they fit.
    """
    known = root / DIGESTS
    used, files = known.stat().st_size if known.is_file() else 0, []
    # Only in folders that are keys: the cache's folder may be one where other things lie too.
    for path in (path for key in root.glob("*") if is_key(key) for path in key.glob("*")):
        try:
            found = path.stat()
        except OSError:
            continue  # removed by another process
        if not stat.S_ISREG(found.st_mode):
            continue
        if path.name.endswith(BEING_WRITTEN) or path.name.startswith(TEMPORARY):
            if time.time() - found.st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        elif path.suffix == SUFFIX:
            files.append((found.st_mtime_ns, path, found.st_size))
            used += found.st_size
    excess = used + needed - max_bytes
    victims: list[Path] = []
    for _, path, size in sorted(files):
        if excess <= 0:
            break
        if path not in in_use:
            victims.append(path)
            excess -= size
    if excess > 0:
        return False
    for path in victims:
        path.unlink(missing_ok=True)
    return True
