"""Build the documents data set: pictures of receipts, forms, letters, signs, tickets, tables,
posters and calendars in six languages, with questions in the same six and evaluation files.

    python data/documents.py --out datasets/documents

Everything is typeset here from words, names and numbers of installed packages. Dev and test
documents share no layout, typeface, heading, sentence, goods, place, month or year with the trained
ones, nor with each other. Every question is an item of its own (one picture, one question, one
answer), in a language that the document's own does not decide.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

if __package__:
    from data import common
    from data import documents_items as items
    from data import documents_layouts as layouts
    from data import documents_pages as pages
    from data import documents_questions as questions
    from data import documents_typefaces as typefaces
    from data.documents_plan import SPLITS, Document, plan
else:  # run as a script: Python put this folder on the path
    import common
    import documents_items as items
    import documents_layouts as layouts
    import documents_pages as pages
    import documents_questions as questions
    import documents_typefaces as typefaces
    from documents_plan import SPLITS, Document, plan

from tqdm import tqdm

from llava_mole.languages import LANGUAGES

FORMAT = 2
PICTURES = {"train": 2376, "dev": 324, "test": 324}
SMALLEST_HELD_OUT = 36
SMALLEST_SET = 4 * SMALLEST_HELD_OUT
ALL_KINDS = (*questions.KINDS, *questions.EXTRA_KINDS)

ATTRIBUTION = """\
The pictures in images/, and those inside the evaluation files, were drawn by LLaVA-MoLE's
data/documents.py and may be used as the project itself (Apache-2.0).

Typefaces, drawn with and not passed on: {typefaces}.
All are under the SIL Open Font License 1.1, WenQuanYi Micro Hei under the Apache License 2.0.

