"""Listener: an answer's pieces, from the thread that writes to the event loop that sends."""

from __future__ import annotations

import asyncio
import contextlib


class Listener:
    """Made inside the event loop; its `hear` is a `Generation`'s listener."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def hear(self, piece: str | None) -> None:
        """Called by the writer; None: that was all."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def next(self) -> str | None:
        return await self._pieces.get()
