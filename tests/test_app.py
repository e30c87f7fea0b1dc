"""The demo, launched for real on this machine and spoken to as a browser does."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import httpx
import openai
import pytest
import uvicorn
from gradio_client import Client, handle_file
from PIL import Image

import app as demo
from llava_mole.serving.chat import ChatEngine


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> ChatEngine:
    return ChatEngine.from_folder(tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (32, 32), "red").save(path)
    return path


@pytest.fixture(scope="module")
def page(engine: ChatEngine, picture: Path) -> Iterator[gr.Blocks]:
    blocks = demo.build_app(engine, title="test", pictures=[picture])
    blocks.launch(prevent_thread_lock=True, quiet=True, css=demo.CSS, show_error=True)
    yield blocks
    blocks.close()


@pytest.fixture
def client(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


def test_answers_arrive_in_pieces_and_match_the_engine(
    client: Client, engine: ChatEngine, picture: Path
) -> None:
    job = client.submit("What is it?", handle_file(picture), api_name="/chat")
    pieces = list(job)
    assert len(pieces) > 1
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
    expected = engine.stream([{"role": "user", "content": "<image>\nWhat is it?"}], [picture])
    assert job.outputs()[-1] == "".join(expected)


def test_a_second_question_follows_the_first(
    client: Client, engine: ChatEngine, picture: Path
) -> None:
    first = client.predict("What is it?", handle_file(picture), api_name="/chat")
    second = client.predict("And its colour?", handle_file(picture), api_name="/chat")
    history = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": first}]},
    ]
    turns = demo.as_messages("And its colour?", history, picture)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"] == "<image>\nWhat is it?"
    assert second == "".join(engine.stream(turns, [picture]))


def test_text_alone_is_answered(client: Client) -> None:
    assert isinstance(client.predict("Hello", None, api_name="/chat"), str)


def test_an_error_is_shown_in_its_own_words_and_then_forgotten(
    client: Client, engine: ChatEngine, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    whole = picture.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    shown = client.predict("What is it?", handle_file(broken), api_name="/chat")
    assert shown["metadata"]["title"] == demo.ERROR_TITLE
    assert "broken.png" in str(shown["content"])
    shown = client.predict("<image>", None, api_name="/chat")
    assert "1 &lt;image&gt; placeholders in the text but 0 images" in str(shown["content"])
    answer = client.predict("What is it?", handle_file(picture), api_name="/chat")
    first = [{"role": "user", "content": "<image>\nWhat is it?"}]
    assert answer == "".join(engine.stream(first, [picture]))


def test_every_language_has_an_example_question() -> None:
    assert len(demo.QUESTIONS) == 6
    assert any("\u0600" <= letter <= "\u06ff" for letter in demo.QUESTIONS["العربية"])
    assert "unicode-bidi: plaintext" in demo.CSS


def test_examples_are_spread_over_the_folder(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index:02}.png").touch()
    names = [path.name for path in demo.example_pictures(tmp_path, 4)]
    assert names == ["00.png", "10.png", "20.png", "30.png"]
    assert demo.example_pictures(tmp_path / "none") == []


def test_missing_model_says_which_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--model", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "make quickstart" in printed.err


def test_page_and_api_share_a_process(engine: ChatEngine, picture: Path) -> None:
    page = demo.build_app(engine, title="test", pictures=[picture])
    app = demo.with_api(engine, page, name="mine")
    port = demo.free_port("127.0.0.1", 17860)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{port}"
    assert "gradio" in httpx.get(address, timeout=60).text
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["mine"]
    said = client.chat.completions.create(
        model="mine", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    hello = [{"role": "user", "content": "Hello"}]
    assert said.choices[0].message.content == engine.answer(hello, max_new_tokens=4)
    assert demo.free_port("127.0.0.1", port) != port
    server.should_exit = True
    thread.join(30)
