"""A protocol says everything that decides a score, and refuses what makes no sense."""

import pytest

from llava_mole.errors import ConfigError
from llava_mole.evaluation.protocol import ANSWERS, PASSES, STYLES, Protocol, template_problems


def test_all_problems_are_told_at_once():
    wrong = Protocol(passes="circle", answer="generated", style="llama", max_new_tokens=0)
    with pytest.raises(ConfigError) as error:
        wrong.check()
    for part in (
        "passes='circle': allowed are vanilla, circular, circular_generated, paired",
        "answer='generated'",
        "style='llama'",
        "max_new_tokens=0: must be at least 1",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"passes": "circle"}, "circular"),
        ({"answer": "letter"}, "letters"),
        ({"style": "vlmeval"}, "vlmevalkit"),
    ],
)
def test_the_nearest_match_is_offered(values, nearest):
    with pytest.raises(ConfigError, match=f"Did you mean '{nearest}'"):
        Protocol(**values).check()


def test_nothing_is_offered_where_nothing_is_near():
    with pytest.raises(ConfigError) as error:
        Protocol(style="xyzzy").check()
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("style", ["question", "short"])
@pytest.mark.parametrize("passes", ["circular", "circular_generated"])
def test_moving_options_that_nobody_sees_is_refused(style, passes):
    with pytest.raises(ConfigError, match="a prompt without its options is the same in every"):
        Protocol(passes=passes, style=style).check()


@pytest.mark.parametrize("style", ["question", "short"])
def test_a_letter_that_nobody_shows_is_refused(style):
    with pytest.raises(ConfigError, match="the prompt shows no letters"):
        Protocol(answer="letters", style=style).check()
    Protocol(answer="options", style=style).check()


def test_a_template_is_held_to_the_same():
    shown = Protocol(style="template", template="{question}\n{options}", passes="circular")
    shown.changed(answer="letters").check()
    bare = Protocol(style="template", template="{question}")
    bare.check()
    with pytest.raises(ConfigError, match=r"style=template: a prompt without its options"):
        bare.changed(passes="circular")
    with pytest.raises(ConfigError, match="shows no letters"):
        bare.changed(answer="letters")


def test_template_and_its_style_go_together():
    with pytest.raises(ConfigError, match="template"):
        Protocol(style="template").check()
    with pytest.raises(ConfigError, match="template"):
        Protocol(style="parrot", template="{question}").check()


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{question} {option}", "unknown field {option}"),
        ("{question} {}", "unknown field {}"),
        ("{question.x}", "unknown field {question.x}"),
        ("{options}", "no {question} in it"),
        ("{question", "expected '}'"),
        ("{question:{width}}", "{question} is written without a format, found '{width}'"),
        ("{question!r}", "{question} is written without a format, found 'r'"),
    ],
)
def test_a_template_is_wrong_by_name(template, problem):
    assert problem in "; ".join(template_problems(template))


def test_braces_can_be_written():
    assert template_problems("{{json}} {question}") == []


def test_a_change_is_checked_and_none_leaves_a_value():
    default = Protocol(passes="circular", max_new_tokens=64)
    assert default.changed(passes=None, style=None) == default
    assert default.changed(picture=False).picture is False
    with pytest.raises(ConfigError, match="passes='circles'"):
        default.changed(passes="circles")


def test_the_description_says_what_values_mean():
    said = Protocol(passes="paired", answer="options", style="llava").describe()
    assert said["passes"] == "paired"
    assert said["meaning"] == {
        "passes": PASSES["paired"], "answer": ANSWERS["options"], "style": STYLES["llava"],
    }  # fmt: skip
