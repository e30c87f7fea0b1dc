"""What the page's parts do, without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from llava_mole.languages import LANGUAGES
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.limits import Limits
from llava_mole.serving.room import Room
from llava_mole.serving.talk import WHAT_IS_THIS, Answer, Exchange, Question
from llava_mole.serving.visits import Visits

SETTINGS = (0.0, 1.0, 8, None)
ANA: Any = SimpleNamespace(session_hash="ana")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        Image.new("RGB", (16, 16), (200 * number, 90, 90)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def visits(tiny_model: Any, pictures: list[Path]) -> Iterator[Visits]:
    engines = [
        ChatEngine(*tiny_model("llama", mole=True, parrot=True, dtype="float32")),
        ChatEngine(*tiny_model("llama", lora=True, dtype="float32", tower="cnn")),
    ]
    yield Visits(Room(engines, Limits(tokens=8)), ["mole", "lora"], pictures)
    for engine in engines:
        engine.close()


def last(updates: Any) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return [update async for update in updates]

    return list(asyncio.run(all_of_them())[-1])


def asked(visits: Visits, text: str, *files: Path, language: str = "") -> Any:
    message = {"text": text, "files": [str(path) for path in files]}
    return last(visits.ask(message, (), language, *SETTINGS, ANA))


def test_asking_fills_both_sides(visits: Visits, pictures: list[Path]) -> None:
    _, talk, status, _, first, second = asked(visits, "What is this?", *pictures)
    assert len(talk) == 1
    assert talk[0].question.detected == "en"
    assert "mole: 8 tokens" in status
    assert "lora: 8 tokens" in status
    assert first[0]["content"] == second[0]["content"]
    assert first[1]["content"] != second[1]["content"]


def test_nothing_typed_changes_nothing(visits: Visits) -> None:
    assert all("__type__" in update for update in asked(visits, " "))


def test_again_undo_and_clear(visits: Visits, pictures: list[Path]) -> None:
    _, talk, *_ = asked(visits, "What is this?", pictures[0])
    again = last(visits.ask_again(talk, *SETTINGS, ANA))[1]
    assert [one.answers[0].text for one in again] == [one.answers[0].text for one in talk]
    box, left, status, _, *chats = asyncio.run(visits.undo(talk, ANA))
    assert box == {"text": "What is this?", "files": [str(pictures[0])]}
    assert (left, status, chats) == ((), "", [[], []])
    assert asyncio.run(visits.undo((), ANA))[1] == ()
    box, left, status, label, *chats = asyncio.run(visits.clear(ANA))
    assert (box, left, status, chats) == ({"text": "", "files": []}, (), "", [[], []])
    assert label.label == "Language of the question"


def test_the_same_picture_in_another_language(visits: Visits, pictures: list[Path]) -> None:
    _, talk, *_ = asked(visits, "What is this?", pictures[1])
    talk = (*talk, Exchange(Question("And?"), talk[0].answers))
    other = last(visits.ask_in("ar")(talk, None, *SETTINGS, ANA))[1]
    assert [one.question.text for one in other] == [WHAT_IS_THIS["ar"]]
    assert other[0].question.pictures == (pictures[1],)
    nothing = last(visits.ask_in("ar")((), None, *SETTINGS, ANA))
    assert all("__type__" in update for update in nothing)


def test_why_with_experts_and_parrot(visits: Visits, pictures: list[Path]) -> None:
    _, talk, *_ = asked(visits, "Что это?", *pictures)
    found, slider, sentence, maps, words, legend, gates = visits.explain_last(
        talk, 0, None, None, ANA
    )
    assert "experts" in sentence
    assert "Russian" in sentence
    assert slider.visible
    assert maps.count("data:image/jpeg;base64,") == 2
    assert words.count("<span") > 8
    assert "expert 3" in legend
    assert gates.count('class="why-gate"') == 3
    assert set(found.asked_in) == set(LANGUAGES)
    assert len({tuple(gate) for gate in found.asked_in.values()}) > 1
    assert found.language == "ru"
    assert found.paths == tuple(pictures)
    follow = (*talk, Exchange(Question("Its colour?", detected="en"), talk[0].answers))
    later, slider, *_ = visits.explain_last(follow, 0, found, 2, ANA)
    assert later.language == "ru"  # the picture was read for the question that it came with
    assert slider.value == 2
    picked = last(visits.ask_in("tr")(follow, later, *SETTINGS, ANA))[1]
    assert picked[0].question.pictures == tuple(pictures)
    layers = len(found.why.routers)
    drawn = [visits.redraw(found, layer) for layer in (-5, 1, layers, 1e9)]
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_why_without_any(visits: Visits, pictures: list[Path]) -> None:
    _, talk, *_ = asked(visits, "What?", pictures[0])
    _, slider, sentence, maps, _, legend, gates = visits.explain_last(talk, 1, None, None, ANA)
    assert not slider.visible
    assert "no experts" in sentence
    assert "data:image/jpeg" in maps
    assert (legend, gates) == ("", "")
    event: Any = SimpleNamespace(index=[1, 0])
    assert visits.explain_selected(1)(talk, None, None, event, ANA)[0] == 1


def test_what_cannot_be_explained_says_so(
    visits: Visits, pictures: list[Path], tmp_path: Path
) -> None:
    assert visits.explain_last((), 0, None, None, ANA)[2] == ""
    failed = Answer(state="error", problem="x")
    assert (
        visits.explain_last((Exchange(Question("?"), (failed, failed)),), 0, None, None, ANA)[2]
        == ""
    )
    gone = Question("?", (tmp_path / "gone.png",))
    said = Answer("yes", "stop")
    assert "gone.png" in visits.explain_last((Exchange(gone, (said, said)),), 0, None, None, ANA)[2]
    long = Answer("a b " * 3000, "stop")
    told = visits.explain_last((Exchange(Question("?"), (long, long)),), 0, None, None, ANA)[2]
    assert "the context is" in told


@pytest.mark.parametrize(
    "settings",
    [(float("nan"), 1, 8, None), (0, 0, 8, None), (0, 1, 0, None), (0, 1, float("inf"), None),
     (0, 1, 8, "-1"), (0, 1, 8, "x"), (0, 1, 8, 3), (1e9, 1, 8, None), (None, 1, 8, None)],
)  # fmt: skip
def test_settings_that_no_slider_gives(visits: Visits, settings: Any) -> None:
    with pytest.raises(gr.Error, match="Settings"):
        last(visits.ask({"text": "Hi", "files": []}, (), "", *settings, ANA))


def test_a_photo_joins_the_question(visits: Visits) -> None:
    box, camera = visits.with_photo({"text": "What?", "files": ["a.png"]}, "b.png")
    assert box == {"text": "What?", "files": ["a.png", "b.png"]}
    assert camera is None
    assert "(detected)" in visits.typed({"text": "Bu nedir?"}, "").label
    assert visits.typed({"text": " "}, "") == gr.skip()
