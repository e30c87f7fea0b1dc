"""YAML to recipe: every problem found at once, before any weight is loaded.

Each problem names the key as a dotted path, the value, what is allowed, and the nearest match.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import yaml
from transformers import TrainingArguments

from llava_mole.data.shares import PlannedSource, mixture_problems
from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig
from llava_mole.mole.methods import METHODS, method_class
from llava_mole.training.held_out_keys import check_held_out
from llava_mole.training.parts import PARTS
from llava_mole.training.recipe import (
    DataRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
    WarmStartRecipe,
)

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
    "resume_from_checkpoint": "--resume",
    "enable_jit_checkpoint": "nothing: a stage that is told to end (SIGTERM) writes a checkpoint",
    "ignore_data_skip": "nothing: a resumed run goes on with the rows that come next",
    "auto_find_batch_size": "stages.N.pictures_per_step, with gradient_accumulation_steps",
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `a.b.c=value` overrides, validate all of it.

    Args:
        path: YAML.
        overrides: dotted keys; list entries by number or by their `name`
            (`stages.instruct.steps=50`). Values are YAML.

    Raises:
        ConfigError: listing every problem.
    """
    path = Path(path)
    values = read_mapping(path, "recipe")
    problems: list[str] = []
    if isinstance(values.get("data"), str):
        values["data"] = read_mapping(beside(values["data"], path), "data")
    for override in overrides:
        apply_override(values, override, problems)
    recipe = build(Recipe, values, "", problems)
    if recipe is not None:
        problems += cross_checks(recipe)
    if problems:
        raise ConfigError(f"{path}: {counted(problems)}\n" + "\n".join(f"  {p}" for p in problems))
    assert recipe is not None
    return recipe


def counted(problems: Sequence[str]) -> str:
    return "one problem" if len(problems) == 1 else f"{len(problems)} problems"


def load_mixture(path: str | Path, overrides: Sequence[str] = ()) -> DataRecipe:
    """Read a mixture file, or the `data:` section of a recipe.

    Args:
        path: YAML that has `sources` at its top, or `data`.
        overrides: `data.temperature=2`, as for a recipe; other keys are refused.

    Raises:
        ConfigError: listing every problem.
    """
    path = Path(path)
    values = read_mapping(path, "mixture")
    data = values if "sources" in values else values.get("data")
    if isinstance(data, str):
        data = read_mapping(beside(data, path), "data")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: neither `sources` nor `data` at its top; is it a recipe?")
    problems: list[str] = []
    whole = {"data": data}
    for override in overrides:
        apply_override(whole, override, problems)
    problems += [
        f"{key}: only keys of data can be changed here, as in data.temperature=2"
        for key in set(whole) - {"data"}
    ]
    recipe = build(DataRecipe, whole["data"], "data", problems)
    if recipe is not None:
        problems += check_mixture(recipe)
    if problems:
        raise ConfigError(f"{path}: {counted(problems)}\n" + "\n".join(f"  {p}" for p in problems))
    assert isinstance(recipe, DataRecipe)
    return recipe


class StrictLoader(yaml.SafeLoader):
    """A key that a mapping holds twice is an error; YAML's own loader takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, Any] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<:` brings keys that may be replaced
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark,
                    f"the key {key!r} stands there twice (first in line {seen[key]})",
                    key_node.start_mark,
                )  # fmt: skip
            if isinstance(key, str | int | float | bool):
                seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Raises ConfigError for what is no YAML mapping."""
    if not path.is_file():
        raise ConfigError(f"{what} {path} not found; configs/ holds the recipes that ship")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping; a recipe starts with output_dir, model, data")
    return values


def beside(name: str, recipe: Path) -> Path:
    """A file that a recipe names: from here, or from the recipe's folder."""
    here = Path(name)
    return here if here.is_file() or here.is_absolute() else recipe.parent / name


