"""A benchmark's files: local ones as given, published ones from where they are published.

A file whose MD5 is not the published one is read all the same, and what was found is said: it may
be a newer release, an edited copy, or another benchmark in the same schema.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from llava_mole.data.quoting import short
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.items import ALIASES
from llava_mole.folders import writing_file
from llava_mole.languages import LANGUAGES
from llava_mole.starter import default_cache


@dataclass(frozen=True)
class BenchmarkFile:
    """One file to read.

    Attributes:
        path: on this machine.
        language: of all its rows; None: its `language` column says.
        published: what was published under its name.
        facts: name, bytes, sha256, md5, and whether that is the published one (None: not known).
    """

    path: Path
    language: str | None
    published: PublishedFile | None
    facts: dict[str, Any]

    @property
    def official(self) -> bool:
        return self.facts["published"] is True


def local_file(benchmark: Benchmark, path: Path, language: str | None) -> BenchmarkFile:
    """A file as given with --data.

    Args:
        language: given by the user; None: the published name's, or NAME_xx.tsv's, or the column's.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError(f"--data {path}: {'a folder' if path.is_dir() else 'no such file'}")
    published = benchmark.published(path.name)
    if language is None and "language" not in columns_of(path):
        named = re.search(r"_([a-z]{2})$", path.stem)
        code = ALIASES.get(named.group(1), named.group(1)) if named else ""
        language = published.language if published else code if code in LANGUAGES else None
    md5, sha256 = digests(path)
    same = None if published is None or published.md5 is None else md5 == published.md5
    facts = {
        "name": path.name, "bytes": path.stat().st_size, "sha256": sha256, "md5": md5,
        "published": same,
    }  # fmt: skip
    return BenchmarkFile(path, language, published, facts)


def fetch(benchmark: Benchmark, wanted: Sequence[PublishedFile]) -> list[Path]:
    """Published files, from the hub or their address, kept in the cache.

    Raises:
        DataError: one cannot be fetched; says which, from where, and what to do offline.
    """
    paths = []
    for file in wanted:
        try:
            if file.repo:
                where = f"{file.repo} on the hub"
                paths.append(
                    Path(hf_hub_download(file.repo, file.path or file.name, repo_type="dataset"))
                )
                continue
            where = file.url
            target = default_cache() / "benchmarks" / benchmark.name / file.name
            if not target.is_file():
                with (
                    urllib.request.urlopen(file.url, timeout=60) as source,
                    writing_file(target, binary=True) as out,
                ):
                    shutil.copyfileobj(source, out)
                    told = source.headers["Content-Length"]
                    if told is not None and out.tell() != int(told):  # http.client is silent
                        raise OSError(f"broke off after {out.tell():,} of {int(told):,} bytes")
            paths.append(target)
        except (OSError, ValueError, RuntimeError, HTTPException, HfHubHTTPError) as error:
            raise DataError(
                f"{file.name} could not be fetched from {where} ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). Where there "
                "is no network, bring the file and name it: --data PATH"
            ) from error
    return paths


def select(
    benchmark: Benchmark, languages: Sequence[str] | None, split: str | None
) -> list[PublishedFile]:
    """Published files of some languages and one split.

    Raises:
        ConfigError: none is left, or the benchmark publishes none.
    """
    if not benchmark.files:
        raise ConfigError(f"{benchmark.title} has no published files here: name yours with --data")
    splits = sorted({file.split for file in benchmark.files})
    chosen = split or benchmark.files[0].split
    found = [
        file
        for file in benchmark.files
        if file.split == chosen and (not languages or file.language in languages)
    ]
    if not found:
        raise ConfigError(
            f"no published file of split {chosen!r} in {', '.join(languages or [])}: splits are "
            f"{', '.join(splits)}, languages "
            f"{', '.join(sorted({file.language for file in benchmark.files}))}"
        )
    return found


def columns_of(path: Path) -> list[str]:
    """The header alone: benchmark files have up to gigabytes behind it.

    Raises:
        DataError: it is none.
    """
    with path.open("rb") as file:
        start = file.read(2**20).decode("utf-8-sig", "replace")
    try:
        rows = csv.reader(io.StringIO(start, newline=""), delimiter="\t")
        found = next((row for row in rows if row), [])
    except csv.Error as error:
        raise DataError(f"{path}:1: not a TSV header ({error})") from error
    if len(found) < 2:
        raise DataError(
            f"{path}:1: expected a header of several columns, separated by tabs; found "
            f"{short(found)}"
        )
    return found


def digests(path: Path) -> tuple[str, str]:
    """(MD5, SHA-256) in hex; one pass."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()


def mismatch(file: BenchmarkFile, rows: int, columns: Sequence[str]) -> str:
    """What to say of a file that has a published name and another content; "" if it has not."""
    if file.facts["published"] is not False or file.published is None:
        return ""
    return (
        f"{file.path}: not the published {file.published.name}: MD5 {file.facts['md5']}, published "
        f"{file.published.md5}; found {rows:,} rows, columns {', '.join(columns)}, "
        f"SHA-256 {file.facts['sha256']}. Read all the same; the result says so"
    )
