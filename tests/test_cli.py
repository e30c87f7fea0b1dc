"""The command line's own reading of its words."""

import subprocess
import sys

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


# ---------------------------------------------------------------------- quick answers

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "open_clip", "numpy")


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "quickstart"),
        (["train", "--help"], 0, "--dry-run"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["train"], 2, "--config"),
        (["train", "--config", "no/recipe.yaml"], 2, "no/recipe.yaml not found"),
    ],
)
def test_help_and_plain_mistakes_are_answered_before_anything_heavy_is_imported(
    words: list[str], code: int, said: str
) -> None:
    program = (
        "import sys, llava_mole_cli\n"
        f"sys.argv[1:] = {words!r}\n"
        "try:\n    code = llava_mole_cli.main()\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
        "raise SystemExit(code)"
    )
    found = python("-c", program)
    assert found.returncode == code, found.stderr
    assert said in found.stdout + found.stderr
    assert "heavy: []" in found.stdout


def test_importing_the_package_registers_the_model_and_says_nothing() -> None:
    found = python(
        "-c",
        "import llava_mole; from transformers import AutoConfig; "
        "print(AutoConfig.for_model('llava_mole').model_type, llava_mole.LlavaMoleProcessor)",
    )
    assert found.stdout.startswith("llava_mole <class"), found.stderr
    # bitsandbytes warns of an optional kernel wherever it is imported.
    assert found.stderr == ""


def test_a_command_registers_the_model_itself() -> None:
    program = (
        "import sys, llava_mole_cli\nsys.argv[1:] = ['inspect', 'none']\n"
        "llava_mole_cli.main()\nfrom transformers import AutoConfig\n"
        "AutoConfig.for_model('llava_mole')"
    )
    found = python("-c", program)
    assert found.returncode == 0, found.stderr
    assert "no such file" in found.stderr
