"""Arrays that are dear to compute, kept on disk: checked when read, replaced when stale or broken.

An entry is a folder `<hash of what it is about>/` of .npy files and a meta.json, which tells the
state of the data it was made from and the hash of each array. No pickle is read or written.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from llava_mole.errors import CheckpointError
from llava_mole.folders import replacing_folder

logger = logging.getLogger(__name__)

VERSION = 3
"""Of what is read from a record: raise it when a record comes to be read otherwise."""
META = "meta.json"

Arrays = dict[str, NDArray[Any]]
Built = tuple[Arrays, dict[str, Any]]


def cached(
    folder: Path | None,
    subject: Mapping[str, Any],
    state: Any,
    build: Callable[[], Built],
) -> Built:
    """The arrays and facts that `build` gives, from disk where they are there and still true.

    Processes that want the same entry wait for the first one. Where the folder cannot be written
    the result is built and not kept, with a warning. Arrays from disk are memory-mapped, read-only.

    Args:
        folder: of all entries; None: nothing is kept.
        subject: JSON-able; what the entry is about, its name on disk.
        state: JSON-able; an entry made from another state (a changed file) is built again.
        build: () -> (arrays, JSON-able facts).
    """
    if folder is None:
        return build()
    # Through JSON, so that tuples compare as the lists they come back as.
    wanted = json.loads(json.dumps({"version": VERSION, "subject": dict(subject), "state": state}))
    name = hashlib.sha256(json.dumps(wanted["subject"], sort_keys=True).encode()).hexdigest()[:32]
    entry = folder / name
    if (found := _read(entry, wanted)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock").acquire()
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be written (%s): the index is not kept", folder, error)
        return build()
    with lock:
        if (found := _read(entry, wanted)) is not None:
            return found
        arrays, facts = build()
        try:
            _write(entry, wanted, arrays, facts)
        except (OSError, CheckpointError) as error:
            logger.warning("%s cannot be written (%s): the index is not kept", entry, error)
        return arrays, facts


def _write(entry: Path, wanted: Mapping[str, Any], arrays: Arrays, facts: dict[str, Any]) -> None:
    old = [path.name for path in entry.iterdir()] if entry.is_dir() else []
    with replacing_folder(entry, drop=old) as building:
        hashes = {}
        for name, array in arrays.items():
            path = building / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            hashes[name] = _hash(path)
        meta = {**wanted, "facts": facts, "hashes": hashes}
        (building / META).write_text(json.dumps(meta, ensure_ascii=True), encoding="utf-8")


def _read(entry: Path, wanted: Mapping[str, Any]) -> Built | None:
    """None: not there, about another state, or damaged."""
    try:
        meta = json.loads((entry / META).read_text(encoding="utf-8"))
        if any(meta[key] != value for key, value in wanted.items()):
            return None
        arrays: Arrays = {}
        for name, expected in meta["hashes"].items():
            path = entry / f"{name}.npy"
            if path.parent != entry or _hash(path) != expected:
                raise ValueError(f"{path.name} is damaged")
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return arrays, dict(meta["facts"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is broken (%s): it is built again", entry, error)
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
