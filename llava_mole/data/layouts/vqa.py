"""Question-answer tables: the columns most VQA sets have where they are published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_mole.data.layouts.base import (
    Defaults,
    Layout,
    finish,
    list_of,
    pictures_first,
    refuse,
    text_of,
)
from llava_mole.data.layouts.llava import UNSUPPORTED
from llava_mole.data.layouts.messages import side_key
from llava_mole.data.pictures import Pictures, decode_base64
from llava_mole.data.quoting import short
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import DataError

QUESTIONS = (("question",), ("query",), ("instruction", "inputs"))
"""Columns of a question; several are joined by a line break."""
ANSWERS = ("answer", "answers", "label", "outputs")
BASE64 = "image_base64_str"
NOT_READ = {
    **UNSUPPORTED,
    "choices": "options are not read in this layout; write them into the question",
    "options": "options are not read in this layout; write them into the question",
}


class Vqa(Layout):
    """`question` and `answer` (PathVQA), `answers` (DocVQA), `query` and `label` (ChartQA), or
    `instruction`, `inputs` and `outputs` (M3IT), with `image`, `images` or `image_base64_str`.

    Of several accepted answers the first is learnt. Pictures stand before the question unless the
    text shows them.
    """

    name = "vqa"
    title = "VQA table"
    needs = "'question' and 'answer' (or 'query', 'label'; 'instruction', 'outputs'), 'image'"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return _asked(record) is not None and _answered(record) is not None

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        refuse(record, NOT_READ, where)
        asked, answered = _asked(record), _answered(record)
        if asked is None or answered is None:
            raise DataError(f"{where}: no question and answer; expected {self.needs}")
        texts = [text_of(record, key, where, default="") for key in asked]
        question = "\n".join(text for text in texts if text)
        if not question:
            raise DataError(f"{where}: {' and '.join(map(repr, asked))} empty; no question")
        names = _pictures(record, where)
        turns = (Turn("user", question), Turn("assistant", _first_answer(record, answered, where)))
        shown = pictures_first(turns, len(names))
        key = BASE64 if record.get(BASE64) else side_key(record, where)
        used = {*asked, answered, key}
        return finish(record, shown, names, where, pictures, defaults, used=used, key=key)


def _asked(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    return next((keys for keys in QUESTIONS if keys[0] in record), None)


def _answered(record: Mapping[str, Any]) -> str | None:
    return next((key for key in ANSWERS if key in record), None)


def _first_answer(record: Mapping[str, Any], key: str, where: str) -> str:
    said = record[key]
    if isinstance(said, list):
        if not said or not isinstance(said[0], str):
            raise DataError(f"{where}: '{key}' is {short(said)}; expected texts")
        return said[0]
    return text_of(record, key, where)


def _pictures(record: Mapping[str, Any], where: str) -> list[Any]:
    inside = list_of(record, BASE64)
    named = list_of(record, side_key(record, where))
    if inside and named:
        raise DataError(f"{where}: pictures in '{BASE64}' and in 'image'; expected one of the two")
    for text in inside:
        if not isinstance(text, str):
            raise DataError(f"{where}: '{BASE64}' holds {short(text)}; expected base64 text")
    return named or [decode_base64(text, where, BASE64) for text in inside]
