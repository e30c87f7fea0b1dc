"""What a reply says of each option it names: claimed, rejected, weighed, or only mentioned.

Each mention is judged by the words in its reach: to the left as far as its clause goes, to the
right to the next comma, mention or explanation. Letters joined by "and", "or" or commas form a
group, judged together.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from llava_mole.evaluation.extraction.letters import Mention
from llava_mole.evaluation.extraction.normalise import ARABIC, CJK, WORD
from llava_mole.evaluation.extraction.phrases import Phrases
from llava_mole.evaluation.extraction.reply import COMMA, SCOPE, Reply, Sentence

_ABLATIVE, _MORE = re.compile("[dt][ae]n$"), re.compile(r"\s(?:daha|cok|ziyade)\b")
"""In Turkish what is compared with: "C'den daha uygun", more fitting than C."""
_ANSWER_REACH = 90


def judge(reply: Reply, mentions: list[Mention]) -> None:
    """Fill in `rejected`, `ignored`, `claimed`, `concluded` and `group` of mentions, in order."""
    _group(reply, mentions)
    for i, m in enumerate(mentions):
        before = mentions[i - 1] if i else None
        after = mentions[i + 1] if i + 1 < len(mentions) else None
        _judge_one(reply, m, before, after)
    groups: dict[int, list[Mention]] = {}
    for m in mentions:
        groups.setdefault(m.group, []).append(m)
    for members in groups.values():
        if len(members) > 1:
            rejected = members[0].rejected or members[-1].rejected
            claimed = any(m.claimed for m in members)
            concluded = any(m.concluded for m in members)
            ignored = any(m.ignored for m in members)
            for m in members:
                m.rejected, m.claimed, m.ignored, m.concluded = (
                    rejected,
                    claimed,
                    ignored,
                    concluded,
                )


def _group(reply: Reply, mentions: list[Mention]) -> None:
    joint = reply.known.joint
    for i, m in enumerate(mentions):
        m.group = i
        if not i:
            continue
        last = mentions[i - 1]
        gap_start = max(last.end, last.label_end)
        between = reply.folded[gap_start : m.start]
        joined = (
            (last.named == m.named or {last.named, m.named} <= {"letter", "place"})
            and len(between) < 40
            and joint.fullmatch(between)
        )
        listed = last.label_end > last.end and m.label_end > m.end
        if "é" in reply.text[gap_start : m.start].lower():
            joined = None  # the verb, not the conjunction it is folded to
        if joined and re.search(r"[.\n]", between) and last.letter != m.letter and not listed:
            joined = None
        if joined and (_instead(reply, last) or _compared_with(reply, m)):
            joined = None
        if m.named == "text" and {m.letter, last.letter} & {reply.texts.none, reply.texts.every}:
            joined = None
        if joined:
            m.group = last.group


def _compared_with(reply: Reply, m: Mention) -> bool:
    """Whether a Turkish mention is what another is compared with."""
    return (
        reply.texts.language == "tr"
        and bool(_ABLATIVE.search(reply.judged[m.start : m.end]))
        and bool(_MORE.match(reply.judged, m.end))
    )


def _instead(reply: Reply, m: Mention) -> bool:
    """Whether what follows a mention is preferred to it: "instead of A, B"."""
    before = reply.folded[max(reply.sentence(m.start).start, m.start - 24) : m.start]
    return bool(reply.known.instead.search(COMMA.split(before)[-1]))


def _judge_one(reply: Reply, m: Mention, before: Mention | None, after: Mention | None) -> None:
    known, text = reply.known, reply.judged
    s = reply.sentence(m.start)
    left_start = max(
        s.start, m.start - SCOPE, before.end if before and before.end <= m.start else 0
    )
    right_end = min(
        s.end,
        max(m.end, m.label_end) + SCOPE,
        after.start if after and after.start >= m.end else s.end,
    )

    near_start = left_start
    for pattern in (COMMA, known.but):
        for cut in pattern.finditer(text, near_start, m.start):
            if pattern is not COMMA or cut[0] not in ":：":
                both = pattern is not COMMA and known.negation.match(text, cut.start())
                near_start = cut.start() if both else cut.end()  # "rather" and "rather than"
    near = text[max(near_start, m.start - 60) : m.start]
    if known.negation.search(near):
        m.rejected = True
    if _compared_with(reply, m) or text[max(0, m.start - 1) : m.start] == "比":
        m.rejected = True
        if before and known.rejection.search(COMMA.split(text[m.end : m.end + 16])[0]):
            before.rejected = True  # worse than this one
    if before and before.rejected and known.likewise.search(text[left_start : m.start]):
        m.rejected = True

    end_of_own = max(m.end, m.label_end)
    right_stop = right_end
    for pattern in (COMMA, known.because, known.but):
        stop = pattern.search(text, end_of_own, right_end)
        if stop and stop[0] in ":：—–-" and not text[end_of_own : stop.start()].strip(" )]}\"'."):
            stop = pattern.search(text, stop.end(), right_end)  # "A: wrong"
        if stop:
            right_stop = min(right_stop, stop.start())
    right = text[end_of_own : min(right_stop, end_of_own + 80)]
    line_end = text.find("\n", m.end)
    line = text[m.end : line_end if line_end >= 0 else len(text)][:200] if m.headed else ""
    cross, tick = re.search("[❌✗✘✖]", line), re.search("[✅✔☑✓👍]", line)

    bad = known.rejection.search(right)
    bad_belongs_to_next = (
        bad
        and not right[bad.end() :].strip()
        and after
        and not text[right_stop:right_end].strip()
        and _ends_with(known, right)
    )
    if bad_belongs_to_next:
        right = ""
    bad = known.rejection.search(right)
    good = known.answer.search(re.sub("选项|選項", "  ", right))
    if m.named == "text":
        bad = _direct(reply, right)
        good = None if bad else good
    if bad or cross:
        m.rejected = True
    said = right.lstrip(" \t)]\"'")
    if noun := known.option.match(said):
        said = said[noun.end() :].lstrip()
    verb_last = reply.texts.language == "tr" and not good and known.discussion.search(said)
    if (known.discussion.match(said) or verb_last) and m.named != "text":
        m.ignored = True
    if m.named != "text" and re.search(rf"[{ARABIC}]\s{known.option.pattern}\W*\Z", near):
        verb = near[: near.rindex(" ", 0, len(near.rstrip()))].split()[-1:]
        if verb and known.discussion.fullmatch(verb[0]):
            m.ignored = True  # in Arabic the verb comes first: "says option A"
    if s.asks and not good:
        m.ignored = True
    if reply.conditional(s) and not _counterfactual_over(reply, s, m):
        m.ignored = True
    if known.aside.search(reply.clause(m)):
        m.ignored = True
    if m.rejected:
        return
    reach = reply.claims[max(left_start, m.start - _ANSWER_REACH) : m.start]
    if known.answer.search(reach) or (good and not bad) or tick:
        m.claimed = True
    if m.named == "text" and known.shown.search(reach):
        m.claimed = True
    whole_left = text[max(s.start, m.start - 160) : m.start]
    if known.therefore.search(whole_left):
        m.concluded = True
        m.claimed = m.claimed or m.named != "text"
    if m.named != "text" and (_whole_answer(reply, m, s) or _tied(reply, m)):
        m.claimed = m.concluded = True


def _counterfactual_over(reply: Reply, s: Sentence, m: Mention) -> bool:
    """Whether a condition of the sentence has ended: "if it were French, A, but it isn't, so B"."""
    known, text = reply.known, reply.judged
    conditions = list(
        known.condition.finditer(text, max(s.start, m.start - SCOPE), min(s.end, m.end + SCOPE))
    )
    if not conditions or conditions[-1].start() > m.start:
        return False
    turn = known.but.search(text, conditions[-1].end(), m.start)
    if not turn:
        return False
    clause = text[turn.end() : m.start]
    return bool(known.therefore.search(clause) or known.answer.search(clause[-_ANSWER_REACH:]))


def _tied(reply: Reply, m: Mention) -> bool:
    """Whether a letter is tied to its own text before it: "a whale, that is, option D"."""
    place = bisect_left(reply.named, m.start, key=lambda n: n.start) - 1
    if place < 0 or reply.named[place].letter != m.letter:
        return False
    between = reply.judged[reply.named[place].end : m.start]
    return len(between) < 40 and bool(
        re.fullmatch(
            rf"\W*{reply.known.that_is.pattern}\W*(?:(?:the|a|o)\s)?{reply.known.option.pattern}?\W*",
            between,
        )
    )


def _whole_answer(reply: Reply, m: Mention, s: Sentence) -> bool:
    """Whether a sentence says nothing but which letter is the answer: "My answer: C"."""
    if (
        s.asks
        or m.start - s.start > 60
        or s.end - m.end > 90
        or not re.search(rf"[{WORD}{CJK}]", reply.judged[s.start : m.start])
    ):
        return False
    before = reply.judged[s.start : m.start]
    after = reply.judged[max(m.end, m.label_end) : s.end]
    words = re.findall(rf"[{WORD}]+|[{CJK}]", before)
    return (
        not re.search(rf"[{WORD}{CJK}]", after)
        and len(words) <= 6
        and bool(
            re.search(rf"{reply.known.answer.pattern}\W*\Z", before[-40:])
            and re.search(r"[:：—–-]\W*\Z", before)
        )
    )


def _ends_with(known: Phrases, right: str) -> bool:
    """Whether what stands between two mentions is a negation of the second."""
    words = right.split()
    return bool(words) and len(words) < 4 and bool(known.negation.fullmatch(words[-1]))


def _direct(reply: Reply, right: str) -> re.Match[str] | None:
    """A rejection right after an option's text, within two words."""
    words = " ".join(right.split()[:3])
    return reply.known.rejection.search(words)
