"""The command line that every file of `eval/` shares."""

from __future__ import annotations

import argparse
import logging
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from llava_mole import ranks
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.benchmark import Benchmark
from llava_mole.evaluation.figures import figures
from llava_mole.evaluation.harness import compare_batches, evaluate
from llava_mole.evaluation.journal import FOLDER, PREDICTIONS
from llava_mole.evaluation.loading import load_answerer
from llava_mole.evaluation.protocol import ANSWERS, PASSES, STYLES
from llava_mole.evaluation.questions import Selection, read_questions
from llava_mole.evaluation.record_files import read_run
from llava_mole.evaluation.records import READING, Run, reread
from llava_mole.evaluation.results import make_report, render, submission, write_report
from llava_mole.folders import writing_file
from llava_mole.languages import LANGUAGES

EPILOG = """\
Writes into --out: predictions.jsonl (what was asked, what came back, what was read from it),
report.json, report.csv, report.md; submission.tsv where answers are hidden. A run that was stopped
goes on where it was. Several devices: accelerate launch eval/{name}.py …
"""


def build_parser(benchmark: Benchmark, description: str) -> argparse.ArgumentParser:
    default = benchmark.protocol
    parser = argparse.ArgumentParser(
        description=description,
        epilog=EPILOG.format(name=benchmark.name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="model folder, hub id, random, majority, or a server's address (…/v1)")
    add("--out", type=Path, required=True, help="folder to write")
    source = parser.add_argument_group("questions")
    add = source.add_argument
    add("--data", type=Path, nargs="+", metavar="FILE",
        help="local files (default: the published ones, fetched)")  # fmt: skip
    add("--languages", nargs="+", metavar="CODE",
        help=f"only these, of {' '.join(LANGUAGES)} (cn is zh); for files whose name and columns "
        "do not tell, the language of each --data file in turn")  # fmt: skip
    add("--split", help="only rows of this split; for published files, which one (default: the "
        "first)")  # fmt: skip
    add("--categories", nargs="+", metavar="NAME", help="only questions of these categories")
    add("--limit", type=int, metavar="N", help="the first N questions of each language")
    add("--hidden-answers", action="store_true", help="the rows' answers may be missing")
    add("--skip-bad-rows", action="store_true",
        help="leave malformed rows out, counted and listed, instead of stopping")  # fmt: skip
    protocol = parser.add_argument_group("protocol")
    add = protocol.add_argument
    add("--passes", choices=tuple(PASSES), help=f"default: {default.passes}. {_words(PASSES)}")
    add("--answer", choices=tuple(ANSWERS), help=f"default: {default.answer}. {_words(ANSWERS)}")
    add("--style", choices=tuple(STYLES), help=f"default: {default.style}. {_words(STYLES)}")
    add("--template", metavar="TEXT", help="for --style template: {question}, {hint}, {options}; "
        "\\n is a line break")  # fmt: skip
    add("--max-new-tokens", type=int, help=f"default: {default.max_new_tokens}")
    add("--blind", action="store_true", help="withhold the picture")
    how = parser.add_argument_group("running")
    add = how.add_argument
    add("--rows-per-batch", type=int, default=32, help="asks in a batch (default 32)")
    add("--device", help="default: the accelerator, else cpu")
    add("--dtype", default="auto", help="float32, bfloat16, …; default: as saved")
    add("--served-model", metavar="NAME", help="with an address: the model's name there")
    add("--key-variable", default="OPENAI_API_KEY", metavar="NAME",
        help="with an address: the environment variable that holds the key")  # fmt: skip
    add("--check-batches", type=int, default=0, metavar="N",
        help="ask N questions again, one by one, and count replies that differ")  # fmt: skip
    add("--fresh", action="store_true", help="put an earlier run in --out aside, start anew")
    add("--from-predictions", type=Path, metavar="FILE",
        help="no model: figures from a predictions.jsonl")  # fmt: skip
    add("--reread", action="store_true",
        help="with --from-predictions: read the replies anew by this version's rules")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bars")
    return parser


def _words(table: dict[str, str]) -> str:
    return "; ".join(f"{key}: {meaning}" for key, meaning in table.items())


def run(benchmark: Benchmark, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, or read predictions; write and return the report."""
    console = Console(stderr=True, quiet=not ranks.is_main())
    if args.from_predictions is not None:
        source = args.from_predictions
        source = source / PREDICTIONS if source.is_dir() else source
        refuse_another_run(args.out, source)
        found = read_run(source)
        if found.head["benchmark"] != benchmark.name:
            raise ConfigError(
                f"{source}: predictions of {found.head['benchmark']!r}; this is {benchmark.name!r}"
            )
        if args.model or args.data or args.limit:
            raise ConfigError("--from-predictions asks nothing: leave --model and --data out")
        if args.reread:
            before = found.head.get("extraction_version")
            head = {**found.head, **READING, "read_before_by_version": before}
            found = Run(head, tuple(reread(found.records, found.head["metric"])))
        return _report(found, args, console, {})
    if args.reread:
        raise ConfigError("--reread goes with --from-predictions FILE")
    if args.check_batches < 0:
        raise ConfigError(f"--check-batches {args.check_batches}: must not be negative")
    if args.model is None:
        raise ConfigError("--model is missing: a folder, a hub id, random, majority or an address")
    protocol = benchmark.protocol.changed(
        passes=args.passes, answer=args.answer, style=args.style,
        template=None if args.template is None else args.template.replace("\\n", "\n"),
        max_new_tokens=args.max_new_tokens, picture=False if args.blind else None,
    )  # fmt: skip
    if benchmark.kind == "open" and (
        protocol.answer != "generate"
        or protocol.passes != "vanilla"
        or protocol.style not in ("question", "short", "template")
    ):
        raise ConfigError(
            f"{benchmark.title}: answers are texts: answer=generate, passes=vanilla, and style "
            "question, short or template"
        )
    chosen = Selection(
        tuple(args.data or ()), tuple(args.languages or ()), args.split,
        tuple(args.categories or ()), args.limit, args.hidden_answers, args.skip_bad_rows,
    )  # fmt: skip
    questions = read_questions(benchmark, chosen, protocol, progress=not args.quiet)
    for warning in questions.warnings:
        console.print(
            f"[yellow]warning:[/yellow] {escape(printable(warning))}",
            soft_wrap=True,
            highlight=False,
        )
    device = args.device or default_device()
    model = load_answerer(
        args.model, protocol, questions.units, device=device, dtype=args.dtype,
        served_model=args.served_model, key_variable=args.key_variable,
    )  # fmt: skip
    lines = (path.read_bytes().split(b"\n") for path in args.out.glob(f"{FOLDER}/*.jsonl"))
    kept = sum(bool(line.strip()) for part in lines for line in part)
    if kept and not args.fresh:
        console.print(f"going on: {kept} batches were answered before", highlight=False)
    found = evaluate(
        questions.units, model, protocol, args.out, about=questions.about,
        metric=benchmark.metric, rows_per_batch=args.rows_per_batch, fresh=args.fresh,
        progress=not args.quiet,
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if args.check_batches and ranks.is_main():
        extra["batch_check"] = compare_batches(questions.units, model, found, args.check_batches)
    return _report(found, args, console, extra)


def refuse_another_run(out: Path, predictions: Path) -> None:
    """Raises ConfigError where a report would stand beside another run's predictions."""
    own = out / PREDICTIONS
    if (own.exists() and own.resolve() != predictions.resolve()) or (out / FOLDER).exists():
        raise ConfigError(
            f"--out {out}: holds another run than {predictions}; name another folder for its report"
        )


def printable(text: str) -> str:
    """Without control characters, which a file's cell may hold and a terminal would obey."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def check_names(out: Path) -> None:
    """Raises ConfigError for what is in the way of a run's files, before anything is asked."""
    for name in (PREDICTIONS, "report.json", "report.csv", "report.md", "submission.tsv"):
        if (out / name).exists() and not (out / name).is_file():
            raise ConfigError(f"{out / name}: not a file, but a file of that name must be written")
    if (out / FOLDER).exists() and not (out / FOLDER).is_dir():
        raise ConfigError(f"{out / FOLDER}: a file, but a folder of that name must be written")


def _report(
    found: Run, args: argparse.Namespace, console: Console, extra: dict[str, Any]
) -> dict[str, Any]:
    report = make_report(found, extra)
    if ranks.is_main():
        args.out.mkdir(parents=True, exist_ok=True)
        write_report(report, args.out)
        files = f"{args.out}/report.md, report.csv, report.json"
        if report["hidden_answers"]:
            with writing_file(args.out / "submission.tsv") as file:
                file.write(submission(found))
            files += ", submission.tsv"
        rows = figures(found)
        if rows:
            Console().print(render(rows, f"{report['title']}: {report['model']['name']}"))
        console.print(files, highlight=False, markup=False, soft_wrap=True)
    return report


def default_device() -> str:
    """This process's accelerator, else "cpu"."""
    if not torch.accelerator.is_available():
        return "cpu"
    from accelerate import PartialState

    return str(PartialState().device)


def main(benchmark: Benchmark, description: str, argv: Sequence[str] | None = None) -> int:
    """Entry point of a file of `eval/`. Errors of ours are one message and exit code 2."""
    logging.basicConfig(level=logging.WARNING)
    args = build_parser(benchmark, description).parse_args(argv)
    try:
        ranks.join()
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            lock = FileLock(args.out / ".lock")
            if ranks.is_main():
                lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"--out {args.out}: another run is writing there") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out {args.out}: no folder to write in ({error})") from None
        try:
            check_names(args.out)
            run(benchmark, args)
            ranks.leave()
        except OSError as error:
            raise DataError(
                f"{error}. Batches that were finished are kept: the same command goes on"
            ) from error
        finally:
            lock.release()
    except (ConfigError, DataError, CheckpointError) as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped: finished batches are kept, the same command goes on\n")
        return 130
    return 0
