"""One option, or None: what a reply marks, then what it claims, then the one thing it names.

A claim ("the answer is B", "B. dog", "B is correct") outweighs a mention; a conclusion outweighs
claims before it; whatever else disagrees makes the reply unreadable. None is never a guess.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

from llava_mole.evaluation.extraction.fields import fields
from llava_mole.evaluation.extraction.judge import judge
from llava_mole.evaluation.extraction.letters import Mention, find_letters
from llava_mole.evaluation.extraction.normalise import CJK, WORD, clean, fold
from llava_mole.evaluation.extraction.phrases import phrases
from llava_mole.evaluation.extraction.positions import find_positions
from llava_mole.evaluation.extraction.readings import (
    not_conjunctions,
    not_texts,
    read_cyrillic,
    repeated,
    spaced_letter,
    texts_not_labels,
)
from llava_mole.evaluation.extraction.reply import Reply
from llava_mole.evaluation.extraction.spoken import spoken_choice
from llava_mole.evaluation.extraction.texts import Named, OptionTexts, option_texts
from llava_mole.evaluation.extraction.yes_no import find_yes_no

_LONGEST = 20_000
"""Characters that are read of a reply, its last ones; longer replies are loops."""


def extract_choice(reply: str, options: Mapping[str, str], language: str) -> str | None:
    """The letter of the one option that a reply chooses.

    Args:
        reply: as generated.
        options: letter -> text, in the order of the prompt.
        language: of the prompt, a code of `languages.py`. The reply may be English all the same.

    Returns:
        A key of `options`; None where the reply refuses, names several, contradicts itself, or
        says nothing that chooses.
    """
    text = clean(reply)[-_LONGEST:]
    if not text or not options:
        return None
    texts = option_texts(tuple(options.items()), language)
    marked = fields(text)
    if marked:
        read = [_read(content.strip(), options, texts) for content in marked]
        return read[0] if len(set(read)) == 1 else None
    return _read(text, options, texts)


def _read(text: str, options: Mapping[str, str], texts: OptionTexts) -> str | None:
    """The option that a text without marked fields chooses."""
    if not text:
        return None
    if equal := texts.equal_to(text):
        other = repeated(text)
        return equal if not (other in options and other != equal) else None
    every = texts.find(text)
    longer = any(n.end - n.start > 1 for n in every)
    if (letter := repeated(text)) is not None and not (letter == "" and longer):
        return letter if letter in options and letter not in texts.single_letters else None
    known = phrases(texts.language)
    folded = fold(text)
    named = [n for n in every if n.end - n.start > 1 or not spaced_letter(text, n)]
    reply = Reply(text, folded, known, texts, named)
    covered = {place for n in named for place in range(n.start, n.end)}
    letters = [
        m
        for m in find_letters(
            text, folded, texts.language, known, {n.start: n.letter for n in named}
        )
        if m.start not in covered
    ]
    read_cyrillic(reply, letters, named)
    letters = not_conjunctions(reply, letters, named)
    letters += find_positions(folded, list(options), texts, known)
    letters.sort(key=lambda m: m.start)
    if texts.single_letters:
        named += texts_not_labels(text, letters, every, options)
        named.sort(key=lambda n: n.start)
        letters = not_texts(letters, texts)
    spoken = [Mention(n.letter, n.start, n.end, named="text") for n in named]
    spoken += find_yes_no(folded, texts)
    spoken.sort(key=lambda m: m.start)
    return _decide(reply, letters, spoken, named, options)


def _decide(
    reply: Reply,
    letters: list[Mention],
    spoken: list[Mention],
    named: list[Named],
    options: Mapping[str, str],
) -> str | None:
    clash = _set_labels(reply, letters, named)
    labels = {m.label_end for m in letters if m.label_end > 0}
    judge(reply, letters)
    judge(reply, spoken)
    _skip_quoted(reply, letters, spoken)
    _skip_lists(letters)
    _claim_headed(reply, letters)
    letters, spoken = _after_correction(reply, letters, spoken)
    refused = _refusal_end(reply, named)
    if refused >= 0:
        letters = [m for m in letters if m.start > refused and m.claimed]
        spoken = [m for m in spoken if m.start > refused and m.claimed]

    standing = [m for m in letters if m.sure and not m.rejected and not m.ignored]
    claims = [m for m in standing if m.claimed]
    chosen = _one_of(claims or standing)
    if chosen == "" and not claims:
        chosen = _last_left(reply, letters, options)
    if chosen == "":
        return None
    if chosen is not None:
        if chosen not in options or clash & {id(m) for m in claims or standing}:
            return None
        if (
            not claims
            and reply.cut_off(max(m.end for m in standing))
            and not any(m.headed for m in standing)
        ):
            return None
        if not claims and any(
            not m.sure
            and not m.rejected
            and not m.ignored
            and m.letter != chosen
            and m.letter in options
            for m in letters
        ):
            return None
        if _contradicted(reply, chosen, claims or standing, spoken):
            return None
        if other := _concluded_text(chosen, claims or standing, spoken, labels):
            return None if claims else _unless_rejected(other, letters)
        if _shared(reply, chosen, claims, letters):
            return None
        if _outdone(reply, chosen, claims or standing, letters):
            return None
        last = max(m.start for m in claims or standing if m.letter == chosen)
        if claims and any(
            m.letter == chosen and m.rejected and m.sure and m.start > last for m in letters
        ):
            return None  # "The answer is B. The answer is not B."
        if any(
            _still_possible(reply, m) for m in standing if m.start > last and m.letter != chosen
        ):
            return None
        return chosen
    return _unless_rejected(spoken_choice(reply, spoken, named, labels), letters)


def _unless_rejected(chosen: str | None, letters: Sequence[Mention]) -> str | None:
    return None if any(m.letter == chosen and m.rejected for m in letters) else chosen


def _set_labels(reply: Reply, letters: list[Mention], named: list[Named]) -> set[int]:
    """Fill in `label_end`; the ids of mentions with another option's text beside them."""
    clash = set()
    for m in letters:
        label = reply.label_after(m, named)
        if label and label.letter == m.letter:
            m.label_end = label.end
        elif label:
            clash.add(id(m))
        place = bisect_left(named, m.start, key=lambda n: n.start) - 1
        if m.bracketed and place >= 0 and named[place].letter != m.letter:
            between = reply.folded[named[place].end : m.start]
            noun = reply.known.option.pattern
            if len(between) < 40 and re.fullmatch(rf"[\s(\[（【]*(?:{noun}\s*)?[\s(\[]*", between):
                clash.add(id(m))
    return clash


