"""Talk: what a person and the models have said on the page; what of it a model is given.

An exchange is one question and the answer of each model beside the others. All of it is immutable:
the page keeps a tuple of exchanges per visitor, and nothing else remembers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_mole.data.images import pixels_of
from llava_mole.errors import DataError
from llava_mole.inspection.language import likeliest
from llava_mole.languages import LANGUAGE_NAMES
from llava_mole.serving.limits import Limits

WHAT_IS_THIS = {
    "en": "What is this?",
    "zh": "这是什么？",
    "pt": "O que é isto?",
    "ar": "ما هذا؟",
    "tr": "Bu nedir?",
    "ru": "Что это?",
}
"""Asked where somebody sends a picture and says nothing, and what Parrot reads pictures for where
another language than the question's is chosen."""


@dataclass(frozen=True)
class Question:
    """What a person asked.

    Attributes:
        text: their words.
        pictures: files that came with it.
        detected: its language by its words; None for one without letters.
        chosen: the language it was declared to be in; None to go by the words.
    """

    text: str
    pictures: tuple[Path, ...] = ()
    detected: str | None = None
    chosen: str | None = None

    @property
    def language(self) -> str | None:
        return self.chosen or self.detected

    @property
    def steering(self) -> str | None:
        """What Parrot reads the pictures for, where it is not the question's own words."""
        return WHAT_IS_THIS[self.chosen] if self.chosen not in (None, self.detected) else None


@dataclass(frozen=True)
class Answer:
    """What a model said to it, as far as it has come.

    Attributes:
        text: so far.
        state: "waiting", "writing", and then a `Generation`'s finish reason.
        position: how many are before it, while it waits.
        problem: what went wrong, in words for a person.
        tokens, first, seconds: written; time to the first one and in all.
    """

    text: str = ""
    state: str = "waiting"
    position: int = 0
    problem: str = ""
    tokens: int = 0
    first: float | None = None
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "writing")


@dataclass(frozen=True)
class Exchange:
    """A question, and an answer of each model."""

    question: Question
    answers: tuple[Answer, ...]


Talk = tuple[Exchange, ...]


def question_of(text: str, pictures: Sequence[Path | str], chosen: str | None) -> Question | None:
    """A question as it was typed; None if there is nothing to answer.

    Args:
        chosen: a language's code, or None.
    """
    # Half of a surrogate pair is in no text that a tokenizer takes.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not text.strip():
        if not pictures:
            return None
        text = WHAT_IS_THIS[chosen or "en"]
    return Question(text.strip(), tuple(Path(p) for p in pictures), likeliest(text), chosen)


def messages_of(talk: Talk, question: Question, model: int, limits: Limits) -> list[dict[str, Any]]:
    """The conversation as one model is given it; pictures are looked at, not decoded yet.

    A question that this model could not answer is left out together with what went wrong.

    Args:
        talk: what was said before.
        model: which of the answers is its own.

    Raises:
        DataError: too many turns or pictures, or a picture that cannot be used.
    """
    kept = [one for one in talk if one.answers[model].state != "error"]
    if 2 * len(kept) + 1 > limits.turns:
        raise DataError(
            f"the conversation has {2 * len(kept)} turns, at most {limits.turns} are taken: "
            "start a new one"
        )
    asked = [*(one.question for one in kept), question]
    check_pictures([path for one in asked for path in one.pictures], limits)
    messages: list[dict[str, Any]] = []
    for number, one in enumerate(asked):
        parts: list[dict[str, Any]] = [{"type": "image", "image": path} for path in one.pictures]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": one.text}]})
        if number < len(kept):
            said = kept[number].answers[model].text
            messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return messages


def check_pictures(paths: Sequence[Path], limits: Limits) -> None:
    """Raises DataError for too many pictures or pixels, by the pictures' headers."""
    if len(paths) > limits.pictures:
        raise DataError(
            f"{len(paths)} pictures in the conversation, at most {limits.pictures} are taken"
        )
    total = 0
    for path in paths:
        pixels = pixels_of(path)
        total += pixels
        if pixels > limits.pixels:
            raise DataError(
                f"image '{path.name}': {pixels:,} pixels, at most {limits.pixels:,} are accepted; "
                "scale it down"
            )
    if total > limits.all_pixels:
        raise DataError(
            f"{total:,} pixels in all pictures of the conversation, at most {limits.all_pixels:,} "
            "are taken; scale them down, or start a new conversation"
        )


def without_folders(text: str, paths: Iterable[Path]) -> str:
    """An error's words with pictures as their owner knows them, not where the server keeps them."""
    for path in paths:
        text = text.replace(str(path), path.name)
    return text


def language_line(question: Question | None) -> str:
    """What the page says of a question's language."""
    if question is None or question.language is None:
        return "Language of the question"
    name = LANGUAGE_NAMES[question.language]
    if question.chosen is None:
        return f"Language of the question: {name} (detected)"
    if question.steering is None or question.detected is None:
        return f"Language of the question: {name}"
    found = LANGUAGE_NAMES[question.detected]
    return f"Language of the question: {name} (its words: {found})"
