"""docs/templates.md says what the code does: every format, its picture of the mask, the example."""

import re
from pathlib import Path

import pytest

from llava_mole.mask_view import show_mask
from llava_mole.templates import EXAMPLE, TEMPLATES
from tests.helpers import assistant, picture, user
from tests.test_templates import processor
from tests.tokenizers import llama2

PAGE = Path(__file__).parent.parent / "docs" / "templates.md"
CHAT = [user("What is it?", picture()), assistant("A cat."), user("Sure?"), assistant("Yes.")]


def shown(name: str) -> str:
    made = processor(name)
    made.tokens_per_image = 576
    return show_mask(made, CHAT[:2] if name == "plain" else CHAT)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_page_lists_the_format_and_shows_its_mask(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"| `{name}` |" in page
    blocks = dict(re.findall(r"\*\*(\w+)\*\*\n\n```text\n(.*?)\n```\n", page, re.DOTALL))
    assert blocks[name] == shown(name)


def test_the_pages_example_is_the_one_that_errors_show() -> None:
    assert EXAMPLE in PAGE.read_text(encoding="utf-8")


def test_a_mask_is_shown_as_the_labels_have_it() -> None:
    made = processor("vicuna_v1", llama2())
    labels = made.encode(CHAT).labels
    assert show_mask(made, CHAT).count("⟦") == 2
    assert show_mask(made, CHAT, brackets=("[", "]")).endswith("ASSISTANT:[ Yes.</s>]")
    said = [label for label in labels if label >= 0]
    assert made.decode(said) == "A cat.</s> Yes.</s>"


def test_a_prompt_shows_nothing_learnt() -> None:
    text = show_mask(processor("chatml"), CHAT[:1], add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    assert "⟦" not in text
