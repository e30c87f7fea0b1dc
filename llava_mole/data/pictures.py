"""Pictures of records: found under the image root or taken from the record, never fetched.

A name is looked up, not opened. What leads out of the root is refused, by `..`, as an absolute
path or through a symbolic link.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llava_mole.data.quoting import short, why
from llava_mole.data.sample import ImageRef
from llava_mole.errors import DataError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KNOWN_FOLDERS = 100_000


class Pictures:
    """Looks pictures up under one root and notes which are missing.

    Args:
        root: the folder that names are relative to and must not leave; None: names are refused.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._real_root = os.path.realpath(root or ".")
        self._inside = self._real_root.rstrip(os.sep) + os.sep
        self._folders: dict[Path, str] = {}
        self.missing: list[tuple[str, str]] = []
        """(where, name) of each missing picture, in the order they were asked for"""

    def find(self, value: Any, where: str, key: str = "image") -> ImageRef:
        """A picture of a record. A missing file is noted in `missing`, and its path returned.

        Args:
            value: a file name, a file:// or data: URL, bytes, or `{"bytes": …, "path": …}`.
            where: of the record, for messages.
            key: where in the record the value stands.

        Raises:
            DataError: it is none of these, leads outside the root, or lies on a network.
        """
        if isinstance(value, Mapping) and value and set(value) <= {"bytes", "path"}:
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes):
            if not value:
                raise DataError(f"{where}: '{key}' holds a picture of 0 bytes")
            return value
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: '{key}' holds {short(value)}; expected a file name")
        if value.startswith("data:"):
            return _from_data_url(value, where, key)
        if value.startswith("file://"):
            value = _from_file_url(value, where, key)
        elif _SCHEME.match(value):
            raise DataError(
                f"{where}: '{key}' is {short(value)}; nothing is fetched from a network: download "
                "it and name the file"
            )
        if self.root is None:
            raise DataError(
                f"{where}: '{key}' names the file {short(value)}; say under which folder the "
                "pictures lie (image_root)"
            )
        return self._look(self.root, value, where)

    def take_missing(self) -> list[tuple[str, str]]:
        """What was noted in `missing` since the last call."""
        found, self.missing = self.missing, []
        return found

    def _look(self, root: Path, name: str, where: str) -> Path:
        try:
            path = root / name
            folder = self._folders.get(path.parent)
            if folder is None:
                if len(self._folders) >= _KNOWN_FOLDERS:
                    self._folders.clear()
                folder = self._folders[path.parent] = os.path.realpath(path.parent)
            real = os.path.join(folder, path.name)
            mode = _mode(real)
            if path.name == ".." or (mode is not None and stat.S_ISLNK(mode)):
                real = os.path.realpath(real)
                mode = _mode(real)
            if real != self._real_root and not real.startswith(self._inside):
                raise DataError(
                    f"{where}: image {short(name)} leads outside '{root}' (to "
                    f"{short(real)}); pictures must lie under the image root"
                )
        except DataError:
            raise
        except (OSError, ValueError) as error:  # a loop of links, a NUL in the name
            raise DataError(
                f"{where}: image {short(name)} is no usable path ({why(error)})"
            ) from error
        if mode is not None and stat.S_ISLNK(mode):
            raise DataError(
                f"{where}: image {short(name)} is no usable path (its symbolic links form a loop)"
            )
        if mode is None or not stat.S_ISREG(mode):
            self.missing.append((where, name))
        return path


def missing_message(root: Path | None, first: tuple[str, str], count: int) -> str:
    """What to say about `count` missing pictures.

    Args:
        root: the image root.
        first: (where, name) of the first.
        count: of all.
    """
    where, name = first
    more = f" ({count - 1:,} more like it)" if count > 1 else ""
    return (
        f"{where}: image {short(name)} not found under '{root}'{more}; "
        "check the image root, or whether the pictures were unpacked"
    )


def decode_base64(text: str, where: str, key: str) -> bytes:
    """Raises DataError for what is not base64, or nothing."""
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: '{key}' holds broken base64 ({error})") from error
    if not content:
        raise DataError(f"{where}: '{key}' holds a picture of 0 bytes")
    return content


def _mode(path: str) -> int | None:
    """Of the file itself, not of what a link points to; None if there is none."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _from_data_url(value: str, where: str, key: str) -> bytes:
    head, comma, content = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"{where}: '{key}' is {short(value)}; expected 'data:image/png;base64,…'")
    return decode_base64(content, where, key)


def _from_file_url(value: str, where: str, key: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise DataError(f"{where}: '{key}' is {short(value)}, no URL ({why(error)})") from error
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"{where}: '{key}' is {short(value)}; expected 'file:///path'")
    return unquote(parts.path)
