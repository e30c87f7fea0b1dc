"""A visitor's conversation: its languages, and what of it a model is given."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.openmoji_questions import HELD_OUT, TRAINED
from llava_mole.errors import DataError
from llava_mole.inspection.language import likeliest
from llava_mole.languages import LANGUAGES
from llava_mole.serving.limits import Limits
from llava_mole.serving.talk import (
    WHAT_IS_THIS,
    Answer,
    Exchange,
    Question,
    language_line,
    messages_of,
    question_of,
    without_folders,
)

DONE = Answer("a cat", "stop")
FAILED = Answer(state="error", problem="no")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_told_by_three_words(language: str) -> None:
    assert likeliest(WHAT_IS_THIS[language]) == language


def test_every_question_form_of_the_starter_is_told() -> None:
    forms = [
        (language, form.format(name="", options=""))
        for table in (TRAINED, HELD_OUT)
        for by_language in table.values()
        for language, texts in by_language.items()
        for form in texts
    ]
    assert len(forms) >= 168
    assert [(one, likeliest(text)) for one, text in forms if likeliest(text) != one] == []


def test_nothing_to_read_is_no_language() -> None:
    assert likeliest("12 + 3 = ?") is None
    assert language_line(question_of("12?", (), None)) == "Language of the question"


def test_a_chosen_language_steers_only_where_the_words_are_in_another() -> None:
    assert question_of("Что это?", (), None).steering is None
    assert question_of("Что это?", (), "ru").steering is None
    other = question_of("Что это?", (), "en")
    assert (other.language, other.detected, other.steering) == ("en", "ru", "What is this?")
    assert language_line(other) == "Language of the question: English (its words: Russian)"


def test_a_picture_alone_is_a_question_and_nothing_is_none(picture: Path) -> None:
    assert question_of("  ", [picture], None).text == "What is this?"
    assert question_of("", [str(picture)], "tr").text == "Bu nedir?"
    assert question_of(" ", (), None) is None


def test_each_model_is_given_its_own_answers_and_no_failed_questions(picture: Path) -> None:
    asked = Question("What is it?", (picture,))
    talk = (
        Exchange(asked, (DONE, FAILED)),
        Exchange(Question("Its colour?"), (replace(DONE, text="red"), replace(DONE, text="blue"))),
    )
    first = messages_of(talk, Question("And now?"), 0, Limits())
    assert [(m["role"], m["content"][-1]["text"]) for m in first] == [
        ("user", "What is it?"), ("assistant", "a cat"), ("user", "Its colour?"),
        ("assistant", "red"), ("user", "And now?"),
    ]  # fmt: skip
    assert first[0]["content"][0]["image"] == picture
    second = messages_of(talk, Question("And now?"), 1, Limits())
    assert [m["content"][0]["text"] for m in second] == ["Its colour?", "blue", "And now?"]


def test_limits_are_told_in_words(picture: Path, tmp_path: Path) -> None:
    many = Question("?", (picture,) * 3)
    with pytest.raises(DataError, match="3 pictures in the conversation, at most 2"):
        messages_of((), many, 0, Limits(pictures=2))
    talk = (Exchange(Question("?"), (DONE,)),) * 4
    with pytest.raises(DataError, match=r"8 turns, at most 8 .* start a new one"):
        messages_of(talk, Question("?"), 0, Limits(turns=8))
    with pytest.raises(DataError, match=r"'cat\.png': 64 pixels, at most 63"):
        messages_of((), Question("?", (picture,)), 0, Limits(pixels=63))
    with pytest.raises(DataError, match="192 pixels in all"):
        messages_of((), many, 0, Limits(all_pixels=191))


def test_half_a_surrogate_pair_becomes_a_mark() -> None:
    assert question_of("a\ud800b", (), None).text == "a\ufffdb"


def test_the_servers_folders_are_not_told(tmp_path: Path) -> None:
    one = tmp_path / "cat.png"
    assert without_folders(f"image '{one}': broken", [one]) == "image 'cat.png': broken"
