"""Where a reply names an option by letter, in any of the alphabets that models write lists in.

A single character is a letter of the list only if its neighbours allow it: "the answer is C" does,
"vitamin C", "plan B" and "A cat" don't. Cyrillic В, Е are read as B and E (they look alike) or as
the third and sixth of А Б В Г Д Е; both readings are kept here and `decide` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from llava_mole.evaluation.extraction.normalise import ARABIC, CJK, WORD
from llava_mole.evaluation.extraction.phrases import Phrases
from llava_mole.evaluation.extraction.words import source
from llava_mole.evaluation.extraction.words_tr import TURKISH
from llava_mole.evaluation.extraction.words_zh import CHINESE

_CYRILLIC_LIST = dict(zip("АБВГДЕЖЗИ", "ABCDEFGHI", strict=True))
_LOOK_ALIKE = dict(zip("АВСЕНІΑΒΕΗΙϹ", "ABCEHIABEHIC", strict=True))
_ARABIC_LIST = dict(zip("ابجدهوزحط", "ABCDEFGHI", strict=True)) | dict.fromkeys("أإآ", "A")
ONLY_IN_LISTS = frozenset("БГДЖЗИбгджзи")

_SUFFIX = (
    r"'(?:[dt][iıuü]r|y[iıuü]|n[iıuü]n|[iıuü]n|y?[ea]|[dt][ea]n?|y?l[ea]|[iıuü])(?:[dt][iıuü]r|ki)?"
)
_CANDIDATE = re.compile(
    rf"(?<![{WORD}°])(?<![{WORD}]['.])(?:[وف](?=[A-Z](?![{WORD}])|[أابجدهزحط](?![{WORD}])))?"
    rf"([A-Za-z\u0391\u0392\u0395\u0397\u0399\u03f9А-ИНСІа-ис]|[{''.join(_ARABIC_LIST)}])"
    rf"(?![{WORD}])({_SUFFIX}(?![{WORD}]))?"
)
_NOT_A_LETTER_HERE = re.compile(
    rf"'[{WORD}]|\.[{WORD}](?![{WORD}])|-[{WORD}]|/(?!\s?\w(?!\w))|[+#]"
)
_DELIMITER = re.compile(r"\s?[.):\]：．、-]\s?")
"""Between a list's letter and its text."""
_OPENING = " \t\"'«“„「『《〈([{<【（"
_BRACKETS = "([{【（"
_LAST_WORD = re.compile(rf"[{WORD}'’-]+$")
_FIRST_WORD = re.compile(rf"[ \t]*([{WORD}'-]+)")
_WORDS_THAT_ARE_LETTERS = {
    "en": "AIaiyo",
    "pt": "AEOaeo",
    "tr": "Oo",
    "ru": "АВСИавсикоу",
    "ar": "ولبفك",
}
_INITIALS = re.compile(
    r"(?<!\w)[A-ZА-ЯÇĞİÖŞÜ]\.[ \t]?(?:[A-ZА-ЯÇĞİÖŞÜ]\.[ \t]?)+(?=[A-ZА-ЯÀ-Ü][^\W\d_])"
    r"|[А-Я][а-я]{3,20} [А-Я]\.[ \t]?[А-Я]\."
    r"|(?<=\b(?:of|by|от) )[A-ZА-Я]\.[ \t](?=[A-ZА-ЯÀ-Ü][^\W\d_])"
)
"""Of a person's name: "J. C. Almeida", "Пушкин А. С."."""
_TRAILING = re.compile(source(TURKISH.option + "|" + CHINESE.option))
"""Nouns for options that follow their letter."""
_REACH = 48


