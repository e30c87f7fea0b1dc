"""A source of training data: a container, what its records say, where its pictures lie."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_mole.data.containers import HUB, Container, open_container
from llava_mole.data.containers.base import stem_of
from llava_mole.data.index_cache import cached
from llava_mole.data.layouts import LAYOUTS, Defaults, Layout, detect_layout, no_match
from llava_mole.data.layouts.llama_factory import FILE_NAME, read_dataset_info
from llava_mole.data.pictures import Pictures, missing_message
from llava_mole.data.quoting import keys_of, short
from llava_mole.data.sample import Sample
from llava_mole.data.source_index import SourceIndex, build_index
from llava_mole.errors import ConfigError, DataError
from llava_mole.starter import default_cache

_LOOKED_AT = 64


@dataclass(frozen=True)
class SourceSpec:
    """Where data lie and what holds for all of them."""

    path: str | Path
    """a file; a folder (saved dataset, Parquet), with `:split` where it has several;
    `DIR/dataset_info.json:NAME`; `hub:org/name[:split]`"""
    name: str | None = None
    """for tables and messages (default: the file's name without suffix, or NAME)"""
    format: str = "auto"
    """a key of `layouts.LAYOUTS`; auto: seen from the records"""
    image_root: str | Path | None = None
    """folder of the pictures (default: the data's own)"""
    domain: str | None = None
    """of records without one (default: the file's name without suffix)"""
    language: str | None = None
    """of records without one"""


class Source:
    """Records of one place as samples, read on demand. May be pickled. See `open_source`."""

    def __init__(
        self,
        spec: SourceSpec,
        name: str,
        container: Container,
        layout: Layout,
        pictures: Pictures,
        defaults: Defaults,
        *,
        named: bool,
        cache_dir: Path,
    ) -> None:
        self.spec = spec
        self.name = name
        self.container = container
        self.layout = layout
        self.pictures = pictures
        self.defaults = defaults
        self._named = named
        self._cache_dir = cache_dir
        self._index: SourceIndex | None = None

    def __len__(self) -> int:
        return len(self.container)

    def __getitem__(self, number: int) -> Sample:
        """Sample of record `number`.

        Raises:
            DataError: names file and line; a picture is missing, too.
            IndexError: there is no such record.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        record = self.container.record(number)
        found = self._sample(record, self.container.where(number))
        if isinstance(found, DataError):
            raise found
        if missing := self.pictures.take_missing():
            raise DataError(missing_message(self.pictures.root, missing[0], len(missing)))
        return found

    def walk(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        note_missing: list[tuple[str, str]] | None = None,
    ) -> Iterator[tuple[int, str, Sample | DataError]]:
        """(number, 'file:line', sample or what is wrong with it), in order, whatever is wrong.

        If the file itself is damaged behind its last whole record, one more entry tells so.

        Args:
            start: first record.
            stop: record before which to end; None: the end.
            note_missing: takes (where, name) of missing pictures, whose samples are then given;
                None: a missing picture is an error of its record.
        """
        end = len(self) if stop is None else min(stop, len(self))
        for number, where, record in self.container.walk(start, end):
            found: Sample | DataError
            found = record if isinstance(record, DataError) else self._sample(record, where)
            missing = self.pictures.take_missing()
            if note_missing is not None:
                note_missing += missing
            elif missing and not isinstance(found, DataError):
                found = DataError(missing_message(self.pictures.root, missing[0], len(missing)))
            yield number, where, found
        if stop is None and self.container.damage is not None:
            yield len(self), str(self.container.path), self.container.damage

    def samples(self) -> list[Sample]:
        """Every sample, in memory.

        Raises:
            DataError: the first bad record; missing pictures are counted together.
        """
        missing: list[tuple[str, str]] = []
        samples: list[Sample] = []
        for _, _, found in self.walk(note_missing=missing):
            if isinstance(found, DataError):
                raise found
            samples.append(found)
        if missing:
            raise DataError(missing_message(self.pictures.root, missing[0], len(missing)))
        return samples

    def index(self, *, processes: int | None = None, progress: bool = True) -> SourceIndex:
        """What the planner needs of every record; made once, then read from the cache.

        The cache is asked by path, layout and defaults, and believed only if no file has changed
        since. It does not tell whether pictures were deleted in the meantime; reading them does.

        Args:
            processes: see `source_index.build_index`.
            progress: show a bar where it takes long.

        Raises:
            DataError: see `source_index.build_index`.
        """
        if self._index is None:
            root = self.pictures.root
            subject = {
                "index": [str(path) for path in self.container.files()],
                "layout": [self.layout.identity(), self._named],
                "defaults": [self.defaults.domain, self.defaults.language],
                "image_root": None if root is None else str(root.resolve()),
            }
            arrays, names = cached(
                self._cache_dir, subject, self.container.state(),
                lambda: self._build(processes, progress),
            )  # fmt: skip
            self._index = SourceIndex.of(arrays, names)
        return self._index

    def _build(self, processes: int | None, progress: bool) -> tuple[dict[str, Any], Any]:
        index = build_index(self, processes=processes, progress=progress)
        return index.arrays(), index.names()

    def describe(self) -> str:
        """In a line: 'LLaVA JSON list, 665,298 items'."""
        return f"{self.layout.title} {self.container.kind}, {len(self):,} items"

    def _sample(self, record: Any, where: str) -> Sample | DataError:
        try:
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: expected an object with {self.layout.needs}, found {short(record)}"
                )
            if not self._named and not self.layout.matches(record):
                raise DataError(self._mismatch(record, where))
            return self.layout.sample(record, where, self.pictures, self.defaults)
        except DataError as error:
            return error

    def _mismatch(self, record: Any, where: str) -> str:
        others = [name for name, layout in LAYOUTS.items() if layout.matches(record)]
        if not others:
            return no_match(record, where)
        return (
            f"{where}: {keys_of(record)}; most records of this source are of the layout "
            f"{self.layout.name} ({self.layout.needs}), this one would be {' or '.join(others)}: "
            "put it in a file of its own, or say which it is (format)"
        )


def open_source(spec: SourceSpec, *, cache_dir: str | Path | None = None) -> Source:
    """Open a source: find its records and see their layout. Nothing is validated yet.

    Args:
        spec: of the source.
        cache_dir: where indices are kept (default: `index/` in the cache, see `starter`).

    Raises:
        ConfigError: no such format.
        DataError: the file is missing, holds no records, or its records have no known layout.
    """
    if spec.format != "auto" and spec.format not in LAYOUTS:
        near = difflib.get_close_matches(spec.format, LAYOUTS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"{spec.path}: unknown format {spec.format!r}{hint}; expected auto, "
            f"{', '.join(LAYOUTS)}"
        )
    folder = Path(cache_dir) if cache_dir is not None else default_cache() / "index"
    path, selector = split_path(spec.path)
    layout = None if spec.format == "auto" else LAYOUTS[spec.format]
    beside = path
    name = stem_of(path)
    if isinstance(path, Path) and selector is not None and path.is_file():
        if layout is not None:
            raise ConfigError(
                f"{spec.path}: format {spec.format!r}, but dataset_info.json says it; leave it out"
            )
        name = selector
        path, layout = read_dataset_info(path, selector)
        selector = None
    elif path.name == FILE_NAME and path.is_file():
        raise DataError(f"{path}: say which of its data sets, as in '{path}:NAME'")
    container = open_container(
        str(spec.path) if _on_hub(spec.path) else path, split=selector, cache_dir=folder
    )
    if not len(container):
        raise container.damage or DataError(
            f"{path}: no items; expected a JSON list or one JSON object a line"
        )
    pictures = Pictures(_image_root(spec, beside))
    defaults = Defaults(spec.domain or name, spec.language)
    return Source(
        spec,
        spec.name or name,
        container,
        layout or _detect(container),
        pictures,
        defaults,
        named=layout is not None,
        cache_dir=folder,
    )


def _on_hub(path: str | Path) -> bool:
    return str(path).startswith(HUB)


def split_path(path: str | Path) -> tuple[Path, str | None]:
    """(path, what stands behind its last colon, if the path itself is none with a colon)."""
    if _on_hub(path):
        return Path(str(path).removeprefix(HUB).partition(":")[0]), None
    whole = Path(path)
    head, colon, tail = str(path).rpartition(":")
    if colon and head and tail and not whole.exists() and Path(head).exists():
        return Path(head), tail
    return whole, None


def _image_root(spec: SourceSpec, data: Path) -> Path | None:
    """The folder given, else the one of the data; None for a dataset on the hub."""
    if spec.image_root is not None:
        root = Path(spec.image_root)
        if not root.is_dir():
            raise DataError(f"{spec.path}: image_root '{root}' is no folder")
        return root
    if _on_hub(spec.path):
        return None
    return data if data.is_dir() else data.parent


def _detect(container: Container) -> Layout:
    """The layout of records from all over the container; broken ones are left for later."""
    total = len(container)
    numbers = sorted({place * total // _LOOKED_AT for place in range(_LOOKED_AT)} | {0})
    if total <= _LOOKED_AT:
        numbers = list(range(total))
    records, places = [], []
    first_error: DataError | None = None
    for number in numbers:
        try:
            records.append(container.record(number))
            places.append(container.where(number))
        except DataError as error:
            first_error = first_error or error
    if not records:
        assert first_error is not None
        raise first_error
    return detect_layout(records, places)
