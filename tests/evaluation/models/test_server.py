"""A served model, asked over HTTP: a tiny model of this project behind a server of the standard
library that speaks as much of OpenAI's protocol as the client needs."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.asks import Unit
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.models.server import ServerModel
from llava_mole.serving.chat import ChatEngine
from tests.evaluation.models import questions

PROTOCOL = replace(questions.LETTERS, max_new_tokens=8)
MODELS = [{"id": "tiny", "object": "model", "created": 1, "owned_by": "tests", "root": "/tiny"}]
TOP = [("zz", -0.5), (" B", -1.0), ("B", -2.0), ("C", -3.0), ("?", -4.0)]


@dataclass
class Served:
    """What the server is, does and got.

    Attributes:
        refusals: statuses with which the next requests are answered.
        top: first tokens and their log-probabilities, where it gives any.
        asked: requests of replies, as they came.
    """

    engine: ChatEngine
    address: str = ""
    server: ThreadingHTTPServer | None = None
    refusals: list[int] = field(default_factory=list)
    top: list[tuple[str, float]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        parts, pictures = [], []
        for part in request["messages"][0]["content"]:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(";base64,")
                assert head == "data:image/png"
                pictures.append(base64.b64decode(data))
                parts.append({"type": "image"})
            else:
                parts.append(part)
        assert request["temperature"] == 0
        length = request["max_tokens"]
        text = self.engine.answer(
            [{"role": "user", "content": parts}], pictures, max_new_tokens=length
        )
        told: dict[str, Any] | None = None
        if request.get("logprobs") and self.top is not None:
            listed = [{"token": t, "logprob": p, "bytes": None} for t, p in self.top]
            told = {"content": [{**listed[0], "top_logprobs": listed}]}
        tokens = self.engine.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "length" if len(tokens) >= length else "stop",
                    "logprobs": told,
                }
            ],
        }


def handler_of(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.send(200, {"object": "list", "data": MODELS})

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                served.keys.add(self.headers["Authorization"])
                served.asked.append(request)
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
                status = served.refusals.pop(0) if served.refusals else 200
            body = served.reply(request) if status == 200 else {"error": {"message": "not now"}}
            with served.lock:
                served.at_once -= 1
            self.send(status, body)

    return Handler


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> ChatEngine:
    return ChatEngine.from_folder(tiny_model_dir, device="cpu")


@pytest.fixture
def served(engine: ChatEngine) -> Iterator[Served]:
    state = Served(engine)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    state.server, state.address = server, f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_replies_are_those_of_the_model_behind_it(served: Served, tiny_model_dir: Path) -> None:
    units = questions.units(PROTOCOL)
    model = ServerModel(served.address, "tiny", PROTOCOL)
    replies = model.answer(units)
    ours = OurModel.from_folder(tiny_model_dir, PROTOCOL, device="cpu")
    assert [[reply.text for reply in unit] for unit in replies] == [
        [reply.text for reply in ours.answer([unit])[0]] for unit in units
    ]
    assert len({reply.text for unit in replies for reply in unit}) > 1
    assert not replies[0][0].finished
    assert replies[0][0].scores is None


def test_requests_under_way_are_bounded(served: Served) -> None:
    ServerModel(served.address, "tiny", PROTOCOL, concurrent=2).answer(questions.units(PROTOCOL))
    assert served.most_at_once <= 2
    assert len(served.asked) == sum(len(unit.asks) for unit in questions.units(PROTOCOL))


def test_a_withheld_picture_is_not_sent(served: Served) -> None:
    blind = replace(PROTOCOL, picture=False)
    ServerModel(served.address, "tiny", blind).answer(questions.units(blind)[:1])
    sent = served.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["text"]


def test_a_busy_server_is_asked_again(served: Served) -> None:
    unit = questions.units(PROTOCOL)[:1]
    model = ServerModel(served.address, "tiny", PROTOCOL)
    expected = model.answer(unit)
    served.refusals += [429, 503]
    assert model.answer(unit) == expected
    assert not served.refusals


def test_a_server_that_stays_busy_names_the_question(served: Served) -> None:
    model = ServerModel(served.address, "tiny", PROTOCOL, concurrent=1, retries=1)
    served.refusals += [429] * 2
    with pytest.raises(CheckpointError, match=r"some.tsv:2.*after 1 retries. Finished batches are"):
        model.answer(questions.units(PROTOCOL))
    assert len(served.asked) < 11  # the rest is not asked for nothing


def test_a_server_that_is_gone_is_an_error(engine: ChatEngine) -> None:
    state = Served(engine)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    model = ServerModel(address, "tiny", PROTOCOL, concurrent=1, retries=0)
    server.shutdown()
    server.server_close()
    thread.join()
    with pytest.raises(CheckpointError, match=r"question some.tsv:2: APIConnectionError"):
        model.answer(questions.units(PROTOCOL)[:1])
    with pytest.raises(CheckpointError, match="looking for its models: APIConnectionError"):
        ServerModel(address, "tiny", PROTOCOL, retries=0)


def test_a_request_that_is_refused_is_not_repeated(served: Served) -> None:
    model = ServerModel(served.address, "tiny", PROTOCOL, concurrent=1)
    served.refusals += [400]
    with pytest.raises(ConfigError, match=r"question some.tsv:2: BadRequestError"):
        model.answer(questions.units(PROTOCOL)[:1])
    served.refusals += [401]
    with pytest.raises(ConfigError, match=r"The key is read from \$OPENAI_API_KEY"):
        model.answer(questions.units(PROTOCOL)[:1])


def test_the_key_is_that_of_the_named_variable(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    model = ServerModel(served.address, "tiny", PROTOCOL, key_variable="MY_KEY")
    model.answer(questions.units(PROTOCOL)[:1])
    assert served.keys == {"Bearer secret"}
    assert "secret" not in json.dumps(model.describe())


def test_it_tells_what_the_server_says_and_that_weights_are_unseen(served: Served) -> None:
    told = ServerModel(served.address, "tiny", PROTOCOL).describe()
    assert told["served"] == {"id": "tiny", "owned_by": "tests", "root": "/tiny"}
    assert told["host"] == served.address.removeprefix("http://").removesuffix("/v1")
    assert told["sha256"] is None
    assert "may change" in told["note"]


def test_an_unknown_model_is_refused_with_the_nearest(served: Served) -> None:
    with pytest.raises(
        ConfigError, match=r"no model 'tinny'; it serves tiny\. Did you mean 'tiny'"
    ):
        ServerModel(served.address, "tinny", PROTOCOL)


def test_letters_are_read_from_the_likeliest_first_tokens(served: Served) -> None:
    protocol = replace(PROTOCOL, answer="letters")
    with pytest.raises(ConfigError, match="gives no top_logprobs; ask with answer=generate"):
        ServerModel(served.address, "tiny", protocol)
    served.top = TOP
    model = ServerModel(served.address, "tiny", protocol)
    assert model.answers == {"generate", "letters"}
    reply = model.answer(questions.units(protocol)[:1])[0][0]
    assert reply.text == "B"
    # A is not listed: the lowest listed one is its floor.
    assert reply.scores == {"A": -4.0, "B": -1.0, "C": -3.0}
    served.top = [("?", -0.1)]
    assert model.answer(questions.units(protocol)[:1])[0][0].text == ""


def test_a_broken_picture_names_its_place(served: Served) -> None:
    ask = questions.units(PROTOCOL)[1].asks[0]
    ask = replace(ask, item=replace(ask.item, image=b"no picture"))
    model = ServerModel(served.address, "tiny", PROTOCOL)
    with pytest.raises(DataError, match=r"some.tsv:3: image given as 10 bytes"):
        model.answer([Unit((ask,))])
