"""MMMB: multiple choice about a picture in Arabic, Chinese, English, Portuguese, Russian, Turkish.

    python eval/mmmb.py --model DIR --data mmmb_en.tsv mmmb_tr.tsv --out results/mymodel

The benchmark (Parrot, arXiv 2406.02539) is one TSV per language, mmmb_{ar,cn,en,pt,ru,tr}.tsv, from
the data set AIDC-AI/Parrot-dataset (CC BY-NC-SA 4.0), in MMBench's schema:

    index question hint A B C D answer category image source l2-category comment split

`image` is base64, or the index of the row that holds the picture; two to four options; `cn` is
Chinese. Each question is asked once ("vanilla", as VLMEvalKit scores MMMB), in this form, the last
line in the language of the question:

    [hint]
    question
    A. …
    B. …
    Answer with the option's letter from the given choices directly.

What differs from VLMEvalKit: the answer is not generated and then searched for a letter. The
letter that the model finds most likely is taken, so every question has an answer, none is guessed
at random, and no second model judges. A column `language`, where there is one, wins over the name.

Writes into --out: predictions.jsonl (every question: what was shown, each option's log-likelihood,
what was chosen), report.json (figures and everything that decided them), report.md (the table).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import re
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mole
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.items import ALIASES, Item, read_items
from llava_mole.evaluation.prompts import CLOSING, ask
from llava_mole.evaluation.report import MEANING, markdown_table, predict, render_table
from llava_mole.evaluation.scoring import NORMALIZATIONS, score_options
from llava_mole.evaluation.tables import tabulate, write_predictions
from llava_mole.languages import LANGUAGES

STYLE = {"letters": "parrot", "options": "answers"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="one or more TSVs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="only these; where files have no language column, the languages of --data in order "
        "(needed only if a file is not called …_CODE.tsv)",
    )
    parser.add_argument("--limit", type=int, help="the first N questions of each language")
    parser.add_argument(
        "--method",
        choices=tuple(STYLE),
        default="letters",
        help="letters: options in the prompt, the likeliest letter (default). options: the "
        "question alone, the likeliest option text",
    )
    parser.add_argument(
        "--normalization",
        choices=NORMALIZATIONS,
        default=NORMALIZATIONS[0],
        help="how likelihoods of options of different length are compared; of no effect on letters",
    )
    parser.add_argument("--rows-per-batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def load_items(paths: list[Path], languages: list[str] | None) -> list[Item]:
    """The items of all files; a language comes from the column, else the file name, else the flag.

    Raises:
        DataError: malformed file, or a language that nothing tells.
    """
    wanted = [ALIASES.get(code, code) for code in languages or []]
    unknown = [code for code in wanted if code not in LANGUAGES]
    if unknown:
        raise DataError(f"--languages {unknown}: known are {', '.join(LANGUAGES)} (and cn)")
    items: list[Item] = []
    for number, path in enumerate(paths):
        named = re.search(r"_([a-z]{2})$", path.stem)
        language = named.group(1) if named and _known(named.group(1)) else None
        if language is None and len(wanted) == len(paths):
            language = wanted[number]
        items += read_items(path, language)
    return [item for item in items if not wanted or item.language in wanted]


def _known(code: str) -> bool:
    return ALIASES.get(code, code) in LANGUAGES


def first_of_each(items: list[Item], limit: int | None) -> list[Item]:
    counts = dict.fromkeys(LANGUAGES, 0)
    kept = []
    for item in items:
        counts[item.language] += 1
        if limit is None or counts[item.language] <= limit:
            kept.append(item)
    return kept


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Score, write, and return the report."""
    items = first_of_each(load_items(args.data, args.languages), args.limit)
    if not items:
        raise DataError("no question left: check --languages and --limit against the files")
    if not (args.model / "config.json").is_file():
        raise CheckpointError(f"--model {args.model}: no config.json there; name a model folder")
    model = AutoModelForImageTextToText.from_pretrained(args.model).to(args.device).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    style = STYLE[args.method]
    queries = [ask(item, style, item.image) for item in items]
    started = time.monotonic()
    scores = score_options(model, processor, queries, rows_per_batch=args.rows_per_batch)
    seconds = time.monotonic() - started
    rows = [
        predict(item, "shown", item.picture, query, score, style, args.normalization)
        for item, query, score in zip(items, queries, scores, strict=True)
    ]
    overall = tabulate([replace(row, kind="all") for row in rows])
    by_category = tabulate(rows)
    report = {
        "benchmark": "MMMB schema",
        "protocol": {
            "passes": "vanilla: each question once",
            "method": args.method,
            "prompt_style": style,
            "closing_lines": CLOSING.get(style),
            "answer": "the option of highest log-likelihood; nothing is generated or extracted",
            "normalization": f"{args.normalization}: {MEANING[args.normalization]}",
            "intervals": "95 %: Wilson by language, bootstrap over pictures for the mean",
            "rows_per_batch": args.rows_per_batch,
            "limit": args.limit,
        },
        "languages": {cell.language: vars(cell) for cell in overall.cells},
        "mean": vars(overall.means[0]),
        "categories": [vars(cell) for cell in by_category.cells],
        "data": [{"file": path.name, "sha256": sha256(path)} for path in args.data],
        "model": str(args.model),
        "versions": {
            "python": platform.python_version(),
            "llava-mole": llava_mole.__version__,
            **{name: version(name) for name in ("torch", "transformers", "open_clip_torch")},
        },
        "device": args.device,
        "seconds": round(seconds, 1),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_predictions(rows, args.out / "predictions.jsonl")
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    (args.out / "report.json").write_text(text, encoding="utf-8")
    lines = ["| language | n | accuracy | 95 % interval | chance |", "|---|---:|---:|---|---:|"]
    lines += [
        f"| {c.language} | {c.n} | {100 * c.accuracy:.2f} | {100 * c.low:.1f} to "
        f"{100 * c.high:.1f} | {100 * c.chance:.1f} |"
        for c in overall.cells
    ]
    table = "\n".join(lines) + "\n\n" + markdown_table(by_category)
    (args.out / "report.md").write_text(table, encoding="utf-8")
    Console().print(render_table(by_category, title=f"{args.model}, {args.method}"))
    print(table.split("\n\n")[0])
    return report


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING)
    try:
        run(parse(argv))
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
