"""A conversation as the page shows it."""

from pathlib import Path

from llava_mole.serving.shown import no_html, shown, status_line
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
    assert first[0]["content"] == [{"path": "a.png"}, {"path": "b.png"}, "&lt;b>What?"]
    assert [first[1]["content"], first[3]["content"]] == ["a cat", "… number 3 in the queue"]
    assert second[1]["content"] == "no &lt;image&gt; here"
    assert "Error" in second[1]["metadata"]["title"]
    assert second[3]["content"] == "So"


def test_tags_are_shown_and_code_is_left_alone() -> None:
    text = "a <b> `x < y` <i>\n```html\n<p>\n``` <u> ```<s>"
    assert no_html(text) == "a &lt;b> `x < y` &lt;i>\n```html\n<p>\n``` &lt;u> ```<s>"


def test_the_status_says_why_an_answer_ended() -> None:
    done = Answer("x", "stop", tokens=3, first=0.25, seconds=1.5)
    cut = Answer("x", "length", tokens=4, first=0.5, seconds=2)
    assert status_line([done], ["a"]) == "3 tokens in 1.5 s, the first after 0.25 s"
    both = status_line([done, cut], ["a", "b"])
    assert both.startswith("a: 3 tokens")
    assert "b: 4 tokens in 2.0 s, the first after 0.50 s, cut at the longest answer" in both
    assert status_line([Answer(state="error", problem="x")], ["a"]) == ""
