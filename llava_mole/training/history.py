"""What a run did, for the model it leaves: its data and its stages, into `config.provenance`.

Names, numbers and licences only: no path of the machine, nothing of a record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llava_mole
from llava_mole.configuration import LlavaMoleConfig
from llava_mole.data.pool import Samples
from llava_mole.data.sources import split_path
from llava_mole.training.data import TrainingData
from llava_mole.training.recipe import Recipe, SourceRecipe, StageRecipe

LONGEST_ATTRIBUTION = 4_000
"""Characters of an ATTRIBUTION.txt that are carried along; longer ones are named."""


def record_data(config: LlavaMoleConfig, recipe: Recipe, read: Sequence[TrainingData]) -> None:
    """Which data a model saw. What an earlier run left on record stays.

    Args:
        read: of each stage; the same object where stages share their data.
    """
    known = dict(config.provenance or {})
    different = {
        id(data): (data, recipe.data_of(stage).sources)
        for stage, data in zip(recipe.stages, read, strict=True)
    }
    sources = [
        describe(source, wanted)
        for data, listed in different.values()
        for source, wanted in zip(data.sources, listed, strict=True)
    ]
    names = {source["name"] for source in sources}
    earlier = [source for source in known.get("data", []) if source["name"] not in names]
    config.provenance = {
        **known,
        "data": earlier + sources,
        "seed": recipe.seed,
        "version": llava_mole.__version__,
    }


def describe(source: Samples, wanted: SourceRecipe) -> dict[str, Any]:
    index = source.index()
    counts = np.bincount(index.language, minlength=len(index.languages))
    languages = {
        code: int(count)
        for code, count in zip(index.languages, counts, strict=True)
        if count and code
    }
    facts: dict[str, Any] = {"name": source.name, "samples": len(source), "languages": languages}
    if wanted.path.startswith("hub:"):
        facts["hub"] = wanted.path.removeprefix("hub:").split(":")[0]
        return facts
    return facts | said_beside(split_path(wanted.path)[0])


def said_beside(path: Path) -> dict[str, str]:
    """What a builder wrote beside its data: `licence` of dataset.json, and ATTRIBUTION.txt."""
    folder = path if path.is_dir() else path.parent
    found = {}
    described, attribution = folder / "dataset.json", folder / "ATTRIBUTION.txt"
    if described.is_file():
        try:
            values = json.loads(described.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if isinstance(values, dict) and isinstance(values.get("licence"), str):
            found["licence"] = values["licence"]
    if attribution.is_file():
        text = attribution.read_text(encoding="utf-8", errors="replace").strip()
        named = f"See ATTRIBUTION.txt in the folder of {path.name}."
        found["attribution"] = text if len(text) <= LONGEST_ATTRIBUTION else named
    return found


def record_stage(
    config: LlavaMoleConfig, recipe: Recipe, stage: StageRecipe, rows: int, log: Path
) -> None:
    """That a stage is over. One that was recorded under its name before is replaced.

    Args:
        rows: of an optimizer step, all processes together.
        log: the run's log.jsonl; tells how many steps were really taken.
    """
    solved = stage.kind == "warm_start" and stage.warm_start.method == "ridge"
    done = {
        "name": stage.name,
        "kind": stage.kind,
        "steps": None if solved else steps_taken(log, stage),
        "rows": rows if stage.kind == "language" else None,
        "learning_rates": rates(stage, parrot=config.parrot is not None),
    }
    known = dict(config.provenance or {})
    names = [one.name for one in recipe.stages]
    earlier = [one for one in known.get("stages", []) if one["name"] not in names]
    own = [one for one in known.get("stages", []) if one["name"] in names]
    own = [one for one in own if one["name"] != stage.name] + [done]
    config.provenance = {**known, "stages": earlier + own}


def rates(stage: StageRecipe, *, parrot: bool) -> dict[str, float]:
    """Part -> learning rate.

    Args:
        parrot: the model has it; a warm start in one language at a time trains it.
    """
    if stage.kind == "language":
        return dict(stage.learning_rates)
    start = stage.warm_start
    if start.method != "gradient":
        return {}
    parts = ["projector", "parrot"] if parrot and start.one_language else ["projector"]
    return dict.fromkeys(parts, start.learning_rate)


def steps_taken(log: Path, stage: StageRecipe) -> int | None:
    """The last step that a stage logged; None where it logged none. A warm start counts from 0."""
    last = None
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if values.get("stage") == stage.name and "step" in values:
            last = max(last or 0, int(values["step"]) + (stage.kind == "warm_start"))
    return last
