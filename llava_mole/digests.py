"""What a picture is: the SHA-256 of its file's bytes, remembered while the file stays as it was.

A small SQLite database maps path -> (size, times, inode) -> digest, so that a file is read again
only when one of them has changed. Losing it costs reading the pictures once more; each entry has a
checksum of its own, so a damaged one is an unknown one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm.auto import tqdm

from llava_mole.errors import DataError
from llava_mole.ranks import cores

logger = logging.getLogger(__name__)

Picture = str | Path | bytes
"""A file by its path, or the bytes of one that lives inside a container."""

SETTLED_NS = 2_000_000_000
"""A file younger than this may change again without its times showing it: some file systems count
in whole seconds, FAT in twos. Its digest is used, not remembered."""
SOME = 256
"""Pictures at least that a progress bar is worth while for."""


class Digests:
    """Picture -> SHA-256 of its content, 32 bytes.

    Args:
        file: of the database; None: kept in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._process = -1
        self._inherited: list[sqlite3.Connection] = []
        self._connection: sqlite3.Connection | None = None

    def __call__(self, pictures: Sequence[Picture], progress: bool = False) -> list[bytes]:
        """The digests, in order.

        Raises:
            DataError: a file (named) is missing or cannot be read.
        """
        found: list[bytes | None] = []
        unknown: dict[str, tuple[str, list[int]]] = {}
        for place, picture in enumerate(pictures):
            if isinstance(picture, bytes):
                found.append(hashlib.sha256(picture).digest())
                continue
            path = os.path.abspath(picture)
            state = state_of(path)
            found.append(self._recall(path, state))
            if found[-1] is None:
                unknown.setdefault(path, (state, []))[1].append(place)
        if not unknown:
            return [digest for digest in found if digest is not None]
        bar = tqdm(
            total=len(unknown), desc="reading pictures", unit="picture",
            disable=not progress or len(unknown) < SOME,
        )  # fmt: skip
        learnt = []
        with bar, ThreadPoolExecutor(min(8, cores())) as pool:
            now = time.time_ns()
            digests = pool.map(digest_file, unknown)
            for (path, (state, places)), digest in zip(unknown.items(), digests, strict=True):
                for place in places:
                    found[place] = digest
                if last_change(state) < now - SETTLED_NS:
                    learnt.append((path, state, digest))
                bar.update()
        self._learn(learnt)
        return [digest for digest in found if digest is not None]

    def _recall(self, path: str, state: str) -> bytes | None:
        try:
            row = self._database().execute(
                "SELECT state, digest, checksum FROM pictures WHERE path = ?", (os.fsencode(path),)
            ).fetchone()  # fmt: skip
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        if row is None or row[0] != state.encode() or not isinstance(row[1], bytes):
            return None
        return row[1] if row[2] == checksum(path, state, row[1]) else None

    def _learn(self, learnt: Iterable[tuple[str, str, bytes]]) -> None:
        rows = [(os.fsencode(p), state, d, checksum(p, state, d)) for p, state, d in learnt]
        if not rows:
            return
        try:
            with self._database() as transaction:
                transaction.executemany("REPLACE INTO pictures VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _database(self) -> sqlite3.Connection:
        """The connection of this process: one must not cross a fork, nor be closed after it."""
        if self._connection is None or self._process != os.getpid():
            if self._connection is not None:
                self._inherited.append(self._connection)
            self._process = os.getpid()
            name = ":memory:" if self.file is None else str(self.file)
            if self.file is not None:
                with suppress(OSError):  # what is wrong with it SQLite will say
                    self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(name, timeout=30, check_same_thread=False)
            self._connection.text_factory = bytes  # damage may be no UTF-8
            # What a power failure loses or spoils here is found out and read again.
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS pictures "
                "(path BLOB PRIMARY KEY, state TEXT, digest BLOB, checksum BLOB) WITHOUT ROWID"
            )
        return self._connection

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on in memory; a damaged file is removed, so that the next run has a sound one."""
        logger.warning("%s cannot be used (%s): pictures' digests stay in memory", self.file, error)
        if self.file is not None and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):  # a folder that is only read
                self.file.unlink(missing_ok=True)
        self.file, self._connection = None, None


def digest_file(path: str) -> bytes:
    """SHA-256 of a file's bytes.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise unreadable(path, error) from error


def state_of(path: str) -> str:
    """What changes when a file does. Raises DataError if it is missing or cannot be read."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_size} {found.st_ino}"


def last_change(state: str) -> int:
    """Nanoseconds since 1970."""
    modified, changed, *_ = state.split()
    return max(int(modified), int(changed))


def checksum(path: str, state: str, digest: bytes) -> bytes:
    return hashlib.sha256(b"\0".join((os.fsencode(path), state.encode(), digest))).digest()[:8]


def unreadable(path: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"image '{path}': no such file")
    return DataError(f"image '{path}': cannot be read ({error})")