@dataclass
class Mention:
    """A place where an option is named.

    Attributes:
        letter: of the option, as the list has it; may lie outside the options.
        start, end: in the text.
        listed: the letter by the other reading of a Cyrillic character, or `letter`.
        mark: the character as written.
        dead: it is surely something else; kept for what it may be joined to.
        sure: its neighbours allow no other sense; else it counts against other letters only.
        bracketed, headed: "(B)"; "B. dog" or "B" at the start of a line.
        named: kind of mention: "letter", "place" (second option), "text".
        label_end: where the option's own text after it ends, or `end`.
        rejected, ignored, claimed, concluded, group: what `judge` finds. Ignored: asked, supposed,
            conceded or discussed.
    """

    letter: str
    start: int
    end: int
    listed: str = ""
    mark: str = ""
    sure: bool = True
    bracketed: bool = False
    headed: bool = False
    named: str = "letter"
    label_end: int = -1
    rejected: bool = False
    ignored: bool = False
    claimed: bool = False
    concluded: bool = False
    group: int = -1
    dead: bool = False


def letter_of(mark: str) -> tuple[str, str]:
    """(letter, letter by the reading as a Cyrillic list) of a character."""
    upper = mark.upper()
    if mark in "вБбГгДдЖжЗзИи":
        return _CYRILLIC_LIST[upper], _CYRILLIC_LIST[upper]
    if upper in _LOOK_ALIKE:
        return _LOOK_ALIKE[upper], _CYRILLIC_LIST.get(upper, _LOOK_ALIKE[upper])
    if mark in _ARABIC_LIST:
        return _ARABIC_LIST[mark], _ARABIC_LIST[mark]
    return upper, upper


def find_letters(
    text: str, folded: str, language: str, known: Phrases, labels: Mapping[int, str]
) -> list[Mention]:
    """Letters of the list in a text; those that are surely something else are left out.

    Args:
        text, folded: of the same length.
        language, known: of the prompt.
        labels: where options' texts start -> the option.
    """
    found = []
    initials = {place for m in _INITIALS.finditer(text) for place in range(*m.span())}
    for m in _CANDIDATE.finditer(text):
        mark, start, end = m[1], m.start(1), m.end()
        if start in initials:
            continue
        if _NOT_A_LETTER_HERE.match(text, end):
            continue
        if (
            start
            and text[start - 1] == "/"
            and not re.search(r"(?<!\w)\w\s?/$", text[max(0, start - 4) : start])
        ):
            continue
        letter, listed = letter_of(mark)
        mention = Mention(letter, start, end, listed, mark)
        if mark == "I" and _right(folded[end : end + 30], known) != "edge":
            continue  # the pronoun
        numbers = _DELIMITER.match(text, end)
        labelled = numbers is not None and labels.get(numbers.end()) in (letter, listed)
        if mark == "د" and text[end : end + 2] == ". " and not labelled:
            continue  # Doctor
        verdict = labelled or _look_around(mention, folded, bool(m[2]), language, known)
        if labelled:
            _look_around(mention, folded, False, language, known)
        mention.sure, mention.dead = bool(verdict), verdict is None
        if not mention.dead or (not mark.islower() and not known.also.fullmatch(folded[start:end])):
            found.append(mention)
    return _revived(found, text, folded, known)


def _revived(found: list[Mention], text: str, folded: str, known: Phrases) -> list[Mention]:
    """The letters, with those that only their neighbour in a list shows to be one."""
    for one, two in pairwise(found):
        if one.sure == two.sure:
            continue
        gap = folded[one.end : two.start]
        if "é" in text[one.end : two.start].lower():
            continue  # the verb, not the conjunction it is folded to
        parts = known.also.search(gap) or re.search("[,，،、/&]", gap)
        if len(gap) < 40 and parts and known.joint.fullmatch(gap):
            for m in (one, two):
                m.sure, m.dead = True, False
    return [m for m in found if not m.dead]


