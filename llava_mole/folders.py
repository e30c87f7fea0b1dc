"""A folder that is either whole or not there: built beside its place, synced, renamed.

A builder fills a hidden sibling folder. Only when every file is on disk does one rename put it in
place, so a killed run, a full disk or a second process never leaves half a folder behind. Its
`manifest.json` lists each file's size and SHA-256.
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from llava_mole.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LEFTOVER = re.compile(r"\..+\.((building|removed)-)?[0-9a-f]{8}")
"""Names that this module gives to what is being made or removed."""
NO_ROOM = {errno.ENOSPC: "disk full", errno.EDQUOT: "quota reached", errno.EFBIG: "file too large"}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_hash(path: Path) -> str:
    """The same, read once in a process as long as the file's time and size stay."""
    return _hash_of(path, stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew: its time in nanoseconds, its size."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4096)
def _hash_of(path: Path, _: tuple[int, int]) -> str:
    return sha256_file(path)


def build_folder(
    final: Path,
    fill: Callable[[Path], Mapping[str, str]],
    *,
    needed_bytes: int,
    rehash: bool = False,
) -> None:
    """Make `final` a whole folder, or leave it as it was.

    Processes that want the same folder wait for the first one and use its result. A folder that is
    there but damaged is replaced.

    Args:
        final: where the folder will stand.
        fill: writes files into the empty folder it is given; what it returns goes into the
            manifest under `facts`.
        needed_bytes: room on disk the build takes at its peak.
        rehash: judge a folder that is there by its files' hashes, not only by their sizes.

    Raises:
        CheckpointError: no room on disk, or the place cannot be written.
    """
    if find_damage(final, rehash=rehash) is None:
        return
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(final.parent / f".{final.name}.lock")
    except OSError as error:
        raise CheckpointError(
            f"cannot write under {final.parent}: {error.strerror}. "
            "Set LLAVA_MOLE_CACHE to a folder that can be written."
        ) from error
    with lock:
        damage = find_damage(final, rehash=rehash)
        if damage is None:
            return
        # Under the lock every build folder is a dead run's.
        for leftover in final.parent.glob(f".{final.name}.building-*"):
            logger.info("removing %s, left by a run that did not finish", leftover)
            shutil.rmtree(leftover)
        _require_room(final.parent, needed_bytes)
        building = _sibling(final)
        try:
            _write_manifest(building, fill(building))
            sync(building)
            if final.exists():
                logger.warning("%s: building %s again", damage, final)
                os.rename(final, _sibling(final) / final.name)
            os.rename(building, final)
            _sync_directory(final.parent)
        except (OSError, SafetensorError) as error:
            reason = _no_room_reason(error)
            if reason is None:
                raise
            raise CheckpointError(_no_room_message(final.parent, needed_bytes, reason)) from error
        finally:
            for leftover in final.parent.glob(f".{final.name}.building-*"):
                shutil.rmtree(leftover, ignore_errors=True)


def find_damage(folder: Path, *, rehash: bool = False) -> str | None:
    """What is wrong with a folder that `build_folder` made; None if nothing is.

    Args:
        folder: the folder.
        rehash: also read every file and compare its SHA-256, not only its size.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("digest")
        if digest != _digest(manifest):
            return f"{folder / MANIFEST} was altered"
        files = manifest["files"]
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder / MANIFEST} not found"
    except (ValueError, KeyError, AttributeError):
        return f"{folder / MANIFEST} is not readable"
    for name, expected in files.items():
        path = folder / name
        try:
            kind = path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return f"{path} is missing"
        if not stat.S_ISREG(kind.st_mode):
            return f"{path} is no file"
        if (found := kind.st_size) != expected["bytes"]:
            return f"{path} has {found:,} bytes, expected {expected['bytes']:,}"
        if rehash and (found_hash := sha256_file(path)) != expected["sha256"]:
            return f"{path} has SHA-256 {found_hash}, expected {expected['sha256']}"
    return None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file as the manifest tells it: {"language_model/model.safetensors": …}."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def _write_manifest(folder: Path, facts: Mapping[str, str]) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest: dict[str, object] = {"facts": dict(facts), "files": files}
    manifest["digest"] = _digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sibling(final: Path) -> Path:
    folder = final.parent / f".{final.name}.building-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    return folder


def _lock(path: Path) -> AcquireReturnProxy:
    """The lock, held until the `with` ends. The system frees it when its process dies."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is preparing %s: waiting for it", path.parent)
        return lock.acquire()


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(_no_room_message(folder, needed, f"{free / 2**20:,.0f} MiB free"))


