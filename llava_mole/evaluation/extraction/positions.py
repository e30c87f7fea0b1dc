"""Where a reply names an option by its place: "option 2", "the second option", "第二个"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from llava_mole.evaluation.extraction.letters import Mention
from llava_mole.evaluation.extraction.normalise import WORD
from llava_mole.evaluation.extraction.phrases import Phrases, phrases
from llava_mole.evaluation.extraction.texts import OptionTexts
from llava_mole.evaluation.extraction.words import source

_COUNT_WORDS = r"(?:number|num|no\.?|nr\.?|#|№|numero|n\.?o?|номер|رقم|numara|numarali)"
_NOT_IN_A_ROW = (
    "answer*|selection|letter|respuesta|letra|letras|resposta|cevap|yanit|secim*|harf*|ответ|ответы|"
    "буква|букву|буквы|буквой|букве|выбор|номер|رقم|الحرف|حرف|الاجابه|الجواب|اختيار"
)
"""Nouns for options that are counted for another reason: "my first answer was A"."""
_COPULA = (
    "(?:is|was|be|esta|would|must|should|seems|looks|the|my|not|e|seria|deve|ser|parece|a|o|nao|هي|هو|ليس|ليست"
    "|это|и|есть|не|самый|kesinlikle|bence|olan|en)"
)
_MINE = re.compile(
    r"(?:\b(?:my|as|as a|our|minha|meu|como|nossa|como uma|мой|моя|мои|benim)\s|我的)$"
)
_BY_ME = re.compile(r"\s(?:that\s|que\s)?(?:i|i'd|eu|you|we)\s|\s(?:который|которую|что)\sя\b")
_ENDS = r"(?:st|nd|rd|th|[.ao]|-?(?:й|ый|ой|ий|я|е|го|inci|nci|uncu|ncu))?"


@lru_cache(maxsize=16)
def _patterns(language: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """(a place beside a noun for options, one that is called right, one that is all of a reply)."""
    known = phrases(language)
    spelled = sorted(known.ordinals, key=len, reverse=True)
    chinese = "|".join(w for w in spelled if w[0] in "第最末")
    others = "|".join(re.escape(w) for w in spelled if w[0] not in "第最末")
    noun = source(
        "|".join(
            word for word in known.words.option.split("|") if word not in _NOT_IN_A_ROW.split("|")
        )
    )
    edge = f"(?<![{WORD}])", f"(?![{WORD}])"
    beside = re.compile(
        rf"{edge[0]}(?P<a>{others}){edge[1]}\s{{1,2}}(?:(?!and\b)\w{{1,14}}\s)?{noun}"
        rf"|{noun}\s{{1,2}}{edge[0]}(?P<b>{others}){edge[1]}"
        rf"|{noun}\s{{0,2}}[:.]?\s{{0,2}}(?:{_COUNT_WORDS}\s{{0,2}})?"
        rf"(?P<c>\d){_ENDS}(?![.,:]?\d|[{WORD}%°])"
        rf"|(?<![\d.,]){edge[0]}(?P<d>\d){_ENDS}\s{{1,2}}(?:{_COUNT_WORDS}\s{{1,2}})?{noun}"
        rf"|(?P<e>{chinese})\s?[个個项項]?\s?(?:选项|選項|答案|选择|選擇)"
        rf"|第\s?(?P<f>\d)\s?[个個项項]?\s?(?:选项|選項|答案|选择|選擇)"
    )
    alone = [w for w in spelled if w[0] not in "第最末"]
    between = "{1,3}"
    if language == "tr":  # "ikincisi", the second one, but not "ikinci", second
        alone = [w for w in alone if re.search("(?:si|su|ki)(?:n[iu])?$", w)]
    if language in ("tr", "ru", "ar"):
        between = "{0,3}"  # no copula
    single = "|".join(map(re.escape, alone))
    right = rf"(?!{source(known.words.option)})(?:{known.answer.pattern}|right(?=\s*(?:[.,;!]|$)))"
    called = re.compile(
        rf"{right}[:\s]\s?(?:{_COPULA}\s){between}{edge[0]}(?P<a>{single}){edge[1]}"
        r"(?:\s(?:one|olan|из\s\w{1,12}|of\s(?:these|them|the\s\w{1,8})))?(?=\s*(?:[.,;:!)。،]|\n|$))"
        rf"|{edge[0]}(?P<b>{single}){edge[1]}(?:\s(?:one|olan|из\s\w{{1,12}}))?"
        rf"\s(?:{_COPULA}\s){between}{right}"
        rf"|(?:选|選|答案是|应该是|應該是|答案:|答案为)\s?(?P<c>{chinese})\s?[个個项項]?(?=\W|吧|$)"
        rf"|(?P<d>{chinese})\s?[个個项項]?(?:应该|應該|才|最)?是?(?:正确|正確|对的|對的|符合|合适|答案)"
    )
    articles = "|".join(sorted(a for a in known.articles if a.isalpha() and a.isascii()))
    whole = re.compile(
        r"\W*(?:我?(?:答案是|答案:|选择|選擇|选|選|应该是|应该选|是)\s*)?"
        rf"(?:(?:{articles})\s)?(?:(?P<a>{chinese}|{others})|第(?P<b>\d))\s?(?:one|[个個项項])?\W*"
    )
    return beside, called, whole


def find_positions(
    folded: str, options: Sequence[str], texts: OptionTexts, known: Phrases
) -> list[Mention]:
    """Options named by place; none where the options speak of places or the same numbers."""
    if "第" in texts.words:
        return []
    numbers = set(texts.values.values()) - {""}
    beside, called, whole = _patterns(texts.language)
    found = [
        (span, m[kind])
        for pattern in (beside, called)
        for m in pattern.finditer(folded)
        if (kind := m.lastgroup) and (span := m.span(0 if pattern is beside else kind))
    ]
    beside_count = sum(1 for _ in beside.finditer(folded))
    alone = whole.fullmatch(folded) if not found and len(folded) < 40 else None
    if alone:
        found = [(alone.span(), alone["a"] or alone["b"])]
    mentions = []
    for i, ((start, end), said) in enumerate(found):
        if said in texts.words or any(s <= start < e for (s, e), _ in found[:i]):
            continue
        joined = folded[:start].rstrip(" (\"'").split(" ")[-3:]
        if i >= beside_count and any(known.also.fullmatch(word) for word in joined):
            continue
        if numbers and (said.isdigit() or str(known.ordinals[said] + 1) in numbers):
            continue
        place = int(said) - 1 if said.isdigit() else known.ordinals[said]
        if place == 9:
            place = len(options) - 1
        letter = options[place] if 0 <= place < len(options) else "?"
        if _MINE.search(folded[:start][-12:]) or _BY_ME.match(folded, end):
            letter = "?"  # "my first choice": a rank, not a place
        mentions.append(Mention(letter, start, end, letter, named="place"))
    return mentions
