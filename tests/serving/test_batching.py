"""Conversations written together: each gets what it would get alone, and nobody waits for others'
mistakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_mole.configuration import ParrotConfig
from llava_mole.errors import DataError
from llava_mole.mole.methods import METHODS
from llava_mole.serving import generation
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Generation, QueueFullError, Sampling
from tests import helpers

MANY = 1900
"""Seconds of work for any machine: nothing that waits for the end of such an answer is in time."""
LONG = {"max_new_tokens": MANY, "min_new_tokens": MANY}


def conversation(number: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Of one to three turns, of none to two pictures, of unlike lengths."""
    pictures = [helpers.picture(number * 10 + n) for n in range(number % 3)]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "<image>" * len(pictures) + "What is it? " * (1 + number % 4)}
    ]
    for turn in range(number % 2):
        turns.append({"role": "assistant", "content": f"A thing {turn}."})
        turns.append({"role": "user", "content": "And what else?"})
    return turns, pictures


@pytest.fixture
def engine(tiny_model) -> Iterator[Any]:
    made: list[ChatEngine] = []

    def make(family: str = "llama", queue: dict[str, int] | None = None, **parts: Any) -> Any:
        made.append(ChatEngine(*tiny_model(family, **parts), **(queue or {})))
        return made[-1]

    yield make
    for one in made:
        one.close()


def greedy(engine: ChatEngine, number: int, tokens: int) -> list[int]:
    """The readable twin: `generate` on this conversation alone."""
    turns, pictures = conversation(number)
    from llava_mole.serving.chat import fill_pictures

    inputs = engine.processor.apply_chat_template(
        fill_pictures(turns, pictures), tokenize=True, return_dict=True, add_generation_prompt=True
    )
    out = engine.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [place for place, token in enumerate(said) if token in engine.batcher.ends]
    return said[: ends[0]] if ends else said


def submit(engine: ChatEngine, number: int, **sampling: Any) -> Generation:
    return engine.submit(*conversation(number), Sampling(**sampling))


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_together_as_alone(engine, family):
    """More conversations than rows, so that they come and go at different steps."""
    one = engine(family, {"max_rows": 3}, mole=True, lora=True, parrot=True, dtype="float32")
    assert one.batcher.together
    alone = [greedy(one, number, 4 + number) for number in range(8)]
    asked = [submit(one, number, max_new_tokens=4 + number) for number in range(8)]
    for said, expected in zip(asked, alone, strict=True):
        said.text()
        assert said.tokens == expected


@pytest.mark.parametrize("method", ["dynmole", "smora", "conditional_mixlora"])
def test_every_kind_of_routing(engine, method):
    """Experts that are routed by the whole prompt are served one at a time, by `generate`."""
    one = engine("llama", mole=METHODS[method](num_experts=8, r=2), dtype="float32")
    assert one.batcher.together == (method != "conditional_mixlora")
    alone = [greedy(one, number, 6) for number in range(4)]
    asked = [submit(one, number, max_new_tokens=6) for number in range(4)]
    assert [(said.text(), said.tokens)[1] for said in asked] == alone


def test_the_released_parrot_conditions_on_the_whole_conversation(engine):
    parrot = ParrotConfig.released(num_experts=3, hidden_size=16)
    one = engine("llama", parrot=parrot, dtype="float32")
    alone = [greedy(one, number, 6) for number in range(6)]
    asked = [submit(one, number, max_new_tokens=6) for number in range(6)]
    assert [(said.text(), said.tokens)[1] for said in asked] == alone


def test_the_cache_is_packed_anew_and_answers_stay(engine, monkeypatch):
    from llava_mole.serving import batching

    one = engine("gemma3_text", {"max_rows": 2}, mole=True, dtype="float32")
    alone = [greedy(one, number, 12) for number in range(6)]
    monkeypatch.setattr(batching, "SLACK", 0)
    asked = [submit(one, number, max_new_tokens=12) for number in range(6)]
    assert [(said.text(), said.tokens)[1] for said in asked] == alone


