"""From files to what is asked: read, select, check, group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_mole import ranks
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.asks import Unit, make_units
from llava_mole.evaluation.benchmark import Benchmark
from llava_mole.evaluation.checks import check_languages, check_pictures
from llava_mole.evaluation.files import (
    BenchmarkFile,
    columns_of,
    fetch,
    local_file,
    mismatch,
    select,
)
from llava_mole.evaluation.items import ALIASES, Item, first_of_each, read_items
from llava_mole.evaluation.protocol import Protocol
from llava_mole.languages import LANGUAGES


@dataclass
class Questions:
    """What will be asked.

    Attributes:
        about: benchmark and data, for the head of a run.
        warnings: to be shown.
    """

    units: list[Unit]
    about: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Selection:
    """Which questions, as the command line says it.

    Attributes:
        data: local files; empty: the published ones.
        languages: only these; where neither name nor columns of files tell, those of `data`.
        split, categories: only these rows; None, (): all.
        limit: the first so many questions of each language.
        hidden_answers: they may be missing.
        skip_bad_rows: leave malformed rows out, counted, instead of stopping.
    """

    data: tuple[Path, ...] = ()
    languages: tuple[str, ...] = ()
    split: str | None = None
    categories: tuple[str, ...] = ()
    limit: int | None = None
    hidden_answers: bool = False
    skip_bad_rows: bool = False


def read_questions(
    benchmark: Benchmark, chosen: Selection, protocol: Protocol, *, progress: bool = True
) -> Questions:
    """Read, check and group the selected questions.

    Raises:
        DataError, ConfigError: with file, line and column.
    """
    wanted = [ALIASES.get(code, code) for code in chosen.languages]
    unknown = [code for code in wanted if code not in LANGUAGES]
    if unknown:
        raise ConfigError(
            f"--languages {' '.join(unknown)}: known are {', '.join(LANGUAGES)} (and cn)"
        )
    bad: list[DataError] | None = [] if chosen.skip_bad_rows else None
    items: list[Item] = []
    warnings: list[str] = []
    files = list(_files(benchmark, chosen, wanted))
    for file in files:
        hidden = chosen.hidden_answers or (file.published is not None and file.published.hidden)
        rows = read_items(
            file.path, file.language, kind=benchmark.kind, hidden=hidden, bad_rows=bad
        )
        file.facts["rows"] = len(rows)
        said = mismatch(file, len(rows), columns_of(file.path))
        warnings += [said] if said else []
        if chosen.split is not None and (
            file.published is None or file.published.split != chosen.split
        ):  # the rows of MMBench_DEV_EN_V11, split dev_v11, say "dev"
            rows = [item for item in rows if item.split in ("", chosen.split)]
        items += rows
    twice = {name for name in (f.facts["name"] for f in files)
             if sum(f.facts["name"] == name for f in files) > 1}  # fmt: skip
    if twice:
        raise ConfigError(f"--data: two files are called {', '.join(sorted(twice))}; rename one")
    known = {item.category for item in items}
    foreign = [name for name in chosen.categories if name not in known]
    if foreign:
        raise ConfigError(
            f"--categories {' '.join(foreign)}: the files have {', '.join(sorted(known))}"
        )
    items = [
        item
        for item in items
        if (not wanted or item.language in wanted)
        and (not chosen.categories or item.category in chosen.categories)
    ]
    items = first_of_each(items, chosen.limit)
    if protocol.picture:
        items = check_pictures(items, bad, progress=progress and ranks.is_main())
    items, doubtful = check_languages(items, bad)
    units = make_units(items, protocol, bad)
    if doubtful:
        warnings.append(
            f"{len(doubtful)} questions look like another language than declared, first "
            f"{doubtful[0]}; they are asked all the same"
        )
    asked = sum(len(unit.asks) for unit in units)
    reworded = [unit for unit in units if protocol.passes == "circular" and unit.reworded]
    if reworded:
        warnings.append(
            f"{len(reworded)} questions say it in other words in a later pass, first "
            f"{reworded[0].asks[0].item.source}: translated row by row, or not the same question?"
        )
    about = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "data": [file.facts for file in files],
        "selection": {
            "languages": wanted, "split": chosen.split,
            "categories": list(chosen.categories), "limit": chosen.limit,
        },
        "left_out": [without_folders(str(problem), files) for problem in bad or []],
        "looks_like_another_language": len(doubtful),
        "passes_in_other_words": len(reworded),
        "passes_not_asked": len(items) - asked if protocol.passes in ("vanilla", "paired") else 0,
    }  # fmt: skip
    if bad:
        warnings.append(f"{len(bad)} rows or questions left out (--skip-bad-rows), first: {bad[0]}")
    return Questions(units, {"format": 1, **about}, warnings)


def without_folders(text: str, files: Sequence[BenchmarkFile]) -> str:
    """A message with files by their names alone: a result does not depend on where they lie."""
    for file in files:
        text = text.replace(f"{file.path}:", f"{file.path.name}:")
    return text


def _files(benchmark: Benchmark, chosen: Selection, wanted: Sequence[str]) -> list[BenchmarkFile]:
    paths = list(chosen.data) or fetch(benchmark, select(benchmark, wanted, chosen.split))
    found = [local_file(benchmark, path, None) for path in paths]
    for number, file in enumerate(found):
        told = file.language is not None or "language" in columns_of(file.path)
        if told:
            continue
        if len(wanted) != len(paths):
            raise DataError(
                f"{file.path}: no column language, and its name does not end in _xx.tsv; say "
                "--languages, one for each --data file"
            )
        found[number] = local_file(benchmark, file.path, wanted[number])
    return found