def _no_room_reason(error: OSError | SafetensorError) -> str | None:
    """Why a write failed, if it is for lack of room. safetensors reports it in words only."""
    if isinstance(error, OSError):
        return NO_ROOM.get(error.errno or 0)
    return next((text for code, text in NO_ROOM.items() if f"os error {code}" in str(error)), None)


def _no_room_message(folder: Path, needed: int, found: str) -> str:
    return (
        f"no room under {folder} ({found}): {needed / 2**20:,.0f} MiB are needed. "
        "Free some, or set LLAVA_MOLE_CACHE to a folder on another disk. Nothing was left behind."
    )


def sync(folder: Path) -> None:
    """Bring all of it to the disk, readable for whoever the user's umask lets: safetensors writes
    files that only their owner can read."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    usual = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            continue
        if path.is_file() and path.stat().st_mode & usual != usual:
            path.chmod(path.stat().st_mode | usual)
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened, so not synced either
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step: whoever is killed, `other` is there throughout.

    False where the system has no such step (Linux has: renameat2, RENAME_EXCHANGE); nothing has
    happened then.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    at_working_directory, exchange = -100, 2
    return (
        rename is not None
        and rename(
            at_working_directory,
            os.fsencode(one),
            at_working_directory,
            os.fsencode(other),
            exchange,
        )
        == 0
    )


def remove_folder(folder: Path) -> None:
    """Take a folder away: its name is free at once, so whoever is killed meanwhile leaves no half
    of it there (`sweep` finds the rest). None there is no error."""
    aside = folder.with_name(f".{folder.name}.removed-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def publish(written: Path, final: Path) -> None:
    """Sync a finished folder and rename it into place, over what stands there."""
    sync(written)
    aside = None
    if final.exists():
        aside = final.with_name(f".{final.name}.removed-{uuid.uuid4().hex[:8]}")
        os.rename(final, aside)
    os.rename(written, final)
    _sync_directory(final.parent)
    if aside is not None:
        shutil.rmtree(aside)


def sweep(folder: Path) -> list[Path]:
    """Remove what processes that were killed left in `folder` while they made or removed something;
    what was removed. Only for a place where nobody else is at work."""
    found = [path for path in folder.glob(".*") if LEFTOVER.fullmatch(path.name)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


@contextmanager
def replacing_folder(final: Path, drop: Collection[str] = ()) -> Iterator[Path]:
    """Yields an empty sibling folder; on success it takes the place of `final`, on failure nothing
    of `final` has changed. Files of `final` that were not written anew are kept; links among them
    stay links. A `final` that is a link is followed, and what it points to is replaced.

    Args:
        final: the folder to make or replace.
        drop: names in `final` that must not be kept: they would belong to what is replaced.

    Raises:
        CheckpointError: no room on disk; what stood in `final` is still there.
    """
    final = Path(os.path.realpath(final))
    final.parent.mkdir(parents=True, exist_ok=True)
    building = _sibling(final)
    try:
        yield building
        if final.is_dir():
            for entry in final.iterdir():
                if entry.name not in drop and not (building / entry.name).exists():
                    if entry.is_dir() and not entry.is_symlink():
                        shutil.copytree(entry, building / entry.name, symlinks=True)
                    else:
                        shutil.copy2(entry, building / entry.name, follow_symlinks=False)
        building.chmod(0o755)
        sync(building)
        if not final.exists():
            os.rename(building, final)
        elif not _exchange(building, final):
            old = _sibling(final)
            os.rename(final, old / final.name)
            os.rename(building, final)
            shutil.rmtree(old)
        _sync_directory(final.parent)
    except (OSError, SafetensorError) as error:
        reason = _no_room_reason(error)
        if reason is None:
            raise
        raise CheckpointError(
            f"no room to write {final} ({reason}): free some and save again. "
            + ("What was saved there before is unchanged." if final.exists() else "")
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def writing_file(final: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that appears whole: written beside its place, synced, renamed. On failure what stood
    there before is unchanged. Text is UTF-8, what has none (half a surrogate pair) an escape."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    text = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace"}
    how: dict[str, Any] = {"mode": "wb"} if binary else text
    try:
        with beside.open(**how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, final)
        _sync_directory(final.parent)
    finally:
        beside.unlink(missing_ok=True)
