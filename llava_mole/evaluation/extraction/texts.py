"""Where a reply names an option by its text.

Reply and options are cut into tokens: numbers, words, single Chinese characters, runs of Chinese
numerals. An option is named where its tokens stand in a row, exactly or lightly inflected; the
longest one wins where several overlap ("red apple" over "apple"). Articles at its front may be
missing; prepositions too, if what remains tells it from the others ("пляж" for "на пляже").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from llava_mole.evaluation.extraction.inflection import inflected
from llava_mole.evaluation.extraction.normalise import CJK, WORD, fold, lower, plain
from llava_mole.evaluation.extraction.phrases import Phrases, phrases

_NUMERALS = "零一二两兩三四五六七八九十百"
_TOKEN = re.compile(
    rf"\d[dkg](?![{WORD}])|(?<![{WORD}.])-?\d+(?:[.,:/]\d+)*|\d+|[{_NUMERALS}]+|[{CJK}]|[{WORD}]+",
    re.I,
)
_AND = ("and", "e", "ve")
"""Between tens and ones."""
_NUMBER = re.compile(r"-?\d+(?:[.,:/]\d+)*")

_BEFORE_SINGLE = set(
    "是为為的一只隻头頭匹条條张張本辆位朵根块棵把名件个個座只那这這像叫到选選有见見看成于在用穿拿出非"
)
_AFTER_SINGLE = set(
    "的在和与與是吧呢了啊哦呀正站坐走跑也都，。、！？；：,.!?;:)）」』”\"' \n～~而因，"
)
"""Beside a Chinese option of one character: else it is part of another word (马上, 蜗牛)."""


@dataclass(frozen=True)
class Token:
    """One token; value: of a number, digits or word."""

    text: str
    start: int
    end: int
    value: str = ""


@dataclass(frozen=True)
class Named:
    """An option's text in a reply; exact: without inflection."""

    letter: str
    start: int
    end: int
    exact: bool


def tokens(folded: str, known: Phrases) -> list[Token]:
    """The tokens of a folded text, numbers with their value."""
    row: list[Token] = []
    for m in _TOKEN.finditer(folded):
        token = Token(m[0], m.start(), m.end(), value_of(m[0], known))
        joined = row and _joined(row[-1], token, folded, known)
        if joined:
            row[-1] = joined
            continue
        if len(row) > 1 and row[-1].text in _AND and not row[-1].value:
            joined = _joined(row[-2], token, folded, known)
            if joined:
                row[-2:] = [joined]
                continue
        row.append(token)
    return row


def _joined(one: Token, two: Token, folded: str, known: Phrases) -> Token | None:
    """Two number words as one: "twelve" of two words, "twenty-five"; "three hundred" has no value.

    With an "and" between them they are one only if tens and ones add up, or beside a hundred.
    """
    if one.text[0].isdigit() or not two.value or two.text[0] in "0123456789" + _NUMERALS:
        return None
    between = folded[one.end : two.start]
    together = f"{one.text} {two.text}"
    if between == " " and together in known.numbers:
        return Token(str(known.numbers[together]), one.start, two.end, str(known.numbers[together]))
    large = not one.value and one.text.split(" ")[0] in known.numbers
    if not one.value and not large:
        return None
    if between not in (" ", "-") and between.strip(" ") not in _AND:
        return None
    if one.value and not large:
        tens, ones = int(one.value), int(two.value)
        if two.text[0] == "و":
            tens, ones = ones, tens  # Arabic: five and twenty
        if 20 <= tens < 100 and tens % 10 == 0 and 0 < ones < 10:
            return Token(str(tens + ones), one.start, two.end, str(tens + ones))
        large = max(tens, ones) >= 100
    if not large and (between.strip(" -") or two.text not in known.numbers):
        return None
    return Token(folded[one.start : two.end], one.start, two.end)


def value_of(token: str, known: Phrases) -> str:
    """A number's value in one spelling, from digits or a word; "" for other tokens."""
    if _NUMBER.fullmatch(token):
        if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", token):
            return token.replace(",", "")
        return token.replace(",", ".")
    if token[0] in "وف" and (token not in known.numbers) and len(token) > 1:
        token = token[1:]  # Arabic: and, so
        if token.isdigit():
            return token
    if token in known.numbers:
        return str(known.numbers[token])
    if len(token) in (2, 3) and "十" in token and all(c in _NUMERALS for c in token):
        tens, _, ones = token.partition("十")
        digits = known.numbers
        if (not tens or tens in digits) and (not ones or ones in digits):
            return str(digits.get(tens, 1) * 10 + digits.get(ones, 0))
    return ""


