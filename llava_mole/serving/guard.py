"""Guard: what reaches Gradio's page over HTTP, and what a browser may do with what comes back.

A model's answer may be Markdown with pictures in it. With this policy a browser fetches none from
another host, so no answer can carry a visitor's words away, and no upload is run as a script.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from fastapi.responses import JSONResponse

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Gradio's own page needs inline scripts, and its camera blobs."""
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
EVENTS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
"""Where a browser sends the page's events: through the queue, and the quickest past it."""
POSTED = (
    "/v1/",
    "/gradio_api/call/",
    "/gradio_api/upload",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
"""Beside these: all that a visitor or a program sends. Gradio has more, for its own developers."""
EVENT_BYTES = 2**20
"""Of one event of the page: texts and settings; pictures are uploaded before."""


class Guard:
    """ASGI middleware.

    Args:
        app: what answers.
        events: numbers of the page's event handlers; another one would be an error within Gradio.
    """

    def __init__(self, app: Any, events: Collection[int]) -> None:
        self.app, self.events = app, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = [pair for pair in message["headers"] if pair[0].lower() not in HEADERS]
                message = {**message, "headers": [*there, *HEADERS.items()]}
                if message["status"] == 500 and scope["path"] in EVENTS:
                    message["status"] = 422  # what Gradio says of values that no component takes
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            if scope["path"] in EVENTS:
                body = await _body(receive)
                if body is None or not self._is_event(body):
                    await _refusal(422, "not an event of this page")(scope, receive, sent)
                    return
                receive = _replayed(body, receive)
            elif not scope["path"].startswith(POSTED):
                await _refusal(404, "nothing here takes that")(scope, receive, sent)
                return
        await self.app(scope, receive, sent)

    def _is_event(self, body: bytes) -> bool:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return False
        return (
            isinstance(asked, dict)
            and type(asked.get("fn_index")) is int
            and asked["fn_index"] in self.events
            and isinstance(asked.get("session_hash"), str)
            and isinstance(asked.get("data"), list)
        )


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status)


async def _body(receive: Any) -> bytes | None:
    """All of a request's body; None if it is too long or its sender went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > EVENT_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that was read already, and then what comes after."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return waiting.pop() if waiting else await receive()

    return again
