"""How an item is asked: the exact text of the question, and what is scored as its answer.

- `answers`: the question alone; each option's full text is scored as the answer. Nothing in the
  prompt tells the options, so this asks what the model knows.
- `letters`: question, one option a line under its letter, a short closing line; letters are scored.
- `parrot`: as `letters`, with the closing line that Parrot's evaluation uses in each language
  (VLMEvalKit, `vlmeval/vlm/parrot.py`), and the item's hint before the question.
"""

from __future__ import annotations

from llava_mole.data.choices import CLOSING, lettered_question
from llava_mole.errors import ConfigError
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.scoring import Picture, Query

STYLES = ("answers", "letters", "parrot")


def style_of(kind: str) -> str:
    """How the OpenMoji dataset's kinds are asked: `choice` by letter, all others by full answer."""
    return "letters" if kind == "choice" else "answers"


def ask(item: Item, style: str, image: Picture | None) -> Query:
    """The query of an item; its options in the order of their letters.

    Args:
        style: one of STYLES.
        image: the picture to show; None withholds it.

    Raises:
        ConfigError: unknown style.
    """
    if style not in STYLES:
        raise ConfigError(f"prompt style {style!r}: allowed are {', '.join(STYLES)}")
    if style == "answers":
        lines = [item.hint] if item.hint else []
        question = "\n".join([*lines, item.question])
        return Query(question, tuple(item.options.values()), image, item.language)
    closing = CLOSING[style][item.language]
    question = lettered_question(item.question, item.options, hint=item.hint, closing=closing)
    return Query(question, tuple(item.options), image, item.language)
