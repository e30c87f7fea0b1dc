"""How an item is asked: the exact text of the question, and what is scored as its answer.

- `answers`: the question alone; each option's full text is scored as the answer. Nothing in the
  prompt tells the options, so this asks what the model knows.
- `letters`: question, one option a line under its letter, a short closing line; letters are scored.
- `parrot`: as `letters`, with the closing line that Parrot's evaluation uses in each language
  (VLMEvalKit, `vlmeval/vlm/parrot.py`), and the item's hint before the question.
"""

from __future__ import annotations

from llava_mole.errors import ConfigError
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.scoring import Picture, Query

STYLES = ("answers", "letters", "parrot")

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


def style_of(kind: str) -> str:
    """How the OpenMoji dataset's kinds are asked: `choice` by letter, all others by full answer."""
    return "letters" if kind == "choice" else "answers"


def ask(item: Item, style: str, image: Picture | None) -> Query:
    """The query of an item; its options in the order of their letters.

    Args:
        style: one of STYLES.
        image: the picture to show; None withholds it.

    Raises:
        ConfigError: unknown style.
    """
    if style not in STYLES:
        raise ConfigError(f"prompt style {style!r}: allowed are {', '.join(STYLES)}")
    lines = [item.hint] if item.hint else []
    lines.append(item.question)
    if style == "answers":
        return Query("\n".join(lines), tuple(item.options.values()), image, item.language)
    lines += [f"{letter}. {text}" for letter, text in item.options.items()]
    lines.append(CLOSING[style][item.language])
    return Query("\n".join(lines), tuple(item.options), image, item.language)
