"""Layouts of question-answer pairs: ms-swift's query/response, alpaca, nanoVLM's images + texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from llava_mole.data.layouts.messages import NOT_READ, Messages, side_key
from llava_mole.data.pictures import Pictures
from llava_mole.data.quoting import short
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import DataError


class Swift(Messages):
    """ms-swift: `messages`, or `query`, `response`, `history` [[q, a]], `system`, `images`.

    Pictures stand at the literal `<image>`; where there is none, before the first user turn.
    """

    name = "swift"
    title = "ms-swift"
    needs = "'query' and 'response' ('history', 'system', 'images'), or 'messages'"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return "messages" in record or ("query" in record and "response" in record)

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        if "messages" in record:
            return super().sample(record, where, pictures, defaults)
        refuse(record, NOT_READ, where)
        turns = _system(record, "system", where) + _history(record, "history", where)
        turns.append(Turn("user", text_of(record, "query", where)))
        turns.append(Turn("assistant", text_of(record, "response", where)))
        key = side_key(record, where)
        names = list_of(record, key)
        used = {"query", "response", "history", "system", "image", "images"}
        turns = list(pictures_first(turns, len(names)))
        return finish(record, turns, names, where, pictures, defaults, used=used, key=key)


@dataclass(frozen=True)
class Alpaca(Layout):
    """`instruction`, `input`, `output`, `history` [[q, a]], `system`, `images`.

    Keys may be renamed by LLaMA-Factory's dataset_info.json. Question and input stand on separate
    lines, as LLaMA-Factory joins them; pictures at the literal `<image>`.
    """

    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str | None = "history"
    system: str | None = "system"
    images: str = "images"

    name = "alpaca"
    title = "alpaca"

    @property
    def needs(self) -> str:  # type: ignore[override]
        return f"'{self.prompt}' and '{self.response}', '{self.images}' for its pictures"

    def identity(self) -> Any:
        return [self.name, *self._keys()]

    def _keys(self) -> tuple[str | None, ...]:
        return self.prompt, self.query, self.response, self.history, self.system, self.images

    def matches(self, record: Mapping[str, Any]) -> bool:
        return self.prompt in record and self.response in record

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        refuse(record, UNSUPPORTED, where)
        turns = _system(record, self.system, where) + _history(record, self.history, where)
        asked = [text_of(record, key, where, default="") for key in (self.prompt, self.query)]
        if not any(asked):
            raise DataError(f"{where}: '{self.prompt}' and '{self.query}' are empty; no question")
        turns.append(Turn("user", "\n".join(text for text in asked if text)))
        turns.append(Turn("assistant", text_of(record, self.response, where)))
        names = list_of(record, self.images)
        used = {key for key in self._keys() if key}
        return finish(record, turns, names, where, pictures, defaults, used=used, key=self.images)


class NanoVlm(Layout):
    """nanoVLM (The Cauldron, FineVision): `images` and `texts` [{user, assistant}].

    Pictures stand before the first question, as nanoVLM puts them, unless the text shows them.
    """

    name = "nanovlm"
    title = "nanoVLM"
    needs = "'texts' [{'user', 'assistant'}], 'images' for its pictures"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return "texts" in record

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        refuse(record, UNSUPPORTED, where)
        said = record.get("texts")
        if not isinstance(said, list) or not said:
            raise DataError(
                f"{where}: 'texts' is {short(said)}; expected a list of {{'user', 'assistant'}}"
            )
        turns: list[Turn] = []
        for number, pair in enumerate(said, 1):
            place = f"{where}: text {number}"
            if not isinstance(pair, dict):
                raise DataError(f"{place}: expected {{'user', 'assistant'}}, found {short(pair)}")
            turns.append(Turn("user", text_of(pair, "user", place)))
            turns.append(Turn("assistant", text_of(pair, "assistant", place)))
        names = list_of(record, "images")
        shown = pictures_first(turns, len(names))
        used = {"texts", "images"}
        return finish(record, shown, names, where, pictures, defaults, used=used, key="images")


def _system(record: Mapping[str, Any], key: str | None, where: str) -> list[Turn]:
    text = text_of(record, key, where, default="") if key else ""
    return [Turn("system", text)] if text else []


def _history(record: Mapping[str, Any], key: str | None, where: str) -> list[Turn]:
    """Earlier turns, [[question, answer], …]."""
    value = record.get(key) if key else None
    pairs = [] if value is None else value
    turns: list[Turn] = []
    if not isinstance(pairs, list):
        raise DataError(f"{where}: '{key}' is {short(pairs)}; expected [[question, answer], …]")
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise DataError(
                f"{where}: '{key}' holds {short(pair)}; expected a question and an answer"
            )
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns
