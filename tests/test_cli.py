"""The command line's own reading of its words."""

import pytest

from llava_mole.cli import as_overrides, build_parser


def test_recipe_keys_may_look_like_options() -> None:
    words = ["--verbose", "train", "--config", "x.yaml", "--seed", "1", "--stages.a.steps=5"]
    assert as_overrides(words) == [*words[:4], "seed=1", "stages.a.steps=5"]
    quick = ["quickstart", "--seed", "1", "--variants", "2", "--training.logging_steps", "5"]
    assert as_overrides(quick) == [*quick[:5], "training.logging_steps=5"]


@pytest.mark.parametrize("question", ["train", "quickstart"])
def test_a_question_may_be_a_commands_name(question: str) -> None:
    words = ["chat", "--model", "m", "--image", "p.png", question]
    assert as_overrides(words) == words
    assert build_parser().parse_args(words).question == question


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_an_answer_needs_room_for_a_token(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["chat", "--model", "m", "--max-new-tokens", number])
    assert "--max-new-tokens" in capsys.readouterr().err
