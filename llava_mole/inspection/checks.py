"""What can be wrong with the words of one sample that reads well otherwise."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from llava_mole.data.quoting import short
from llava_mole.data.sample import IMAGE, Sample
from llava_mole.inspection.findings import Finding, Severity
from llava_mole.inspection.language import other_language
from llava_mole.inspection.wording import normalised

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKS = re.compile(
    r"<\|[a-z_]{2,30}\|>|<(?i:image|video|audio|pad|unk|bos|eos|start_of_turn|end_of_turn)>"
    r"|</?s>|\[/?INST\]|<</?SYS>>|(?m:^)(?:USER|ASSISTANT|GPT|Human|Assistant): "
)
"""Placeholders and turn marks of chat templates, which a template adds and data should not hold."""
_TAG = re.compile(r"<(/?)([a-z_]\w{0,29})>")
_PAIRED = frozenset({"think", "answer", "ref", "box", "quad", "tool_call", "reasoning"})
"""Tags that are never left open; others count only where the text closes them at all."""


def check_words(sample: Sample) -> Iterator[Finding]:
    """Findings about the turns of one sample."""
    roles = [turn.role for turn in sample.turns if turn.role != "system"]
    if roles[:1] == ["assistant"]:
        yield _found("warning", "turn-order", sample, "the assistant speaks first, to no question")
    if roles[-1:] == ["user"]:
        yield _found("warning", "turn-order", sample, "the last question has no answer")
    question = ""
    for number, turn in enumerate(sample.turns, 1):
        words = turn.text.replace(IMAGE, " ").strip()
        at = f"turn {number} ({turn.role})"
        if turn.role == "user":
            question = words
            if not words:
                yield _found("warning", "empty-question", sample, f"{at}: no words, only pictures")
            elif _is_one_word(words):
                yield _found("note", "one-word-question", sample, f"{at}: {short(words)}", words)
        if turn.role == "assistant" and question and normalised(words) == normalised(question):
            message = f"{at}: the answer repeats the question, {short(words)}"
            yield _found("warning", "answer-is-question", sample, message)
        yield from _check_characters(sample, at, turn.text)
        yield from _check_marks(sample, at, words)


def check_language(sample: Sample) -> Iterator[Finding]:
    """At most one finding: the conversation is surely in another language than declared."""
    text = "\n".join(turn.text.replace(IMAGE, " ").strip() for turn in sample.turns)
    other = other_language(text, sample.language)
    if other is not None:
        code, probability = other
        yield _found(
            "warning", "language", sample,
            f"declared {sample.language!r}, reads like {code!r} ({probability:.0%}): "
            f"{short(text)}", code,
        )  # fmt: skip


def _check_characters(sample: Sample, at: str, text: str) -> Iterator[Finding]:
    if "\ufffd" in text:
        place = text.index("\ufffd")
        message = (
            f"{at}: {text.count(chr(0xFFFD))} × U+FFFD, what a wrong decoding leaves: "
            f"{short(text[max(0, place - 20) : place + 20])}"
        )
        yield _found("warning", "replacement-character", sample, message)
    controls = _CONTROL.findall(text)
    if controls:
        named = ", ".join(f"U+{ord(c):04X}" for c in sorted(set(controls))[:4])
        message = f"{at}: {len(controls)} control characters ({named})"
        yield _found("warning", "control-character", sample, message, len(controls))


def _check_marks(sample: Sample, at: str, words: str) -> Iterator[Finding]:
    marks = _MARKS.findall(words)
    if marks:
        message = f"{at}: holds {', '.join(sorted(set(marks))[:4])}, a mark that templates add"
        yield _found("warning", "leftover-mark", sample, message, marks[0])
    balance: Counter[str] = Counter()
    closed: set[str] = set()
    for slash, name in _TAG.findall(words):
        balance[name] += -1 if slash else 1
        closed |= {name} if slash else set()
    open_tags = sorted(n for n, left in balance.items() if left and (n in closed or n in _PAIRED))
    open_tags = [name for name in open_tags if name != "s"]  # a turn mark, told above
    if open_tags:
        message = f"{at}: <{open_tags[0]}> opened and closed unequally often"
        yield _found("warning", "unbalanced-tag", sample, message, open_tags[0])


def _is_one_word(words: str) -> bool:
    """Scripts without spaces are counted in characters: a question has more than two."""
    if len(words.split()) > 1:
        return False
    if any(unicodedata.east_asian_width(c) == "W" for c in words):
        return sum(c.isalnum() for c in words) < 3
    return True


def _found(
    severity: Severity, check: str, sample: Sample, message: str, value: str | int | None = None
) -> Finding:
    if isinstance(value, str):
        value = value[:200]
    return Finding(severity, check, sample.source, message, value)
