"""The demo's command: models found or not, names, ports; and the page as programs speak to it."""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import Image

import app as demo
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room
from llava_mole.serving.talk import Answer, Exchange, Question
from llava_mole.serving.visits import Visits
from llava_mole.serving.why_panel import explanation_of
from tests.serving.browser import served

TOKENS = 16
AUTO = ("", 0.0, 1.0, TOKENS, "")
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
    long = client.predict({"text": "x" * 2001, "files": []}, *AUTO, api_name="/chat")
    assert "xxx" not in json.dumps(long)  # told to shorten it, and not kept
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


def kept() -> int:
    return sum(path.is_file() for path in Path(get_upload_folder()).rglob("*"))


def test_too_much_is_refused_and_leaves_nothing(address: str) -> None:
    before = kept()
    big = {"files": ("big.png", b"x" * 600_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=big, timeout=30).status_code == 413
    for path in ("queue/join", "call/chat", "cancel", "reset", "run/predict"):
        told = post(address, f"/gradio_api/{path}", b'{"data": ["' + b"x" * 2_000_000 + b'"]}')
        assert told.status_code == 413, path
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as broken:
        broken.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: " + f"{host}:{port}".encode()
            + b"\r\nContent-Length: 400000\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n"
            + b'--B\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            + b"x" * 200_000
        )  # fmt: skip
    time.sleep(0.3)
    assert kept() == before


def test_what_the_page_does_not_need_is_not_there(address: str) -> None:
    for path in ("gradio_api/file=http://example.org/x.png", "gradio_api/file=HTTPS://a.b/c",
                 "gradio_api/file/http://example.org/x.png", "gradio_api/deep_link?session_hash=x",
                 "gradio_api/proxy=http://example.org", "gradio_api/dev/reload", "monitoring",
                 "monitoring/summary", "gradio_api/stream/x/1/2/playlist.m3u8", "runs", "login",
                 "gradio_api/vibe-code", "gradio_api/custom_component/1/client/x/y"):  # fmt: skip
        assert httpx.get(f"{address}/{path}", timeout=5).status_code == 404, path
    for path in ("call/nothing", "call/v2/chat", "call/v2/x", "component_server", "stream/x",
                 "run/chat", "api/chat", "process_recording", "vibe-edit"):  # fmt: skip
        assert post(address, f"/gradio_api/{path}", {"data": []}).status_code == 404, path


def test_pages_of_other_sites_are_turned_away(address: str, room: Room, picture: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    url = f"{address}/v1/chat/completions"
    assert httpx.post(url, json=asked, timeout=30).status_code == 200
    assert httpx.post(url, json=asked, headers={"Origin": address}, timeout=30).status_code == 200
    for origin in ("http://evil.example", "null"):
        told = httpx.post(url, json=asked, headers={"Origin": origin}, timeout=30)
        assert told.status_code == 403
    with served(room, ["mine"], [picture], hosts=demo.LOCAL) as local:
        assert httpx.get(local, timeout=30).status_code == 200
        told = httpx.get(local, headers={"Host": "evil.example"}, timeout=30)
        assert told.status_code == 403
        assert "--allow-host" in told.text


def test_explanations_do_not_hold_up_answers(
    address: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five visitors ask twelve times why; another one asks a question."""
    engine = room.engines[0]
    talk = (Exchange(Question("Why?"), (Answer("because " * 40, "stop"),)),)
    visits = Visits(room, ["mine"], ())
    requests: list[Any] = [SimpleNamespace(session_hash=str(n // 12)) for n in range(60)]
    answered = threading.Event()

    def after_the_answer(*arguments: Any) -> Any:
        answered.wait(60)
        return explanation_of(*arguments)

    monkeypatch.setattr("llava_mole.serving.visits.explanation_of", after_the_answer)
    few = room.limits.explanations
    with ThreadPoolExecutor(60) as pool:
        why = [
            pool.submit(visits.explain_last, talk, 0, None, None, request) for request in requests
        ]
        while sum(one.done() for one in why) < 60 - few:
            time.sleep(0.01)
        engine.answer([{"role": "user", "content": "Hello"}], max_new_tokens=4)
        answered.set()
        told = [one.result()[2] for one in why]
    assert sum("in a moment" in one for one in told) == 60 - few
    assert sum("experts" in one for one in told) == few


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
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index:02}.png")
    (tmp_path / "20.png").write_bytes(b"broken")
    names = [path.name for path in demo.example_pictures(tmp_path, 4)]
    assert names == ["00.png", "10.png", "30.png"]
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


@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)]
)
def test_it_ends_with_tabs_open_and_leaves_no_folder(
    tiny_model_dir: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    server = subprocess.Popen(
        [sys.executable, demo.__file__, "--model", str(tiny_model_dir),
         "--pictures", str(tmp_path)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        address = next(line for line in server.stdout if line.startswith("page: ")).split()[1]
        for line in server.stdout:
            if line.startswith("ready"):
                break
        assert httpx.get(address, timeout=30).status_code == 200
        with httpx.stream("GET", f"{address}/gradio_api/heartbeat/tab", timeout=30) as tab:
            assert tab.status_code == 200
            assert list(tmp_path.glob("llava-mole-*"))
            server.send_signal(sent)
            assert server.wait(60) == 0
        assert not list(tmp_path.glob("llava-mole-*"))
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "0"], "at least 1"),
        (["--port", "0"], "from 1 to 65535"),
        (["--port", "70000"], "from 1 to 65535"),
        (["--max-tokens", "0"], "at least 1"),
        (["--compare", "nowhere"], "no model in nowhere"),
        (["--host", "203.0.113.9"], "203.0.113.9"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(
    tiny_model_dir: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = demo.main(["--model", str(tiny_model_dir), *options])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2
    if words != "203.0.113.9":
        assert words in capsys.readouterr().err


def test_a_damaged_folder_is_told_in_words(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert demo.main(["--model", str(folder)]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert demo.main(["--model", str(folder)]) == 2
    assert "app.py: " in capsys.readouterr().err


def test_a_port_in_use_is_passed_over() -> None:
    """From the moment on at which another demo begins to load its models."""
    [one] = demo.hold_port("127.0.0.1", None, 17860)
    with one:
        port = one.getsockname()[1]
        [other] = demo.hold_port("127.0.0.1", None, port)
        with other:
            assert other.getsockname()[1] > port
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is in use"):
            demo.hold_port("127.0.0.1", port)
        with pytest.raises(OSError, match=f"no free port from {port} to {port}"):
            demo.hold_port("127.0.0.1", None, port, tries=1)
    for one in demo.hold_port("127.0.0.1", port):
        one.close()


def test_a_host_of_several_addresses_listens_on_all_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = (socket.SOCK_STREAM, 6, "")
    addresses = [(socket.AF_INET, *stream, (host, 17960)) for host in
                 ("203.0.113.9", "127.0.0.1", "127.0.0.2", "127.0.0.1")]  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    held = demo.hold_port("several", 17960)
    assert [one.getsockname() for one in held] == [("127.0.0.1", 17960), ("127.0.0.2", 17960)]
    with pytest.raises(OSError, match="in use"):
        demo.hold_port("several", 17960)
    for one in held:
        one.close()
    del addresses[1:]
    with pytest.raises(OSError, match="annot assign"):
        demo.hold_port("several", 17960)
