"""The HTTP API against the real `openai` client, and against requests that mean harm."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.limits import Limits
from llava_mole.serving.openai_api import RequestError, chosen_engine, make_api
from tests import helpers

LIMITS = Limits(body_bytes=2_000_000, body_seconds=30, turns=20, pictures=3, pixels=10_000,
                tokens=64, seconds=60)  # fmt: skip


class Server:
    """A server on a port of its own, in a thread."""

    def __init__(self, engine: ChatEngine, limits: Limits = LIMITS) -> None:
        self.engine = engine
        app = make_api({"tiny": engine}, limits=limits)
        self.server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_keep_alive=60)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[Server]:
    model, processor = tiny_model("llama", mole=True, parrot=True, dtype="float32")
    one = Server(ChatEngine(model, processor, max_rows=4, max_waiting=8))
    yield one
    one.stop()
    one.engine.close()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=60)


def data_url(number: int, kind: str = "PNG") -> str:
    file = io.BytesIO()
    helpers.picture(number).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def turn(text: str, *urls: str) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def expected(server: Server, number: int, text: str, tokens: int) -> str:
    return server.engine.answer(
        [{"role": "user", "content": f"<image>{text}"}],
        [helpers.picture(number)],
        max_new_tokens=tokens,
    )


def wait_until_idle(server: Server) -> None:
    """An answer is out a moment before its row is free."""
    deadline = time.monotonic() + 20
    while server.engine.batcher.load() != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------------- what it is for


def test_the_openai_client_gets_the_engines_answer(server, client):
    reply = client.chat.completions.create(
        model="tiny", messages=[turn("What is it?", data_url(3))], max_tokens=12
    )
    assert reply.choices[0].message.content == expected(server, 3, "What is it?", 12)
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens <= 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_streaming(server, client):
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[turn("What is it?", data_url(3))],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces).strip() == expected(server, 3, "What is it?", 12)
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0


def test_turns_system_and_text_alone(client):
    messages = [
        {"role": "system", "content": "Be short."},
        turn("What is it?", data_url(1), data_url(2, "JPEG")),
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    client.chat.completions.create(model="x", messages=messages, max_tokens=2)
    client.chat.completions.create(model="x", messages=messages[-1:], max_tokens=2)


def test_many_at_once_get_their_own_answers(server, client):
    """Pictures and questions do not mix; who finds the queue full is told so, and nothing else."""
    wanted = {number: expected(server, number, f"Which {number}?", 10) for number in range(12)}
    assert len(set(wanted.values())) > 3
    full = 0

    def ask(number: int) -> tuple[int, str | None]:
        try:
            reply = client.chat.completions.create(
                model="tiny", messages=[turn(f"Which {number}?", data_url(number))], max_tokens=10,
                stream=False,
            )  # fmt: skip
        except openai.RateLimitError:
            return number, None
        return number, reply.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for number, said in pool.map(ask, [n % 12 for n in range(48)]):
            full += said is None
            assert said is None or said == wanted[number]
    assert full < 48
    wait_until_idle(server)


def test_who_hangs_up_frees_the_place(server):
    body = {"messages": [turn("What?")], "max_tokens": 64, "stream": True, "temperature": 1.0}
    for _ in range(6):
        with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=30) as reply:
            next(reply.iter_lines())
    wait_until_idle(server)


# ---------------------------------------------------------------------- what is refused


def post(server: Server, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/chat/completions", content=content, timeout=60, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG of these dimensions whose pixels compress to nearly nothing: a bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sealed = kind + data
        return struct.pack(">I", len(data)) + sealed + struct.pack(">I", zlib.crc32(sealed))

    pixels = zlib.compress(bytes(1000))
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def as_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({}, "messages", "required"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0.role", "end with the user"),
    ({"messages": [turn("x", "https://example.com/a.png")]}, "image_url.url", "only pictures"),
    ({"messages": [turn("x", "file:///etc/passwd")]}, "image_url.url", "only pictures"),
    ({"messages": [turn("x", "/etc/passwd")]}, "image_url.url", "only pictures"),
    ({"messages": [turn("x", "data:image/png;base64,###")]}, "image_url.url", "base64"),
    ({"messages": [turn("x", as_url(png_header(60_000, 60_000)))]}, "image_url.url", "pixels"),
    ({"messages": [turn("x", as_url(b"<svg onload=alert(1)></svg>"))]}, "image_url.url", "SVG"),
    ({"messages": [turn("x", as_url(b"<html><script>"))]}, "image_url.url", "HTML"),
    ({"messages": [turn("x", *[data_url(1)] * 4)]}, "image_url.url", "more than 3 pictures"),
    ({"messages": [turn("x")] * 21}, "messages", "21 turns"),
    ({"messages": [turn("x")], "temperature": 9}, "temperature", "less than or equal to 2"),
    ({"messages": [turn("x")], "top_p": 0}, "top_p", "greater than 0"),
    ({"messages": [turn("x")], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"messages": [turn("x")], "n": 4}, "n", "one answer"),
    ({"messages": [turn("x")], "tools": [{}]}, "tools", "not supported"),
    ({"messages": [turn("x")], "logprobs": True}, "logprobs", "not given"),
    ({"messages": [turn("x")], "stop": ["a", ""]}, "stop", "empty text"),
    ({"messages": [turn("x " * 5000)]}, "messages", "context"),
    ({"messages": [turn("a \ud800 b")]}, "messages", "surrogate"),
    ({"messages": [turn("x")], "temperature": 1e-38}, "temperature", "from 0.01"),
    ({"messages": [turn("x")], "stop": ["zz"] * 17}, "stop", "at most 16"),
]


@pytest.mark.parametrize(("body", "param", "words"), REFUSED)
def test_a_refusal_names_the_key(server, body, param, words):
    reply = post(server, body)
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert words in error["message"]
    assert param in (error["param"] or error["message"])


def test_a_request_that_is_too_large(server):
    assert post(server, b"[" + b"0," * 1_500_000 + b"0]").status_code == 413


def test_a_request_that_is_too_slow(server):
    strict = Server(server.engine, replace(LIMITS, body_seconds=0.5))
    with socket.create_connection(("127.0.0.1", strict.port)) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"
        )
        slow.settimeout(20)
        assert b" 408 " in slow.recv(2000).split(b"\r\n")[0]
    strict.stop()


def scrambled(seed: int) -> bytes:
    """A request of a seed's own: a valid one with keys, types and bytes changed."""
    draw = random.Random(seed)
    odd: list[Any] = [
        None, True, -1, 0, 1e308, 2**80, "", "\ud800", "\x00", "../../etc/passwd", "<img src=x>",
        "<image>", "<|im_end|>", [], {}, [[]], {"a": {}}, "x" * 3000, "‮مرحبا", float("nan"),
        {"type": "image_url", "image_url": {"url": "data:;base64,"}}, data_url(1)[:-40],
        as_url(bytes(draw.randrange(256) for _ in range(200))), as_url(b"GIF89a" + b"\xff" * 40),
        as_url(b"%PDF-1.4"), "data:image/png;base64," + "A" * 4000, "http://169.254.169.254/",
    ]  # fmt: skip
    body: Any = {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s"}, turn("What?", data_url(2)),
            {"role": "assistant", "content": "A."}, turn("And?"),
        ],
        "max_tokens": 2, "temperature": 0.0, "stream": draw.random() < 0.3, "stop": ["zz"],
    }  # fmt: skip
    for _ in range(draw.randint(1, 3)):
        node: Any = body
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(node[key], dict | list) and draw.random() < 0.7:
                node = node[key]
                continue
            if draw.random() < 0.2:
                del node[key]
            else:
                node[key] = draw.choice(odd)
            break
    content = json.dumps(body).encode()
    if draw.random() < 0.15:
        place = draw.randrange(len(content))
        content = content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    return content


