"""A conversation as the page shows it: messages of a Chatbot, and a line about times."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from llava_mole.serving.talk import Answer, Talk

ERROR_TITLE = "⚠ Error"
TAG = re.compile(r"<(?=[A-Za-z/!?])")
PICTURE = re.compile(r"!(?=\[)")
DRAWING = re.compile(r"^([ \t>]*(?:`{3,}|~{3,})[ \t]*)mermaid", re.IGNORECASE | re.MULTILINE)
JOINER = "\u2060"
"""No width, no meaning: between "<" and a name it leaves no tag, in code as in text."""
ENDINGS = {
    "cancelled": "stopped",
    "length": "cut at the longest answer (Settings)",
    "time": "out of time",
}


def shown(talk: Talk, model: int) -> list[dict[str, Any]]:
    """A model's side of a conversation: two messages an exchange."""
    messages: list[dict[str, Any]] = []
    for exchange in talk:
        files = [{"path": str(path)} for path in exchange.question.pictures]
        asked = [*files, no_html(exchange.question.text)]
        messages += [{"role": "user", "content": asked}, shown_answer(exchange.answers[model])]
    return messages


def shown_answer(answer: Answer) -> dict[str, Any]:
    """As far as it has come; what went wrong in its own words."""
    if answer.state == "error":
        problem = html.escape(answer.problem)
        return {"role": "assistant", "content": problem, "metadata": {"title": ERROR_TITLE}}
    if answer.text:
        return {"role": "assistant", "content": no_html(answer.text)}
    if answer.over:
        return {"role": "assistant", "content": "(no words)"}
    place = f" number {answer.position} in the queue" if answer.position else ""
    return {"role": "assistant", "content": f"…{place}"}


def no_html(text: str) -> str:
    """Markdown whose tags, pictures and drawings are shown as text: nothing is loaded for them."""
    text = TAG.sub("<" + JOINER, text)
    return DRAWING.sub(r"\1text", PICTURE.sub("!" + JOINER, text))


def status_line(answers: Sequence[Answer], names: Sequence[str]) -> str:
    """Lengths and times of answers, and why they ended where they had to."""
    parts = []
    for answer, name in zip(answers, names, strict=True):
        if answer.state == "error" or answer.first is None:
            continue
        whose = f"{name}: " if len(names) > 1 else ""
        ending = f", {ENDINGS[answer.state]}" if answer.state in ENDINGS else ""
        parts.append(
            f"{whose}{answer.tokens} token{'s' * (answer.tokens != 1)} in {answer.seconds:.1f} s, "
            f"the first after {answer.first:.2f} s{ending}"
        )
    return " · ".join(parts)
