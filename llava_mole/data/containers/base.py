"""What containers share: numbered records, each with its place, and what is wrong at the end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_mole.errors import DataError

MAX_RECORD = 2**28
"""Bytes of one record. Beyond it a quote or a bracket was not closed, and memory would go first."""


class Container(ABC):
    """A file, or a folder of files, that holds records. Reads on demand; may be pickled."""

    path: Path
    """as the user wrote it"""
    kind: str
    """in words, for `describe`: "JSON list", "Parquet", …"""
    damage: DataError | None = None
    """what ends the container after its last whole record: a list that is not closed, …"""

    @abstractmethod
    def __len__(self) -> int:
        """Whole records."""

    @abstractmethod
    def record(self, number: int) -> Any:
        """The parsed value of record `number`, counted from 0.

        Raises:
            DataError: it cannot be parsed; with file and line.
        """

    @abstractmethod
    def where(self, number: int) -> str:
        """'file:line' where the record begins ('file:row' from 1 in Parquet and saved datasets)."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Every file read."""

    def state(self) -> list[Any]:
        """JSON-able; changes when a file does. Size, times and inode, the content is not read."""
        found = []
        for path in self.files():
            status = path.stat()
            found.append([str(path.resolve()), *content_stamp(status), status.st_ctime_ns])
        return found

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files())

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, str, Any]]:
        """(number, where, value or DataError) of records `start` to `stop`, in order."""
        for number in range(start, stop):
            try:
                value = self.record(number)
            except DataError as error:
                value = error
            yield number, self.where(number), value


def content_stamp(status: os.stat_result) -> list[int]:
    """What changes when a file's content does, if nobody sets its times. `state` adds the time of
    change, which rsync, tar and cp -p cannot set, but which a new link or owner moves too."""
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def stem_of(path: Path) -> str:
    """A file's or a folder's name without its suffix: the default domain."""
    return path.stem or path.name or path.resolve().name