@pytest.mark.slow
def test_hostile_requests_get_an_answer_or_a_refusal_and_nothing_else(server, client):
    """400 scrambled ones, some hung up on half-way; the server then answers as before."""
    before = expected(server, 5, "What is it?", 8)
    seen: dict[int, int] = {}

    def one(seed: int) -> int:
        if seed % 10 == 0:
            with socket.create_connection(("127.0.0.1", server.port)) as half:
                content = scrambled(seed)
                half.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                    % len(content) + content[: len(content) // 2]
                )  # fmt: skip
            return 0
        reply = post(server, scrambled(seed))
        if reply.status_code != 200:
            error = reply.json()["error"]
            assert error["message"]
            assert "Traceback" not in reply.text
        assert "root:" not in reply.text
        return reply.status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for status in pool.map(one, range(400)):
            seen[status] = seen.get(status, 0) + 1
    assert set(seen) <= {0, 200, 400, 429}, seen
    assert seen[400] > 100
    assert seen[200] > 20
    reply = client.chat.completions.create(
        model="tiny", messages=[turn("What is it?", data_url(5))], max_tokens=8
    )
    assert reply.choices[0].message.content == before


def test_of_several_models_a_request_names_one() -> None:
    engines: Any = {"mole": "first", "lora": "second"}
    assert chosen_engine(engines, None) == ("mole", "first")
    assert chosen_engine(engines, "lora") == ("lora", "second")
    assert chosen_engine({"mole": engines["mole"]}, "gpt-4o") == ("mole", "first")
    with pytest.raises(RequestError, match="no model 'gpt-4o' here; there are mole, lora") as told:
        chosen_engine(engines, "gpt-4o")
    assert told.value.response().status_code == 404
