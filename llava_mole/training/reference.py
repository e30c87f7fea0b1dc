"""The reference of all keys of a recipe, written from the dataclasses that read it.

    python -m llava_mole.training.reference docs/recipe-reference.md

A test holds the committed page against this.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from llava_mole.building import ModelRecipe
from llava_mole.configuration import ParrotConfig, ProjectorConfig
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.methods import METHODS
from llava_mole.training.arguments import OWN_ARGUMENTS
from llava_mole.training.foreign_names import NAMES, here
from llava_mole.training.recipe import (
    DataRecipe,
    FeatureCacheRecipe,
    KeepRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
    WarmStartRecipe,
)

SECTIONS: list[tuple[str, str, type]] = [
    ("The top", "", Recipe),
    ("model", "model.", ModelRecipe),
    ("model.projector", "model.projector.", ProjectorConfig),
    ("model.parrot", "model.parrot.", ParrotConfig),
    ("model.experts", "model.experts.", MoleConfig),
    ("data", "data.", DataRecipe),
    ("data.sources", "data.sources.N.", SourceRecipe),
    ("data.sources.N.keep", "data.sources.N.keep.", KeepRecipe),
    ("data.feature_cache", "data.feature_cache.", FeatureCacheRecipe),
    ("stages", "stages.N.", StageRecipe),
    ("stages.N.warm_start", "stages.N.warm_start.", WarmStartRecipe),
]

HEAD = """\
# Every key of a recipe

Written by `python -m llava_mole.training.reference docs/recipe-reference.md`; do not edit.

A recipe is one YAML file; `llava-mole train --config FILE --dry-run` says everything that is wrong
with it at once. On the command line a key is its dotted path: `stages.instruct.steps=50`, where a
list's entry goes by its number or its `name`. Recipes with a comment on each knob are in
`configs/`.
"""
FREE = """
## Sections with another library's keys

| section | keys |
|---|---|
| `training`, `stages.N.training` | `transformers.TrainingArguments`, by their own names |
| `model.lora` | `peft.LoraConfig`: `r`, `lora_alpha`, `target_modules`, … |
| `model.quantization` | `transformers.BitsAndBytesConfig`: `load_in_4bit`, … |

Of TrainingArguments these are set elsewhere, and refused in `training`:

| key | say |
|---|---|
"""
PUSH = """
`push_to_hub`, `hub_model_id`, `hub_private_repo`, `hub_strategy` (`end` or `every_save`),
`hub_revision` and `hub_always_push` push the run's model folder, as `save_pretrained` writes it; a
login is `hf auth login` or `HF_TOKEN`. `report_to` takes transformers' names; a package that is
missing is told before anything is read.
"""
FOREIGN = """
## What other programs call it

A recipe that holds one of these names is answered with this table's line, and a whole file of
LLaMA-Factory, ms-swift, Axolotl or LLaVA (its shell script too), given to
`llava-mole train --config FILE`, with all of its lines and a sketch of the recipe.

| name | whose | here |
|---|---|---|
"""


def docstrings(cls: type) -> dict[str, str]:
    """Field -> the text below it, for a dataclass and those it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for line, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[line.target.id] = " ".join(str(after.value.value).split())
    return found


def type_name(hint: Any) -> str:
    names = {int: "whole number", float: "number", bool: "true or false", str: "text",
             type(None): "null", Any: "anything"}  # fmt: skip
    if hint in names:
        return names[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(type_name(arg) for arg in args))
    if origin in (list, tuple):
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"mapping to {type_name(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return str(hint)


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "**needed**"
    if dataclasses.is_dataclass(value):
        return "its own"
    written = {None: "null", True: "true", False: "false"}
    return f"`{written[value] if value is None or isinstance(value, bool) else value}`"


def limits(field: dataclasses.Field[Any]) -> str:
    said = {"min": "at least {}", "above": "above {}", "max": "at most {}"}
    found = [said[k].format(v) for k, v in field.metadata.items() if k in said]
    if "choices" in field.metadata:
        found.append(" | ".join(field.metadata["choices"]))
    return ", ".join(found)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def rows(prefix: str, cls: type, *, without: frozenset[str] = frozenset()) -> list[str]:
    texts, hints = docstrings(cls), typing.get_type_hints(cls)
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        about = ". ".join(filter(None, [limits(field), texts.get(field.name, "")]))
        kind = type_name(hints[field.name])
        key = f"`{prefix}{field.name}`"
        lines.append(f"| {key} | {kind} | {cell(default_of(field))} | {cell(about)} |")
    return lines


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, prefix, cls in SECTIONS:
        lines += [f"## {title}", "", *rows(prefix, cls), ""]
        if cls is MoleConfig:
            base = frozenset(field.name for field in dataclasses.fields(MoleConfig))
            lines += ["`method` chooses one; docs/mole.md tells them apart. Each has keys of its "
                      "own:", ""]  # fmt: skip
            for name, method in METHODS.items():
                if {field.name for field in dataclasses.fields(method)} - base:
                    lines += [f"### method: {name}", "", *rows(prefix, method, without=base), ""]
    lines = ["\n".join(lines).rstrip() + "\n", FREE.rstrip("\n")]
    lines += [f"| `{key}` | {cell(say)} |" for key, say in OWN_ARGUMENTS.items()]
    lines += [PUSH.rstrip("\n"), FOREIGN.rstrip("\n")]
    for name, foreign in sorted(NAMES.items()):
        whose = ", ".join(foreign.whose) or "transformers"
        lines.append(f"| `{name}` | {whose} | {cell(here(foreign))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
