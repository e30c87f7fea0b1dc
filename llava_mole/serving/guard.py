"""Guard: what reaches Gradio's page over HTTP, and what a browser may do with what comes back.

Gradio's server has more than this page needs: it fetches addresses, writes shared links, shows
its usage. Only what a visitor's browser asks for passes, and only within bounds.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from gradio.utils import get_upload_folder

from llava_mole.serving.limits import Limits

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
"""Gradio's own page needs inline scripts, and its camera blobs."""
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}
API = "/gradio_api/"
EVENTS = (f"{API}queue/join", f"{API}run/predict")
"""Where a browser sends the page's events: through the queue, and the quickest past it."""
CALL = f"{API}call/chat"
UPLOAD = f"{API}upload"
FILE = f"{API}file="
POSTED = (*EVENTS, CALL, UPLOAD, f"{API}cancel", f"{API}reset")
"""All that a visitor sends."""
READ = (
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon",
    f"{API}theme.css", f"{API}info", f"{API}app_id", f"{API}startup-events", f"{API}queue/data",
    f"{API}queue/status", f"{API}upload_progress", f"{API}openapi.json",
)  # fmt: skip
READ_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}heartbeat/", f"{CALL}/", FILE)
"""All that a visitor's browser asks for."""
EVENT_BYTES = 2**20
"""Of one event of the page: texts and settings; pictures are uploaded before."""
UPLOADS_AT_A_TIME = 4
"""Read whole before they are passed on: an upload that breaks off leaves nothing."""


class Guard:
    """ASGI middleware. What is under /v1 passes: it has bounds of its own.

    Args:
        app: what answers.
        events: numbers of the page's event handlers; another one would be an error within Gradio.
        limits: of uploads.
        hosts: names by which a browser may call this server; None: any. A page of another site
            whose name was pointed at this machine has another one.
    """

    def __init__(
        self,
        app: Any,
        events: Collection[int],
        limits: Limits,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app, self.events, self.limits, self.hosts = app, events, limits, hosts
        self._uploads = asyncio.Semaphore(UPLOADS_AT_A_TIME)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = [pair for pair in message["headers"] if pair[0].lower() not in HEADERS]
                message = {**message, "headers": [*there, *HEADERS.items()]}
                if message["status"] == 500 and scope["path"] in (*EVENTS, CALL):
                    message["status"] = 422  # what Gradio says of values that no component takes
            await send(message)

        path = scope["path"].rstrip("/") or "/"
        refused = self._stranger(scope)
        if refused is not None or path.startswith("/v1"):
            await (refused or self.app)(scope, receive, sent)
        elif scope["method"] in ("GET", "HEAD"):
            allowed = path in READ or path.startswith(READ_BELOW)
            if path.startswith(FILE) or scope["path"].startswith(FILE):
                allowed = is_upload(scope["path"].removeprefix(FILE))
            await (self.app if allowed else _refusal(404, "not here"))(scope, receive, sent)
        elif scope["method"] == "POST" and path in POSTED:
            if path == UPLOAD:
                async with self._uploads:
                    await self._posted(path, scope, receive, sent)
            else:
                await self._posted(path, scope, receive, sent)
        else:
            await _refusal(404, "nothing here takes that")(scope, receive, sent)

    async def _posted(self, path: str, scope: Any, receive: Any, sent: Any) -> None:
        limits = self.limits
        most = limits.body_bytes if path == UPLOAD else EVENT_BYTES
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await _body(receive, most)
        except TimeoutError:
            await _refusal(408, f"not there after {limits.body_seconds:g} s")(scope, receive, sent)
            return
        if body is None:
            return  # its sender is gone
        refused = None
        if len(body) > most:
            refused = _refusal(413, f"more than {most:,} bytes")
        elif path in EVENTS and not self._is_event(body):
            refused = _refusal(422, "not an event of this page")
        elif path == UPLOAD and bytes_kept() + len(body) > limits.disk_bytes:
            refused = _refusal(413, "no room for further pictures at the moment")
        await (refused or self.app)(scope, _replayed(body, receive), sent)

    def _stranger(self, scope: Any) -> JSONResponse | None:
        """A refusal for another site's page; None for a visitor or a program."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return _refusal(403, f"not served as {host[:100]!r}; allow it with --allow-host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] != "GET" and urlsplit(origin).netloc != host:
            return _refusal(403, "sent by another site's page")
        return None

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


def is_upload(path: Any) -> bool:
    """Whether a path is a file that was uploaded to this server, or made by its page."""
    try:
        there = Path(path).resolve(strict=True)
        return there.is_relative_to(Path(get_upload_folder()).resolve()) and there.is_file()
    except (OSError, ValueError, TypeError):  # not there, or no path at all
        return False


def bytes_kept() -> int:
    """Size of all uploads that lie in the temporary folder."""
    total = 0
    for folder, _, names in os.walk(get_upload_folder()):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except OSError:  # gone meanwhile
                continue
    return total


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status)


async def _body(receive: Any, most: int) -> bytes | None:
    """A request's body, or its beginning if it is longer; None if its sender went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > most or not message.get("more_body"):
            return bytes(body)


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that was read already, and then what comes after."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return waiting.pop() if waiting else await receive()

    return again
