"""The `training:` section: transformers.TrainingArguments, by their own names."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from transformers import TrainingArguments

from llava_mole.nearest import nearest
from llava_mole.training.environment import report_problems
from llava_mole.training.foreign_names import translation
from llava_mole.training.hub_push import hub_problems

# Set by the stage itself; a recipe that also names them would be silently overruled.
OWN_ARGUMENTS = {
    "output_dir": "output_dir of the recipe",
    "max_steps": "stages.N.steps",
    "num_train_epochs": "stages.N.passes",
    "per_device_train_batch_size": "stages.N.pictures_per_step",
    "learning_rate": "stages.N.learning_rates",
    "seed": "seed of the recipe",
    "train_sampling_strategy": "nothing: the planner fixes the order",
    "remove_unused_columns": "nothing",
    "label_smoothing_factor": "nothing: the loss is plain cross-entropy",
    "resume_from_checkpoint": "--resume",
    "enable_jit_checkpoint": "nothing: a stage that is told to end (SIGTERM) writes a checkpoint",
    "ignore_data_skip": "nothing: a resumed run goes on with the rows that come next",
    "auto_find_batch_size": "stages.N.pictures_per_step, with gradient_accumulation_steps",
}


def finite(value: Any) -> bool:
    """Whether a value holds no nan and no infinity, written as numbers or, as YAML 1.1 reads some,
    as text that transformers makes numbers of."""
    if isinstance(value, dict):
        return all(finite(one) for one in value.values())
    if isinstance(value, list):
        return all(finite(one) for one in value)
    if isinstance(value, str):
        return value.strip().lstrip("+-").lower() not in ("nan", "inf", "infinity")
    return not isinstance(value, float) or math.isfinite(value)


def check_arguments(values: dict[str, Any], path: str, *, stage: bool = False) -> list[str]:
    """Problems of a `training:` section; `stage`: of a stage's own."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    problems = []
    for key in values:
        if key in OWN_ARGUMENTS:
            problems.append(f"{path}.{key}: set by {OWN_ARGUMENTS[key]}")
        elif key not in known and (theirs := translation(str(key))) is not None:
            problems.append(f"{path}.{key}={values[key]!r}: {theirs}")
        elif key not in known:
            problems.append(f"{path}.{key}: no argument of TrainingArguments{nearest(key, known)}")
        elif not finite(values[key]):
            problems.append(f"{path}.{key}={values[key]!r}: must be a finite number")
    problems += report_problems(values, path) + hub_problems(values, path, stage=stage)
    return [p if len(p) < 400 else p.split(" (known")[0] for p in problems]
