"""Tables: Parquet files and datasets that `datasets.save_to_disk` wrote, read block by block.

A block is a row group or a record batch. Saved datasets are read with pyarrow alone: so pictures
come out as the encoded files that they are (`{"bytes", "path"}`, what `datasets` gives with
`decode=False`), each block is checked before it is used, and no file outside the folder is opened.

Rows in random order cost a block each in Parquet; a saved dataset is memory-mapped and does not.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mole.data.containers.base import Container
from llava_mole.data.quoting import short, why
from llava_mole.errors import DataError

KEPT_BYTES = 2**29
"""Of blocks kept in memory; the one in use always is."""

BROKEN = (
    pa.ArrowException,
    OSError,
    ValueError,  # UnicodeDecodeError is one
    OverflowError,
    MemoryError,
    NotImplementedError,
)
"""What pyarrow raises on damaged files; nothing else runs inside the guarded lines."""

_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")


class Table(Container):
    """Rows of one or more files, in the order of the files.

    A null is an absent key, so that defaults apply.

    Raises:
        DataError: a file is missing, damaged, or outside its folder.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._files = list(files)
        self._blocks: list[tuple[int, int]] = []
        """(file, block within it) of each block"""
        rows: list[int] = []
        self._first_rows: list[int] = []
        """row of its file that each block begins with"""
        for number, file in enumerate(self._files):
            counts = self._counts(number)
            if any(count < 0 for count in counts):
                raise DataError(f"{file}: damaged, a block claims {min(counts)} rows")
            first = 0
            for block, count in enumerate(counts):
                self._blocks.append((number, block))
                self._first_rows.append(first)
                rows.append(count)
                first += count
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    @abstractmethod
    def _counts(self, file: int) -> list[int]:
        """Rows of each block of a file."""

    @abstractmethod
    def _load(self, file: int, block: int) -> pa.Table:
        """One block."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def files(self) -> Sequence[Path]:
        return self._files

    def where(self, number: int) -> str:
        block, row = self._place(number)
        return f"{self._files[self._blocks[block][0]]}:{self._first_rows[block] + row + 1}"

    def record(self, number: int) -> Any:
        block, row = self._place(number)
        table = self._table(block)
        try:
            [value] = table.slice(row, 1).to_pylist()
        except BROKEN as error:
            raise DataError(f"{self.where(number)}: damaged row ({why(error)})") from error
        return {key: cell for key, cell in value.items() if cell is not None}

    def _place(self, number: int) -> tuple[int, int]:
        """(block, row in it) of a record."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        block = int(np.searchsorted(self._ends, number, side="right"))
        return block, number - (int(self._ends[block - 1]) if block else 0)

    def _table(self, block: int) -> pa.Table:
        if block in self._kept:
            self._kept.move_to_end(block)
            return self._kept[block]
        file, within = self._blocks[block]
        try:
            table = self._load(file, within)
            # Offsets that point outside a buffer would be followed, not refused, when read.
            table.validate(full=True)
        except BROKEN as error:
            raise DataError(
                f"{self._files[file]}:{self._first_rows[block] + 1}: damaged {self.kind}, the "
                f"block that begins at this row cannot be read ({why(error)})"
            ) from error
        expected = int(self._ends[block]) - (int(self._ends[block - 1]) if block else 0)
        if table.num_rows != expected:
            raise DataError(
                f"{self._files[file]}: damaged {self.kind}, a block of {table.num_rows} rows "
                f"claims {expected}"
            )
        self._kept[block] = table
        while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return table


class Parquet(Table):
    """One Parquet file, or all shards of a split."""

    kind = "Parquet"

    def _counts(self, file: int) -> list[int]:
        try:
            metadata = pq.read_metadata(self._open(file))
            return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except BROKEN as error:
            raise DataError(
                f"{self._files[file]}: not a readable Parquet file ({why(error)})"
            ) from error

    def _load(self, file: int, block: int) -> pa.Table:
        with pq.ParquetFile(self._open(file), page_checksum_verification=True) as opened:
            return opened.read_row_group(block, use_threads=False)

    def _open(self, file: int) -> Any:
        """What pyarrow reads: a path, or an open remote file."""
        return str(self._files[file])


