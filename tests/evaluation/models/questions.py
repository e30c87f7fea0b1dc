"""Questions for models under test: two to four passes each, pictures of noise."""

import io
from collections.abc import Sequence

from llava_mole.evaluation.asks import Unit, make_units
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.protocol import Protocol
from tests import helpers

ASKED = (
    ("What is this?", ("cat", "red apple", "tree"), (24, 24)),
    ("What is that?", ("sun", "cat", "blue car"), (24, 24)),
    ("ما هذا؟", ("شجرة", "قطة"), (40, 24)),
    ("How many are there in it?", ("1", "two", "none"), (24, 24)),
)
LETTERS = Protocol(passes="circular_generated", style="letters")


def item(number: int, question: str, options: Sequence[str], size: tuple[int, int]) -> Item:
    file = io.BytesIO()
    helpers.picture(number, 40).resize(size).save(file, "PNG")
    letters = dict(zip("ABCD", options, strict=False))
    return Item(
        index=str(number), question=question, hint="", options=letters, answer="A", category="",
        language="en", image=file.getvalue(), picture=str(number), split="", comment="", tags={},
        source=f"some.tsv:{number + 2}", file="some.tsv",
    )  # fmt: skip


def units(protocol: Protocol = LETTERS) -> list[Unit]:
    return make_units([item(number, *asked) for number, asked in enumerate(ASKED)], protocol)
