"""Rows of a multiple-choice benchmark (MMBench, MMMB) as training samples.

The question is worded as the evaluation words it (`choices.py`), the answer is the letter;
`letters` in the metadata are those that the question offers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_mole.data.choices import CLOSING, LANGUAGE_ALIASES, LETTERS, lettered_question
from llava_mole.data.layouts.base import Defaults, Layout, finish
from llava_mole.data.pictures import Pictures, decode_base64
from llava_mole.data.quoting import short
from llava_mole.data.sample import IMAGE, Sample, Turn
from llava_mole.errors import DataError

_NEEDED = ("question", "A", "B", "answer", "image")
_IN_THE_TURNS = frozenset({*_NEEDED, "C", "D", "hint"})


@dataclass(frozen=True)
class MmBench(Layout):
    """Columns question, hint, A, B, C, D, answer, image (base64, or what a table holds)."""

    closing: str = "letters"
    """style of the closing line, a key of `choices.CLOSING`"""

    name = "mmbench"
    title = "MMBench"
    needs = "'question', 'A', 'B', 'answer', 'image'"

    def identity(self) -> Any:
        return [self.name, self.closing]

    def matches(self, record: Mapping[str, Any]) -> bool:
        return all(key in record for key in ("question", "A", "B", "answer"))

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        cells = {key: _text(record, key, where) for key in _IN_THE_TURNS - {"image"}}
        options = {letter: cells[letter] for letter in LETTERS if cells[letter]}
        if len(options) < 2:
            raise DataError(
                f"{where}: columns A to D: {len(options)} options, at least two are needed"
            )
        if cells["answer"] not in options:
            hidden = "" if cells["answer"] else "; are the answers of this split hidden?"
            raise DataError(
                f"{where}: column answer: {short(cells['answer'])} is none of the options "
                f"{', '.join(options)}{hidden}"
            )
        if not cells["question"]:
            raise DataError(f"{where}: column question: empty")
        language = record.get("language") or defaults.language
        if isinstance(language, str):
            language = LANGUAGE_ALIASES.get(language, language)
        if language not in CLOSING[self.closing]:
            raise DataError(
                f"{where}: 'language' is {short(language)}; options are asked for in "
                f"{', '.join(CLOSING[self.closing])}: say which, in a column language or for the "
                "whole file (in a recipe: data.sources.0.language=pt)"
            )
        asked = lettered_question(
            cells["question"],
            options,
            hint=cells["hint"],
            closing=CLOSING[self.closing][language],
        )
        if IMAGE in asked:
            raise DataError(f"{where}: {IMAGE} written out in the question or an option")
        turns = (Turn("user", f"{IMAGE}\n{asked}"), Turn("assistant", cells["answer"]))
        picture = record.get("image")
        if isinstance(picture, str):
            if len(picture.strip()) <= 64:
                raise DataError(
                    f"{where}: column image: {short(picture)} is neither a picture in base64 nor "
                    "the index of a row that holds one"
                )
            picture = decode_base64(picture, where, "image")
        rest = {key: value for key, value in record.items() if value not in ("", "NaN", "nan")}
        known = {**rest, "language": language, "letters": "".join(options)}
        return finish(
            known, turns, [picture], where, pictures, defaults,
            used=_IN_THE_TURNS, key="image",
        )  # fmt: skip


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    """A cell's text; `NaN`, as pandas writes a missing one, is empty."""
    value = record.get(key)
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"{where}: column {key}: {short(value)}; expected a text")
    text = str(value).strip()
    return "" if text in ("NaN", "nan") else text
