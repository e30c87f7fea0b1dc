"""`llava-mole inspect SOURCE`: the command line of an inspection."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from llava_mole.data.sources import SourceSpec
from llava_mole.errors import ConfigError
from llava_mole.inspection.alike import CORRELATION, SAME
from llava_mole.inspection.inspect import inspect
from llava_mole.inspection.lengths import measure_of
from llava_mole.inspection.report import show

DESCRIPTION = """\
Validate every record and every picture of a source, say what is in it, and find the pictures and
questions of benchmarks in it. Exit status 0: no error found; 1: errors; 2: it cannot be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="file, folder, dataset_info.json:NAME")
    parser.add_argument("--format", default="auto", help="layout of the records (default: seen)")
    parser.add_argument("--image-root", type=Path, help="folder of the pictures")
    parser.add_argument("--language", help="of records that do not declare one, e.g. pt")
    parser.add_argument("--domain", help="of records that do not declare one")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="BENCH",
        help="benchmarks (TSV, or any source) that must not be in it",
    )  # fmt: skip
    parser.add_argument(
        "--same-from", type=float, default=SAME, metavar="CORRELATION",
        help="looks from which a picture counts as a benchmark's; raise it for schematic drawings "
        "(default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="recipe whose tokens to count")
    parser.add_argument("--tokenizer", type=Path, help="or: folder of a model or a tokenizer")
    parser.add_argument("--tokens-per-image", type=int, help="with a tokenizer alone (default 1)")
    parser.add_argument("--max-length", type=int, help="context in tokens (default: the model's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every finding here")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """The exit status, 0 or 1.

    Raises:
        ConfigError, DataError, CheckpointError: nothing could be inspected.
    """
    for name in ("workers", "max_length", "tokens_per_image"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is less than 1")
    if not CORRELATION <= args.same_from <= 1:
        raise ConfigError(f"--same-from: {args.same_from} is not between {CORRELATION} and 1")
    inspection = inspect(
        SourceSpec(
            args.source,
            format=args.format,
            image_root=args.image_root,
            domain=args.domain,
            language=args.language,
        ),
        against=args.against,
        measure=measure_of(
            config=args.config,
            tokenizer=args.tokenizer,
            max_length=args.max_length,
            tokens_per_image=args.tokens_per_image,
        ),
        same_from=args.same_from,
        json_file=args.json,
        workers=args.workers,
    )
    show(inspection, Console())
    return inspection.exit_code
