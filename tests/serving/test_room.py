"""Several models and many visitors: each gets their own answers, and frees their places."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room
from llava_mole.serving.talk import Answer, Exchange, Question

LONG = Sampling(max_new_tokens=400, min_new_tokens=400)
SHORT = Sampling(max_new_tokens=8, min_new_tokens=8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 255 - 40 * number, 90)).save(
            folder / f"{number}.png"
        )
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def engines(tiny_model: Any) -> Any:
    made = [
        ChatEngine(
            *tiny_model("llama", mole=True, parrot=True, dtype="float32", seed=seed),
            max_rows=2, max_waiting=8,
        )
        for seed in (0, 1)
    ]  # fmt: skip
    yield made
    for engine in made:
        engine.close()


async def last(room: Room, visitor: str, question: Question, talk: Any = ()) -> Any:
    found: list[tuple[Answer, ...]] = [
        answers async for answers in room.answers(visitor, talk, question, SHORT)
    ]
    return found[-1]


def test_both_models_answer_as_they_do_alone(engines: Any, pictures: list[Path]) -> None:
    room = Room(engines)
    first = asyncio.run(last(room, "ana", Question("What is it?", (pictures[0],))))
    for engine, answer in zip(engines, first, strict=True):
        asked = [{"role": "user", "content": "<image>What is it?"}]
        alone = engine.answer(asked, [pictures[0]], max_new_tokens=8, min_new_tokens=8)
        assert (answer.text.strip(), answer.state, answer.tokens) == (alone, "length", 8)
        assert 0 < answer.first <= answer.seconds
    assert first[0].text != first[1].text
    talk = (Exchange(Question("What is it?", (pictures[0],)), first),)
    second = asyncio.run(last(room, "ana", Question("And then?"), talk))
    asked += [
        {"role": "assistant", "content": first[1].text},
        {"role": "user", "content": "And then?"},
    ]
    alone = engines[1].answer(asked, [pictures[0]], max_new_tokens=8, min_new_tokens=8)
    assert second[1].text.strip() == alone


def test_visitors_at_the_same_time_get_their_own(engines: Any, pictures: list[Path]) -> None:
    room = Room(engines[:1])

    async def everybody() -> Any:
        return await asyncio.gather(
            *(
                last(room, str(number), Question("What is it?", (path,)))
                for number, path in enumerate(pictures)
            )
        )

    together = asyncio.run(everybody())
    for path, (answer,) in zip(pictures, together, strict=True):
        (alone,) = asyncio.run(last(room, "x", Question("What is it?", (path,))))
        assert answer.text == alone.text
    assert room.answering() == 0
    assert len({answer.text for (answer,) in together}) > 1


def test_stop_keeps_what_is_there_and_frees_the_place(engines: Any, pictures: list[Path]) -> None:
    room = Room(engines)

    async def stopped() -> Any:
        seen = []
        async for answers in room.answers("eve", (), Question("?", (pictures[0],)), LONG):
            seen.append(answers)
            if all(one.tokens > 2 for one in answers):
                room.stop("somebody else")
                room.stop("eve")
        return seen[-1]

    found = asyncio.run(stopped())
    assert [one.state for one in found] == ["cancelled", "cancelled"]
    assert all(one.text and one.tokens < 400 for one in found)
    while any(engine.batcher.load() != (0, 0) for engine in engines):
        time.sleep(0.01)  # rows are freed a moment after the answer has ended


def test_who_leaves_frees_the_place(engines: Any) -> None:
    room = Room(engines)

    async def leaves() -> None:
        async for answers in room.answers("eve", (), Question("Hello"), LONG):
            if answers[0].tokens:
                break
        await asyncio.sleep(1)

    asyncio.run(leaves())
    assert room.answering() == 0
    assert all(engine.batcher.load() == (0, 0) for engine in engines)


def test_those_who_wait_are_told_their_place(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # told at once: a fast machine writes the answers before it within anybody's patience
    monkeypatch.setattr("llava_mole.serving.room.PATIENCE", 0.0)
    endless = Sampling(max_new_tokens=1900, min_new_tokens=1900)
    room = Room(engines[:1])

    async def crowd() -> list[Answer]:
        told: list[Answer] = []

        async def one(number: int) -> None:
            async for (answer,) in room.answers(str(number), (), Question("Hello"), endless):
                if number == 3:
                    told.append(answer)
                    if answer.position:
                        for other in range(3):
                            room.stop(str(other))
                    elif answer.tokens:
                        room.stop("3")

        tasks = []
        for number, load in enumerate([(1, 0), (2, 0), (2, 1), (2, 2)]):
            tasks.append(asyncio.create_task(one(number)))
            while number < 3 and engines[0].batcher.load() != load:
                await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        return told

    told = asyncio.run(crowd())
    places = [one.position for one in told if one.position]
    assert places[0] == 2  # two are written, one waits before
    assert told[-1].state == "cancelled"
    assert told[-1].tokens


def test_errors_are_answers(engines: Any, tmp_path: Path) -> None:
    room = Room(engines, Limits(characters=20))
    (first, _) = asyncio.run(last(room, "a", Question("x" * 21)))
    assert (first.state, first.problem) == ("error", "21 characters, at most 20 are read")
    missing = asyncio.run(last(room, "a", Question("?", (tmp_path / "gone.png",))))
    assert all("gone.png" in one.problem for one in missing)
    full = ChatEngine(engines[0].model, engines[0].processor, max_rows=1, max_waiting=0)
    (told,) = asyncio.run(last(Room([full]), "a", Question("?")))
    assert "wait already" in told.problem
    full.close()


def test_one_question_at_a_time(engines: Any) -> None:
    room = Room(engines[:1])

    async def twice() -> Any:
        async for _ in room.answers("a", (), Question("Hello"), LONG):
            return await last(room, "a", Question("Hello again"))
        return None

    (told,) = asyncio.run(twice())
    assert "still being answered" in told.problem


def test_stop_while_pictures_are_decoded_is_not_forgotten(engines: Any, tmp_path: Path) -> None:
    room = Room(engines)
    large = tmp_path / "large.png"
    Image.new("RGB", (5000, 5000), "red").save(large)

    async def stopped() -> Any:
        seen = []
        async for answers in room.answers("eve", (), Question("?", (large,) * 3), LONG):
            if not seen:
                room.stop("eve")
            seen.append(answers)
        return seen[-1]

    found = asyncio.run(stopped())
    assert [one.state for one in found] == ["cancelled", "cancelled"]


def test_after_drop_nothing_more_comes_and_another_question_may(engines: Any) -> None:
    room = Room(engines[:1])

    async def dropped() -> Any:
        seen, late = [], []

        async def first() -> None:
            async for answers in room.answers("a", (), Question("Hello"), LONG):
                (late if done.is_set() else seen).append(answers)

        done = asyncio.Event()
        task = asyncio.create_task(first())
        while not (seen and seen[-1][0].tokens):
            await asyncio.sleep(0.02)
        await room.drop("a")
        done.set()
        assert not room.is_answering("a")
        again = await last(room, "a", Question("Hello"))
        await task
        return late, again

    late, (again,) = asyncio.run(dropped())
    assert late == []
    assert again.tokens == 8
