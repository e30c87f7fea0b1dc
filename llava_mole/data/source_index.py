"""What the planner needs to know of every record, as arrays; building it validates every record."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from llava_mole.data.pictures import missing_message
from llava_mole.data.sample import Sample
from llava_mole.errors import DataError

if TYPE_CHECKING:
    from llava_mole.data.sources import Source

PARALLEL_FROM = 2**26
"""Bytes of a source from which several processes pay for their start."""

_PART = 2048  # records a task
_MOST_PROCESSES = 8
_MOST_NAMES = 2**15 - 1


@dataclass(frozen=True)
class SourceIndex:
    """One entry a record, in the order of the source; n records."""

    group: NDArray[np.uint64]
    """(n,) which picture or pictures it shows: a hash of their names under the image root, or of
    their content where the record holds them. A text-only record has a group of its own."""
    domain: NDArray[np.int16]
    """(n,) place in `domains`"""
    language: NDArray[np.int16]
    """(n,) place in `languages`"""
    kind: NDArray[np.int16]
    """(n,) place in `kinds`"""
    text_bytes: NDArray[np.int32]
    """(n,) UTF-8 bytes of all turns"""
    turns: NDArray[np.int32]
    """(n,) turns of the conversation"""
    images: NDArray[np.int16]
    """(n,) pictures"""
    domains: tuple[str, ...]
    languages: tuple[str, ...]
    kinds: tuple[str, ...]
    """`metadata["kind"]`, or "" """

    def __len__(self) -> int:
        return len(self.group)

    def arrays(self) -> dict[str, NDArray[Any]]:
        names = ("group", "domain", "language", "kind", "text_bytes", "turns", "images")
        return {name: getattr(self, name) for name in names}

    def names(self) -> dict[str, list[str]]:
        return {name: list(getattr(self, name)) for name in ("domains", "languages", "kinds")}

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]], names: dict[str, Any]) -> SourceIndex:
        given: dict[str, Any] = {**arrays, **{key: tuple(value) for key, value in names.items()}}
        return cls(**{field.name: given[field.name] for field in fields(cls)})


@dataclass
class _Part:
    """The index of some neighbouring records, codes by its own name lists."""

    count: int
    arrays: dict[str, NDArray[Any]]
    names: dict[str, list[str]]
    missing: list[tuple[str, str]]
    """the first missing picture, if any"""
    missing_count: int
    error: str
    """of the first bad record, at which the part ends"""


def build_index(source: Source, *, processes: int | None, progress: bool) -> SourceIndex:
    """Read every record of a source.

    Args:
        source: opened.
        processes: to read with; None: one for small sources, else one a core, up to 8.
        progress: show a bar if it takes longer than a second.

    Raises:
        DataError: the first bad record in the order of the file; else all missing pictures,
            counted; else what damages the end of the file.
    """
    total = len(source)
    parts: list[_Part] = []
    missing: list[tuple[str, str]] = []
    missing_count = 0
    bar = tqdm(
        total=total, desc=f"index of {source.name}", unit="record", delay=1, disable=not progress
    )
    with bar:
        for part in _parts(source, processes or _processes(source)):
            if part.error:
                raise DataError(part.error)
            parts.append(part)
            missing += part.missing
            missing_count += part.missing_count
            bar.update(part.count)
    if source.container.damage is not None:
        raise source.container.damage
    if missing_count:
        raise DataError(missing_message(source.pictures.root, missing[0], missing_count))
    arrays = {
        name: np.concatenate([part.arrays[name] for part in parts])
        for name in ("group", "text_bytes", "turns", "images")
    }
    names: dict[str, list[str]] = {}
    for single, plural in (("domain", "domains"), ("language", "languages"), ("kind", "kinds")):
        codes: dict[str, int] = {}
        local = [
            np.array([codes.setdefault(name, len(codes)) for name in part.names[plural]])
            for part in parts
        ]
        if len(codes) > _MOST_NAMES:
            raise DataError(
                f"{source.container.path}: {len(codes):,} different values of '{single}', at most "
                f"{_MOST_NAMES:,} are told apart; it should name a group, not a record"
            )
        coded = [known[part.arrays[single]] for known, part in zip(local, parts, strict=True)]
        arrays[single] = np.concatenate(coded).astype(np.int16)
        names[plural] = list(codes)
    return SourceIndex.of(arrays, names)


def group_of(sample: Sample, number: int, root: str) -> int:
    """The hash behind `SourceIndex.group`: the same on every machine.

    Args:
        sample: record `number` of its source.
        number: of the record.
        root: the image root, as pictures' paths begin with it.
    """
    found = hashlib.blake2b(digest_size=8)
    if not sample.images:
        found.update(b"text-only %d" % number)
    for image in sample.images:
        if isinstance(image, bytes):
            content = hashlib.blake2b(image, digest_size=16).digest()
        else:
            # As it is written: two spellings are two groups, for a link may tell them apart.
            name = os.fsencode(image)
            content = name.removeprefix(os.fsencode(os.path.join(root, "")))
            if content == name:  # named absolutely, under a root that may be written otherwise
                content = name.removeprefix(os.fsencode(os.path.join(os.path.abspath(root), "")))
        found.update(b"%s %d " % (b"b" if isinstance(image, bytes) else b"p", len(content)))
        found.update(content)
    return int.from_bytes(found.digest(), "little")


def _part(source: Source, start: int, stop: int) -> _Part:
    groups, text_bytes, turns, images = [], [], [], []
    codes: dict[str, dict[str, int]] = {"domains": {}, "languages": {}, "kinds": {}}
    coded: dict[str, list[int]] = {"domain": [], "language": [], "kind": []}
    missing: list[tuple[str, str]] = []
    count = 0
    error = ""
    root = os.fspath(source.pictures.root or ".")
    for number, _, found in source.walk(start, stop, note_missing=missing):
        if isinstance(found, DataError):
            error = str(found)
            break
        if len(found.images) >= 2**15:
            error = f"{found.source}: {len(found.images):,} pictures in one record"
            break
        groups.append(group_of(found, number, root))
        text_bytes.append(sum(len(turn.text.encode("utf-8")) for turn in found.turns))
        turns.append(len(found.turns))
        images.append(len(found.images))
        for single, plural, value in (
            ("domain", "domains", found.domain),
            ("language", "languages", found.language),
            ("kind", "kinds", str(found.metadata.get("kind", ""))),
        ):
            coded[single].append(codes[plural].setdefault(value, len(codes[plural])))
        count += 1
    arrays: dict[str, NDArray[Any]] = {
        "group": np.array(groups, dtype=np.uint64),
        "text_bytes": np.array(text_bytes, dtype=np.int32),
        "turns": np.array(turns, dtype=np.int32),
        "images": np.array(images, dtype=np.int16),
        **{name: np.array(values, dtype=np.int64) for name, values in coded.items()},
    }
    names = {name: list(values) for name, values in codes.items()}
    return _Part(count, arrays, names, missing[:1], len(missing), error)


_SOURCE: Source | None = None
"""The source of a worker process."""


def _start_worker(source: Source) -> None:
    global _SOURCE
    _SOURCE = source


def _part_in_worker(bounds: tuple[int, int]) -> _Part:
    assert _SOURCE is not None
    return _part(_SOURCE, *bounds)


def _parts(source: Source, processes: int) -> Iterator[_Part]:
    """All parts in order; after one with an error the rest may be missing."""
    total = len(source)
    ranges = [(start, min(start + _PART, total)) for start in range(0, total, _PART)]
    if processes < 2 or len(ranges) < 2:
        yield from (_part(source, *bounds) for bounds in ranges)
        return
    # As torch's data loaders: forked where the system can, so that scripts need no __main__ guard.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    pool = ProcessPoolExecutor(processes, context, _start_worker, (source,))
    try:
        yield from pool.map(_part_in_worker, ranges)
    except BrokenProcessPool as error:
        raise DataError(
            f"{source.container.path}: a process died while reading it, perhaps for lack of "
            "memory; index it with processes=1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processes(source: Source) -> int:
    # A data loader's worker must not have children of its own.
    if source.container.size() < PARALLEL_FROM or multiprocessing.current_process().daemon:
        return 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _MOST_PROCESSES)
