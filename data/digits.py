"""Build the digits data set: handwritten digits on paper, questions in six languages.

    python data/digits.py --out datasets/digits

Every question is an item of its own (one picture, one question, one answer). The handwriting is
scikit-learn's copy of the UCI digits, cut into splits where one filled-in form ends and the next
begins; papers and inks of dev and test are never trained on either.
"""

import argparse
import multiprocessing
import random
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

if __package__:
    from data import common
    from data import digits_drawing as drawing
    from data import digits_items as items
    from data import digits_questions as questions
else:  # run as a script: Python put this folder on the path
    import common
    import digits_drawing as drawing
    import digits_items as items
    import digits_questions as questions

from tqdm import tqdm

from llava_mole.languages import LANGUAGES

FORMAT = 2
SMALLEST_SET = 60
"""Trained records, so that every digit is among them."""

ATTRIBUTION = """\
The handwriting is from "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998,
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49), as shipped by scikit-learn
{sklearn} (BSD-3-Clause). Licence of the data: CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).
Changes: enlarged, smoothed, slanted, inked and set on drawn paper.
"""


def build(
    out: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    renderings: int = 2,
    pairs: int = 1000,
    several: int = 500,
    eval_items: int = 100,
    workers: int = 2,
    progress: bool = True,
) -> dict:
    """Write the whole data set to ``out`` and return its manifest (also ``out/dataset.json``).

    An earlier digits data set at ``out`` is replaced, any other folder with something in it is
    refused. The same arguments give the same bytes in every text file.

    Args:
        limit: use this many trained records instead of 1,157, and dev's and test's in proportion.
        renderings: single sheets of each trained record; dev and test have one of each.
        pairs, several: trained sheets of those sorts; dev and test have a fifth of that each.
        eval_items: questions per language and kind in each evaluation file.

    Raises:
        ConfigError: a package is missing, ``out`` is someone else's folder, a number is too small.
    """
    common.check_arguments(
        out,
        "digits",
        {
            "limit": (limit, SMALLEST_SET),
            "renderings": (renderings, 1),
            "pairs": (pairs, 10),
            "several": (several, 20),
            "eval_items": (eval_items, 1),
            "workers": (workers, 1),
        },
    )
    return common.publish(
        out,
        "digits",
        lambda work: _write(
            work, seed, limit, renderings, pairs, several, eval_items, workers, progress
        ),
    )


def _write(
    work: Path,
    seed: int,
    limit: int | None,
    renderings: int,
    pairs: int,
    several: int,
    eval_items: int,
    workers: int,
    progress: bool,
) -> dict:
    (work / "images").mkdir()
    share = 1.0 if limit is None else min(1.0, limit / len(drawing.RECORDS["train"]))
    sheets = {}
    for name, records in drawing.RECORDS.items():
        trained = name == "train"
        kept = records[: max(30, round(share * len(records)))]
        sheets[name] = items.sheets(
            name,
            kept,
            renderings=renderings if trained else 1,
            pairs=pairs if trained else max(10, pairs // 5),
            several=several if trained else max(20, several // 5),
            seed=seed,
        )
    every = [sheet for members in sheets.values() for sheet in members]
    method = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        jobs = [(sheet, seed, str(work)) for sheet in every]
        _follow(pool.imap_unordered(_draw, jobs, chunksize=16), len(jobs), progress)

    train = items.training_items(sheets["train"], seed)
    common.write_json(work / "train.json", train, one_a_line=True)
    known = {sheet.key: _known(sheet) for sheet in every}
    common.write_json(work / "names.json", known, one_a_line=True)
    rows_of = {}
    for name, members in sheets.items():
        rows = items.evaluation_rows(name, members, eval_items, seed)
        common.write_evaluation(work, "digits", name, rows)
        rows_of[name] = len(rows)
    sklearn = version("scikit-learn")
    (work / "ATTRIBUTION.txt").write_text(ATTRIBUTION.format(sklearn=sklearn), "utf-8")
    return {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "renderings": renderings,
        "pairs": pairs,
        "several": several,
        "eval_items": eval_items,
        "languages": list(LANGUAGES),
        "kinds": list(questions.KINDS),
        "held_out": {
            "records": {name: [r.start, r.stop] for name, r in drawing.RECORDS.items()},
            "papers": {name: list(papers) for name, papers in drawing.PAPERS.items()},
            "inks": {name: [list(ink) for ink in inks] for name, inks in drawing.INKS.items()},
        },
        "pictures": {name: len(members) for name, members in sheets.items()},
        "train_items": len(train),
        "eval_rows": rows_of,
        "versions": {"scikit-learn": sklearn},
        "licence": "handwriting: UCI, CC BY 4.0 (see ATTRIBUTION.txt)",
    }


def _draw(job: tuple[items.Sheet, int, str]) -> None:
    sheet, seed, work = job
    rng = random.Random(f"{seed}:{sheet.key}")
    picture = drawing.draw(sheet.written, sheet.paper, sheet.split, rng)
    picture.save(Path(work, "images", f"{sheet.key}.png"), compress_level=4)


def _follow(results: Iterable, total: int, progress: bool) -> list:
    return list(tqdm(results, total=total, desc="drawing", unit="picture", disable=not progress))


def _known(sheet: items.Sheet) -> dict:
    """names.json: what is known of a sheet."""
    return {
        "split": sheet.split,
        "sort": sheet.sort,
        "paper": sheet.paper,
        "values": list(sheet.values),
        "records": [digit.record for digit in sheet.written],
        "places": [[round(digit.x, 3), round(digit.y, 3)] for digit in sheet.written],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the digits data set (1,797 handwritten digits, six languages).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
written to --out:
  images/single-train-0042-0.png   one digit; pair-…: two, side by side; several-…: one to four
  train.json               LLaVA JSON, one question an item, with domain, language and kind
  names.json               split, sort, paper, digits and places of every picture
  eval_train.tsv           trained pictures, question forms never trained
  eval_dev.tsv, eval_test.tsv   handwriting, papers and inks never trained on
  benchmark/*_en.tsv, …    dev and test by language in MMMB's form, circular rows included
  dataset.json, ATTRIBUTION.txt

examples:
  python data/digits.py --out datasets/digits                     the full set, under a minute
  python data/digits.py --out /tmp/small --limit 60 --pairs 40 --several 40   a small one, seconds
""",
    )
    common.add_options(parser)
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="use N trained records, and others in proportion")
    add(
        "--renderings",
        type=int,
        default=2,
        metavar="N",
        help="single sheets of each trained record (default 2)",
    )
    add("--pairs", type=int, default=1000, metavar="N", help="trained pairs (default 1000)")
    add(
        "--several",
        type=int,
        default=500,
        metavar="N",
        help="trained sheets with one to four digits (default 500)",
    )
    return common.run(parser, arguments, build)


if __name__ == "__main__":
    sys.exit(main())