def test_a_cancelled_answer_frees_its_row(engine):
    one = engine(queue={"max_rows": 1})
    long, short = submit(one, 1, **LONG), submit(one, 2, max_new_tokens=3)
    next(iter(long))
    long.cancel()
    short.text()
    assert long.finish_reason == "cancelled"
    assert 0 < len(long.tokens) < MANY


def test_waiting_in_line_and_a_full_queue(engine):
    one = engine(queue={"max_rows": 1, "max_waiting": 2})
    first = submit(one, 1, **LONG)
    next(iter(pieces := iter(first)))
    second, third = submit(one, 1, max_new_tokens=1), submit(one, 2, max_new_tokens=1)
    assert [second.position(), third.position()] == [1, 2]
    assert one.batcher.load() == (1, 2)
    with pytest.raises(QueueFullError, match="2 conversations wait already"):
        submit(one, 3)
    second.cancel()
    first.cancel()
    third.text()
    del pieces
    assert [x.finish_reason for x in (first, second, third)] == ["cancelled", "cancelled", "length"]
    assert third.position() == 0


def test_time_is_up(engine, monkeypatch):
    later = 0.0
    monkeypatch.setattr(generation, "time", SimpleNamespace(monotonic=lambda: later))
    said = submit(engine(), 1, **LONG, seconds=60)
    pieces = iter(said)
    next(pieces)
    later = 61.0
    list(pieces)
    assert said.finish_reason == "time"
    assert 0 < len(said.tokens) < MANY


def test_a_broken_request_leaves_the_others_alone(engine):
    one = engine(dtype="float32")
    expected = greedy(one, 4, 30)
    good = submit(one, 4, max_new_tokens=30)
    next(iter(pieces := iter(good)))
    bad = one.submit(*conversation(1), Sampling(max_new_tokens=4))
    bad.pixels = torch.zeros(1, 3, 7, 5)  # no tower takes this
    again = submit(one, 4, max_new_tokens=30)
    assert again.text()
    assert again.tokens == expected
    del pieces


def test_an_error_reaches_the_reader_and_the_next_is_served(engine):
    one = engine()
    bad = one.submit(*conversation(1), Sampling(max_new_tokens=4))
    bad.encoded.input_ids[0] = 10**6  # outside the vocabulary
    if bad.finish_reason is None:
        with pytest.raises((IndexError, RuntimeError)):
            bad.text()
    submit(one, 2, max_new_tokens=3).text()


def test_a_stop_text_ends_the_answer_and_is_not_said(engine):
    one = engine(dtype="float32")
    whole = submit(one, 2, max_new_tokens=24, min_new_tokens=24).text()
    stop = whole[8:11]
    said = submit(one, 2, max_new_tokens=24, min_new_tokens=24, stop=(stop,))
    pieces = list(said)
    assert "".join(pieces) == whole.partition(stop)[0]
    assert said.finish_reason == "stop"


def test_draws_follow_their_seed_and_not_their_company(engine):
    one = engine(dtype="float32")
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.5, "top_p": 0.9}
    alone = submit(one, 2, **how, seed=7).text()
    asked = [submit(one, number, **how, seed=number) for number in range(5)]
    same, other = submit(one, 2, **how, seed=7), submit(one, 2, **how, seed=8)
    assert same.text() == alone != other.text()
    for said in asked:
        said.text()


def test_closing_ends_everybody(tiny_model):
    one = ChatEngine(*tiny_model("llama"), max_rows=1)
    asked = [submit(one, number, **LONG) for number in range(3)]
    closing = threading.Thread(target=one.close)
    closing.start()
    for said in asked:
        said.text()
    closing.join(10)
    assert {said.finish_reason for said in asked} == {"cancelled"}
    with pytest.raises(QueueFullError, match="shutting down"):
        submit(one, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"stop": ("",)},
        {"seconds": 0.0}, {"min_new_tokens": 9, "max_new_tokens": 3}, {"temperature": float("nan")},
    ],
)  # fmt: skip
def test_sampling_says_what_is_wrong(wrong):
    with pytest.raises(DataError, match=next(iter(wrong)) if len(wrong) == 1 else "min_new_tokens"):
        Sampling(**wrong)
