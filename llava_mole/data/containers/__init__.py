"""How records are stored: one class a kind of file, seen from its content.

A container gives record number -> parsed value, lazily, and its place as 'file:line'.
"""

from __future__ import annotations

from pathlib import Path

from llava_mole.data.containers.arrow import Parquet, SavedDataset, open_folder
from llava_mole.data.containers.base import Container
from llava_mole.data.containers.hub import PREFIX as HUB
from llava_mole.data.containers.hub import open_hub
from llava_mole.data.containers.json_files import JsonLines, JsonList
from llava_mole.data.containers.tsv import Tsv
from llava_mole.data.quoting import short, why
from llava_mole.errors import DataError

__all__ = [
    "HUB",
    "Container",
    "JsonLines",
    "JsonList",
    "Parquet",
    "SavedDataset",
    "Tsv",
    "open_container",
]

_HEAD = 2**16
_SPACE = b" \t\r\n"

_OTHERS = {
    b"\xff\xfe": "UTF-16 text, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text, not UTF-8; save it as UTF-8",
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"PK\x03\x04": "a ZIP archive; unpack it first (an Excel sheet: save it as TSV)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd); unpack it first",
    b"\xfd7zXZ": "compressed (xz); unpack it first",
    b"BZh": "compressed (bzip2); unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the data; run 'git lfs pull'",
    b"<": "an HTML or XML page, perhaps what a failed download left; fetch the file again",
}
"""How files begin that are none of ours, and what to do."""


def open_container(
    path: str | Path, *, split: str | None = None, cache_dir: Path | None = None
) -> Container:
    """The records of a file or folder, or of a dataset on the hub.

    The kind is seen from the content: JSON list, JSONL, Parquet, TSV; a folder is a saved dataset
    or holds Parquet files. The name decides only where the beginning of the content is broken.

    Args:
        path: file, folder, or `hub:org/name[:split]`.
        split: of a folder that has several.
        cache_dir: where offsets of large files are kept; None: they are found anew each time.

    Raises:
        DataError: it is missing, cannot be read, or is none of these.
    """
    if str(path).startswith(HUB):
        return open_hub(str(path))
    path = Path(path)
    try:
        if path.is_dir():
            return open_folder(path, split)
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if split is not None:
            raise DataError(f"{path}: a file has no splits; leave out ':{split}'")
        if head.startswith(b"PAR1"):
            return Parquet(path, [path])
        kind = _text_kind(path, head)
        return kind(path, cache_dir)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({why(error)})") from error


def _text_kind(path: Path, head: bytes) -> type[JsonList] | type[JsonLines] | type[Tsv]:
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path}:1: {what}")
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if body.startswith(b"["):
        return JsonList
    if body.startswith(b"{"):
        return JsonLines
    if not body and len(head) < _HEAD:
        raise DataError(f"{path}: no items; expected a JSON list or one JSON object a line")
    header = body.split(b"\n", 1)[0].split(b"\t")
    if len(header) > 1 and (path.suffix.lower() == ".tsv" or b"question" in header):
        return Tsv
    if path.suffix.lower() == ".jsonl":
        return JsonLines
    raise DataError(
        f"{path}:1: expected a JSON list, one JSON object a line, Parquet or a tab-separated file "
        f"with a header; found {short(body[:40])}"
    )