def _look_around(
    m: Mention, folded: str, suffixed: bool, language: str, known: Phrases
) -> bool | None:
    """Whether a character is a letter of the list: yes, perhaps (False), no (None)."""
    before = folded[max(0, m.start - _REACH) : m.start]
    near = before.rstrip(" \t")
    opened = near.rstrip(_OPENING)
    m.bracketed = any(c in _BRACKETS for c in near[len(opened) :]) and bool(
        re.match(r"\s?['\"]?[)\]}】）]", folded[m.end : m.end + 3])
    )
    line_start = not opened.strip() or "\n" in opened[len(opened.rstrip()) :]
    line_start = line_start or bool(re.search(rf"(?:^|\n)[^{WORD}{CJK}\n,.:;]*$", opened))
    after = folded[m.end : m.end + 30]
    m.headed = line_start and bool(
        re.match(r"\s?[.):,：、،，\-–—=|\]}】）>\"'»”」』!?。]|\s*(?:\n|$)", after)
    )

    left = _left(opened, known)
    right = _right(after, known)
    words = _WORDS_THAT_ARE_LETTERS.get(language, "") + _WORDS_THAT_ARE_LETTERS["en"]
    words += _WORDS_THAT_ARE_LETTERS["ru"]
    could_be_word = m.mark in words
    if right == "option" and could_be_word and not _TRAILING.match(after.lstrip()):
        right = "other"  # "A resposta", "a choice"
    if m.mark.islower() and m.mark.upper() != m.mark:
        if could_be_word and re.match(r"\s?[\"'(\[«“]{1,2}[a-z]\W", after):
            return None  # an article or conjunction before a letter: "seria o (A)"
        if m.headed and (right == "edge") and not could_be_word:
            return True
        if m.headed and (re.match(r"\s?[.):\]]|\s*$", after)):
            return True
        if left == "option" and (right == "edge" or not could_be_word):
            return True
        if right == "option" and (left in ("edge", "option", "word")):
            return True
        answer_before = known.answer.search(before[-32:])
        if (
            answer_before
            and left != "other"
            and (right == "edge" or suffixed)
            and not (could_be_word and right != "edge")
        ):
            return True
        return True if suffixed and left != "other" and not could_be_word else None
    if suffixed:
        return left != "other"
    if m.bracketed:
        return True
    if left == "other":
        return None
    if m.headed and right == "edge":
        return True
    if right in ("edge", "word", "option"):
        return True
    if could_be_word:
        return None
    if left == "option" or (left == "word" and known.answer.search(before)):
        return not re.match(f"[{CJK}]", after.lstrip()[:1] or " ")
    return False


def _left(opened: str, known: Phrases) -> str:
    """What stands before a letter: nothing ("edge"), a noun for options, an allowed word, other."""
    if not opened:
        return "edge"
    last = opened[-1]
    if re.match(f"[{CJK}]", last):
        if re.search(known.option.pattern + "$", opened[-6:]):
            return "option"
        return "word" if opened.endswith(known.before.chinese) else "other"
    if not re.match(f"[{WORD}'’]", last):
        return "other" if last in "°/+#" and last != "/" else "edge"
    m = _LAST_WORD.search(opened)
    word = m[0] if m else ""
    if known.option.fullmatch(word):
        return "option"
    two = " ".join(opened[-24:].split()[-2:])
    if known.before.has(word) or known.before.has(two):
        return "word"
    if word[:1] in "وف" and known.before.has(word[1:]):
        return "word"
    if known.answer.fullmatch(word):
        return "word"
    return "other"


def _right(after: str, known: Phrases) -> str:
    """What stands after a letter, as in `_left`."""
    near = after.lstrip(" \t")
    if not near:
        return "edge"
    if re.match(f"[{CJK}]", near):
        if known.option.match(near):
            return "option"
        return "word" if near.startswith(known.after.chinese) else "other"
    m = _FIRST_WORD.match(after)
    if not m or not re.match(f"[{WORD}]", near):
        return "edge"
    if after[:1] not in " \t\n" and not re.match(f"[{ARABIC}]", near):
        return "edge"
    word = m[1].strip("'-")
    if known.option.fullmatch(word):
        return "option"
    if known.after.has(word) or (word[:1] in "وف" and known.after.has(word[1:])):
        return "word"
    return "other"
