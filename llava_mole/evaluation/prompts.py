"""How an item is asked: the exact text of the question, and what is scored as its answer.

Styles of published evaluations are written out here word for word, so that two of them can be held
against each other (`benchmark_prompts` in `docs/evaluation.md`); which one is taken is the
protocol's business, never a guess from a name. `answers` and `letters` are this project's own:

- `answers`: the question alone; each option's full text is scored as the answer. Nothing in the
  prompt tells the options, so this asks what the model knows. (`question` in a protocol.)
- `letters`: question, one option a line under its letter, a short closing line; letters are scored.
"""

from __future__ import annotations

import re

from llava_mole.data.choices import CLOSING, lettered_question
from llava_mole.errors import ConfigError
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.scoring import Picture, Query

STYLES = ("answers", "letters", "parrot")

SHORT = "Answer the question using a single word or phrase."
LLAVA = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接回答选项字母。",
}
LMMS_EVAL = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接使用所提供的选项字母作为答案回答。",
    "ru": "Выбери правильный вариант ответа буквой.",
}
"""lmms-eval has no MMBench in pt, ar and tr: the English line stands in."""
HAN = re.compile("[\u4e00-\u9fff]")


def prompt_of(item: Item, protocol: Protocol) -> str:
    """The user's text, whole; the picture comes before it.

    Sources: Parrot's and LLaVA's from VLMEvalKit's `vlmeval/vlm/parrot.py` and `llava/llava.py`
    (Parrot's by each row's language: run as an aggregate, that code gives Portuguese, Arabic,
    Turkish and Russian the English line); `ImageMCQDataset.build_prompt` there for vlmevalkit;
    `lmms_eval/tasks/mmbench/*_utils.py`, where the closing line follows a blank one.

    Raises:
        ConfigError: unknown style.
    """
    style = protocol.style
    hint, question = item.hint, item.question
    lines = [f"{letter}. {text}" for letter, text in item.options.items()]
    before = f"{hint}\n" if hint else ""
    if style in ("parrot", "letters"):
        return lettered_question(
            question, item.options, hint=hint, closing=CLOSING[style][item.language]
        )
    if style == "llava":
        body = "\n".join([question, *lines])
        han = bool(HAN.search(before + body))
        return f"{before}{body}\n{LLAVA['zh' if han else 'en']}"
    if style == "vlmevalkit":
        told = f"Hint: {hint}\n" if hint else ""
        options = "".join(f"{line}\n" for line in lines)
        return (
            f"{told}Question: {question}\nOptions:\n{options}"
            "Please select the correct answer from the options above. \n"
        )
    if style == "lmms_eval":
        told = f"{hint} " if hint else ""
        closing = LMMS_EVAL.get(item.language, LMMS_EVAL["en"])
        return "\n".join([f"{told}{question} There are several options:", *lines, "", closing])
    if style == "question":
        return f"{before}{question}"
    if style == "short":
        return f"{before}{question}\n{SHORT}"
    if style == "template" and protocol.template is not None:
        return protocol.template.format(hint=before, question=question, options="\n".join(lines))
    raise ConfigError(f"prompt style {style!r} is not known")


def style_of(kind: str) -> str:
    """How the OpenMoji dataset's kinds are asked: `choice` by letter, all others by full answer."""
    return "letters" if kind == "choice" else "answers"


def ask(item: Item, style: str, image: Picture | None) -> Query:
    """The query of an item for option likelihoods; its options in the order of their letters.

    Args:
        style: one of STYLES.
        image: the picture to show; None withholds it.

    Raises:
        ConfigError: unknown style.
    """
    if style not in STYLES:
        raise ConfigError(f"prompt style {style!r}: allowed are {', '.join(STYLES)}")
    if style == "answers":
        text = prompt_of(item, Protocol(style="question"))
        return Query(text, tuple(item.options.values()), image, item.language)
    return Query(prompt_of(item, Protocol(style=style)), tuple(item.options), image, item.language)
