"""Generation: one answer that is being written, as its reader and its writer see it.

The reader (a web page, an HTTP response) iterates over pieces of text and may cancel; the writer
(`batching.py`) puts tokens in. Both may be slow or gone without harm to the other.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llava_mole.errors import DataError
from llava_mole.processing import Encoded

MOST_STOPS = 16
"""Texts that may end an answer: each is looked for at every token."""
UNFINISHED = "�"
"""What a decoder shows of a character whose last bytes have not come yet."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is written.

    Attributes:
        max_new_tokens: bound on its length.
        min_new_tokens: no end before so many.
        temperature: 0: the most likely token each time. Above: drawn from the softmax of logits
            divided by it.
        top_p: drawn among the likeliest tokens that hold this share (nucleus sampling).
        seed: of the draws; None: another one each time.
        stop: texts that end an answer; they are not part of it.
        seconds: bound on its time, waiting included; None: none.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DataError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise DataError(
                f"min_new_tokens={self.min_new_tokens}: must be from 0 to max_new_tokens="
                f"{self.max_new_tokens}"
            )
        if not (self.temperature == 0 or 0.01 <= self.temperature <= 100):
            raise DataError(f"temperature={self.temperature}: must be 0, or from 0.01 to 100")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p={self.top_p}: must be above 0, at most 1")
        if self.seconds is not None and not self.seconds > 0:
            raise DataError(f"seconds={self.seconds}: must be above 0")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise DataError(f"seed={self.seed}: must be from 0 to 2^63 - 1")
        if len(self.stop) > MOST_STOPS:
            raise DataError(f"stop: {len(self.stop)} texts, at most {MOST_STOPS} are taken")
        if any(not text for text in self.stop):
            raise DataError("stop: an empty text would end every answer")


class QueueFullError(Exception):
    """As many conversations wait as may; try again later."""


class Generation:
    """A handle on one answer.

    Args:
        encoded: the conversation in tokens, up to where the assistant speaks.
        pixels: (N, 3, H, W) of its pictures, or None.
        sampling: how it is written.
        decode: tokens -> text.
        position: how many are before this one in the queue.
        listener: called with each piece by the thread that writes, with None at the end; must not
            wait. None: the pieces are kept for who iterates.

    Attributes:
        finish_reason: "stop" (the model or a stop text ended it), "length", "time", "cancelled",
            "error"; None while it is written.
        tokens: what was written so far, the end token left out.
    """

    def __init__(
        self,
        encoded: Encoded,
        pixels: Any,
        sampling: Sampling,
        decode: Callable[[list[int]], str],
        position: Callable[[Generation], int],
        listener: Callable[[str | None], None] | None = None,
    ) -> None:
        self.encoded = encoded
        self.pixels = pixels
        self.sampling = sampling
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.started = time.monotonic()
        self.first_token: float | None = None
        """Seconds until the first token was there."""
        self._decode = decode
        self._position = position
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._hand = listener or self._pieces.put
        self._said = ""

    # ------------------------------------------------------------------ the reader's side

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come; leaving the loop early cancels.

        Raises:
            Exception: what went wrong while it was written.
        """
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
            if self.error is not None:
                raise self.error
        finally:
            self.cancel()

    def taken(self) -> list[str | None]:
        """The pieces that are there, without waiting for more; None is the end."""
        pieces: list[str | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                pieces.append(self._pieces.get_nowait())
        return pieces

    def text(self) -> str:
        """The whole answer, once it is there."""
        return "".join(self).strip()

    def cancel(self) -> None:
        """Write no more: its place is free at the next step. One that is done stays as it is."""
        self.cancelled = True

    def position(self) -> int:
        """How many conversations wait before this one; 0 where it is being written."""
        return self._position(self)

    # ------------------------------------------------------------------ the writer's side

    def over(self) -> str | None:
        """Why no more should be written, whatever the model says."""
        if self.cancelled:
            return "cancelled"
        seconds = self.sampling.seconds
        if seconds is not None and time.monotonic() - self.started > seconds:
            return "time"
        return None

    def add(self, token: int, ends: bool) -> bool:
        """Take the next token; whether the answer is finished with it."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.started
        if not ends:
            self.tokens.append(token)
        text = self._decode(self.tokens)
        for stop in self.sampling.stop:
            if stop in text:
                text, ends = text.partition(stop)[0], True
        last = ends or len(self.tokens) >= self.sampling.max_new_tokens
        self._say(text, last)
        if ends:
            self.finish("stop")
        elif last:
            self.finish("length")
        return last

    def finish(self, reason: str, error: Exception | None = None) -> None:
        if self.finish_reason is None:
            self.finish_reason, self.error = reason, error
            self._hand(None)

    def _say(self, text: str, last: bool) -> None:
        """Hand out what is certain: no half characters, nothing that may become a stop text."""
        sure = len(text)
        if not last:
            if text.endswith(UNFINISHED):
                return
            held = (k for k in range(1, len(text) + 1) for s in self.sampling.stop
                    if k < len(s) and s.startswith(text[-k:]))  # fmt: skip
            sure -= max(held, default=0)
        piece = text[len(self._said) : sure]
        if piece:
            self._said += piece
            self._hand(piece)
