r"""Is one model better than another on the same questions? Paired tests, by language and category.

    python eval/compare.py runs/plain/mmmb runs/mole/mmmb --out results/plain-against-mole

Each argument is a run's folder or its predictions.jsonl; the first is what the others are held
against. Questions are paired. For each other run: accuracy of both, the difference with its 95 %
interval (bootstrap over questions), how many questions only one of them has right, McNemar's exact
p-value and the same corrected by Holm within languages and within categories.

Writes into --out, for each run after the first: NAME.json, NAME.csv, NAME.md and NAME.png (a `/` in
NAME becomes `-`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_mole.data.quoting import why
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation import comparison
from llava_mole.evaluation.journal import PREDICTIONS
from llava_mole.evaluation.record_files import read_run
from llava_mole.evaluation.results import cell, printable
from llava_mole.folders import writing_file


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--names", nargs="+", help="how to call the runs (default: their folders)")
    parser.add_argument(
        "--common", action="store_true", help="compare only the questions that both runs asked"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Compare, write, print the tables."""
    if len(args.runs) < 2:
        raise ConfigError("name two runs or more")
    names = args.names or names_of(args.runs)
    if len(names) != len(args.runs):
        raise ConfigError(f"--names: {len(names)} names for {len(args.runs)} runs")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--names: {', '.join(twice)} stands twice; files are called by them")
    stems = stems_of(names[1:])
    if any("\0" in str(path) for path in [args.out, *args.runs]):
        raise ConfigError("a path with a NUL character in it: no file can be called so")
    runs = [read_run(path / PREDICTIONS if path.is_dir() else path) for path in args.runs]
    for name, stem, other in zip(names[1:], stems, runs[1:], strict=True):
        pairs = comparison.pair(runs[0], other, common=args.common)
        rows = comparison.compare(pairs)
        settings = comparison.different_settings(runs[0], other)
        for setting in settings:
            print(f"warning: not the same: {printable(setting)}", file=sys.stderr)
        notes = [f"- not the same: {cell(setting)}" for setting in settings]
        text = comparison.to_markdown(rows, names[0], name)
        head = f"# {cell(name)} against {cell(names[0])}\n\n"
        found = {"first": names[0], "second": name, "different_settings": settings,
                 "differences": comparison.to_json(rows)}  # fmt: skip
        try:
            with writing_file(args.out / f"{stem}.md") as file:
                file.write(head + "\n".join([*notes, "", text] if notes else [text]) + "\n")
            with writing_file(args.out / f"{stem}.csv") as file:
                file.write(comparison.to_csv(rows))
            with writing_file(args.out / f"{stem}.json") as file:
                file.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")
            comparison.draw(rows, args.out / f"{stem}.png", names[0], name)
        except OSError as error:
            raise ConfigError(
                f"--out {args.out}: {stem}.md, .csv, .json, .png cannot be written ({why(error)})"
            ) from error
        print(f"{head}{text}\n{printable(f'{args.out}/{stem}.png')}")


def stems_of(names: Sequence[str]) -> list[str]:
    """What the files of each run are called, without their ends.

    Raises:
        ConfigError: a name that is empty or has a NUL; two whose files would be the same.
    """
    stems: dict[str, str] = {}
    for name in names:
        if not name or "\0" in name:
            raise ConfigError(f"--names: {name!r}: files are called by it, and none can be")
        stem = printable(name).replace("/", "-")
        if stem in stems:
            raise ConfigError(
                f"--names: {stems[stem]!r} and {name!r} would both write {stem}.md; call one "
                "otherwise"
            )
        stems[stem] = name
    return list(stems)


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    folders = [(path if path.is_dir() else path.parent).resolve().parts for path in paths]
    for length in range(1, max(len(parts) for parts in folders) + 1):
        names = ["/".join(parts[-length:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"run {number}" for number in range(1, len(paths) + 1)]


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(parse(argv))
    except (ConfigError, DataError, OSError) as error:
        print("error:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
