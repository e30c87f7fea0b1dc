"""What a run cost: parameters, steps, time of a step, memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from llava_mole import ranks
from llava_mole.structure import model_without_weights
from llava_mole.training.dry_run import count_by_stage
from llava_mole.training.history import steps_taken
from llava_mole.training.recipe import Recipe
from llava_mole.training.result import RunResult


def parameters_of(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Part -> {"total", "trained"}: trained in any of its stages. No weight is loaded."""
    model = model_without_weights(dataclasses.replace(recipe.model, parrot=None))
    totals, stages = count_by_stage(recipe, model)
    return {
        part: {"total": total, "trained": max(stage.get(part, 0) for stage in stages)}
        for part, total in totals.items()
    }


def trained_parameters(parameters: dict[str, dict[str, int]]) -> int:
    return sum(part["trained"] for part in parameters.values())


def measured(recipe: Recipe, result: RunResult, folder: Path) -> dict[str, Any]:
    """Figures of a run that has just ended, stopped sessions included where the log has them.

    Step time is that of language stages: from a stage's first step to its last, evaluation and
    checkpoints in between included. The peak of memory is this session's.
    """
    stages: dict[str, dict[str, Any]] = {}
    total = 0.0
    for stage in recipe.stages:
        seconds = stage_seconds(folder / "log.jsonl", stage.name)
        if seconds is None and stage.name in result.ends:
            seconds = result.ends[stage.name].seconds
        steps = steps_taken(folder / "log.jsonl", stage)
        stages[stage.name] = {"kind": stage.kind, "steps": steps, "seconds": seconds}
        total += seconds or 0.0
    language = [one for one in stages.values() if one["kind"] == "language" and one["seconds"]]
    steps_in_all = sum(one["steps"] or 0 for one in language)
    accelerator = torch.accelerator.is_available()
    return {
        "parameters": parameters_of(recipe),
        "stages": stages,
        "steps": steps_in_all,
        "step_seconds": sum(one["seconds"] for one in language) / max(1, steps_in_all),
        "seconds": round(total, 1),
        "peak_gib": result.peaks,
        "processes": ranks.size(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "accelerator": accelerator,
    }


def stage_seconds(log: Path, stage: str) -> float | None:
    """Of a stage that is over: its last line has them, those of stopped sessions included."""
    found = None
    for line in log.read_text(encoding="utf-8").split("\n") if log.is_file() else []:
        if not line:
            continue
        values = json.loads(line)
        if values.get("stage") == stage and "seconds" in values:
            found = float(values["seconds"])
    return found
