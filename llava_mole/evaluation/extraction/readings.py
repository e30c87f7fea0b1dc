"""Which of its senses a doubtful character has: В of two alphabets, letters that are texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llava_mole.evaluation.extraction.letters import ONLY_IN_LISTS, Mention, letter_of
from llava_mole.evaluation.extraction.normalise import CJK, WORD
from llava_mole.evaluation.extraction.reply import Reply
from llava_mole.evaluation.extraction.texts import Named, OptionTexts

_EDGES = re.compile(rf"[^{WORD}{CJK}]+")
_AND_THIS = re.compile(r"\s(?:это|здесь|тут|вот|там|на|в|если|что|как)\b")


def repeated(text: str) -> str | None:
    """The letter that a text consists of, once or several times; "" of several, None of none."""
    if re.search("[+#°%]", text):
        return None
    marks = [mark for mark in _EDGES.split(text) if mark]
    if not marks or any(len(mark) != 1 for mark in marks):
        return None
    letters = {letter_of(mark)[0] for mark in marks}
    if not all("A" <= letter <= "Z" for letter in letters):
        return None
    return letters.pop() if len(letters) == 1 else ""


def spaced_letter(text: str, n: Named) -> bool:
    """Whether a named text is one character of a script with spaces: a letter, not a word."""
    return bool(re.match(rf"[A-Za-z{WORD[3:]}]", text[n.start])) and not text[n.start].isdigit()


def read_cyrillic(reply: Reply, letters: list[Mention], named: Sequence[Named]) -> None:
    """Read В as the list's third letter where other letters or the option's text ask for it."""
    doubtful = [m for m in letters if m.letter != m.listed]
    if not doubtful:
        return
    if any(m.mark in ONLY_IN_LISTS and m.sure for m in letters):
        listed = True
    elif any(m.mark.isascii() and m.letter in "BCDEF" and m.sure for m in letters):
        listed = False
    else:
        said = {n.letter for n in named}
        labels = {label.letter for m in doubtful if (label := reply.label_after(m, list(named)))}
        said = labels or said
        listed = any(m.listed in said for m in doubtful) and not any(
            m.letter in said for m in doubtful
        )
    if listed:
        for m in doubtful:
            m.letter = m.listed


def not_conjunctions(reply: Reply, letters: list[Mention], named: Sequence[Named]) -> list[Mention]:
    """The letters but for a Russian А that means "and": "А это велосипед"."""
    return [
        m
        for m in letters
        if m.mark not in ("А", "а")
        or not _AND_THIS.match(reply.folded, m.end)
        or ((label := reply.label_after(m, list(named))) and label.letter == m.letter)
    ]


def not_texts(letters: list[Mention], texts: OptionTexts) -> list[Mention]:
    """Where options are letters themselves: a letter counts with its text beside it ("B: D")."""
    kept, skip = [], -1
    for i, m in enumerate(letters):
        if i == skip:
            continue
        after = letters[i + 1].letter if i + 1 < len(letters) else ""
        if after and texts.single_letters.get(after) == m.letter:
            kept.append(m)
            skip = i + 1
        elif texts.single_letters.get(m.letter, m.letter) == m.letter:
            kept.append(m)
    return kept


def texts_not_labels(
    text: str, letters: Sequence[Mention], named: Sequence[Named], options: Mapping[str, str]
) -> list[Named]:
    """Options' texts of one letter that no option is labelled with ("the note is G")."""
    sure = {m.start for m in letters if m.sure}
    return [
        n
        for n in named
        if n.end - n.start == 1
        and text[n.start].isupper()
        and text[n.start] not in options
        and (n.start in sure or text[n.start] not in "AEIOYУИСКОВ")
    ]