class SavedDataset(Table):
    """A folder that `datasets.Dataset.save_to_disk` wrote: Arrow streams, memory-mapped."""

    kind = "saved dataset"

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self._batches: dict[int, list[pa.RecordBatch]] = {}
        super().__init__(path, files)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batches": {}}

    def _counts(self, file: int) -> list[int]:
        try:
            return [batch.num_rows for batch in self._mapped(file)]
        except BROKEN as error:
            raise DataError(
                f"{self._files[file]}: not a readable Arrow stream ({why(error)})"
            ) from error

    def _load(self, file: int, block: int) -> pa.Table:
        return pa.Table.from_batches([self._mapped(file)[block]])

    def _mapped(self, file: int) -> list[pa.RecordBatch]:
        if file not in self._batches:
            with pa.ipc.open_stream(pa.memory_map(str(self._files[file]))) as reader:
                self._batches[file] = list(reader)
        return self._batches[file]


def open_folder(path: Path, split: str | None) -> Table:
    """A saved dataset, a saved `DatasetDict`, or a folder of Parquet files.

    Args:
        path: the folder.
        split: of a `DatasetDict` or of shards named after splits; None where there is only one.

    Raises:
        DataError: it is none of these, is damaged, or has several splits and none is named.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise DataError(f"{path / 'dataset_dict.json'}: 'splits' is {short(splits)}")
        name = _choose(path, splits, split)
        return SavedDataset(path, _arrow_files(_inside(path, name, path)))
    if (path / "state.json").is_file():
        if split is not None:
            raise DataError(f"{path}: one dataset, without splits; leave out ':{split}'")
        return SavedDataset(path, _arrow_files(path))
    shards = sorted(path.rglob("*.parquet"))
    if not shards:
        raise DataError(
            f"{path}: a folder that is no dataset; expected what `datasets` saved with "
            "save_to_disk, or Parquet files"
        )
    by_split: dict[str, list[Path]] = {}
    for shard in shards:
        inside = _inside(path, str(shard.relative_to(path)), path)
        by_split.setdefault(split_of(shard), []).append(inside)
    chosen = by_split[_choose(path, list(by_split), split)]
    folders = sorted({str(shard.parent) for shard in chosen})
    if len(folders) > 1 and not all(re.fullmatch(r"\d{4}", shard.stem) for shard in chosen):
        raise DataError(
            f"{path}: its Parquet files lie in {len(folders)} folders, which may be subsets of "
            f"different data ({', '.join(folders[:3])}, …): make each a source of its own"
        )
    return Parquet(path, chosen)


def split_of(shard: Path) -> str:
    """The split in the name of a shard: 'train-00003-of-00010' or the hub's 'train/0003'.

    "" where the name tells none.
    """
    if named := _SHARD.match(shard.stem):
        return named[1]
    return shard.parent.name if re.fullmatch(r"\d{4}", shard.stem) else ""


def _choose(path: Path, splits: Sequence[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        asked = "several splits" if split is None else f"no split {split!r}"
        names = ", ".join(name or "(shards without a split's name)" for name in sorted(splits))
        raise DataError(f"{path}: {asked}; name one of {names or 'none'}, as in '{path}:train'")
    return split


def _arrow_files(folder: Path) -> list[Path]:
    """The files that a saved dataset's state names."""
    state = folder / "state.json"
    named = _json(state).get("_data_files")
    if not isinstance(named, list) or not named:
        raise DataError(f"{state}: '_data_files' is {short(named)}; expected a list of files")
    files = []
    for entry in named:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{state}: {short(entry)} names no file")
        files.append(_inside(folder, name, state))
    return files


def _inside(folder: Path, name: str, where: Path) -> Path:
    """A file or folder of a dataset, by its name; what leads out of the dataset is refused."""
    path = folder / name
    try:
        real, root = path.resolve(strict=True), folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {short(name)} cannot be read ({why(error)})") from error
    if not real.is_relative_to(root) or real == root:
        raise DataError(
            f"{where}: {short(name)} leads outside '{folder}' (to {short(str(real))}); "
            "a dataset's files must lie in its folder (`hf download --local-dir` puts them there)"
        )
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({why(error)})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, found {short(value)}")
    return value