def _skip_quoted(reply: Reply, letters: list[Mention], spoken: list[Mention]) -> None:
    """A text that only tells what an option says ("option A says two people") claims nothing."""
    said = {
        (m.letter, reply.sentence(m.start).start): m.end
        for m in letters
        if m.ignored and not m.claimed
    }
    for m in spoken:
        place = said.get((m.letter, reply.sentence(m.start).start))
        if place is not None and place <= m.start and not m.concluded:
            m.ignored = True


def _skip_lists(letters: list[Mention]) -> None:
    """Letters that only number the options, A to the last, claim nothing unless judged right."""
    headed = [m for m in letters if m.headed]
    for one, two in pairwise(headed):
        if ord(two.letter[0]) == ord(one.letter[0]) + 1:
            for m in (one, two):
                m.ignored = m.ignored or not m.claimed
    groups: dict[int, set[str]] = {}
    for m in letters:
        groups.setdefault(m.group, set()).add(m.letter)
    for m in letters:
        if m.label_end > m.end and len(groups[m.group]) > 1:
            m.ignored = True


def _claim_headed(reply: Reply, letters: list[Mention]) -> None:
    """A letter at the very front, or alone in its line but for its text, is a claim."""
    for m in letters:
        if not m.headed or m.rejected or m.ignored or not m.sure:
            continue
        front = not re.search(rf"[{WORD}{CJK}]", reply.text[: m.start])
        end = max(m.end, m.label_end)
        line = reply.text[end : reply.text.find("\n", end) % (len(reply.text) + 1)]
        if front or not re.search(rf"[{WORD}{CJK}]", line):
            m.claimed = True


def _after_correction(
    reply: Reply, letters: list[Mention], spoken: list[Mention]
) -> tuple[list[Mention], list[Mention]]:
    """What is said after the last "no, wait" that has something said after it."""
    live = [m.start for m in letters + spoken if not m.rejected and not m.ignored]
    if not live:
        return letters, spoken
    last = max(live)
    cut = -1
    for m in reply.known.correction.finditer(reply.folded):
        if m.end() <= last and not (reply.texts.yes_no and not reply.folded[: m.start()].strip()):
            cut = m.start()
    return [m for m in letters if m.start >= cut], [m for m in spoken if m.start >= cut]


