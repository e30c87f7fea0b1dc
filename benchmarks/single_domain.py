"""A domain by itself: plain LoRA with the picture against the same model without it.

    python data/charts.py --out datasets/charts
    python benchmarks/single_domain.py --data datasets/charts --out runs/single/charts
    python benchmarks/single_domain.py --table runs/single/*

Trains configs/experiments/single-domain.yaml (its warm start on the kinds of question that have
one answer a picture) on DATA/train.json alone and scores held-out pictures
(eval_dev.tsv while choosing, eval_test.tsv to report) by likelihood of the options, each question
once with its picture and once as text alone. A domain counts where the difference, over all kinds
and languages, is at least 0.20. Its interval is a bootstrap over pictures: questions about one
picture are not independent.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/experiments/single-domain.yaml"
NEEDED = 0.20
OTHERS = 2.0
"""Weight of the other kinds' answers in the warm start; the first has 3, the recipe's default."""
PICTURE, WITHHELD = "trained", "withheld"
"""Conditions of `evaluate_conditions`; its first file is the held-out one here."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score; writes OUT/single_domain.json and the predictions."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import llava_mole  # noqa: F401  registers the model
    from llava_mole.evaluation.report import evaluate_conditions
    from llava_mole.features import FeatureStore

    warm_start: dict[str, Any] = {}
    if args.config == CONFIG:
        items = json.loads((args.data / "train.json").read_text("utf-8"))
        kind, others = short_answers(items)
        warm_start = {"kind": kind, "also": dict.fromkeys(others, OTHERS)}
    overrides = [
        f"output_dir={json.dumps(str(args.out))}",
        f"data.sources.0.path={json.dumps(str(args.data / 'train.json'))}",
        *(f"stages.warm_start.warm_start.{key}={json.dumps(v)}" for key, v in warm_start.items()),
        f"seed={args.seed}",
        *([] if args.minutes is None else [f"minutes={args.minutes}"]),
        *args.overrides,
    ]
    written = args.out / "single_domain.json"
    found: dict[str, Any]
    if args.trained:
        found = json.loads(written.read_text("utf-8"))
    else:
        started = time.monotonic()
        command = [sys.executable, "-m", "llava_mole.cli", "train", "--config", str(args.config)]
        subprocess.run([*command, *overrides], check=True, cwd=Path.cwd(), env=environment())
        found = {
            "data": str(args.data), "minutes": args.minutes, "seed": args.seed,
            "warm_start": warm_start, "overrides": args.overrides,
            "seconds_training": round(time.monotonic() - started, 1),
        }  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(args.out / "model")
    processor = AutoProcessor.from_pretrained(args.out / "model")
    features = FeatureStore(model, processor.image_processor)
    for split in args.splits:
        report = evaluate_conditions(
            model,
            processor,
            args.data / f"eval_{split}.tsv",
            conditions=(PICTURE, WITHHELD),
            items_per_cell=args.items,
            predictions=args.out / f"predictions_{split}.jsonl",
            features=features,
            seed=args.seed,
        )
        found[split] = compared(report.predictions)
        written.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return found


