"""Mapping to recipe: every problem found at once, before any weight is loaded.

Each problem names the key as a dotted path, the value, what is allowed, and the nearest match.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, get_args, get_origin

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig
from llava_mole.mole.methods import METHODS, method_class
from llava_mole.nearest import nearest
from llava_mole.training.checks import check_mixture, cross_checks, inherit
from llava_mole.training.foreign_files import ARGUMENTS, explain, whose
from llava_mole.training.foreign_names import translation
from llava_mole.training.reading import (
    apply_override,
    beside,
    counted,
    join,
    read_mapping,
)
from llava_mole.training.recipe import DataRecipe, Recipe, StageRecipe


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
    owner = whose(values)
    if owner is not None:
        raise ConfigError(explain(values, path, owner))
    problems: list[str] = []
    read_mixtures(values, path)
    for override in overrides:
        apply_override(values, override, problems)
    read_mixtures(values, path)  # those that an override names
    recipe = build(Recipe, values, "", problems)
    if recipe is not None:
        problems += inherit(recipe)
        problems += cross_checks(recipe)
    if problems:
        raise ConfigError(f"{path}: {counted(problems)}\n" + "\n".join(f"  {p}" for p in problems))
    assert recipe is not None
    return recipe


def read_mixtures(values: dict[str, Any], recipe: Path) -> None:
    """Put what a mixture file holds in the place of its name: the recipe's, and its stages'."""
    stages = values.get("stages")
    for holder in [values, *(stages if isinstance(stages, list) else [])]:
        if isinstance(holder, dict) and isinstance(holder.get("data"), str):
            holder["data"] = read_mapping(beside(holder["data"], recipe), "data")


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


def foreign(cls: type, key: str) -> str:
    """What another program's name is here."""
    found = translation(key)
    if found is None and cls in (Recipe, StageRecipe) and key in ARGUMENTS:
        found = "transformers.TrainingArguments'; write it under training:"
    return f", {found}" if found else ""


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
            hint = other_methods(cls, str(key), path) or foreign(cls, str(key))
            hint = hint or nearest(str(key), list(fields))
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
