"""YAML files and overrides: text to mappings, before anything is known of what they mean.

Imports nothing heavy, so that a missing file or a broken one is told at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from llava_mole.errors import ConfigError


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
        if path.suffix in (".sh", ".bash"):  # of another program: `--name value`
            return flags(path.read_text(encoding="utf-8"))
        values = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no mapping; a recipe starts with output_dir, model, data, a sweep file "
            "with base, arms, seeds"
        )
    return values


def flags(text: str) -> dict[str, Any]:
    """`--name value` of a shell script, values as YAML reads them."""
    found: dict[str, Any] = {}
    plain = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE))
    for name, value in re.findall(
        r"(?:^|\s)--([\w-]+)(?:[ =]+(?!--)(\"[^\"]*\"|'[^']*'|\S+))?", plain
    ):
        key = name.replace("-", "_")
        found[key] = yaml.safe_load(value) if value else True
    return found


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


def stem(path: str) -> str:
    """train of DIR/train.json, NAME of DIR/dataset_info.json:NAME."""
    head, _, selector = path.rpartition(":")
    return selector if head.endswith("dataset_info.json") else Path(path).stem


def counted(problems: Sequence[str]) -> str:
    return "one problem" if len(problems) == 1 else f"{len(problems)} problems"


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