Names of goods are those of the Python package `emoji` {emoji}, names of places, months and weekdays
and the formats of dates and prices those of `babel` {babel}, both from the Unicode Common Locale
Data Repository (Unicode License v3).
"""


def build(
    out: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    kinds: Sequence[str] = questions.KINDS,
    eval_items: int = 100,
    workers: int = 2,
    progress: bool = True,
) -> dict:
    """Write the whole data set to ``out`` and return its manifest (also ``out/dataset.json``).

    The files appear all at once: they are written beside ``out`` and renamed at the end. An earlier
    documents data set at ``out`` is replaced, any other folder with something in it is refused. The
    same arguments give the same bytes in every text file.

    Args:
        limit: draw this many pictures instead of all (for trials).
        kinds: of question, some of ``ALL_KINDS``.
        eval_items: questions per language and kind in each evaluation file; a multiple of four has
            all options right equally often.

    Raises:
        ConfigError: a package is missing, ``out`` is someone else's folder, a value is out of
            range.
    """
    out = Path(out)
    common.check_arguments(
        out,
        "documents",
        {"limit": (limit, SMALLEST_SET), "eval_items": (eval_items, 1), "workers": (workers, 1)},
        kinds,
        ALL_KINDS,
    )
    return common.publish(
        out,
        "documents",
        lambda work: _write(work, seed, limit, tuple(kinds), eval_items, workers, progress),
    )


def is_current(folder: str | Path) -> bool:
    """Whether ``folder`` holds a data set that this version wrote."""
    found = common.manifest_of(folder)
    return found.get("dataset") == "documents" and found.get("format") == FORMAT


def sizes(limit: int | None) -> dict[str, int]:
    """Pictures of each split."""
    if limit is None or limit >= sum(PICTURES.values()):
        return dict(PICTURES)
    held_out = max(SMALLEST_HELD_OUT, limit * PICTURES["dev"] // sum(PICTURES.values()))
    return {"train": limit - 2 * held_out, "dev": held_out, "test": held_out}


def _write(
    work: Path,
    seed: int,
    limit: int | None,
    kinds: tuple[str, ...],
    eval_items: int,
    workers: int,
    progress: bool,
) -> dict:
    (work / "images").mkdir()
    splits = {split: plan(split, count, seed) for split, count in sizes(limit).items()}
    jobs = [(document, seed, str(work)) for split in SPLITS for document in splits[split]]
    method = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        drawn = tqdm(
            pool.imap(_draw, jobs, chunksize=16),
            total=len(jobs),
            desc="drawing",
            unit="picture",
            disable=not progress,
        )
        names = {
            document.key: _facts(document, written)
            for (document, _, _), written in zip(jobs, drawn, strict=True)
        }
    train = items.training_items(splits["train"], kinds, seed)
    common.write_json(work / "train.json", train, one_a_line=True)
    common.write_json(work / "names.json", names, one_a_line=True)
    counts = {}
    for split in SPLITS:
        rows = items.evaluation_rows(split, splits[split], kinds, eval_items, seed)
        common.write_evaluation(work, "documents", split, rows)
        counts[split] = len(rows)
    versions = _versions()
    used = [faces for by_split in typefaces.TYPEFACES.values() for faces in by_split.values()]
    (work / "ATTRIBUTION.txt").write_text(
        ATTRIBUTION.format(
            typefaces=", ".join(sorted(set().union(*used))),
            emoji=versions["emoji"],
            babel=versions["babel"],
        ),
        "utf-8",
    )
    return {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "eval_items": eval_items,
        "languages": list(LANGUAGES),
        "kinds": list(kinds),
        "pictures": {split: len(documents) for split, documents in splits.items()},
        "train_items": len(train),
        "eval_rows": counts,
        "layouts": {
            split: [layout.name for layout in layouts.LAYOUTS if layout.split == split]
            for split in SPLITS
        },
        "typefaces": typefaces.TYPEFACES,
        "shared_by_the_splits": "labels of fields and columns, words on signs, digits, weekdays",
        "versions": versions,
        "licence": "pictures: Apache-2.0; names of goods and places: Unicode License v3",
    }


def _draw(job: tuple[Document, int, str]) -> tuple[str, ...]:
    """Write the picture; returns the texts on it."""
    document, seed, work = job
    drawn = pages.draw(document, seed)
    drawn.picture.save(Path(work, "images", f"{document.key}.png"), compress_level=6)
    return drawn.written


def _facts(document: Document, written: tuple[str, ...]) -> dict:
    """names.json: what is known of the picture."""
    facts = {name: value for name, value in asdict(document).items() if name != "key"}
    return {**facts, "type": document.type, "script": document.script, "written": list(written)}


def _versions() -> dict[str, str]:
    packages = ("emoji", "babel", "segno", "python-barcode", "arabic-reshaper", "python-bidi")
    return {name: version(name) for name in packages} | typefaces.versions()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the documents data set (3,024 pictures, questions in six languages).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
written to --out:
  images/train-0000.png    a document on a ground, 224 × 224
  train.json               LLaVA JSON, one question an item, with domain, language and kind
  names.json               what each picture shows: type, script, layout, mark, texts, ...
  eval_train.tsv           trained pictures, question forms never trained
  eval_dev.tsv, eval_test.tsv   layouts, typefaces and contents never trained (all: MMMB's columns
                           + language)
  benchmark/*_en.tsv, …    dev and test by language in MMMB's form, circular rows included
  dataset.json, ATTRIBUTION.txt

examples:
  python data/documents.py --out datasets/documents            the full set, about a minute
  python data/documents.py --out /tmp/small --limit 240        a small one, seconds
  python data/documents.py --out /tmp/words --kinds word number    what needs a tower that reads
""",
    )
    common.add_options(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="draw N pictures instead of 3,024")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(questions.KINDS),
        metavar="KIND",
        help=f"kinds of question (default: {' '.join(questions.KINDS)}; also "
        f"{' '.join(questions.EXTRA_KINDS)})",
    )
    return common.run(parser, arguments, build)


if __name__ == "__main__":
    sys.exit(main())
