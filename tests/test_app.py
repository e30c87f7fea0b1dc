"""The demo's command: models found or not, names, ports; and the page as programs speak to it."""

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import app as demo
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room
from tests.serving.browser import served

TOKENS = 16
AUTO = ("", 0.0, 1.0, TOKENS, None)
"""Language and settings as the page has them at first, but for the length."""


@pytest.fixture(scope="module")
def room(tiny_model_dir: Path) -> Iterator[Room]:
    engine = ChatEngine.from_folder(tiny_model_dir, device="cpu")
    yield Room([engine], Limits(tokens=64, body_bytes=500_000, characters=2000))
    engine.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


@pytest.fixture(scope="module")
def address(room: Room, picture: Path) -> Iterator[str]:
    with served(room, ["mine"], [picture]) as url:
        yield url


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, verbose=False)


def ask(client: Client, text: str, *pictures: Path) -> dict[str, Any]:
    """The last message of the conversation."""
    message = {"text": text, "files": [handle_file(str(path)) for path in pictures]}
    *_, chat = client.predict(message, *AUTO, api_name="/chat")
    return chat[-1]


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def alone(room: Room, text: str, *pictures: Path) -> str:
    asked = [{"role": "user", "content": "<image>" * len(pictures) + text}]
    return room.engines[0].answer(asked, list(pictures), max_new_tokens=TOKENS)


def test_programs_may_ask_the_page_and_its_api(
    client: Client, room: Room, picture: Path, address: str
) -> None:
    expected = alone(room, "What is it?", picture)
    assert text_of(ask(client, "What is it?", picture)).strip() == expected
    api = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    assert [model.id for model in api.models.list()] == ["mine"]
    said = api.chat.completions.create(
        model="mine", messages=[{"role": "user", "content": "Hello"}], max_tokens=TOKENS
    )
    assert said.choices[0].message.content == alone(room, "Hello")


def test_a_second_question_follows_the_first(client: Client, room: Room, picture: Path) -> None:
    first = text_of(ask(client, "What is it?", picture))
    second = text_of(ask(client, "And its colour?"))
    turns = [
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And its colour?"},
    ]
    sampling = Sampling(max_new_tokens=TOKENS)
    assert second.strip() == room.engines[0].submit(turns, [picture], sampling).text()


def test_an_error_is_shown_in_its_own_words_and_then_forgotten(
    client: Client, room: Room, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:60])
    shown = ask(client, "What is it?", broken)
    assert "Error" in shown["metadata"]["title"]
    assert "broken.png" in text_of(shown)
    assert "x" * 2000 not in text_of(ask(client, "x" * 2001))
    assert text_of(ask(client, "Why?", picture)).strip() == alone(room, "Why?", picture)


# ---------------------------------------------------------------------- requests that mean harm


def post(address: str, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        address + path, content=content, headers={"Content-Type": "application/json"}, timeout=30
    )


def outcome(address: str, data: list[Any], fn_index: int = 0) -> str:
    """All that the page says to one call by its queue."""
    session = f"harm{random.getrandbits(40)}"
    join = {"data": data, "fn_index": fn_index, "session_hash": session, "trigger_id": None}
    joined = post(address, "/gradio_api/queue/join", join)
    if joined.status_code != 200:
        assert joined.status_code < 500
        return joined.text
    told = ""
    with httpx.stream(
        "GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=30
    ) as events:
        for line in events.iter_lines():
            told += line + "\n"
            if "process_completed" in line or "unexpected_error" in line:
                break
    return told


class Elsewhere(BaseHTTPRequestHandler):
    """A server that should never be asked."""

    asked: list[str] = []  # noqa: RUF012  one for the test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def test_no_path_and_no_address_in_a_request_is_followed(
    address: str, room: Room, client: Client, picture: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (16, 16), "blue").save(secret)
    elsewhere = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{elsewhere.server_port}/x.png"
    paths = [
        "/etc/passwd", str(secret), f"../../../../../..{secret}", f"file://{secret}",
        f"/gradio_api/file={secret}", url, url.replace("http", "HTTP"), f" {url}",
        "\\\\host\\share\\x.png", "/proc/self/environ", "/dev/zero", "", "\x00", "a" * 5000,
    ]  # fmt: skip
    for path, inside in itertools.product(paths, ("files", "text", "seed")):
        file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        message: Any = {"text": "What?", "files": [file] if inside == "files" else []}
        data = [message, None, *AUTO]
        if inside == "text":
            message["text"] = file
        if inside == "seed":
            data[-1] = file
        told = outcome(address, data)
        assert "root:" not in told
        assert alone(room, "What?", secret) not in told
        assert "process_completed" not in told or '"success":false' in told or "Error" in told, told
    assert Elsewhere.asked == []
    elsewhere.shutdown()
    assert text_of(ask(client, "Why?", picture)).strip() == alone(room, "Why?", picture)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.html", b"<html><script>alert(1)</script></html>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("both.png", b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script>"),
        ("page.html.png", b"<html><script>alert(1)</script></html>"),
        ("../../up.html", b"<script>alert(1)</script>"),
        ("x.xhtml", b"<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>"),
        ("x.js", b"alert(1)"),
    ],
)
def test_uploads_never_come_back_as_a_page(address: str, name: str, content: bytes) -> None:
    there = httpx.post(f"{address}/gradio_api/upload", files={"files": (name, content)}, timeout=30)
    if there.status_code != 200:
        assert 400 <= there.status_code < 500
        return
    (path,) = there.json()
    assert "up.html" not in path or ".." not in path
    back = httpx.get(f"{address}/gradio_api/file={path}", timeout=30)
    kind = back.headers.get("content-type", "")
    as_file = "attachment" in back.headers.get("content-disposition", "")
    assert as_file or kind.startswith("image/png"), (kind, back.headers)
    assert back.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in back.headers["content-security-policy"]


