"""The `training:` section: transformers.TrainingArguments, by their own names."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from llava_mole.nearest import nearest

# Set by the stage itself; a recipe that also names them would be silently overruled.
OWN_ARGUMENTS = {
    "output_dir": "output_dir of the recipe",
    "max_steps": "stages.N.steps",
    "num_train_epochs": "stages.N.steps",
    "per_device_train_batch_size": "stages.N.pictures_per_step",
    "learning_rate": "stages.N.learning_rates",
    "seed": "seed of the recipe",
    "train_sampling_strategy": "nothing: the planner fixes the order",
    "remove_unused_columns": "nothing",
    "label_smoothing_factor": "nothing: the loss is plain cross-entropy",
    "eval_strategy": "nothing: `llava-mole quickstart` and eval/ score models",
    "resume_from_checkpoint": "the run itself: it goes on where it was",
}


def check_arguments(values: dict[str, Any], path: str) -> list[str]:
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    problems = []
    for key in values:
        if key in OWN_ARGUMENTS:
            problems.append(f"{path}.{key}: set by {OWN_ARGUMENTS[key]}")
        elif key not in known:
            problems.append(f"{path}.{key}: no argument of TrainingArguments{nearest(key, known)}")
    return [p if len(p) < 400 else p.split(" (known")[0] for p in problems]
