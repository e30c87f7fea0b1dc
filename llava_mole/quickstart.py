"""`llava-mole quickstart`: from nothing to a scored, loadable model, in one command.

OUT/data/            pictures and questions, built once
OUT/model/           the model folder
OUT/report.json      accuracy by language and kind: trained, unseen, withheld, swapped; before
OUT/benchmark/      lettered questions under circular evaluation: predictions and reports
OUT/predictions_before.jsonl, predictions_after.jsonl: a line per question; every figure recomputes
OUT/contact_sheet.png
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llava_mole import ranks
from llava_mole.clone import load_builder, repository_file
from llava_mole.errors import ConfigError
from llava_mole.evaluation.contact_sheet import contact_sheet
from llava_mole.evaluation.figures import figures
from llava_mole.evaluation.heldout import evaluate_held_out
from llava_mole.evaluation.report import Report, evaluate_conditions, render_table
from llava_mole.evaluation.results import render
from llava_mole.modelcard import refresh_card
from llava_mole.starter import ensure_starter
from llava_mole.training.data import read_data
from llava_mole.training.memory import peak_memory_gib
from llava_mole.training.resume import ANEW, AUTO
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe

logger = logging.getLogger(__name__)

# What is asked, by condition. Unseen pictures are not named: their names were never taught.
KINDS = ("naming", "kind", "attribute", "yes_no", "choice")
AFTER = {"trained": KINDS, "unseen": KINDS[1:], "withheld": KINDS, "swapped": KINDS}
# Before training little is asked, for an untrained projector is at chance.
BEFORE = {"trained": ("naming", "kind")}
BEFORE_ITEMS = 25
CIRCULAR_ITEMS = 12
"""Lettered questions a language under circular evaluation; the command that is printed asks all."""


class Phases:
    """Seconds by phase, announced as they start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self._open: tuple[str, float] | None = None

    def start(self, name: str, what: str) -> None:
        self.end()
        self.console.print(f"[bold]{what}[/bold]")
        self._open = (name, time.monotonic())

    def end(self) -> None:
        if self._open is not None:
            name, started = self._open
            self.seconds[name] = round(time.monotonic() - started, 1)
            self._open = None


