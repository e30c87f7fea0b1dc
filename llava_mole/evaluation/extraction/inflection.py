"""Whether a word is a lightly inflected form of another: endings of case, number and gender.

No dictionary: two words are one if the same stem remains once a listed ending is gone. Stems keep
three letters at least, so that short words match exactly or not at all.
"""

from __future__ import annotations

import re
from functools import lru_cache

_RUSSIAN = re.compile(
    r"(?:иями|ями|ами|ыми|ими|ого|его|ому|ему|ая|яя|ое|ее|ые|ие|ый|ий|ой|ей|ую|юю|ою|ею|ых|их|ым|им|"
    r"ом|ем|ам|ям|ах|ях|ов|ев|ью|ия|ию|ии|а|я|о|е|ы|и|у|ю|ь|й)$"
)
_TURKISH_SUFFIX = re.compile(
    r"(?:(?:lar|ler)?(?:i|u|si|su)?n?(?:i|u|a|e|ya|ye|yi|yu|da|de|ta|te|dan|den|tan|ten|in|un|nin|nun)?"
    r"(?:ki)?(?:yla|yle|la|le)?(?:dir|dur|tir|tur|ydi|ydu)?)"
)
_SOFT = {"k": "g", "p": "b", "t": "d"}
_ARABIC_FRONT = re.compile(r"^[وف]?(?:ال|بال|كال|فال|لل)")
_ARABIC_END = re.compile(r"(?:ات|ين|ون|ان|ا|ه)$")


@lru_cache(maxsize=65536)
def inflected(word: str, token: str, language: str) -> bool:
    """Whether a token, folded, may be a form of an option's word."""
    if not word or not token:
        return False
    first = word[0]
    if "а" <= first <= "я":
        return len(word) > 3 and _without(_RUSSIAN, word) == _without(_RUSSIAN, token)
    if "\u0620" <= first <= "\u06ff":
        return _arabic(word, token)
    if not "a" <= first <= "z" or word[:2] != token[:2]:
        return False
    if language == "tr" and _turkish(word, token):
        return True
    if language == "pt" and len(word) > 3:
        return _portuguese(word) == _portuguese(token)
    return len(word) > 2 and _english(word) == _english(token)


def _without(ending: re.Pattern[str], word: str) -> str:
    stem = ending.sub("", word)
    return stem if len(stem) >= 3 else word


def _english(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _portuguese(word: str) -> str:
    if word.endswith("oes"):
        return word[:-3] + "ao"
    if word.endswith("s") and len(word) > 4:
        word = word[:-1]
    if word.endswith("re") and len(word) > 5:
        return word[:-1]
    return word[:-1] if word[-1] in "oa" and len(word) > 4 else word


def _turkish(word: str, token: str) -> bool:
    stems = [word]
    if len(word) > 3 and word[-1] in _SOFT:
        stems.append(word[:-1] + _SOFT[word[-1]])
    for stem in stems:
        if token.startswith(stem):
            rest = token[len(stem) :]
            if len(word) < 4 and len(rest) < 3:
                continue
            if _TURKISH_SUFFIX.fullmatch(rest):
                return True
    return False


def _arabic(word: str, token: str) -> bool:
    stem = _arabic_stem(word)
    if stem == _arabic_stem(token):
        return True
    if token[0] in "وفبلك" and len(token) > 3:
        bare = token[1:]
        if bare == word or (len(stem) >= 3 and _arabic_stem(bare) == stem):
            return True
        if len(bare) > 3 and bare[0] in "بلك" and bare[1:] == word:
            return True
    # Colours: احمر is حمراء of a feminine noun.
    return len(word) == 4 and word[0] == "ا" and _ARABIC_FRONT.sub("", token) == word[1:] + "اء"


def _arabic_stem(word: str) -> str:
    bare = _ARABIC_FRONT.sub("", word)
    if len(bare) < 2:
        bare = word
    stem = _ARABIC_END.sub("", bare)
    return (
        stem
        if len(stem) >= 3
        else (bare[:-1] if bare.endswith(("ا", "ه")) and len(bare) > 2 else bare)
    )
