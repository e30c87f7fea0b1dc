"""Places that a reply marks as its answer: `\\boxed{}`, answer tags, JSON keys."""

from __future__ import annotations

import re

from llava_mole.evaluation.extraction.normalise import fold

_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{((?:[^{}]|\{[^{}]{0,200}\}){0,400})\}")
_NAMES = (
    "answer|final_?answer|final answer|conclusion|choices?|option|selected_?option|correct_?answer"
    "|correct_?option|correct_?choice|prediction|selection|response|result|letter|resposta"
    "|resposta_?final|alternativa|opcao|escolha|letra|respuesta|cevap|yanit|secenek|sik"
    "|dogru_?cevap|ответ|вариант|выбор|правильный_?ответ|правильный ответ|буква|الاجابه|الجواب"
    "|الخيار|اجابه|الاجابه الصحيحه|الاختيار|答案|选项|選項|选择|選擇|正确答案|回答"
)
_TAG = re.compile(rf"<\s*({_NAMES})\s*>([^<]{{0,400}})(?:<\s*/|$)")
_JSON = re.compile(
    rf"[\"'](?:{_NAMES})[\"']\s*:\s*"
    r"(?:\"([^\"\n]{0,400})\"|'([^'\n]{0,400})'|(\[[^\]\n]{0,400}\]|[^\s,}\"']{1,40}))"
)


def fields(text: str) -> list[str]:
    """What the answer fields of one kind hold, in order; empty where a reply has none."""
    folded = fold(text)
    if "\\" in text and (boxed := [text[slice(*m.span(1))] for m in _BOXED.finditer(text)]):
        return boxed
    if "<" in text and (tags := [text[slice(*m.span(2))] for m in _TAG.finditer(folded)]):
        return tags
    if "{" in text:
        return [text[slice(*m.span(m.lastindex or 0))] for m in _JSON.finditer(folded)]
    return []
