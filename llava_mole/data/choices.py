"""Multiple-choice questions as text: the same words where they are trained on and evaluated."""

from __future__ import annotations

from collections.abc import Mapping

LETTERS = ("A", "B", "C", "D")

LANGUAGE_ALIASES = {"cn": "zh"}
"""MMMB's file names spell Chinese `cn`."""

CLOSING = {
    "letters": {
        "en": "Answer with the letter.",
        "zh": "请回答选项字母。",
        "pt": "Responda com a letra.",
        "ar": "أجب بحرف الخيار.",
        "tr": "Harfle yanıtlayın.",
        "ru": "Ответьте буквой.",
    },
    "parrot": {
        "en": "Answer with the option's letter from the given choices directly.",
        "zh": "请直接用给定选项中的选项字母回答。",
        "pt": "Responda diretamente com a letra da opção das escolhas dadas.",
        "ar": "أجب مباشرةً بحرف الخيار من الاختيارات المعطاة.",
        "tr": "Verilen seçeneklerden doğrudan seçeneğin harfi ile cevap verin.",
        "ru": "Ответьте буквой варианта из предложенных вариантов напрямую.",
    },
}
"""Style -> language -> the line that closes the question; `parrot` as Parrot's evaluation words it
(VLMEvalKit, `vlmeval/vlm/parrot.py`)."""


def lettered_question(question: str, options: Mapping[str, str], *, hint: str, closing: str) -> str:
    """Hint (if any), question, one option a line under its letter, the closing line."""
    lines = [hint] if hint else []
    lines.append(question)
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    lines.append(closing)
    return "\n".join(lines)
