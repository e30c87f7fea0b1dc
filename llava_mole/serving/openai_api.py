"""OpenAI's chat completions over HTTP: `/v1/chat/completions`, `/v1/models`.

What a request may hold: text and image parts (base64 in a data URL), streaming, sampling. A path is
never read, a remote picture never fetched. Errors have OpenAI's shape, `{"error": {"message",
"type", "param", "code"}}`, and say what is wrong with the request: 400; too large: 413; too slow to
send: 408; as many wait as may: 429.

    app = make_api({"my-model": engine})
    uvicorn.run(app)
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from llava_mole.data.images import load_image
from llava_mole.errors import DataError
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Generation, QueueFullError, Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.listening import Listener
from llava_mole.serving.pictures import one_at_a_time


class RequestError(Exception):
    """A request that is refused.

    Args:
        param: which of its keys.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 429 else "rate_limit_error"
        code = {404: "model_not_found", 408: "timeout", 413: "too_large", 429: "queue_full"}.get(
            self.status
        )
        body = {"message": str(self), "type": kind, "param": self.param, "code": code}
        return JSONResponse({"error": body}, self.status)


# ---------------------------------------------------------------------- what a request may hold


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str
    detail: str = "auto"


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Turn(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class ChatRequest(_Strict):
    """The keys that are read; `REFUSED` would change the answer and are not supported; any other
    key is left alone, as OpenAI's servers leave what they do not know."""

    messages: list[Turn] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    """0, or from 0.01."""
    top_p: float | None = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(1, ge=1)
    logprobs: bool | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


def check_supported(request: ChatRequest) -> None:
    """Raises RequestError for what would silently be another answer than the one asked for."""
    if request.n not in (None, 1):
        raise RequestError(f"n={request.n}: one answer at a time", param="n")
    if request.logprobs:
        raise RequestError("logprobs are not given", param="logprobs")
    if request.tools:
        raise RequestError("tools are not supported", param="tools")
    kind = (request.response_format or {}).get("type", "text")
    if kind != "text":
        raise RequestError(f"response_format {kind!r} is not supported", param="response_format")


def conversation(request: ChatRequest, limits: Limits) -> list[dict[str, Any]]:
    """Its turns as chat messages with decoded pictures.

    Raises:
        RequestError: too many turns or pictures; a picture that is no base64 data URL or cannot be
            decoded; a conversation that does not end with the user's turn.
    """
    if len(request.messages) > limits.turns:
        raise RequestError(
            f"{len(request.messages)} turns, at most {limits.turns} are taken", param="messages"
        )
    if request.messages[-1].role != "user":
        raise RequestError(
            f"the last turn is of role {request.messages[-1].role!r}: nothing to answer; end with "
            "the user's",
            param=f"messages.{len(request.messages) - 1}.role",
        )
    pictures = pixels = 0
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(request.messages):
        parts: list[dict[str, Any]] = []
        role = "system" if turn.role == "developer" else turn.role
        for place, part in enumerate(
            [turn.content] if isinstance(turn.content, str) else turn.content
        ):
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            elif isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                where = f"messages.{number}.content.{place}.image_url.url"
                pictures += 1
                if role != "user":
                    raise RequestError(f"a picture in a turn of role {turn.role!r}", param=where)
                if pictures > limits.pictures:
                    raise RequestError(f"more than {limits.pictures} pictures", param=where)
                picture = picture_of(part.image_url.url, limits.pixels, where)
                pixels += picture.width * picture.height
                if pixels > limits.all_pixels:
                    raise RequestError(
                        f"more than {limits.all_pixels:,} pixels in all pictures", param=where
                    )
                parts.append({"type": "image", "image": picture})
        messages.append({"role": role, "content": parts})
    return messages


def picture_of(url: str, pixels: int, where: str) -> Any:
    """The picture in a data URL, decoded.

    Raises:
        RequestError: it is none; nothing else is read or fetched.
    """
    head, comma, data = url.partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() != "data" or not comma or not rest.lower().endswith(";base64"):
        raise RequestError(
            "only pictures inside the request are read: data:image/png;base64,…; "
            f"found {url[:40]!r}",
            param=where,
        )
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"broken base64: {error}", param=where) from error
    try:
        return load_image(content, max_pixels=pixels)
    except DataError as error:
        raise RequestError(str(error), param=where) from error


def sampling_of(request: ChatRequest, limits: Limits) -> Sampling:
    """Raises RequestError."""
    asked = request.max_completion_tokens or request.max_tokens or min(256, limits.tokens)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    try:
        return Sampling(
            max_new_tokens=min(asked, limits.tokens),
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            stop=tuple(stops),
            seconds=limits.seconds,
        )
    except DataError as error:
        raise RequestError(str(error)) from error


