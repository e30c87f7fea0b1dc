"""Answerer: the few things that evaluation asks of a model, whoever made it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llava_mole.errors import ConfigError
from llava_mole.evaluation.asks import Unit


@dataclass(frozen=True)
class Reply:
    """What came back for one ask.

    Attributes:
        text: the reply, stripped of the chat format; the chosen option's letter where options were
            scored instead.
        scores: letter -> natural-log likelihood, where options or letters were scored; see
            `Protocol.answer`.
        finished: the model ended its reply itself, before max_new_tokens.
    """

    text: str
    scores: dict[str, float] | None = None
    finished: bool = True


class Answerer(Protocol):
    """A model under evaluation. `rows_per_batch` is the plan's business, not its own."""

    answers: frozenset[str]
    """Which of `protocol.ANSWERS` it can give."""

    mixes: bool = False
    """Units of unequal length may share a batch: it computes the lengths apart by itself."""

    def describe(self) -> dict[str, Any]:
        """What identifies it in a result: name, weights' hash, dtype, versions of what it runs on.
        Equal descriptions give equal replies to equal plans."""

    def lengths(self, units: Sequence[Unit]) -> list[Hashable]:
        """Per unit, what must be equal in a batch; sortable, the longest last. Raises DataError
        for a prompt that does not fit."""

    def prepare(self, batches: Iterable[Sequence[Unit]]) -> None:
        """Told once, before the first batch: what will be asked, in order. Replies must not depend
        on it."""
        return

    def answer(self, units: Sequence[Unit]) -> list[list[Reply]]:
        """Replies of one batch, by unit and pass."""


def require(answers: frozenset[str], wanted: str, name: str) -> None:
    """Raises ConfigError where a model cannot answer in the protocol's way."""
    if wanted not in answers:
        raise ConfigError(
            f"answer={wanted}: {name} can answer by {', '.join(sorted(answers))} only"
        )
