"""Baselines that do not look: a uniform draw, and the answer that is right most often."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from llava_mole.errors import ConfigError
from llava_mole.evaluation.asks import Unit
from llava_mole.evaluation.models.base import Answerer, Reply

SEED = 0


class RandomBaseline(Answerer):
    """An option drawn uniformly for each pass, by a hash of its place: the same at every run."""

    answers = frozenset({"generate", "letters", "options"})

    def describe(self) -> dict[str, Any]:
        return {"kind": "baseline", "name": "random", "seed": SEED}

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        return [0] * len(units)

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        return [
            [Reply(self._draw(f"{ask.group} {ask.turn}", ask.scored)) for ask in unit.asks]
            for unit in units
        ]

    def _draw(self, place: str, letters: Sequence[str]) -> str:
        if not letters:
            raise ConfigError("model random: these answers are texts, there is no option to draw")
        number = int.from_bytes(hashlib.sha256(f"{SEED} {place}".encode()).digest()[:8], "big")
        return letters[number % len(letters)]


class MajorityBaseline(Answerer):
    """Always the answer that is right most often, by language: the letter, or for texts the text.

    Args:
        units: all questions; their answers are counted. This is the best that can be had from
            knowing how often each answer is right, and knowing nothing of the question.
    """

    answers = frozenset({"generate", "letters", "options"})

    def __init__(self, units: Sequence[Unit]) -> None:
        counts: dict[str, Counter[str]] = {}
        for ask in (ask for unit in units for ask in unit.asks):
            texts = [ask.item.answer] if ask.item.answer else list(ask.item.answers[:1])
            counts.setdefault(ask.item.language, Counter()).update(texts)
        empty = sorted(language for language, count in counts.items() if not count)
        if empty:
            raise ConfigError(f"model majority: the answers in {', '.join(empty)} are hidden")
        self.most = {
            language: max(sorted(count), key=count.__getitem__)
            for language, count in counts.items()
        }

    def describe(self) -> dict[str, Any]:
        return {"kind": "baseline", "name": "majority", "answers": self.most}

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        return [0] * len(units)

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        return [[Reply(self.most[ask.item.language]) for ask in unit.asks] for unit in units]