def run_quickstart(
    out: Path,
    *,
    minutes: float,
    config: Path | None = None,
    seed: int = 0,
    items: int = 100,
    variants: int = 3,
    overrides: Sequence[str] = (),
    resume: bool = True,
) -> dict[str, Any]:
    """Build data, train, score before and after, write everything.

    Args:
        out: folder; a run that was stopped goes on where it was.
        minutes: bound on training.
        config: recipe; configs/starter.yaml if None.
        seed: of data and training.
        items: scored items per language and kind.
        variants: re-drawings of each trained picture, if the data are yet to be built.
        overrides: dotted changes to the recipe.
        resume: go on with the training that an earlier run left in `out`; else train anew.

    Returns:
        What report.json holds.

    Raises:
        ConfigError, DataError, CheckpointError: with what to do.
    """
    for name, value, least in (("items", items, 1), ("variants", variants, 0)):
        if value < least:
            raise ConfigError(f"--{name} {value}: must be at least {least}")
    own = {"output_dir": "--out", "minutes": "--minutes", "seed": "--seed"}
    for override in overrides:
        if (key := override.partition("=")[0].removeprefix("--")) in own:
            raise ConfigError(f"{override}: say {own[key]} here")
    console = Console(quiet=not ranks.is_main())
    phases = Phases(console)
    data = out / "data"
    path = config or repository_file("configs/starter.yaml")
    # The whole recipe is checked before anything is built.
    recipe = load_recipe(
        path,
        [
            f"output_dir={json.dumps(str(out))}",
            f"minutes={minutes}",
            f"seed={seed}",
            f"data.sources.0.path={json.dumps(str(data / 'train.json'))}",
            f"data.sources.0.variants={json.dumps(str(data / 'names.json'))}",
            *overrides,
        ],
    )
    if ranks.is_main():
        out.mkdir(parents=True, exist_ok=True)
        phases.start("starter", "1/5 starter: language model and vision tower")
        ensure_starter(progress=lambda line: console.print(f"  {line}"))
        phases.start("data", "2/5 data: OpenMoji pictures, questions in six languages")
    # Where there are several workers, the last one draws while the first one converts.
    if ranks.rank() == ranks.size() - 1:
        builder = load_builder("openmoji")
        if not builder.is_current(data):
            # Fewer than two blocks of four leave no picture to swap in.
            builder.build(data, seed=seed, variants=variants, eval_items=max(8, items))
    ranks.barrier()
    training_data = read_data(recipe.data, progress=ranks.is_main())
    trained, unseen = data / "eval_train.tsv", data / "eval_test.tsv"
    reports: dict[str, Report] = {}

    def score(
        name: str,
        model: Any,
        processor: Any,
        features: Any,
        asked: Mapping[str, Sequence[str]],
        number: int,
    ) -> None:
        reports[name] = evaluate_conditions(
            model, processor, trained, unseen, conditions=list(asked),
            items_per_cell={cell: dict.fromkeys(kinds, number) for cell, kinds in asked.items()},
            predictions=out / f"predictions_{name}.jsonl", features=features, seed=seed,
        )  # fmt: skip

    def before(model: Any, processor: Any, features: Any) -> None:
        phases.start("features", "  features of the frozen tower, once per picture")
        features.fill_together(training_data.pictures())
        phases.start("score_before", "3/5 score before training")
        score("before", model, processor, features, BEFORE, min(items, BEFORE_ITEMS))
        phases.start("train", f"4/5 train, at most {minutes:g} minutes")

    phases.start("build", "  reading the model's parts")
    result = run_recipe(
        recipe, data=training_data, before_training=before, resume=AUTO if resume else ANEW
    )
    phases.start("score_after", "5/5 score after training")
    score("after", result.model, result.processor, result.features, AFTER, items)
    phases.start(
        "benchmark", "  lettered questions, circular: asked once for each order of options"
    )
    heldout = evaluate_held_out(
        result.model, result.processor, sorted((data / "benchmark").glob("openmoji_test_*.tsv")),
        out / "benchmark", name=str(out / "model"), categories=("choice",),
        limit=min(items, CIRCULAR_ITEMS),
    )  # fmt: skip
    phases.start("contact_sheet", "  contact sheet")
    if ranks.is_main():
        contact_sheet(
            result.model, result.processor, unseen, trained, out / "contact_sheet.png", seed=seed
        )
    phases.end()
    report = {
        **{name: item.to_dict() for name, item in reports.items()},
        "pictures_trained": len({s.images[0] for s in training_data.samples if s.images}),
        "training_samples": len(training_data.samples),
        "minutes": minutes,
        "seed": seed,
        "recipe": str(path),
        "seconds": {
            **phases.seconds,
            **{f"stage_{k}": round(v, 1) for k, v in result.seconds.items()},
        },
        "peak_memory_gib": round(sum(ranks.gather(peak_memory_gib())), 2),
        "workers": ranks.size(),
    }
    if not ranks.is_main():
        return report
    beside = out / "report.json.tmp"
    beside.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(beside, out / "report.json")
    refresh_card(out / "model")
    console.print(render_table(reports["before"].tables, "before training"))
    console.print(render_table(reports["after"].tables, "after training"))
    console.print(render(figures(heldout), "lettered questions on unseen pictures, circular"))
    total = sum(phases.seconds.values())
    console.print(
        f"{total / 60:.1f} minutes, peak memory {report['peak_memory_gib']} GiB; {out}/report.json"
    )
    picture = next(iter(training_data.samples)).images[0]
    console.print("\nNext:")
    console.print(
        f'  llava-mole chat --model {out}/model --image {picture!s} "Bu nedir?"', soft_wrap=True
    )
    console.print(f"  make demo OUT={out}", soft_wrap=True)
    console.print(
        f"  python eval/mtl_mmbench.py --model {out}/model --out {out}/circular --style letters "
        f"--data {data}/benchmark/openmoji_test_*.tsv",
        soft_wrap=True,
    )
    return report