def test_files_of_the_server_are_not_given_out(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    here = Path(demo.__file__).resolve()
    for path in (secret, "/etc/passwd", here, here.parent / "pyproject.toml", "../../etc/passwd"):
        for place in ("gradio_api/file=", "file=", "static/", "gradio_api/file=%2e%2e/", "v1/",
                      "assets/../../"):  # fmt: skip
            told = httpx.get(f"{address}/{place}{path}", timeout=30)
            assert 400 <= told.status_code < 500 or "<!doctype html>" in told.text.lower()
            assert "do not tell" not in told.text
            assert "root:" not in told.text
            assert "requires-python" not in told.text


def test_too_much_is_refused(address: str) -> None:
    big = {"files": ("big.png", b"x" * 600_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=big, timeout=30).status_code == 413


def test_three_hundred_strange_calls(
    address: str, room: Room, client: Client, picture: Path
) -> None:
    draws = random.Random(0)
    strange: list[Any] = [
        None, True, -1, 1e308, "", "x", [], {}, [[]], {"text": 3}, {"files": 3}, "NaN",
        {"text": None, "files": [None]}, {"text": ["a"], "files": [{}]}, [None] * 50, 2**70,
        {"text": "a", "files": [{"path": None}]}, {"__type__": "update", "value": "x"},
    ]  # fmt: skip
    for number in range(300):
        data = [draws.choice(strange) for _ in range(draws.choice([0, 1, 6, 7, 7, 7, 8]))]
        body: Any = {
            "data": data,
            "fn_index": draws.choice([0, 0, 0, 1, 2, 9, 500, -1, "x", None]),
            "session_hash": draws.choice([f"s{number}", None, 3, "x" * 300]),
        }
        path = draws.choice(
            ["queue/join", "queue/join", "call/chat", "run/chat", "cancel", "reset", "heartbeat/x",
             "component_server", "launch_chat", "deep_link"]
        )  # fmt: skip
        if number % 10 == 0:
            body = draws.choice([b"", b"{", b"[" * 10_000, b"\xff\xfe", b"null", b'"x"'])
        try:
            told = post(address, f"/gradio_api/{path}", body)
        except httpx.HTTPError as error:
            pytest.fail(f"{path} {body}: {error!r}")
        assert told.status_code < 500, (path, body, told.text[:300])
    assert text_of(ask(client, "Why?", picture)).strip() == alone(room, "Why?", picture)
    for _ in range(100):  # a call that made sense after all is written to its end
        if room.engines[0].batcher.load() == (0, 0):
            break
        time.sleep(0.1)
    assert room.engines[0].batcher.load() == (0, 0)


# ---------------------------------------------------------------------- the command


def test_examples_are_favourites_or_spread_over_the_folder(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index:02}.png").touch()
    names = [path.name for path in demo.example_pictures(tmp_path, 4)]
    assert names == ["00.png", "10.png", "20.png", "30.png"]
    assert demo.example_pictures(tmp_path / "none") == []
    for name in demo.FAVOURITES:
        (tmp_path / f"{name}.png").touch()
    assert [path.stem for path in demo.example_pictures(tmp_path)] == list(demo.FAVOURITES)


def test_models_are_called_by_their_run(tmp_path: Path) -> None:
    folders = [tmp_path / "mole" / "model", tmp_path / "lora", tmp_path / "x" / "lora"]
    assert demo.names_of(folders) == ["mole", "lora", "lora (3)"]


def test_missing_model_says_which_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--model", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "make quickstart" in printed.err


def test_a_port_in_use_is_passed_over() -> None:
    first = demo.free_port("127.0.0.1", 17860)
    with HTTPServer(("127.0.0.1", first), Elsewhere):
        assert demo.free_port("127.0.0.1", first) > first