async def read_body(request: Request, limits: Limits) -> bytes:
    """Raises RequestError for what is too large, or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise RequestError(
                        f"more than {limits.body_bytes:,} bytes; scale the pictures down",
                        status=413,
                    )
    except TimeoutError as error:
        raise RequestError(
            f"the request was not there after {limits.body_seconds:g} s", status=408
        ) from error
    return bytes(body)


def has_lone_surrogate(values: Any) -> bool:
    """JSON can write what no text can hold, and no tokenizer takes."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def parsed(body: bytes) -> ChatRequest:
    """Raises RequestError naming the key that is wrong."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}") from error
    if b"\\ud" in body.lower() and has_lone_surrogate(values):
        raise RequestError("half of a surrogate pair in a text: not Unicode", param="messages")
    try:
        return ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(place) for place in first["loc"]) or None
        raise RequestError(f"{param or 'body'}: {first['msg']}", param=param) from error


# ---------------------------------------------------------------------- answers


def make_api(
    engines: Mapping[str, ChatEngine], *, limits: Limits | None = None, root: str = "/v1"
) -> FastAPI:
    """An application with OpenAI's two routes.

    Args:
        engines: models by name, as `/v1/models` lists them. Where there is one, a request may name
            any model; where there are several, one of them, or none for the first.
        limits: of a request.
        root: before the routes.
    """
    app = FastAPI(title="LLaVA-MoLE", openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(make_router(engines, limits=limits or Limits()), prefix=root)
    return app


def chosen_engine(engines: Mapping[str, ChatEngine], model: str | None) -> tuple[str, ChatEngine]:
    """Raises RequestError for a name that is none of several."""
    first = next(iter(engines))
    name = first if model is None or len(engines) == 1 else model
    if name not in engines:
        raise RequestError(
            f"no model {name!r} here; there are {', '.join(engines)}", status=404, param="model"
        )
    return name, engines[name]


def make_router(engines: Mapping[str, ChatEngine], *, limits: Limits) -> APIRouter:
    """The two routes, for an application that has others."""
    router = APIRouter()
    created = int(time.time())

    @router.get("/models")
    async def models() -> dict[str, Any]:
        data = [
            {"id": name, "object": "model", "created": created, "owned_by": "llava-mole"}
            for name in engines
        ]
        return {"object": "list", "data": data}

    @router.post("/chat/completions")
    async def completions(request: Request) -> Response:
        try:
            asked = parsed(await read_body(request, limits))
            check_supported(asked)
            name, engine = chosen_engine(engines, asked.model)
            sampling = sampling_of(asked, limits)
            listener = Listener()
            one = await run_in_threadpool(
                lambda: engine.submit(
                    one_at_a_time(lambda: conversation(asked, limits)), (), sampling, listener.hear
                )
            )
        except RequestError as error:
            return error.response()
        except QueueFullError as error:
            return RequestError(str(error), status=429).response()
        except DataError as error:
            return RequestError(str(error), param="messages").response()
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if asked.stream:
            usage = bool((asked.stream_options or {}).get("include_usage"))
            return StreamingResponse(
                events(head, one, listener, usage), media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )  # fmt: skip
        return await whole(head, one, listener, request.is_disconnected)

    return router


FINISH = {"stop": "stop", "length": "length", "time": "length", "cancelled": "stop"}


def usage_of(one: Generation) -> dict[str, int]:
    read, written = len(one.encoded.input_ids), len(one.tokens)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def whole(
    head: dict[str, Any],
    one: Generation,
    listener: Listener,
    gone: Callable[[], Awaitable[bool]],
) -> Response:
    """The answer in one piece; a client that hangs up frees its place."""
    text = ""
    waiting = asyncio.ensure_future(listener.next())
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            if not done:
                if await gone():
                    return Response(status_code=499)
                continue
            piece = waiting.result()
            if piece is None:
                break
            text += piece
            waiting = asyncio.ensure_future(listener.next())
    finally:
        waiting.cancel()
        one.cancel()
    if one.error is not None:
        return _failed(one.error)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text.strip()},
        "logprobs": None,
        "finish_reason": FINISH[str(one.finish_reason)],
    }
    body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage_of(one)}
    return JSONResponse(body)


def _failed(error: Exception) -> JSONResponse:
    """The model could not answer: the server's matter, told by its kind, not by its traceback."""
    body = {"message": f"no answer: {type(error).__name__}", "type": "server_error"}
    return JSONResponse({"error": {**body, "param": None, "code": None}}, 503)


async def events(
    head: dict[str, Any], one: Generation, listener: Listener, usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; closing the connection frees the place."""
    chunk = {**head, "object": "chat.completion.chunk"}

    def event(delta: dict[str, Any], reason: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return f"data: {json.dumps({**chunk, 'choices': [choice]}, ensure_ascii=False)}\n\n"

    try:
        yield event({"role": "assistant", "content": ""}, None)
        while (piece := await listener.next()) is not None:
            yield event({"content": piece}, None)
        if one.error is not None:
            yield f"data: {bytes(_failed(one.error).body).decode()}\n\n"
        else:
            yield event({}, FINISH[str(one.finish_reason)])
            if usage:
                body = {**chunk, "choices": [], "usage": usage_of(one)}
                yield f"data: {json.dumps(body)}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        one.cancel()
