"""One training sample: a conversation, its pictures, where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

IMAGE = "<image>"
"""The placeholder that stands for one picture inside a turn's text."""

ImageRef = Path | bytes
"""A picture: its file, or the file's bytes where the data hold the picture itself."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says; each ``<image>`` in the text stands for the sample's next picture."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation of one or more turns; pictures in the order of their ``<image>``."""

    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]
    domain: str
    """Which kind of data it is: the mixture's and the router statistics' row, e.g. 'document'."""
    language: str
    """ISO 639-1 code of the conversation, e.g. 'pt'."""
    source: str
    """'file:line' of the item, for messages."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the item held: id, kind, picture, template, …"""

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all turns."""
        return sum(len(turn.text.encode("utf-8")) for turn in self.turns)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as Hugging Face chat messages.

        Each turn is ``{"role": …, "content": [parts]}`` where a part is ``{"type": "image"}`` or
        ``{"type": "text", "text": …}``, in the order of the text. A line break that only separates
        an ``<image>`` from the text goes; every other character stays.
        """
        return [{"role": turn.role, "content": _parts(turn.text)} for turn in self.turns]


def _parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    pieces = text.split(IMAGE)
    for place, piece in enumerate(pieces):
        if place > 0:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")
        if place < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
