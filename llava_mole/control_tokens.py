"""Tokens that only a chat template may write: turn marks, end of sequence, image placeholders.

A tokenizer finds them in any text. Words of a sample that spell one (`<|im_end|>` in a question
about chat formats, `</s>` in a piece of HTML) would end a turn or shift a label. So what people
wrote is tokenized as the characters it is made of: the control token in it is broken by a separator
token, which is dropped again. `skeleton` says which control tokens a template writes by itself; the
processor compares, so that no other way of forging one stays unseen either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava_mole.errors import DataError

Message = dict[str, Any]
MARKERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Code points that Unicode keeps out of all text ("noncharacters")."""


@lru_cache(maxsize=16)
def control_tokens(
    tokenizer: PreTrainedTokenizerBase, template: str, image_token: str, size: int
) -> ControlTokens:
    """The control tokens of a tokenizer under a template, kept.

    Args:
        size: of the vocabulary, which may grow.
    """
    return ControlTokens(tokenizer, template, image_token)


class ControlTokens:
    """Special tokens of a vocabulary, and added ones that the template names.

    Args:
        tokenizer: a fast one.
        template: Jinja source.
        image_token: the placeholder; words that spell it are the processor's to refuse.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, image_token: str) -> None:
        added = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            # What other added tokens say (line breaks, <think>, <td>) is part of the language.
            if token.special or (len(token.content.strip()) > 1 and token.content in template)
        }
        special = tokenizer.all_special_tokens
        added |= {token: tokenizer.convert_tokens_to_ids(token) for token in special}
        self.tokenizer = tokenizer
        self.ids = frozenset(added.values()) - {tokenizer.unk_token_id}
        self.ids |= {tokenizer.convert_tokens_to_ids(image_token)}
        spelt = sorted((token for token in added if token != image_token), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, spelt)) or "(?!)")
        self.skeletons: dict[Any, list[int]] = {}
        """Control tokens of conversations by their structure; the processor's to fill."""
        plain = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special
            and not (token.lstrip or token.rstrip or token.single_word)
            and len(token.content) > 1
        ]
        self.separator = next((token for token in plain if self._separates(token)), None)
        # Behind a written <s>, SentencePiece tokenizers do not put the ▁ that they put before the
        # first word of a text; a tokenizer that adds <s> itself does, and models are trained so.
        self.opening = tokenizer.bos_token if tokenizer.bos_token in plain else None

    def _separates(self, token: str) -> bool:
        """Whether the token breaks a text in two without changing either half."""
        number = self.tokenizer.convert_tokens_to_ids(token)
        ids = self.tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
        halves = [found for found in ids if found != number]
        return len(halves) < len(ids) and self.tokenizer.decode(halves) == "ab"

    def marked(self, texts: Sequence[str]) -> tuple[list[str], str]:
        """Texts with a marker before each control token that they spell, and the marker; as they
        are, and "", where they spell none.

        Raises:
            DataError: this vocabulary has no way to write the token as plain characters.
        """
        found = next((hit for text in texts if (hit := self.pattern.search(text))), None)
        if found is None:
            return list(texts), ""
        if self.separator is None:
            raise DataError(
                f"the text holds {found.group()!r}, a token of the chat format, which this "
                "tokenizer cannot write as plain characters; change it in the data"
            )
        marker = next((mark for mark in MARKERS if not any(mark in t for t in texts)), None)
        if marker is None:
            raise DataError("the text holds every code point that Unicode keeps out of text")
        return [self.pattern.sub(lambda hit: marker + hit.group(), text) for text in texts], marker

    def tokenize(
        self, text: str, spans: Sequence[tuple[int, int]] = (), marker: str = ""
    ) -> tuple[list[int], list[bool]]:
        """Tokens, and which of them lie in the spans.

        Args:
            text: rendered; control tokens after a marker are plain characters.
            spans: of characters, as the template's generation marks gave them.
            marker: of `marked`.
        """
        said = bytearray(len(text) + 1)
        for start, end in spans:
            said[start:end] = b"\1" * (end - start)
        gaps: set[int] = set()
        if marker:
            text, said, gaps = self._broken(text, said, marker)
        ids: list[int] = []
        inside: list[bool] = []
        skipped = 0
        if self.opening and text.startswith(self.opening):
            ids, inside, skipped = [self.tokenizer.bos_token_id], [False], len(self.opening)
        tokens = self.tokenizer(
            text[skipped:], add_special_tokens=False, return_offsets_mapping=True
        )
        for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
            start, end = start + skipped, end + skipped
            if start in gaps and end > start:
                continue
            ids.append(token)
            # Offsets may leave out the space that a token is: it lies before them. (-1: the end)
            inside.append(said[start if end > start else start - 1] == 1)
        return ids, inside

    def _broken(self, text: str, said: bytearray, marker: str) -> tuple[str, bytearray, set[int]]:
        """The text with a separator after the first character of each marked token, which
        characters are said, and where the separators stand."""
        assert self.separator is not None
        out, flags, gaps, length, place = [], bytearray(), set(), 0, 0

        def copy(start: int, end: int) -> None:
            nonlocal length
            out.append(text[start:end])
            flags.extend(said[start:end])
            length += end - start

        for hit in re.finditer(f"{re.escape(marker)}({self.pattern.pattern})?", text):
            copy(place, hit.start())
            if hit.group(1):
                start, end = hit.span(1)
                copy(start, start + 1)
                gaps.add(length)
                out.append(self.separator)
                flags.extend(bytes([said[start]]) * len(self.separator))
                length += len(self.separator)
                copy(start + 1, end)
            place = hit.end()
        copy(place, len(text))
        flags.append(0)
        return "".join(out), flags, gaps


def structure(messages: Sequence[Message], prompt: bool) -> tuple[Any, ...]:
    """What of a conversation decides on the marks around its words."""
    shapes: list[Any] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            shapes.append((message["role"], bool(content.strip())))
        else:
            kinds = (p["type"] == "image" or ("text", bool(p["text"].strip())) for p in content)
            shapes.append((message["role"], tuple(kinds)))
    return (prompt, *shapes)


def skeleton(messages: Sequence[Message]) -> list[Message]:
    """The conversation with a word in place of its words."""
    return with_texts(messages, ["x" if text.strip() else "" for text in texts_of(messages)])


def texts_of(messages: Sequence[Message]) -> list[str]:
    """All texts of a conversation, in order."""
    return [
        text
        for message in messages
        for text in (
            [message["content"]]
            if isinstance(message["content"], str)
            else [part["text"] for part in message["content"] if part["type"] != "image"]
        )
    ]


def with_texts(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    """The conversation with other texts in the places of its own."""
    left = iter(texts)
    return [
        {
            **message,
            "content": next(left)
            if isinstance(message["content"], str)
            else [
                part if part["type"] == "image" else {**part, "text": next(left)}
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def joined_texts(messages: Sequence[Message]) -> list[Message]:
    """Neighbouring text parts as one, so that two cannot form a control token between them.

    Raises:
        DataError: a content that is neither text nor typed parts, a part that is neither text nor
            image.
    """
    out = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str | list | tuple):
            raise DataError(
                f"a message of role {message.get('role')!r} has content {content!r}; expected "
                "text, or a list of parts"
            )
        if not isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for part in content:
                if part["type"] != "image" and not isinstance(part.get("text"), str):
                    raise DataError(f"a part of type {part['type']!r}: known are image and text")
                if parts and part["type"] != "image" and parts[-1]["type"] != "image":
                    part = {**part, "text": parts.pop()["text"] + part["text"]}
                parts.append(part)
            message = {**message, "content": parts}
        out.append(message)
    return out