def _holds(key: tuple[str, ...], part: tuple[str, ...]) -> bool:
    """Whether tokens stand in others, side by side."""
    return any(key[n : n + len(part)] == part for n in range(len(key) - len(part) + 1))


class OptionTexts:
    """The options of one question, ready to be looked for.

    Args:
        options: letter -> text.
        language: of the prompt.
    """

    def __init__(self, options: Mapping[str, str], language: str) -> None:
        self.language = language
        self.known = phrases(language)
        texts = {letter: plain(text) for letter, text in options.items()}
        self.fold = fold
        folded = {letter: fold(text) for letter, text in texts.items()}
        keys = {letter: self._key(text) for letter, text in folded.items()}
        if len(set(keys.values())) < len(keys):
            # They differ in accents or signs alone: "avó" and "avô".
            self.fold = lambda text: lower(text, language)
            folded = {letter: self.fold(text) for letter, text in texts.items()}
            keys = {letter: self._key(text) for letter, text in folded.items()}
        self.raw = {letter: _bare(text) for letter, text in folded.items()}
        self.yes_no = self._yes_no(folded)
        self.numeric = all(
            len(k) == 1 and value_of(k[0], self.known) for k in keys.values()
        ) and bool(keys)
        self.values = {
            letter: value_of(k[0], self.known) for letter, k in keys.items() if len(k) == 1
        }
        self.amounts = self._amounts(keys)
        self.variants = self._variants(keys)
        self.single_letters = {
            k[0].upper(): letter
            for letter, k in keys.items()
            if len(k) == 1 and len(k[0]) == 1 and k[0].isalpha() and k[0].isascii()
        }
        self.words = {word for k in keys.values() for word in k}
        self.none = self._meaning(folded, self.known.none)
        self.every = self._meaning(folded, self.known.every)

    def _key(self, folded: str) -> tuple[str, ...]:
        return tuple(token.text for token in tokens(folded, self.known))

    def _yes_no(self, folded: Mapping[str, str]) -> dict[str, bool]:
        said = {}
        for letter, text in folded.items():
            word = _bare(fold(text))
            if word in self.known.yes or word in self.known.no:
                said[letter] = word in self.known.yes and word not in ("no",)
        return said if len(set(said.values())) == 2 and len(said) == 2 else {}

    def _meaning(self, folded: Mapping[str, str], pattern: re.Pattern[str]) -> str:
        found = [
            letter
            for letter, text in folded.items()
            if (m := pattern.search(fold(text))) and len(m[0]) * 2 > len(text)
        ]
        return found[0] if len(found) == 1 else ""

    def _amounts(self, keys: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Letter -> number, where all options are numbers, of one unit if any; else nothing."""
        found = {letter: value_of(k[0], self.known) for letter, k in keys.items() if k}
        same_unit = len({k[1:] for k in keys.values()}) == 1
        numbers = len(found) == len(keys) and all(found.values()) and same_unit
        return found if numbers and len(set(found.values())) == len(found) else {}

    def _variants(
        self, keys: Mapping[str, tuple[str, ...]]
    ) -> list[tuple[tuple[str, ...], str, bool]]:
        """(tokens, letter, whole) of each option; whole: nothing but articles is missing."""
        taken = set(keys.values())
        found = [(key, letter, True) for letter, key in keys.items() if key]
        for whole, words in (
            (True, self.known.articles),
            (False, self.known.articles | self.known.prepositions),
        ):
            shorter: dict[tuple[str, ...], str] = {}
            clash = set()
            for letter, key in keys.items():
                core = key
                while len(core) > 1 and core[0] in words:
                    core = core[1:]
                if len(core) > 2 and core[0] == "一" and core[1] in self.known.words.counters:
                    core = core[2:]
                others = (other for name, other in keys.items() if name != letter)
                if core in shorter or (not whole and any(_holds(o, core) for o in others)):
                    clash.add(core)  # "sofa", of "on the sofa", is in "under the sofa" too
                shorter[core] = letter
            found += [
                (core, letter, whole)
                for core, letter in shorter.items()
                if core not in taken and core not in clash and core
            ]
            taken |= set(shorter)
        if self.amounts and not self.numeric:
            found += [((key[0],), letter, False) for letter, key in keys.items()]
        return found

    def equal_to(self, text: str) -> str:
        """The one option that a whole text is, but for case, punctuation and articles; or ""."""
        folded = self.fold(text)
        bare = _bare(folded)
        same = [letter for letter, raw in self.raw.items() if raw == bare and bare]
        if len(same) == 1:
            return same[0]
        key = self._key(folded)
        if not key or same:
            return ""
        same = [letter for variant, letter, whole in self.variants if variant == key and whole]
        if not same:
            while len(key) > 1 and key[0] in self.known.articles:
                key = key[1:]
            same = [letter for variant, letter, whole in self.variants if variant == key and whole]
        return same[0] if len(set(same)) == 1 else ""

    def find(self, text: str) -> list[Named]:
        """Every option's text in a reply, in order, longest first where they overlap."""
        folded = self.fold(text)
        row = tokens(folded, self.known)
        for whole in (True, False):
            found = self._find(row, folded, whole)
            if found:
                return found
        return []

    def _find(self, row: list[Token], folded: str, whole: bool) -> list[Named]:
        hits: list[tuple[int, int, Named]] = []
        for key, letter, complete in self.variants:
            if complete != whole or letter in self.yes_no:
                continue
            for place in range(len(row) - len(key) + 1):
                exact = 2
                for offset, word in enumerate(key):
                    exact = min(exact, self._same(word, row, place + offset, folded))
                    if not exact:
                        break
                if not exact:
                    continue
                start, end = row[place].start, row[place + len(key) - 1].end
                if len(key) == 1 and not _stands_alone(key[0], start, end, folded):
                    continue
                hits.append((start - end, -exact, Named(letter, start, end, exact == 2)))
        hits.sort(key=lambda hit: hit[:2])
        kept: list[Named] = []
        taken: dict[int, Named] = {}
        for _, _, named in hits:
            over = [taken[i] for i in range(named.start, named.end) if i in taken]
            if not over:
                kept.append(named)
            elif all(
                o.letter != named.letter
                and o.exact == named.exact
                and (o.start, o.end) == (named.start, named.end)
                for o in over
            ):
                kept.append(named)  # two options in the same words: both are named
            else:
                continue
            taken.update(dict.fromkeys(range(named.start, named.end), named))
        return sorted(kept, key=lambda named: named.start)

    def _same(self, word: str, row: list[Token], place: int, folded: str) -> int:
        """2: the same word; 1: an inflection or a number in other words; 0: another."""
        token = row[place]
        if word == token.text:
            return 2
        mine = value_of(word, self.known)
        if mine and token.value:
            if mine != token.value:
                return 0
            return int(token.text[-1].isdigit() or self._counts(row, place, folded))
        if mine or token.value:
            return 0
        return int(inflected(word, token.text, self.language))

    def _counts(self, row: list[Token], place: int, folded: str) -> bool:
        """Whether a number word counts: "one" does alone, a Chinese numeral with a counter."""
        token = row[place]
        if len(row) <= 2:
            return True
        if token.text[0] in _NUMERALS:
            after = folded[token.end : token.end + 1]
            return token.value != "1" and (not after or after in self.known.words.counters)
        return token.value != "1"


def _bare(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip(" \t\n.,;:!?。，！？、؟،؛\"'«»“”()[]{}（）【】「」『』")


def _stands_alone(word: str, start: int, end: int, folded: str) -> bool:
    """Whether a Chinese character is a word of its own where it stands."""
    if not re.fullmatch(f"[{CJK}]", word):
        return True
    before, after = folded[start - 1 : start] if start else "", folded[end : end + 1]
    return (not before or before in _BEFORE_SINGLE or not re.match(f"[{CJK}{WORD}]", before)) and (
        not after or after in _AFTER_SINGLE or not re.match(f"[{CJK}{WORD}]", after)
    )


@lru_cache(maxsize=4096)
def option_texts(options: tuple[tuple[str, str], ...], language: str) -> OptionTexts:
    """`OptionTexts`, kept for the next reply to the same question."""
    return OptionTexts(dict(options), language)
