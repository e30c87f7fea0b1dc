"""docs/recipe-reference.md: every key, as the code has it now."""

import dataclasses
import typing
from pathlib import Path

import pytest

from llava_mole.training.foreign_names import NAMES
from llava_mole.training.reference import SECTIONS, docstrings, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe-reference.md"


def test_the_committed_page_is_current() -> None:
    command = "python -m llava_mole.training.reference docs/recipe-reference.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), f"run: {command}"


@pytest.mark.parametrize(("title", "prefix", "cls"), SECTIONS)
def test_every_key_is_told_what_it_is_for(title: str, prefix: str, cls: type) -> None:
    texts = docstrings(cls)
    for field in dataclasses.fields(cls):
        assert texts.get(field.name), f"{prefix}{field.name}"
        assert f"| `{prefix}{field.name}` |" in reference()


def test_every_section_of_a_recipe_is_in_the_page() -> None:
    """Found by walking from the recipe's class, so that a new section is not forgotten."""
    known = {cls for _, _, cls in SECTIONS}
    seen, waiting = (
        set(),
        [known_class for known_class in known if known_class.__name__ == "Recipe"],
    )
    while waiting:
        cls = waiting.pop()
        seen.add(cls)
        for hint in resolved(cls):
            if dataclasses.is_dataclass(hint) and hint not in seen:
                waiting.append(hint)
    assert seen == known


def resolved(cls: type) -> list[type]:
    found: list[type] = []
    for hint in typing.get_type_hints(cls).values():
        found += [hint, *typing.get_args(hint)]
    return found


def test_every_foreign_name_is_in_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in NAMES:
        assert f"| `{name}` |" in text
