"""What a person sees of an explanation: experts in colour and in words, and no HTML of theirs."""

import pytest
from PIL import Image

from llava_mole.serving.why import Token, Why
from llava_mole.serving.why_shown import COLOURS, gate_bars, legend, overlay, words

WHY = Why(
    ("layers.0.mlp", "layers.1.mlp"), 3,
    (
        *(Token("", "picture", 0, place, (place % 3, 2)) for place in range(4)),
        Token("<b>What\n", "words", None, None, (1, 0)),
        Token(" кот", "answer", None, None, (2, 0)),
    ),
    (2, 2), ((0.7, 0.2, 0.1),),
)  # fmt: skip


def test_each_patch_has_the_colour_of_its_expert():
    white = Image.new("RGB", (50, 80), "white")
    shown = overlay(white, WHY.overlay(0, 0), side=100)
    assert shown.size == (100, 100)
    corners = [shown.getpixel(at) for at in ((40, 25), (90, 25), (40, 75), (90, 75))]
    assert corners[0] == corners[3] != corners[1]  # experts 1, 2, 3, 1
    red, green, blue = (int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert corners[0] == pytest.approx(
        [255 + (c - 255) * 0x70 // 255 for c in (red, green, blue)], abs=3
    )


def test_words_are_escaped_and_say_their_expert():
    shown = words(WHY, 0)
    assert "&lt;b&gt;What" in shown
    assert "<b>" not in shown
    assert shown.count('title="expert ') == 2
    assert "expert 3" in shown
    assert "expert 1" in words(WHY, 1)


def test_shares_and_bars():
    assert "expert 3" in legend(WHY)
    assert "<td>62%</td><td>0%</td><td>50%</td>" in legend(WHY)  # 5 of 8, 0 of 2, 1 of 2
    bars = gate_bars(WHY.gates[0], "ru", {"ru": [0.5, 0.3, 0.2]})
    assert "width:70.0%" in bars
    assert "Russian on average: 50%" in bars
    assert "average" not in gate_bars(WHY.gates[0], "ru", {})
    assert legend(Why((), 0, (), None, ())) == ""


def test_an_expert_that_did_no_more_than_its_share_is_not_named():
    even = Why(
        ("a", "b"), 2,
        tuple(Token("x", kind, None, None, (0, 1)) for kind in ("words", "answer")), None, (),
    )  # fmt: skip
    assert even.sentence().endswith("it used all of them about evenly.")
    uneven = Why(("a",), 2, (Token("x", "words", None, None, (1,)), *even.tokens[1:]), None, ())
    assert "mostly expert 2 for the question (100%)" in uneven.sentence()
