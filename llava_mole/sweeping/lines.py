"""In which line of a YAML file a key stands, so that a problem can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

KEY = re.compile(r"[^:=\s]+")
"""The dotted key at the beginning of a problem."""


def key_lines(path: Path) -> dict[str, int]:
    """Dotted key -> line, from 1; of a list's entries by their number."""
    found: dict[str, int] = {}

    def walk(node: yaml.Node | None, at: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{at}.{key.value}" if at else str(key.value)
                found[name] = key.start_mark.line + 1
                walk(value, name)
        elif isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                found[f"{at}.{number}"] = entry.start_mark.line + 1
                walk(entry, f"{at}.{number}")

    walk(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), "")
    return found


def with_line(path: Path, problem: str, lines: Mapping[str, int]) -> str:
    """`FILE:LINE: problem`, where the key that it begins with, or what holds it, stands there."""
    match = KEY.match(problem)
    key = match[0] if match else ""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{path.name}:{lines[key]}: {problem}" if key else problem
