"""Limits: how much one request, or one visitor's conversation, may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        body_bytes: of the whole request. body_seconds: to send it.
        turns, pictures: in a conversation. pixels: of a picture, and of all in a conversation.
        characters: of a question typed on the page.
        tokens: of an answer. seconds: until it is there, waiting included.
        disk_bytes: of all uploads that are kept at a time.
        explanations: that are being made at a time.
    """

    body_bytes: int = 32 * 2**20
    body_seconds: float = 60
    turns: int = 100
    pictures: int = 16
    pixels: int = 40_000_000
    all_pixels: int = 120_000_000
    characters: int = 20_000
    tokens: int = 2048
    seconds: float = 300
    disk_bytes: int = 2 * 2**30
    explanations: int = 4
