"""A reply with what is needed to judge what it names: sentences, clauses, conditions, its end."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from llava_mole.evaluation.extraction.letters import Mention
from llava_mole.evaluation.extraction.normalise import CJK, WORD
from llava_mole.evaluation.extraction.phrases import Phrases
from llava_mole.evaluation.extraction.texts import Named, OptionTexts

_SENTENCE_END = re.compile(r"\n+|[。！？!?؟;；؛]+|\.+(?=\s|$|[^\w\s])")
COMMA = re.compile(r"[,，،—–:：]|\s-\s")
_SUBORDINATE = re.compile(r"\s*(?:что|будто|que|that|ki|ان)\b")
_NO_CONDITION = re.compile(
    r"\s+(?:i (?:had|have|were) to|i must|(?:we|you) (?:look|see|consider)|tiver que|tivesse que"
    r"|eu tivesse|forced)"
)
"""After "if": "if I had to guess, B" claims B all the same."""
_GLUE = frozenset(
    "is which that option e ou seja yani i это то есть именно هو هي اي".split()  # noqa: SIM905
)
_CHINESE_GLUE = re.compile(r"[\s\W]|也就是|即|就是|是|一只|一个|项|选项|那个")
"""What may stand between a letter and its text, besides articles: "D, that is, a horse"."""
SCOPE = 300
"""Characters to each side in which what is said of a mention is looked for."""


@dataclass(frozen=True)
class Sentence:
    start: int
    end: int
    asks: bool


def sentences(folded: str) -> list[Sentence]:
    """Sentences and lines of a text, in order, without gaps."""
    found, start = [], 0
    for m in _SENTENCE_END.finditer(folded):
        found.append(Sentence(start, m.end(), any(c in "?？؟" for c in m[0])))
        start = m.end()
    if start < len(folded) or not found:
        found.append(Sentence(start, len(folded), False))
    return found


class Reply:
    """A cleaned reply with what is needed to judge mentions in it.

    Args:
        text, folded: the same length.
        known: phrases of the language.
        texts: the options.
        named: where their texts stand, in order.
    """

    def __init__(
        self, text: str, folded: str, known: Phrases, texts: OptionTexts, named: list[Named]
    ) -> None:
        self.named = named
        self.text, self.folded, self.known, self.texts = text, folded, known, texts
        self.judged = known.harmless.sub(lambda m: " " * len(m[0]), folded)
        self.claims = re.sub("选项|選項", "  ", self.judged)
        self.sentences = sentences(folded)
        self._starts = [s.start for s in self.sentences]
        self._conditions: dict[int, bool] = {}

    def sentence(self, place: int) -> Sentence:
        return self.sentences[bisect_right(self._starts, place) - 1]

    def clause(self, m: Mention) -> str:
        """The part of its sentence between commas that a mention stands in."""
        s = self.sentence(m.start)
        cuts = [
            cut
            for cut in COMMA.finditer(self.judged, max(s.start, m.start - SCOPE), m.start)
            if not _SUBORDINATE.match(self.judged, cut.end())
        ]
        start = cuts[-1].end() if cuts else s.start
        end = min(s.end, m.end + SCOPE)
        for pattern in (COMMA, self.known.but):
            if after := pattern.search(self.judged, m.end, end):
                end = after.start()
        for turn in self.known.but.finditer(self.judged, max(start, m.start - 200), m.start):
            start = turn.start()
        return self.judged[max(start, m.start - 200) : min(end, m.end + 200)]

    def conditional(self, s: Sentence) -> bool:
        if s.start not in self._conditions:
            m = self.known.condition.search(self.judged, s.start, s.end)
            certain = m and _NO_CONDITION.match(self.judged, m.end())
            self._conditions[s.start] = bool(m) and not certain
        return self._conditions[s.start]

    def sees_none(self, refusal: re.Match[str]) -> bool:
        """Whether what looks like a refusal denies something: "No, I can't see any dog"."""
        if not self.texts.yes_no:
            return False
        s = self.sentence(refusal.start())
        start, end = max(s.start, refusal.start() - SCOPE), min(s.end, refusal.end() + SCOPE)
        cuts = [c.end() for c in COMMA.finditer(self.judged, start, refusal.start())]
        stop = COMMA.search(self.judged, refusal.end(), end)
        clause = self.judged[cuts[-1] if cuts else start : stop.start() if stop else end]
        found = self.known.any.search(clause)
        if not found:
            return False
        return not self.known.picture.match(clause[found.end() :].lstrip())

    def cut_off(self, last_end: int) -> bool:
        """Whether a reply of several sentences breaks off after its last mention's end."""
        if not re.search(rf"[{WORD}{CJK}]", self.folded[last_end:]):
            return False
        last = self.folded.rstrip()[-1:]
        if last in ".。!！?？؟)）]}\"'”»」』…:：" or not re.match(rf"[{WORD}{CJK},，،、]", last):
            return False
        return bool(re.search(r"[.。!！?？؟]\s*\S", self.folded))

    def label_after(self, m: Mention, named: list[Named]) -> Named | None:
        """The option's text that directly follows a letter, as in "B. dog" or "D, a dog"."""
        for n in named[bisect_left(named, m.end, key=lambda n: n.start) :]:
            between = self.folded[m.end : n.start]
            if len(between) > 40:
                return None
            words = re.findall(rf"[{WORD}]+", between)
            glue = self.known.articles | _GLUE
            if all(w in glue for w in words) and not re.search(r"[!?。！？]|\.\s*\n", between):
                if re.search(r"\.\s", between) and not m.headed and n.start - m.end > 4:
                    return None
                chinese = _CHINESE_GLUE.sub("", between)
                if not re.search(r"[\u3400-\u9fff]", chinese):
                    return n
            return None
        return None
