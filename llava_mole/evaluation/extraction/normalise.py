"""A reply without its wrapping: one alphabet, no markup, no reasoning block, one turn.

`clean` is applied to whole replies, `plain` to options too, so that both are written alike. `fold`
keeps the length of a text: a place found in the folded text is the same place in the text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ARABIC = r"\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff"
CJK = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = r"A-Za-z0-9_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"
WORD += rf"\u1e00-\u1fff{ARABIC}"
"""What words are made of in scripts with spaces between them, for use in a character class."""

_QUOTES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u2032", "'"))
_SQUARED = {0x1F130 + i: chr(ord("A") + i) for i in range(26)} | {
    0x1F170 + i: chr(ord("A") + i) for i in range(26)
}
_UNSEEN = re.compile(r"[\u064b-\u065f\u0670\u0640\u20e3\ufe0e\ufe0f]")

_THINK = r"(?:think|thinking|thought|thoughts|reasoning|reason|analysis|rationale|scratchpad)"
_THINK_END = re.compile(rf"</\s*{_THINK}\s*>|◁/think▷|<\|end_of_thought\|>|\[/THINK\]", re.I)
_THINK_START = re.compile(rf"<\s*{_THINK}\s*>|◁think▷|<\|begin_of_thought\|>|\[THINK\]", re.I)

_TURN_END = re.compile(
    r"<end_of_turn>|<\|im_end\|>|<\|eot_id\|>|<\|end_?of_?text\|>|<\|end\|>|<\|eom_id\|>|</s>|<eos>"
    r"|<\|return\|>|<turn\|>|<｜end▁of▁sentence｜>|<\|end▁of▁sentence\|>"
    r"|\n[ \t]{0,8}(?:USER|User|Human|HUMAN|用户)\s*:.*",
    re.S,
)
_TURN_START = re.compile(
    r"(?:<start_of_turn>|<\|im_start\|>|<\|start_header_id\|>|<\|turn>)\s*(\w*)"
    r"(?:<\|end_header_id\|>)?"
)
_OTHER_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|<pad>|<bos>|<s>|<unk>|<image>|<0x[0-9A-F]{2}>")
_ROLE = re.compile(
    r"^\s*(?:assistant|model|gpt|bot|ai|llava|gemma|助手|assistente|asistan|ассистент|المساعد)"
    r"\s*[:\n]\s*",
    re.I,
)

_HTML = re.compile(
    r"</?(?:b|i|u|em|strong|p|br|span|div|code|pre|mark|ul|li|h[1-6]|center|font)\b[^<>]{0,80}>",
    re.I,
)
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
_FENCE = re.compile(r"```\w*")
_LINE_MARK = re.compile(r"^[ \t]*(?:(?:#{1,6}|>+|[-+•●▪‣·]|\*(?!\*))[ \t]+)+", re.M)
_UNDERSCORES = re.compile(rf"(?<![{WORD}])_{{1,3}}(?=\S)|(?<=\S)_{{1,3}}(?![{WORD}])")
_TEX_TEXT = re.compile(
    r"\\(?:text|textbf|textit|texttt|textrm|mathrm|mathbf|mathit|mathsf|operatorname|bf|rm|mbox)"
    r"\s*\{([^{}]{0,400})\}"
)
_TEX_SIGNS = re.compile(r"\\[()\[\],;:! ]|\\(?:quad|left|right|displaystyle)\b|\$\$?(?!\d)")
_POWER = re.compile(r"(?<=[^\W\d_])\s?\^\s?(?:\{(\d)\}|(\d))")
_DEGREES = re.compile(r"\^\s*\{?\\circ\}?|\\circ\b|\\degree\b")


def plain(text: str) -> str:
    """A text in one alphabet: compatibility forms, marks of direction, vowel signs, apostrophes."""
    text = unicodedata.normalize("NFKC", text.translate(_SQUARED))
    text = _UNSEEN.sub("", text).translate(_QUOTES)
    if not text.isascii():
        text = "".join(map(_seen, text))
    return _POWER.sub(r"\1\2", text)


@lru_cache(maxsize=8192)
def _seen(char: str) -> str:
    """A character; ASCII for a digit of any script, nothing for what has no shape of its own."""
    kind = unicodedata.category(char)
    if kind == "Nd":
        return str(unicodedata.decimal(char))
    return "" if kind == "Cf" else char


def clean(reply: str) -> str:
    """What a reply says, without reasoning, tokens, other turns and markup; answer tags stay."""
    return _without_markup(_own_turn(_without_reasoning(plain(reply)))).strip()


def _without_reasoning(text: str) -> str:
    """What follows the last closed reasoning; of one that is open, nothing."""
    closed = [m.end() for m in _THINK_END.finditer(text)]
    text = text[closed[-1] :] if closed else text
    opened = _THINK_START.search(text)
    return text[: opened.start()] if opened else text


def _own_turn(text: str) -> str:
    """The first turn with something in it that isn't the user's."""
    for turn in _TURN_END.split(text):
        starts = list(_TURN_START.finditer(turn))
        if starts and starts[-1][1].casefold() in ("user", "system"):
            continue
        said = _OTHER_TOKEN.sub(" ", turn[starts[-1].end() :] if starts else turn)
        said = _ROLE.sub("", said)
        if said.strip():
            return said
    return ""


def _without_markup(text: str) -> str:
    text = _HTML.sub(" ", text) if "<" in text else text
    text = _STRUCK.sub(" ", text) if "~~" in text else text
    text = _FENCE.sub(" ", text)
    text = _LINE_MARK.sub("", text)
    text = text.replace("*", "").replace("`", "")
    if "_" in text:
        text = _UNDERSCORES.sub("", text)
    if "\\" in text:
        for _ in range(3):
            text = _TEX_TEXT.sub(r"\1", text)
        text = _POWER.sub(r"\1\2", text)
        text = _DEGREES.sub("°", text).replace("\\%", "%")
    if "\\" in text or "$" in text:
        text = _TEX_SIGNS.sub(" ", text)
    return text


@lru_cache(maxsize=8192)
def _fold(char: str) -> str:
    if char in "İıI":
        return "i"
    if char in "أإآٱ":
        return "ا"
    if char in "ىئ":
        return "ي"
    if char == "ؤ":
        return "و"
    if char == "ة":
        return "ه"
    if char in "ёЁ":
        return "е"
    base = unicodedata.normalize("NFD", char)[0]
    if not ("a" <= base.lower() <= "z"):
        base = char
    low = base.lower()
    return low if len(low) == 1 else char


def fold(text: str) -> str:
    """Lower case without accents; dotless i, hamza, ta marbuta and ё written as their neighbours.

    Turkish and informal spelling need it: İ and I are i, `yesil` is `yeşil`, `قطه` is `قطة`.
    """
    if text.isascii():
        return text.lower()
    return "".join(map(_fold, text))


def lower(text: str, language: str) -> str:
    """Lower case with accents, of the same length, for options that differ in accents alone."""
    if language == "tr":
        text = text.replace("I", "ı").replace("İ", "i")
    return "".join(c if len(c.lower()) != 1 else c.lower() for c in text)