def apply_override(values: dict[str, Any], override: str, problems: list[str]) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        problems.append(f"{override!r}: an override looks like stages.instruct.steps=50")
        return
    *parents, last = key.strip().removeprefix("--").split(".")
    node: Any = values
    for name in parents:
        if isinstance(node, list):
            node = entry_of(node, name)
        elif isinstance(node, dict):
            node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            problems.append(f"{key}: nothing named {name!r} to set {last!r} in")
            return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(node, list) and value is None and entry_of(node, last) is not None:
        node.remove(entry_of(node, last))
    elif isinstance(node, list):
        problems.append(f"{key}: {last!r} is a list entry; name a key inside it, or drop it: =null")
    else:
        node[last] = value


def entry_of(entries: list[Any], name: str) -> Any:
    for index, entry in enumerate(entries):
        if name == str(index) or (isinstance(entry, dict) and entry.get("name") == name):
            return entry
    for entry in entries:  # a source is called by its file where it has no name
        path = entry.get("path") if isinstance(entry, dict) and "name" not in entry else None
        if isinstance(path, str) and stem(path) == name:
            return entry
    return None


def nearest(key: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {match[0]!r}?" if match else f" (known: {', '.join(known)})"


def other_methods(cls: type, key: str, path: str) -> str:
    """Whose key it is, where it belongs to other methods of mixing experts."""
    if not issubclass(cls, MoleConfig):
        return ""
    owners = [name for name, one in METHODS.items() if key in one.__dataclass_fields__]
    if not owners:
        return ""
    own = cls.method
    return (
        f", it belongs to method {', '.join(owners)}; to change the method replace the block: "
        f"'{path}={{method: {own}}}'"
    )


def build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """A dataclass from a mapping; problems are collected, and None returned where there are any."""
    if not isinstance(values, dict):
        problems.append(f"{path or 'recipe'}={values!r}: expected a mapping of keys")
        return None
    before = len(problems)
    if cls is MoleConfig:
        try:
            cls = method_class(values.get("method", "llava_mole"))
        except ConfigError as error:
            problems.append(f"{path}.{error}")
            return None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            hint = other_methods(cls, str(key), path) or nearest(str(key), list(fields))
            problems.append(f"{join(path, key)}: unknown key{hint}")
    found = {}
    for name, field in fields.items():
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                problems.append(f"{join(path, name)}: missing")
            continue
        found[name] = convert(values[name], hints[name], join(path, name), problems)
        check_limits(found[name], field.metadata, join(path, name), problems)
    if len(problems) > before:
        return None
    try:
        return cls(**found)
    except (ConfigError, TypeError) as error:
        problems.append(f"{path}: {error}")
        return None


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def convert(value: Any, hint: Any, path: str, problems: list[str]) -> Any:
    """`value` as `hint`, or a problem."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return convert(value, options[0], path, problems)
        return list(value) if isinstance(value, list) else value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path, problems)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(convert(v, args[0], f"{path}.{i}", problems) for i, v in enumerate(value))
    if origin is list:
        if not isinstance(value, list):
            problems.append(f"{path}={value!r}: expected a list")
            return []
        return [convert(v, args[0], f"{path}.{i}", problems) for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{path}={value!r}: expected a mapping")
            return {}
        return {k: convert(v, args[1], f"{path}.{k}", problems) for k, v in value.items()}
    if hint is float:
        # YAML 1.1 reads 1e-3 as text, because it has no dot.
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            problems.append(f"{path}={value!r}: expected a number")
            return None
        except OverflowError:
            problems.append(f"{path}: a number of {len(str(value))} digits; expected a smaller one")
            return None
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        names = {int: "a whole number", bool: "true or false", str: "text"}
        problems.append(f"{path}={value!r}: expected {names.get(hint, hint)}")
        return None
    return value


def check_limits(value: Any, limits: Any, path: str, problems: list[str]) -> None:
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{path}={value!r}: must be a finite number")
        return
    if "choices" in limits and value not in limits["choices"]:
        problems.append(f"{path}={value!r}: {nearest(str(value), limits['choices']).lstrip('; ')}")
    if "min" in limits and value < limits["min"]:
        problems.append(f"{path}={value!r}: must be at least {limits['min']}")
    if "above" in limits and not value > limits["above"]:
        problems.append(f"{path}={value!r}: must be above {limits['above']}")
    if "max" in limits and value > limits["max"]:
        problems.append(f"{path}={value!r}: must be at most {limits['max']}")


def cross_checks(recipe: Recipe) -> list[str]:
    """What no single key can tell."""
    problems = []
    if not recipe.stages:
        problems.append("stages: empty; name at least one")
    names = [stage.name for stage in recipe.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"stages: two are named {name!r}")
    problems += check_arguments(recipe.training, "training")
    problems += check_mixture(recipe.data)
    problems += check_held_out(recipe)
    if recipe.model.dtype not in ("bfloat16", "float16", "float32"):
        problems.append(
            f"model.dtype={recipe.model.dtype!r}: allowed are bfloat16, float16, float32"
        )
    parrot_on = False
    for index, stage in enumerate(recipe.stages):
        path = f"stages.{index} ({stage.name})"
        parrot_on = parrot_on or stage.parrot
        problems += check_arguments(stage.training, f"{path}.training")
        if parrot_on and recipe.model.parrot is None:
            problems.append(f"{path}.parrot=true: model.parrot is empty; describe the module there")
        if parrot_on and stage.kind == "language" and stage.share_prefix:
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
        problems += unread_keys(stage, path)
        problems += check_start(recipe, index, path)
        problems += check_weights(stage.kind_weights or {}, f"{path}.kind_weights")
        problems += check_weights(stage.warm_start.also, f"{path}.warm_start.also")
        if stage.kind == "language" and not stage.learning_rates:
            problems.append(f"{path}.learning_rates: empty; nothing would be trained")
        for part, rate in stage.learning_rates.items():
            if part not in PARTS:
                problems.append(f"{path}.learning_rates.{part}: unknown part{nearest(part, PARTS)}")
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
    return problems + check_weights(data.kind_weights, "data.kind_weights")


def source_names(sources: Sequence[SourceRecipe]) -> list[str]:
    """The given names; else the file's, with its folder's where two would be called the same."""
    short = [s.name or stem(s.path) for s in sources]
    return [
        source.name
        or (f"{Path(source.path).parent.name}/{name}" if short.count(name) > 1 else name)
        for source, name in zip(sources, short, strict=True)
    ]


def stem(path: str) -> str:
    """train of DIR/train.json, NAME of DIR/dataset_info.json:NAME."""
    head, _, selector = path.rpartition(":")
    return selector if head.endswith("dataset_info.json") else Path(path).stem


GRADIENT_KEYS = (
    "pictures_per_step", "learning_rate", "weight_decay", "temperature", "feature_noise",
    "token_dropout", "channel_dropout", "hard_share", "variant_share", "scale_weight",
)  # fmt: skip


def check_start(recipe: Recipe, index: int, path: str) -> list[str]:
    """A stage against the projector's type: who solves for what."""
    stage, kind = recipe.stages[index], recipe.model.projector.type
    if stage.kind == "language":
        if kind == "rbf" and index == 0:
            return [
                f"{path}: a projector of type rbf knows no picture before a warm_start stage with "
                "warm_start.method=ridge; add one, or say 'model.projector={type: mlp2x_gelu}'"
            ]
        return []
    start, default = stage.warm_start, WarmStartRecipe()
    if start.method == "gradient":
        problems = [f"{path}.warm_start.ridge: read by method ridge only"] * (
            start.ridge != default.ridge
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


def check_arguments(values: dict[str, Any], path: str) -> list[str]:
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    problems = []
    for key in values:
        if key in OWN_ARGUMENTS:
            problems.append(f"{path}.{key}: set by {OWN_ARGUMENTS[key]}")
        elif key not in known:
            problems.append(f"{path}.{key}: no argument of TrainingArguments{nearest(key, known)}")
    return [p if len(p) < 400 else p.split(" (known")[0] for p in problems]