def _refusal_end(reply: Reply, named: Sequence[Named]) -> int:
    """Where the last refusal or indecision ends, outside options' texts; -1 without one."""
    end = -1
    for m in reply.known.refusal.finditer(reply.judged):
        if reply.sees_none(m):
            continue
        if not any(n.start <= m.start() and m.end() <= n.end for n in named):
            end = m.end()
    return end


def _one_of(mentions: Sequence[Mention]) -> str | None:
    """The letter that mentions agree on, or that the last one concludes; "" if none does."""
    found = {m.letter for m in mentions}
    if len(found) < 2:
        return found.pop() if found else None
    last = mentions[-1]
    together = {m.letter for m in mentions if m.group == last.group}
    others = [m for m in mentions if m.letter != last.letter]
    if (
        last.claimed
        and last.concluded
        and len(together) == 1
        and not any(m.concluded or m.headed for m in others)
    ):
        return last.letter
    return ""


def _shared(
    reply: Reply, chosen: str, claims: Sequence[Mention], letters: Sequence[Mention]
) -> bool:
    """Whether a claim is shared without its verb, or another letter is asked about after it.

    "A fits in some respects, B in others"; "A is wrong, B is a bird. Is it D?"
    """
    for m in letters:
        if m.letter == chosen or m.rejected:
            continue
        s = reply.sentence(m.start)
        if not claims and s.asks and s is reply.sentences[-1]:
            return True
        before = [c for c in claims if s.start <= c.start < m.start]
        gap = re.search(r"[,،，;]\s*(?:\w{1,3}\s)?$", reply.folded[s.start : m.start][-8:])
        if before and not m.sure and not m.ignored and gap and not before[-1].concluded:
            return True
    return False


def _last_left(reply: Reply, letters: Sequence[Mention], options: Mapping[str, str]) -> str:
    """The letter of a last sentence, after a survey that goes through all others; or "".

    All others but one, at most, must have been rejected or weighed: "Neither A nor C is a mammal,
    and B is a bird. The whale, option D, is the mammal."
    """
    last = reply.sentence(letters[-1].start)
    own = [m for m in letters if m.start >= last.start]
    before = [m for m in letters if m.start < last.start]
    found = {m.letter for m in own}
    if len(options) < 3 or len(found) != 1 or last.asks or reply.folded[last.end :].strip():
        return ""
    if any(m.rejected or m.ignored or not m.sure for m in own):
        return ""
    if reply.known.perhaps.search(reply.judged, last.start, last.end):
        return ""
    others = set(options) - found
    left = {m.letter for m in before if not m.rejected and not m.ignored} & others
    if {m.letter for m in before} != others or len(left) > 1:
        return ""
    return found.pop()


def _concluded_text(
    chosen: str, mentions: Sequence[Mention], spoken: Sequence[Mention], labels: set[int]
) -> str:
    """The one other option that is concluded by its text after the last letter; or ""."""
    last = max(m.end for m in mentions)
    found = {
        m.letter
        for m in spoken
        if m.start > last and m.concluded and m.end not in labels
        if not m.rejected and not m.ignored
    }
    return found.pop() if len(found) == 1 and chosen not in found else ""


def _still_possible(reply: Reply, m: Mention) -> bool:
    """Whether another letter is named as a further possibility: "but it could also be C"."""
    s = reply.sentence(m.start)
    start, end = max(s.start, m.start - 40), min(s.end, m.end + 30)
    near = re.split(r"[,，،;]", reply.judged[start : m.start])[-1]
    near += re.split(r"[,，،;]", reply.judged[m.end : end])[0]
    return not m.claimed and bool(reply.known.perhaps.search(near))


def _outdone(
    reply: Reply, chosen: str, claims: Sequence[Mention], letters: Sequence[Mention]
) -> bool:
    """Whether the last claim's sentence goes on to claim another: "A is ..., though B is best"."""
    last = max(m.end for m in claims if m.letter == chosen)
    s = reply.sentence(last - 1)
    return not s.asks and any(
        m.ignored and m.claimed and m.letter != chosen and last <= m.start < s.end for m in letters
    )


def _contradicted(
    reply: Reply, chosen: str, claims: Sequence[Mention], spoken: Sequence[Mention]
) -> bool:
    """Whether the sentence of a claim leads to it with another option's text."""
    for claim in claims:
        if claim.letter != chosen:
            continue
        s = reply.sentence(claim.start)
        said = {
            m.letter
            for m in spoken
            if s.start <= m.start < claim.start and not m.rejected and not m.ignored
        }
        if len(said) == 1 and chosen not in said:
            return True
    return False
