"""Yes and no, where they answer: at the front of a sentence or after "the answer is".

Inside a sentence they are mostly something else ("no" as determiner, 是 as copula, "var" as verb).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from llava_mole.evaluation.extraction.letters import Mention
from llava_mole.evaluation.extraction.normalise import WORD, fold
from llava_mole.evaluation.extraction.phrases import phrases
from llava_mole.evaluation.extraction.texts import OptionTexts
from llava_mole.evaluation.extraction.words import entries, source

_END = r"\s*(?:[.,:;!?。，！；：、،؛)\]}>\"'”»」—–|-]|\n|$)"
_FIRM = ("yes", "yep", "yeah", "sim", "evet", "да", "نعم", "اجل")
"""Words that answer whatever follows them; the others need a comma or an end after them."""
_AFTER_NO = r"\s+(?:there|it|he|she|they|the|this|that|you|i)\b(?!\s+(?:image|picture|photo))"
_THERE_IS = (
    ("var", "yok", r"\b(?:(?P<no>yok(?:tur)?)|var(?:dir)?)(?=\W*$)"),
    ("有", "没有", "(?P<no>没有|沒有|无|看不到)|有"),
    ("有", "沒有", "(?P<no>没有|沒有|无|看不到)|有"),
    ("есть", "нет", r"\b(?:(?P<no>нет|нету|отсутствует)|есть)\b"),
)


@lru_cache(maxsize=16)
def _pattern(language: str) -> re.Pattern[str]:
    known = phrases(language)
    words = known.words

    def either(listed: str) -> tuple[str, str]:
        words = sorted(entries(listed), key=len, reverse=True)
        spaced = "|".join(re.escape(w) for w in words if not "\u3400" <= w[0] <= "\u9fff")
        chinese = "|".join(w for w in words if "\u3400" <= w[0] <= "\u9fff")
        return spaced, chinese

    yes, yes_zh = either(known.words.yes)
    no, no_zh = either(known.words.no)
    lead = (
        rf"(?:^|[.!?。！？;；\n،,，:：>=\"'“”«»「」—–]\s*|{known.answer.pattern}\s*"
        r"(?:is|would be|e|:|是|为|為|هي|هو|-|—|was|seria|=)?\s*[\"'“«「:]?\s*"
        rf"|{known.therefore.pattern}\s*|{known.but.pattern}\s*|\bis\s|\b(?:and|or|e|ou|ve|veya)\s)"
    )

    def word(listed: str) -> str:
        return rf"(?<![{WORD}])(?:{listed})(?![{WORD}])"

    end_zh = rf"(?=的?[吧啊呢哦]?{_END}|定)"
    subject = (
        rf"{source(words.statement)}(?:\s?\w{{1,12}}?){{0,2}}?\s?(?:is|is:|e|é|是|为|:|—|-|هي)?\s?"
    )
    return re.compile(
        rf"(?:{subject}(?:(?P<false>{source(words.is_false)})|(?P<true>{source(words.is_true)})))"
        rf"|(?P<lead>{lead})"
        rf"(?:(?P<no>{word(no)}(?={_END}|{_AFTER_NO})|{word('hayir|nope')}|(?:{no_zh}){end_zh})"
        rf"|(?P<yes>{word('|'.join(_FIRM))}|{word(yes)}(?={_END})|(?:{yes_zh}){end_zh}))"
    )


def find_yes_no(folded: str, texts: OptionTexts) -> list[Mention]:
    """Where a reply says yes or no, as mentions of the two options."""
    if not texts.yes_no:
        return []
    letters = {said: letter for letter, said in texts.yes_no.items()}
    known = phrases(texts.language)
    true_words = set(entries(known.words.is_true))
    truth = any(raw in true_words for raw in texts.raw.values())
    other = re.compile(f"{source(known.words.is_false)}|{source(known.words.is_true)}")
    found = []
    place = 0
    pattern = _pattern(texts.language)
    while m := pattern.search(folded, place):
        kind = next(k for k in ("yes", "no", "true", "false") if m[k] is not None)
        said = kind in ("yes", "true")
        start, end = m.span(kind)
        place = end
        if kind in ("true", "false"):
            denied = known.negation.search(folded, m.start(), start)
            if not truth or (denied and kind == "false"):
                continue
            rest = re.split(r"[.!?。！？\n]", folded[end : end + 200])[0]
            if other.search(rest) or known.perhaps.search(folded, m.start(), start):
                return []  # true of this, false of that; or perhaps so
            said = said and not denied and not known.rejection.match(folded[end : end + 30].strip())
        found.append(
            Mention(
                letters[said],
                start,
                end,
                letters[said],
                named="text",
                headed=not folded[:start].strip(" \"'“«「"),
            )
        )
    return found or _there_is(folded, texts, letters)


def _there_is(folded: str, texts: OptionTexts, letters: Mapping[bool, str]) -> list[Mention]:
    """The verb of one sentence, where options are "there is" and "there isn't" in a word."""
    for one, other, verb in _THERE_IS:
        if {fold(one), fold(other)} == set(texts.raw.values()):
            found = list(re.finditer(verb, folded))
            if len(found) == 1 and not re.search(r"[.。!！?？,，;；\n]\s*\S", folded):
                place, said = found[0], found[0]["no"] is None
                return [Mention(letters[said], *place.span(), letters[said], named="text")]
    return []
