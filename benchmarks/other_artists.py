"""The same things drawn by other artists: was the thing learnt, or the drawing?

    python benchmarks/other_artists.py --model runs/quickstart/model \\
        --data runs/quickstart/data --pictures twitter=FOLDER google=FOLDER --out results/artists

The naming questions on trained pictures (`eval_train.tsv`: four options of one kind of thing,
forms never trained), each with its picture replaced by another artist's drawing of the same emoji.
FOLDER holds PNG files named by code point, as in the npm packages `emoji-datasource-twitter`
(Twemoji) and `emoji-datasource-google` (Noto): `npm pack emoji-datasource-twitter@16.0.0`, then
unpack it and take `package/img/twitter/64`. An item whose emoji the folder lacks is left out,
under every artist and under `own`, so that all rows of the table are about the same things; how
many are left is printed.

Writes predictions.jsonl and report.md into --out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from transformers import AutoModelForImageTextToText, AutoProcessor

import llava_mole  # noqa: F401  (registers the model)
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.conditions import limited
from llava_mole.evaluation.items import Item, read_items
from llava_mole.evaluation.prompts import ask, style_of
from llava_mole.evaluation.report import markdown_table, predict, render_table
from llava_mole.evaluation.scoring import NORMALIZATIONS, score_options
from llava_mole.evaluation.tables import tabulate, write_predictions
from llava_mole.features import FeatureStore


def key_of(code_points: str) -> str:
    """`1F3F3-FE0F` and `1f3f3` name one emoji: the variation selector says only how to draw it."""
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


def drawings_of(folder: Path) -> dict[str, Path]:
    """Emoji -> its file.

    Raises:
        DataError: no PNG file there.
    """
    found = {key_of(path.stem): path for path in sorted(folder.glob("*.png"))}
    if not found:
        raise DataError(f"--pictures: no *.png in {folder}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of data/openmoji.py")
    parser.add_argument("--pictures", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--items", type=int, default=100, help="per language (default 100)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        names = [entry.partition("=")[0] for entry in args.pictures if "=" in entry]
        if len({*names, "own"}) <= len(args.pictures):
            raise DataError("--pictures: expected NAME=FOLDER, each NAME once and none `own`")
        if args.items < 1:
            raise ConfigError(f"--items {args.items}: must be at least 1")
        if not (args.model / "config.json").is_file():
            raise CheckpointError(
                f"--model {args.model}: no config.json there; name a model folder"
            )
        artists = {
            name: drawings_of(Path(folder))
            for name, _, folder in (entry.partition("=") for entry in args.pictures)
        }
        naming = [
            item for item in read_items(args.data / "eval_train.tsv") if item.category == "naming"
        ]
        items = limited(
            [i for i in naming if all(key_of(i.picture) in files for files in artists.values())],
            args.items,
        )
        if not items:
            raise DataError(f"no picture of {args.data} has a drawing in every folder")
        shown: list[tuple[str, Item]] = [("own", item) for item in items]
        for name, files in artists.items():
            shown += [
                (name, replace(item, image=files[key_of(item.picture)].read_bytes()))
                for item in items
            ]
        model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
        processor = AutoProcessor.from_pretrained(args.model)
        queries = [ask(item, style_of(item.category), item.image) for _, item in shown]
        features = FeatureStore(model, processor.image_processor)
        features.fill([item.image for _, item in shown])
        scores = score_options(model, processor, queries, features=features)
    except (CheckpointError, ConfigError, DataError) as error:
        print(f"other_artists: {error}", file=sys.stderr)
        return 1
    rows = [
        predict(item, name, item.picture, query, score, style_of(item.category), NORMALIZATIONS[0])
        for (name, item), query, score in zip(shown, queries, scores, strict=True)
    ]
    tables = tabulate(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write_predictions(rows, args.out / "predictions.jsonl")
    (args.out / "report.md").write_text(markdown_table(tables), encoding="utf-8")
    print(f"{len(items)} items of {len({item.picture for item in items})} things, each artist")
    Console().print(render_table(tables, "four options, percent"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
