"""The option that a reply without letters chooses by its text.

All that it names agrees, or what it claims, or what it concludes; else the sum of the numbers it
names ("seven in total: four here, three there"), or its last sentence ("the smallest is ...").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llava_mole.evaluation.extraction.letters import Mention
from llava_mole.evaluation.extraction.reply import Reply
from llava_mole.evaluation.extraction.texts import Named, Token, tokens

_THAN = re.compile(r"(?:\b(?:than|do que|чем)\s(?:an?\s|the\s|[oa]\s|uma?\s)?|比)$")
_RATHER = re.compile(r"[\s,]*(?:(?:rather|than|do|que|чем|an?|the|[oa]|uma?)\s)*")
_OUT_OF = re.compile(r"\b(?:of|of the|из|dos|das|من)\s$")
"""Before a whole of which a part is spoken of: "4 of the 7 people"."""


def spoken_choice(
    reply: Reply, spoken: Sequence[Mention], named: Sequence[Named], labels: set[int]
) -> str | None:
    """The letter, or None.

    Args:
        spoken: mentions by text, yes and no among them, judged.
        named: the texts found in the reply.
        labels: where texts end that only label a letter.
    """
    texts, known = reply.texts, reply.known
    standing = [m for m in spoken if not m.rejected and not m.ignored and m.end not in labels]
    if (whole := _all_or_none(reply, standing)) is not None:
        return whole
    for pattern, letter in ((known.none, texts.none), (known.every, texts.every)):
        for m in pattern.finditer(reply.folded):
            if any(n.start <= m.start() and m.end() <= n.end for n in named):
                continue
            return letter or None
    cut_off = bool(standing) and (
        reply.sentence(standing[-1].start) is reply.sentences[-1]
        and reply.cut_off(standing[-1].end)
    )
    for kind in (
        standing,
        [m for m in standing if m.claimed],
        [m for m in standing if m.concluded],
    ):
        found = {m.letter for m in kind}
        if len(found) == 1:
            letter = found.pop()
            if kind is standing and _other_numbers(reply, letter, named):
                return _total(reply, letter)
            if kind is standing and _compared(reply, kind, spoken):
                return None
            if kind is standing and cut_off and not any(m.claimed or m.headed for m in kind):
                return None
            return letter
    return _total(reply) or _extreme(reply, standing)


def _compared(reply: Reply, kind: Sequence[Mention], spoken: Sequence[Mention]) -> bool:
    """Whether a text is only compared with another: "the dog is larger than the cat"."""
    if any(m.claimed or m.headed for m in kind):
        return False
    return any(
        m.rejected
        and not _RATHER.fullmatch(reply.folded, kind[-1].end, m.start)
        and reply.sentence(m.start) is reply.sentence(kind[-1].start)
        and _THAN.search(reply.folded[: m.start][-12:])
        for m in spoken
    )


def _all_or_none(reply: Reply, standing: Sequence[Mention]) -> str | None:
    """The option "all of the above" or "none of them", which may go on to name the others."""
    for letter in filter(None, (reply.texts.every, reply.texts.none)):
        own = [m for m in standing if m.letter == letter]
        others = [m for m in standing if m.letter != letter]
        if (
            own
            and others
            and not any(m.claimed or m.concluded or m.start < own[0].start for m in others)
        ):
            return None if reply.known.but.search(reply.judged, own[0].end) else letter
    return None


def _numbers(reply: Reply, outside: Sequence[Named] = ()) -> list[Token]:
    """Numbers of a reply; one as a word may be an article and isn't one."""
    return [
        t
        for t in tokens(reply.folded, reply.known)
        if t.value
        and (t.value != "1" or t.text[0].isdigit())
        and not any(m.start <= t.start and t.end <= m.end for m in outside)
    ]


def _other_numbers(reply: Reply, letter: str, named: Sequence[Named]) -> bool:
    """Whether a reply to a question for a number holds numbers that no option has.

    Beside a time of day other numbers are hands of a clock.
    """
    mine = reply.texts.amounts.get(letter)
    if mine is None:
        return False
    row = [t for t in _numbers(reply, named) if t.value != mine]
    own = [n for n in named if n.letter == letter]
    unit = re.sub(r"^\W*[\d.,:/]+", "", reply.texts.raw[letter])
    if unit.strip() and own and all(reply.folded[n.end - 1].isdigit() < 1 for n in own):
        # "Between 20 and 30, at about 25 °C": marks of a scale, told before what is read there.
        scale = len(row) == 2 and row[1].start - row[0].end < 8 and row[1].end < own[0].start
        if scale and _between(row[0].value, mine, row[1].value):
            return False
    others = {t.value for t in row}
    if ":" in mine:
        others = {value for value in others if ":" in value}
    return bool(others)


def _between(low: str, value: str, high: str) -> bool:
    try:
        return float(low) < float(value) < float(high)
    except ValueError:
        return False


def _total(reply: Reply, letter: str = "") -> str | None:
    """The option that is the sum of the other numbers, and is called their total."""
    amounts = {value: option for option, value in reply.texts.amounts.items()}
    if not amounts or not reply.known.total.search(reply.judged):
        return None
    row = [t for t in _numbers(reply) if re.fullmatch(r"\d+", t.value)]
    values = [int(t.value) for t in row]
    if len(row) < 2 or len(row) > 30:
        return None
    most = max(values)
    largest = row[values.index(most)]
    if _OUT_OF.search(reply.folded[: largest.start][-12:]):
        return None
    parts = [value for value in values if value != most]
    chosen = amounts.get(str(most))
    if chosen is None or (letter and chosen != letter) or len(parts) < 2 or sum(parts) != most:
        return None
    return chosen


def _extreme(reply: Reply, standing: Sequence[Mention]) -> str | None:
    """The one option of a last sentence with a superlative, after a survey of all options."""
    if not standing or len({m.letter for m in standing}) < len(reply.texts.raw):
        return None
    last = reply.sentence(standing[-1].start)
    found = {m.letter for m in standing if m.start >= last.start}
    rest = reply.folded[last.end :].strip()
    survey = {m.letter for m in standing if m.start < last.start}
    if rest or last.asks or len(found) != 1 or len(survey) < 2:
        return None
    said = {m[0] for m in reply.known.extreme.finditer(reply.judged)}
    if len(said) != 1:  # "the smallest is ..., the largest ..."
        return None
    return found.pop() if reply.known.extreme.search(reply.judged, last.start, last.end) else None
