"""A conversation as the page shows it."""

import re
from pathlib import Path

import pytest

from llava_mole.serving.shown import JOINER, no_html, shown, status_line
from llava_mole.serving.talk import Answer, Exchange, Question


def test_two_messages_an_exchange_and_each_model_its_own() -> None:
    talk = (
        Exchange(
            Question("<b>What?", (Path("a.png"), Path("b.png"))),
            (Answer("a cat", "stop"), Answer(state="error", problem="no <image> here")),
        ),
        Exchange(Question("And?"), (Answer(state="waiting", position=3), Answer("So", "writing"))),
    )
    first, second = shown(talk, 0), shown(talk, 1)
    assert [one["role"] for one in first] == ["user", "assistant"] * 2
    assert first[0]["content"] == [{"path": "a.png"}, {"path": "b.png"}, f"<{JOINER}b>What?"]
    assert [first[1]["content"], first[3]["content"]] == ["a cat", "… number 3 in the queue"]
    assert second[1]["content"] == "no &lt;image&gt; here"
    assert "Error" in second[1]["metadata"]["title"]
    assert second[3]["content"] == "So"


@pytest.mark.parametrize(
    "text",
    [
        "a <b> c",
        "`<i>x</i>`",
        "\\`<h1>x</h1>\\`",
        "`` ` ``<i>it</i>`` ` ``",
        "```html\n<p>\n```",
        "<!-- x --> </p> <?x?>",
        "![x](http://example.org/x.png)",
    ],
)
def test_tags_and_pictures_are_text_wherever_they_stand(text: str) -> None:
    made = no_html(text)
    assert not re.search(r"<[A-Za-z/!?]|!\[", made)
    assert made.replace(JOINER, "") == text


def test_arithmetic_is_left_alone_and_drawings_are_code() -> None:
    assert no_html("1 < 2 and 3 <4! [x](y)") == "1 < 2 and 3 <4! [x](y)"
    assert no_html("> ```Mermaid\na") == "> ```text\na"


def test_the_status_says_why_an_answer_ended() -> None:
    done = Answer("x", "stop", tokens=3, first=0.25, seconds=1.5)
    cut = Answer("x", "length", tokens=4, first=0.5, seconds=2)
    assert status_line([done], ["a"]) == "3 tokens in 1.5 s, the first after 0.25 s"
    one = Answer("x", "stop", tokens=1, first=0.25, seconds=1.5)
    assert status_line([one], ["a"]).startswith("1 token in")
    both = status_line([done, cut], ["a", "b"])
    assert both.startswith("a: 3 tokens")
    assert "b: 4 tokens in 2.0 s, the first after 0.50 s, cut at the longest answer" in both
    assert status_line([Answer(state="error", problem="x")], ["a"]) == ""
