"""Build the chart data set: charts of real tables, questions in six languages, evaluation files.

    python data/charts.py --out datasets/charts

Bars, lines, areas, pies, scatter plots and heat maps show numbers of tables that installable
packages ship; nothing is made up. Dev and test charts come from tables, layouts and fonts that no
trained chart has, and neither has the other's. Every question is an item of its own.
"""

import argparse
import json
import multiprocessing
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

if __package__:
    from data import charts_drawing as drawing
    from data import charts_items as items
    from data import charts_layouts as layouts
    from data import charts_questions as questions
    from data import charts_tables as tables
    from data import common
    from data.charts_plan import Chart, plan
else:  # run as a script: Python put this folder on the path
    import charts_drawing as drawing
    import charts_items as items
    import charts_layouts as layouts
    import charts_questions as questions
    import charts_tables as tables
    import common
    from charts_plan import Chart, plan

from tqdm import tqdm

FORMAT = 2
TRAINED_CHARTS = 3000
SMALLEST_SET = 100
EVALUATED = 5
"""Charts of dev and of test for each item that a kind and language has there."""

ATTRIBUTION = """\
The charts in images/, and those inside the evaluation files, were drawn by this project from tables
that Python packages ship. No picture was copied. The numbers come from:

vega-datasets {vega-datasets} (MIT): {vega_datasets}
statsmodels {statsmodels} (BSD-3-Clause), tables it states to be in the public domain, and
  `fertility`, World Bank, World Development Indicators (CC BY 4.0): {statsmodels_tables}
plotly {plotly} (MIT): {plotly_tables}
  `gapminder`: free material from GAPMINDER.ORG, CC BY 4.0, https://www.gapminder.org/data/

Changes: rows and columns were selected; some charts show means, sums or counts of the numbers.
"""


def build(
    out: str | Path,
    *,
    seed: int = 0,
    limit: int = TRAINED_CHARTS,
    kinds: Sequence[str] = questions.KINDS,
    eval_items: int = 100,
    workers: int = 2,
    progress: bool = True,
) -> dict:
    """Write the whole data set to ``out`` and return its manifest (also ``out/dataset.json``).

    The files appear all at once; an earlier chart data set at ``out`` is replaced, any other folder
    with something in it is refused. The same arguments give the same bytes in every text file.

    Args:
        limit: about so many trained charts (they come in families of four).
        kinds: of question, of `charts_questions.ALL_KINDS`.
        eval_items: questions per language and kind in each evaluation file.

    Raises:
        ConfigError: a package is missing, ``out`` is someone else's folder, an argument is wrong.
    """
    common.check_arguments(
        out,
        "charts",
        {"limit": (limit, SMALLEST_SET), "eval_items": (eval_items, 1), "workers": (workers, 1)},
        kinds,
        questions.ALL_KINDS,
    )
    return common.publish(
        out,
        "charts",
        lambda work: _write(work, seed, limit, tuple(kinds), eval_items, workers, progress),
    )


def is_current(folder: str | Path) -> bool:
    """Whether ``folder`` holds a data set that this version wrote."""
    found = common.manifest_of(folder)
    return found.get("dataset") == "charts" and found.get("format") == FORMAT


