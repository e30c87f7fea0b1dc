"""Question text without what differs from copy to copy: case, width, punctuation, digit shapes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_LETTER = re.compile(r"^\s*\(?[A-Ha-h][.):]\s+")
_END = re.compile(r"[\n.?!。？！؟:：;；(（]+")
"""Where a question may end in other text."""
START = 5
"""Words by which a question is looked up, its first ones."""
OPEN_WORDS = 6
OPEN_CHARACTERS = 12
"""A question without options is taken for the benchmark's own from so many words, or characters of
a script without spaces; shorter ones are everyone's."""


def normalised(text: str) -> str:
    """NFKC, case folded; digits of any script as 0 to 9; everything that is neither letter, mark
    nor number is one space; none at the ends.

    Invisible characters and Arabic's lengthening stroke go without a trace.
    """
    out = []
    for c in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(c)
        if kind == "Cf" or c == "ـ":
            continue
        if kind == "Nd":
            out.append(str(unicodedata.digit(c)))
        else:
            out.append(c if kind[0] in "LMN" else " ")
    return " ".join("".join(out).split())


@dataclass(frozen=True)
class Asked:
    """A question of a benchmark, normalised, and where it is asked.

    Attributes:
        options: sorted.
        rows: numbers of the benchmark's rows.
    """

    question: str
    options: tuple[str, ...]
    rows: list[int] = field(default_factory=list)

    def is_particular(self) -> bool:
        """Whether its words alone say that it is this benchmark's."""
        if self.options:
            return True
        if any(unicodedata.east_asian_width(c) == "W" for c in self.question):
            return len(self.question) >= OPEN_CHARACTERS
        return len(self.question.split()) >= OPEN_WORDS


class Wordings:
    """Finds the questions of a benchmark in other text."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._known: dict[tuple[str, tuple[str, ...]], int] = {}
        self._by_start: dict[tuple[str, ...], list[int]] = {}
        self._lengths: set[int] = set()

    def add(self, row: int, question: str, options: Mapping[str, str] | Sequence[str]) -> None:
        """One row; options by letter or in order."""
        texts = options.values() if isinstance(options, Mapping) else options
        key = normalised(question), tuple(sorted(filter(None, map(normalised, texts))))
        if not key[0]:
            return
        number = self._known.setdefault(key, len(self.asked))
        if number == len(self.asked):
            self.asked.append(Asked(*key))
            start = tuple(key[0].split()[:START])
            self._lengths.add(len(start))
            self._by_start.setdefault(start, []).append(number)
        self.asked[number].rows.append(row)

    def find(self, text: str) -> tuple[list[int], list[str]]:
        """Questions that a user turn asks, wherever in it they stand.

        Args:
            text: without `<image>`, which normalises to a word.

        Returns:
            Places in `asked` of questions that stand there with all their options (or are
            `particular` without any); and those questions, each once, that stand there with other
            options or none.
        """
        whole = f" {normalised(text)} "
        lines = " ".join(normalised(_LETTER.sub("", line)) for line in text.split("\n"))
        lettered = f" {lines} "
        exact: list[int] = []
        worded: dict[str, None] = {}
        for number in self._standing_in(text):
            asked = self.asked[number]
            complete = all(f" {o} " in whole or f" {o} " in lettered for o in asked.options)
            if complete and asked.is_particular():
                exact.append(number)
            else:
                worded[asked.question] = None
        taken = {self.asked[number].question for number in exact}
        return exact, [question for question in worded if question not in taken]

    def _standing_in(self, text: str) -> dict[int, None]:
        """Places in `asked`, each once, of questions that stand in the text up to an end."""
        words: list[str] = []
        ends = set()
        for part in _END.split(text):
            words += normalised(part).split()
            ends.add(len(words))
        found: dict[int, None] = {}
        for place in range(len(words)):
            for length in self._lengths:
                for number in self._by_start.get(tuple(words[place : place + length]), ()):
                    question = self.asked[number].question.split()
                    end = place + len(question)
                    if end in ends and words[place:end] == question:
                        found[number] = None
        return found