def short_answers(items: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """The kinds of question that a picture has one answer to in a language (its type, its colour;
    not "is there red?", asked of many colours): the one with most answers, and the others."""
    answers: dict[str, dict[tuple[str, str], set[str]]] = {}
    for item in items:
        of_kind = answers.setdefault(item["kind"], {})
        reply = item["conversations"][-1]["value"]
        of_kind.setdefault((item["image"], item["language"]), set()).add(reply)
    one = {
        kind: len({reply for replies in known.values() for reply in replies})
        for kind, known in answers.items()
        if all(len(replies) == 1 for replies in known.values())
    }
    first = max(one, key=lambda kind: one[kind])
    return first, [kind for kind in one if kind != first]


def environment() -> dict[str, str]:
    """The package of this clone, installed or not."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path}


def compared(predictions: Sequence[Any]) -> dict[str, Any]:
    """By kind, by language and over all: with the picture, without, and the difference."""
    both: dict[str, dict[str, Any]] = {}
    for one in predictions:
        both.setdefault(one.index, {})[one.condition] = one
    pairs = list(both.values())
    kinds = sorted({pair[PICTURE].kind for pair in pairs})
    languages = sorted({pair[PICTURE].language for pair in pairs})
    out = {"all": figures(pairs)}
    for kind in kinds:
        out[kind] = figures([pair for pair in pairs if pair[PICTURE].kind == kind])
    for language in languages:
        out[language] = figures([pair for pair in pairs if pair[PICTURE].language == language])
    return out


def figures(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from llava_mole.evaluation.statistics import bootstrap_mean

    pictures = [pair[PICTURE].picture for pair in pairs]
    groups = [pair[PICTURE].language for pair in pairs]
    gains = [float(pair[PICTURE].correct) - float(pair[WITHHELD].correct) for pair in pairs]
    gain, low, high = bootstrap_mean(gains, pictures, groups)
    picture = bootstrap_mean([pair[PICTURE].correct for pair in pairs], pictures, groups)
    withheld = bootstrap_mean([pair[WITHHELD].correct for pair in pairs], pictures, groups)
    return {
        "n": len(pairs), "pictures": len(set(pictures)), "picture": picture,
        "withheld": withheld, "gain": (gain, low, high),
    }  # fmt: skip


def show(found: dict[str, Any], split: str) -> None:
    minutes = found["seconds_training"] / 60
    print(f"{found['data']}, {split}, {minutes:.1f} minutes, seed {found['seed']}")
    print(f"{'':<16}{'n':>6}{'picture':>10}{'withheld':>10}{'gain':>8}   95 %")
    for name, row in found[split].items():
        gain, low, high = row["gain"]
        print(
            f"{name:<16}{row['n']:>6}{row['picture'][0]:>10.2f}{row['withheld'][0]:>10.2f}"
            f"{gain:>8.2f}   {low:.2f} to {high:.2f}"
        )
    gain = found[split]["all"]["gain"][0]
    verdict = "counts" if gain >= NEEDED else f"does not count: less than {NEEDED:.2f} more"
    print(f"the domain {verdict}")


def table(folders: Sequence[Path], split: str) -> None:
    """Markdown, a line a domain."""
    print("| domain | pictures | picture | withheld | gain | 95 % | minutes | seed |")
    print("|---|---:|---:|---:|---:|---|---:|---:|")
    for folder in folders:
        found = json.loads((folder / "single_domain.json").read_text("utf-8"))
        row = found[split]["all"]
        gain, low, high = row["gain"]
        print(
            f"| {Path(found['data']).name} | {row['pictures']} | {row['picture'][0]:.2f} | "
            f"{row['withheld'][0]:.2f} | {gain:.2f} | {low:.2f} to {high:.2f} | "
            f"{found['seconds_training'] / 60:.0f} | {found['seed']} |"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of a builder in data/")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument(
        "--minutes", type=float, help="stop training after that long; default: never"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=50, help="per language and kind (default 50)")
    parser.add_argument("--splits", nargs="+", default=["dev"], choices=("train", "dev", "test"),
                        help="held-out files to score; test only for what is reported")  # fmt: skip
    parser.add_argument("--trained", action="store_true",
                        help="do not train: score the model that OUT has")  # fmt: skip
    parser.add_argument("--config", type=Path, default=CONFIG, help="another recipe, taken as it "
                        "is but for its first source and output_dir")  # fmt: skip
    parser.add_argument("--table", nargs="+", type=Path, metavar="DIR", help="print runs, and stop")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    if args.table:
        table(args.table, args.splits[0])
        return 0
    if args.data is None or args.out is None:
        parser.error("--data and --out are needed")
    found = run(args)
    for split in args.splits:
        show(found, split)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
