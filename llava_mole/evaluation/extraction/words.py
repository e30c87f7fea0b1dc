"""What an extractor must know of a language: lists of words, and how they become patterns.

A list is one string, its entries separated by `|`. An entry is a word or several, folded like the
reply in which it is looked for (`normalise.fold`); `*` at its end stands for any ending, at its
front for two letters or more. Entries in scripts with spaces between words match whole words;
Chinese entries match anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache

from llava_mole.evaluation.extraction.normalise import ARABIC, CJK, WORD, fold

_CHINESE = re.compile(rf"[{CJK}]")
_ARABIC = re.compile(rf"[{ARABIC}]")


@dataclass(frozen=True)
class Words:
    """One language's lists.

    Attributes:
        answer: says that a letter or text beside it is the answer ("answer", "correct", "choose").
        option: nouns that a letter belongs to ("option", "letter").
        before: other words that may stand directly before a letter that names an option.
        after: words that may stand directly after one. A word in neither list makes the letter
            part of something else: "vitamin C", "A cat".
        negation: makes what follows it in its clause rejected.
        rejection: makes what stands before it in its clause rejected ("is wrong").
        but: ends the reach of what stood before it.
        because: an explanation begins.
        also: joins letters to one group ("A and B", "A or B").
        therefore: a conclusion begins.
        correction: takes back what was said before it.
        aside: its clause tells a concession ("although") or an earlier thought, and claims nothing.
        condition: its sentence claims nothing.
        discussion: verbs that tell what an option says.
        refusal: no answer is given, or none can be decided on.
        perhaps: names a further possibility beside a claim ("but it could also be C").
        likewise: before a letter, gives it the judgement of the one before ("and so is D").
        instead: before what the next is preferred to ("instead of A, B").
        total: beside the number that a count comes to.
        extreme: superlatives; a last sentence with one says which option it is.
        shown: "highlighted", "marked": before an option's text, tells that it is the one asked for.
        that_is: ties a letter to its text before it.
        any, picture: "can't see any dog" denies the dog; "can't see any picture" refuses.
        statement: nouns for what is true or false.
        is_true, is_false: what may be said of a statement, besides yes and no.
        harmless: holds a negating word without negating anything ("no doubt").
        none, every: "none of the above", "all of the above".
        yes, no: answers to a yes/no question.
        article, preposition: may be missing at the front of an option's text.
        ordinals: first to ninth, spellings of one separated by `/`; `last` follows as the tenth.
        counters: stand between a number and what is counted, where a script needs them.
        numbers: zero to twenty, spellings of one separated by `/`.
        tens: thirty to hundred, thousand, two hundred to nine hundred, likewise.
    """

    answer: str = ""
    option: str = ""
    before: str = ""
    after: str = ""
    negation: str = ""
    rejection: str = ""
    but: str = ""
    because: str = ""
    also: str = ""
    therefore: str = ""
    correction: str = ""
    aside: str = ""
    condition: str = ""
    discussion: str = ""
    refusal: str = ""
    perhaps: str = ""
    likewise: str = ""
    instead: str = ""
    total: str = ""
    extreme: str = ""
    shown: str = ""
    that_is: str = ""
    any: str = ""
    picture: str = ""
    statement: str = ""
    is_true: str = ""
    is_false: str = ""
    harmless: str = ""
    none: str = ""
    every: str = ""
    yes: str = ""
    no: str = ""
    article: str = ""
    preposition: str = ""
    ordinals: str = ""
    counters: str = ""
    numbers: str = ""
    tens: str = ""

    def without(self, dropped: str) -> Words:
        """The lists without some entries; ordinals, numbers, yes and no stay whole."""
        gone = set(dropped.split("|"))
        kept = {}
        for field in fields(self):
            listed = getattr(self, field.name)
            if field.name not in ("ordinals", "numbers", "tens", "counters", "yes", "no"):
                listed = "|".join(entry for entry in listed.split("|") if entry not in gone)
            kept[field.name] = listed
        return Words(**kept)

    def __add__(self, other: Words) -> Words:
        """Both languages' lists; ordinals and numbers place by place."""
        merged = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name in ("ordinals", "numbers", "tens") and mine and theirs:
                pairs = zip(mine.split("|"), theirs.split("|"), strict=True)
                merged[field.name] = "|".join(f"{a}/{b}" for a, b in pairs)
            else:
                merged[field.name] = "|".join(filter(None, (mine, theirs)))
        return Words(**merged)


def entries(listed: str) -> list[str]:
    """The entries of a list, folded."""
    return [fold(entry.strip()) for entry in listed.split("|") if entry.strip()]


def places(listed: str) -> dict[str, int]:
    """Spelling -> its place in a list whose entries hold several spellings."""
    found = {}
    for place, entry in enumerate(listed.split("|")):
        for spelling in entry.split("/"):
            if spelling.strip():
                found[fold(spelling.strip())] = place
    return found


@lru_cache(maxsize=1024)
def source(listed: str) -> str:
    """A list's pattern, for use inside others; longest entries first. Empty lists match nothing."""
    spaced, chinese, signs = [], [], []
    for entry in sorted(entries(listed), key=len, reverse=True):
        words = re.escape(entry.strip("*")).replace(r"\ ", r"\s{1,3}")
        if entry.startswith("*"):
            spaced.append(rf"[{WORD}]{{2,20}}" + words + rf"[{WORD}]{{0,20}}" * entry.endswith("*"))
        elif not re.match(rf"[{WORD}{CJK}]", entry):
            signs.append(words)
        elif _CHINESE.search(entry):
            chinese.append(words)
        else:
            if _ARABIC.match(entry):
                words = "[وف]?" + words  # and, so: written together with the word
            spaced.append(words + (rf"[{WORD}]{{0,20}}" if entry.endswith("*") else ""))
    parts = [f"(?<![{WORD}])(?:{'|'.join(spaced)})(?![{WORD}])"] if spaced else []
    parts += ["|".join(chinese)] if chinese else []
    parts += ["|".join(signs)] if signs else []
    return f"(?:{'|'.join(parts)})" if parts else r"(?!)"
