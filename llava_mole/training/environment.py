"""What a recipe asks of this machine, told before data are read or weights are loaded.

A recipe that is valid may still need a package, a device or a login that are not here. All of it
is listed at once.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from llava_mole import attention, quantization
from llava_mole.errors import ConfigError
from llava_mole.nearest import nearest
from llava_mole.training.recipe import Recipe

REPORTERS = {
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("kubeflow", "kubeflow"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
"""transformers' names -> module, and package to install."""


def reporters(training: dict[str, Any]) -> list[str]:
    """Names of `report_to`, however it is written; "all" stands for what is installed."""
    value = training.get("report_to", "none")
    names = [value] if isinstance(value, str) else list(value or [])
    return [name for name in names if name not in ("none", "all")]


def report_problems(training: dict[str, Any], path: str) -> list[str]:
    """Names that transformers does not know, and DeepSpeed where it is not installed.

    That comes with the recipe's own problems: transformers.TrainingArguments cannot even be made.
    """
    found = []
    if training.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        found.append(
            f'{path}.deepspeed: DeepSpeed is not installed here: pip install -e ".[deepspeed]", or '
            "leave it out"
        )
    return found + [
        f"{path}.report_to={name!r}: unknown{nearest(str(name), list(REPORTERS))}"
        for name in reporters(training)
        if name not in REPORTERS
    ]


def missing_reporters(training: dict[str, Any]) -> list[str]:
    return [
        f"training.report_to: {name} is not installed here: pip install {REPORTERS[name][1]}, or "
        "leave it out (every figure is in OUT/log.jsonl too)"
        for name in reporters(training)
        if importlib.util.find_spec(REPORTERS[name][0]) is None
        and not (name == "tensorboard" and importlib.util.find_spec("tensorboardX"))
    ]


def check_environment(recipe: Recipe) -> None:
    """Raises ConfigError listing everything that training this recipe lacks here."""
    model = recipe.model
    found = [
        attention.missing_here(model.attn_implementation, model.dtype, training=True),
        quantization.missing_here() if model.quantization is not None else None,
    ]
    for section in (recipe.training, *(stage.training for stage in recipe.stages)):
        found += missing_reporters(section)
    problems = list(dict.fromkeys(problem for problem in found if problem is not None))
    if problems:
        raise ConfigError("\n  ".join(["this machine lacks what the recipe asks for:", *problems]))
