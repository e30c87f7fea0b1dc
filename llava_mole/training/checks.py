"""What no single key of a recipe can tell: keys against each other, and against what is built.

Every check returns its problems as sentences; `schema.py` lists them all at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_mole import quantization, starting
from llava_mole.attention import mask_problem
from llava_mole.building import DEFAULT_TEMPLATE, ModelRecipe
from llava_mole.data.shares import PlannedSource, mixture_problems
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.nearest import nearest
from llava_mole.templates import name_problem
from llava_mole.training.arguments import check_arguments
from llava_mole.training.held_out_keys import check_held_out
from llava_mole.training.parts import PARTS
from llava_mole.training.places import place_problems
from llava_mole.training.reading import stem
from llava_mole.training.recipe import (
    DataRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
    WarmStartRecipe,
)


def inherit(recipe: Recipe) -> list[str]:
    """Put the adapters of the folder that a recipe starts from into it, or the default chat
    template where it names its parts; or how recipe and folder clash."""
    if recipe.model.start_from is None:
        if recipe.model.chat_template is None:
            recipe.model.chat_template = DEFAULT_TEMPLATE
        return []
    try:
        config = starting.read_start(recipe.model.start_from)
    except (CheckpointError, ConfigError) as error:
        return [f"model.start_from: {error}"]
    problems = starting.clashes(recipe.model, ModelRecipe(), config)
    problems += [
        f"stages.{index} ({stage.name}).kind=warm_start: model.start_from brings a projector that "
        "has learnt already; drop the stage"
        for index, stage in enumerate(recipe.stages)
        if stage.kind == "warm_start"
    ]
    if not problems:
        recipe.model = starting.inherited(recipe.model, config)
    return problems


def check_lora(options: dict[str, Any]) -> list[str]:
    """Options of peft.LoraConfig that PEFT takes, and that would have no effect here."""
    problems = []
    if options.get("modules_to_save"):
        problems.append(
            f"model.lora.modules_to_save={options['modules_to_save']!r}: whole modules are not "
            "trained with LoRA here; leave it out (parts that are trained: a stage's "
            "learning_rates)"
        )
    if options.get("bias", "none") != "none":
        problems.append(
            f"model.lora.bias={options['bias']!r}: allowed is 'none'; biases of the language "
            "model stay frozen"
        )
    if "task_type" in options:
        problems.append(
            f"model.lora.task_type={options['task_type']!r}: it is always CAUSAL_LM; leave it out"
        )
    alpha = options.get("lora_alpha", 8)
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not (math.isfinite(alpha) and alpha > 0):
        problems.append(
            f"model.lora.lora_alpha={alpha!r}: must be a finite number above 0, for the output "
            "of LoRA is scaled by lora_alpha / r"
        )
    return problems


def starts_with_parrot(model: ModelRecipe) -> bool:
    """Whether Parrot is on before the first stage, by the folder that a recipe starts from."""
    if model.start_from is None:
        return False
    try:
        return starting.read_start(model.start_from).parrot is not None
    except (CheckpointError, ConfigError):
        return False  # `inherit` says so


def cross_checks(recipe: Recipe) -> list[str]:
    """What no single key can tell."""
    problems = []
    if not recipe.stages:
        problems.append("stages: empty; name at least one")
    names = [stage.name for stage in recipe.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"stages: two are named {name!r}")
    problems += place_problems(recipe)
    problems += check_arguments(recipe.training, "training")
    problems += check_accumulation(recipe.training, "training")
    problems += check_mixture(recipe.data)
    problems += check_held_out(recipe)
    if recipe.model.quantization is not None:
        problems += quantization.problems(recipe.model.quantization)
    if recipe.model.lora is not None:
        problems += check_lora(recipe.model.lora)
    template = recipe.model.chat_template or DEFAULT_TEMPLATE
    problem = None if template == "tokenizer" else name_problem(template)
    if problem is not None and template.endswith(".jinja"):
        missing = f"chat_template={template!r}: no such file (from {Path.cwd()})"
        problem = None if Path(template).is_file() else missing
    if problem is not None:
        problems.append(f"model.{problem}; docs/templates.md shows how to add one")
    if recipe.model.dtype not in ("bfloat16", "float16", "float32"):
        problems.append(
            f"model.dtype={recipe.model.dtype!r}: allowed are bfloat16, float16, float32"
        )
    parrot_on = starts_with_parrot(recipe.model)
    for index, stage in enumerate(recipe.stages):
        path = f"stages.{index} ({stage.name})"
        parrot_on = parrot_on or stage.parrot
        problems += check_arguments(stage.training, f"{path}.training", stage=True)
        problems += check_accumulation(stage.training, f"{path}.training")
        if parrot_on and recipe.model.parrot is None:
            problems.append(f"{path}.parrot=true: model.parrot is empty; describe the module there")
        reads_question = recipe.model.parrot is not None and recipe.model.parrot.reads_question
        if parrot_on and reads_question and stage.kind == "language" and stage.share_prefix:
            problems.append(
                f"{path}.share_prefix=true: with Parrot on (from this stage or an earlier one) "
                "visual tokens depend on the question; set share_prefix: false"
            )
        experts = recipe.model.experts
        if (
            stage.kind == "language"
            and stage.share_prefix
            and experts is not None
            and experts.prefix_depends_on_question
        ):
            problems.append(
                f"{path}.share_prefix=true: experts of method {experts.method} depend on the "
                "question; set share_prefix: false"
            )
        if stage.passes is not None and stage.steps != StageRecipe(stage.name).steps:
            problems.append(f"{path}: steps and passes are both given; leave one out")
        for key in ("share_prefix", "packing"):
            wanted = stage.kind == "language" and getattr(stage, key)
            problem = mask_problem(recipe.model.attn_implementation, key) if wanted else None
            if problem is not None:
                problems.append(f"{path}.{problem}")
        problems += unread_keys(stage, path)
        problems += check_start(recipe, index, path, parrot_on)
        if stage.data is not None:
            problems += [f"{path}.{problem}" for problem in check_mixture(stage.data)]
            if stage.data.feature_cache is not None:
                problems.append(f"{path}.data.feature_cache: say it once, in the recipe's own data")
        problems += check_weights(stage.kind_weights or {}, f"{path}.kind_weights")
        problems += check_weights(stage.warm_start.also, f"{path}.warm_start.also")
        if stage.kind == "language" and not stage.learning_rates:
            problems.append(f"{path}.learning_rates: empty; nothing would be trained")
        for part, rate in stage.learning_rates.items():
            if part not in PARTS:
                problems.append(f"{path}.learning_rates.{part}: unknown part{nearest(part, PARTS)}")
            elif part == "language_model" and recipe.model.quantization is not None:
                problems.append(
                    f"{path}.learning_rates.language_model: packed weights are not trained; leave "
                    "it out, or model.quantization"
                )
            elif not rate > 0:
                problems.append(f"{path}.learning_rates.{part}={rate!r}: must be above 0")
    shares = [stage.share_of_time for stage in recipe.stages]
    schedules = [recipe.training, *(stage.training for stage in recipe.stages)]
    kinds = {str(values.get("lr_scheduler_type", "linear")) for values in schedules}
    if recipe.minutes is not None and kinds != {"linear"}:
        problems.append(
            f"training.lr_scheduler_type={(kinds - {'linear'}).pop()!r}: with minutes the rate "
            "falls linearly with the time that is left; leave one of the two out"
        )
    if recipe.minutes is not None and any(share is None for share in shares):
        problems.append("minutes is set: every stage needs its share_of_time")
    if all(share is not None for share in shares) and sum(s or 0 for s in shares) > 1.001:
        problems.append(
            f"stages: share_of_time adds up to {sum(s or 0 for s in shares):g}, above 1"
        )
    return problems


def check_accumulation(values: dict[str, Any], path: str) -> list[str]:
    """Micro-batches of a step: our own sums divide by them before TrainingArguments looks."""
    key = "gradient_accumulation_steps"
    if key not in values or (type(values[key]) is int and values[key] >= 1):
        return []
    return [f"{path}.{key}={values[key]!r}: must be a whole number, 1 or more"]


def check_mixture(data: DataRecipe) -> list[str]:
    """The `data:` section by itself; what depends on the sources' sizes is seen once they are
    read."""
    if not data.sources:
        return ["data.sources: empty; name at least one"]
    names = source_names(data.sources)
    one = np.ones(1, dtype=np.int32)
    planned = [
        PlannedSource(name, one, source.weight, source.samples, source.cap, source.repeat_limit)
        for name, source in zip(names, data.sources, strict=True)
    ]
    stop: Any = data.length or "all_exhausted"
    problems = [f"data.{p}" for p in mixture_problems(planned, data.temperature, stop)]
    for source in data.sources:
        low, high = source.keep.min_bytes, source.keep.max_bytes
        if low is not None and high is not None and low > high:
            problems.append(f"data.sources: {source.path}: keep.min_bytes={low} > max_bytes={high}")
        if data.language_weights and source.cap is not None:
            problems.append(
                f"data.sources: {source.path}: cap={source.cap} limits a size, but with "
                "language_weights no size counts within a source; give the sources weights"
            )
    if data.language_weights and not any(data.language_weights.values()):
        problems.append("data.language_weights: all are 0; nothing would be drawn")
    problems += check_weights(data.language_weights or {}, "data.language_weights")
    return problems + check_weights(data.kind_weights, "data.kind_weights")


def source_names(sources: Sequence[SourceRecipe]) -> list[str]:
    """The given names; else the file's, with its folder's where two would be called the same."""
    short = [s.name or stem(s.path) for s in sources]
    return [
        source.name
        or (f"{Path(source.path).parent.name}/{name}" if short.count(name) > 1 else name)
        for source, name in zip(sources, short, strict=True)
    ]


GRADIENT_KEYS = (
    "pictures_per_step", "learning_rate", "weight_decay", "temperature", "feature_noise",
    "token_dropout", "channel_dropout", "hard_share", "variant_share", "scale_weight",
    "one_language",
)  # fmt: skip


def check_start(recipe: Recipe, index: int, path: str, parrot_on: bool) -> list[str]:
    """A stage against the projector's type: who solves for what; Parrot on or not."""
    stage, kind = recipe.stages[index], recipe.model.projector.type
    if stage.kind == "language":
        if kind == "rbf" and index == 0 and recipe.model.start_from is None:
            return [
                f"{path}: a projector of type rbf knows no picture before a warm_start stage with "
                "warm_start.method=ridge; add one, or say 'model.projector={type: mlp2x_gelu}'"
            ]
        return []
    start, default = stage.warm_start, WarmStartRecipe()
    kinds = [start.kind] if isinstance(start.kind, str) else start.kind
    if not (isinstance(kinds, list) and kinds and all(isinstance(one, str) for one in kinds)):
        return [f"{path}.warm_start.kind={start.kind!r}: expected a kind, or a list of kinds"]
    if start.method == "gradient":
        problems = [f"{path}.warm_start.ridge: read by method ridge only"] * (
            start.ridge != default.ridge
        )
        if parrot_on and not start.one_language:
            problems.append(
                f"{path}.parrot=true (here, in an earlier stage or in model.start_from): a warm "
                "start trains Parrot in one language at a time; say warm_start.one_language: true, "
                "or switch it on in a later stage"
            )
        if kind == "rbf":
            problems.append(
                f"{path}.warm_start.method=gradient: a projector of type rbf is solved for; say "
                "method: ridge, or 'model.projector={type: mlp2x_gelu}'"
            )
        return problems
    problems = [
        f"{path}.warm_start.{key}: not read by method ridge"
        for key in GRADIENT_KEYS
        if getattr(start, key) != getattr(default, key)
    ]
    if stage.steps != StageRecipe(stage.name).steps:
        problems.append(f"{path}.steps={stage.steps}: method ridge has no steps; leave it out")
    if kind != "rbf":
        problems.append(
            f"{path}.warm_start.method=ridge: needs 'model.projector={{type: rbf}}', found {kind!r}"
        )
    if parrot_on:
        problems.append(
            f"{path}.parrot=true (here, in an earlier stage or in model.start_from): method ridge "
            "trains no Parrot; a later stage can"
        )
    if start.also and not start.alignment_weight > 0:
        problems.append(
            f"{path}.warm_start.alignment_weight={start.alignment_weight!r}: must be above 0, the "
            "weights of `also` are relative to it"
        )
    return problems


def unread_keys(stage: StageRecipe, path: str) -> list[str]:
    """Keys that a stage of the other kind reads: they would be ignored."""
    default = StageRecipe(stage.name)
    if stage.kind == "language":
        if stage.warm_start != default.warm_start:
            return [f"{path}.warm_start: read by stages of kind warm_start only"]
        return []
    own = {field.name for field in dataclasses.fields(stage.warm_start)} | {"learning_rate"}
    return [
        f"{path}.{key}: not read by a stage of kind warm_start"
        + next((f"; say warm_start.{k} there" for k in (key, key[:-1]) if k in own), "")
        for key in ("learning_rates", "pictures_per_step", "questions_per_picture", "kind_weights",
                    "training", "passes", "packing", "length_window")
        if getattr(stage, key) != getattr(default, key)
    ]  # fmt: skip


def check_weights(weights: dict[str, float], path: str) -> list[str]:
    return [
        f"{path}.{kind}={weight!r}: must be a finite number, 0 or more"
        for kind, weight in weights.items()
        if not (math.isfinite(weight) and weight >= 0)
    ]
