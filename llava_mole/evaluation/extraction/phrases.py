"""Which languages' words a reply is read with, made ready once per language.

A reply is read with its language's words, with English ones (models fall back to it) and with
those of all other scripts, which can't be confused with its own. Portuguese and Turkish share a
script with English and with each other: each is read for its own prompts alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from llava_mole.evaluation.extraction.words import Words, entries, places, source
from llava_mole.evaluation.extraction.words_ar import ARABIC_WORDS
from llava_mole.evaluation.extraction.words_en import ENGLISH
from llava_mole.evaluation.extraction.words_pt import PORTUGUESE
from llava_mole.evaluation.extraction.words_ru import RUSSIAN
from llava_mole.evaluation.extraction.words_tr import TURKISH
from llava_mole.evaluation.extraction.words_zh import CHINESE

_OTHER_SCRIPTS = CHINESE + ARABIC_WORDS + RUSSIAN
_NOT_ENGLISH = {"pt": "no|as|o|so|a|me|do", "tr": "at|on|in|an|o|of|to|a|as|but"}
"""English words that are others in these languages."""
_LATIN = {"pt": PORTUGUESE, "tr": TURKISH}


@dataclass(frozen=True)
class Neighbours:
    """Words that may stand beside a letter: whole words, and Chinese character strings."""

    words: frozenset[str]
    starts: tuple[str, ...]
    chinese: tuple[str, ...]

    def has(self, word: str) -> bool:
        return word in self.words or (bool(self.starts) and word.startswith(self.starts))


@dataclass(frozen=True)
class Phrases:
    """Patterns over folded text, word sets and tables of one language; names as in `Words`."""

    answer: re.Pattern[str]
    option: re.Pattern[str]
    negation: re.Pattern[str]
    rejection: re.Pattern[str]
    but: re.Pattern[str]
    because: re.Pattern[str]
    also: re.Pattern[str]
    therefore: re.Pattern[str]
    correction: re.Pattern[str]
    aside: re.Pattern[str]
    condition: re.Pattern[str]
    discussion: re.Pattern[str]
    refusal: re.Pattern[str]
    harmless: re.Pattern[str]
    joint: re.Pattern[str]
    perhaps: re.Pattern[str]
    likewise: re.Pattern[str]
    none: re.Pattern[str]
    every: re.Pattern[str]
    instead: re.Pattern[str]
    total: re.Pattern[str]
    extreme: re.Pattern[str]
    shown: re.Pattern[str]
    that_is: re.Pattern[str]
    any: re.Pattern[str]
    picture: re.Pattern[str]
    before: Neighbours
    after: Neighbours
    articles: frozenset[str]
    prepositions: frozenset[str]
    ordinals: dict[str, int]
    numbers: dict[str, int]
    yes: frozenset[str]
    no: frozenset[str]
    words: Words


_TENS = (*range(30, 101, 10), 1000, *range(200, 901, 100))
_GAP = r"[\s,，،、/&|)\]}>\"'”»」（(\[.:-]*"

_PATTERNS = (
    *("answer", "option", "negation", "rejection", "but", "because", "also", "therefore"),
    *(
        "correction",
        "aside",
        "condition",
        "discussion",
        "refusal",
        "harmless",
        "likewise",
        "perhaps",
    ),
    *("none", "every", "instead", "total", "extreme", "shown", "that_is", "any", "picture"),
)


@lru_cache(maxsize=16)
def phrases(language: str) -> Phrases:
    """The phrases for replies to prompts in a language; any other code reads as English."""
    words = ENGLISH.without(_NOT_ENGLISH.get(language, "")) + _OTHER_SCRIPTS
    if language in _LATIN:
        words = _LATIN[language] + words
    patterns = {name: re.compile(source(getattr(words, name))) for name in _PATTERNS}
    articles = entries(words.article)
    return Phrases(
        **patterns,
        joint=re.compile(
            rf"{_GAP}(?:{source(words.also)}{_GAP})?(?:{source(words.option)}{_GAP})?"
            rf"(?:(?:the|a|o|as?)\s)?{_GAP}"
        ),
        before=_neighbours(words.before + "|" + words.option),
        after=_neighbours(words.after),
        articles=frozenset(articles),
        prepositions=frozenset(entries(words.preposition)),
        ordinals=places(words.ordinals),
        numbers=places(words.numbers)
        | {word: _TENS[place] for word, place in places(words.tens).items()},
        yes=frozenset(entries(words.yes)),
        no=frozenset(entries(words.no)),
        words=words,
    )


def _is_chinese(entry: str) -> bool:
    return "\u3400" <= entry[0] <= "\u9fff"


def _neighbours(listed: str) -> Neighbours:
    found = entries(listed)
    plain = [entry for entry in found if not _is_chinese(entry)]
    return Neighbours(
        frozenset(entry for entry in plain if not entry.endswith("*")),
        tuple(entry[:-1] for entry in plain if entry.endswith("*")),
        tuple(entry for entry in found if _is_chinese(entry)),
    )