def _write(
    work: Path,
    seed: int,
    limit: int,
    kinds: tuple[str, ...],
    eval_items: int,
    workers: int,
    progress: bool,
) -> dict:
    (work / "images").mkdir()
    held_out = max(SMALLEST_SET, EVALUATED * eval_items)
    counts = {"train": limit, "dev": held_out, "test": held_out}
    charts = plan(tables.load_tables(), counts, seed)
    _draw_all(charts, work, seed, workers, progress)

    splits = {name: [chart for chart in charts if chart.split == name] for name in counts}
    train = items.training_items(splits["train"], kinds, seed)
    random.Random(f"{seed}:order").shuffle(train)
    common.write_json(work / "train.json", train, one_a_line=True)
    common.write_json(work / "names.json", _names(charts), one_a_line=True)
    rows = {}
    for name, members in splits.items():
        found = items.evaluation_rows(name, members, kinds, eval_items, seed)
        common.write_evaluation(work, "charts", name, found)
        rows[name] = len(found)
    versions = tables.versions()
    (work / "ATTRIBUTION.txt").write_text(_attribution(versions), "utf-8")
    return {
        "format": FORMAT,
        "seed": seed,
        "limit": limit,
        "eval_items": eval_items,
        "languages": list(questions.LANGUAGES),
        "kinds": list(kinds),
        "pictures": {name: len(members) for name, members in splits.items()},
        "train_items": len(train),
        "eval_rows": rows,
        "held_out": "tables, layouts and fonts: each split has its own",
        "tables": {name: list(members) for name, members in tables.SPLITS.items()},
        "layouts": {
            name: [look.name for look in layouts.LAYOUTS if look.split == name] for name in counts
        },
        "fonts": {
            name: [fonts.name for fonts in layouts.FONTS if fonts.split == name] for name in counts
        },
        "versions": versions,
        "licence": "tables: see ATTRIBUTION.txt",
    }


def _draw_all(charts: Sequence[Chart], work: Path, seed: int, workers: int, progress: bool) -> None:
    method = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(method).Pool(workers) as pool:
        drawn = pool.imap_unordered(partial(_draw, seed=seed, work=work), charts, chunksize=16)
        for _ in tqdm(
            drawn, total=len(charts), desc="drawing", unit="picture", disable=not progress
        ):
            pass


def _draw(chart: Chart, seed: int, work: Path) -> None:
    drawing.draw(chart, seed).save(work / "images" / f"{chart.key}.png", compress_level=4)


def _names(charts: Sequence[Chart]) -> dict[str, dict]:
    """names.json: all that is known of each picture; numbers to six digits."""
    names = {}
    for chart in charts:
        known = asdict(chart)
        del known["key"]
        known["values"] = [[float(f"{number:.6g}") for number in row] for row in chart.values]
        names[chart.key] = json.loads(json.dumps(known))
    return names


def _attribution(versions: dict[str, str]) -> str:
    listed = {package: [] for package in tables.PACKAGES}
    for names in tables.SPLITS.values():
        for name in names:
            package, table = name.split("/")
            listed[package].append(table)
    text = {package: ", ".join(sorted(found)) for package, found in listed.items()}
    return ATTRIBUTION.format_map(
        versions
        | {
            "vega_datasets": text["vega_datasets"],
            "statsmodels_tables": text["statsmodels"],
            "plotly_tables": text["plotly"],
        }
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Build the chart data set (charts of real tables, questions in six languages).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
written to --out:
  images/train-pie-01024.png   a chart, 224 × 224
  train.json               LLaVA JSON, one question an item, with domain, language and kind
  names.json               table, values, layout, font and answers of every chart
  eval_train.tsv           trained charts, question forms never trained
  eval_dev.tsv, eval_test.tsv   tables, layouts and fonts never trained (MMMB's columns + language)
  benchmark/*_en.tsv, …    dev and test by language in MMMB's form, circular rows included
  dataset.json, ATTRIBUTION.txt

examples:
  python data/charts.py --out datasets/charts                     the full set, about a minute
  python data/charts.py --out /tmp/small --limit 100 --eval-items 8   a small one, seconds
""",
    )
    common.add_options(parser)
    parser.add_argument(
        "--limit",
        type=int,
        default=TRAINED_CHARTS,
        metavar="N",
        help=f"draw about N trained charts (default {TRAINED_CHARTS})",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=list(questions.KINDS),
        metavar="KIND",
        help=f"kinds of question, of: {', '.join(questions.ALL_KINDS)} (default: "
        f"{', '.join(questions.KINDS)})",
    )
    return common.run(parser, arguments, build, "charts")


if __name__ == "__main__":
    sys.exit(main())
