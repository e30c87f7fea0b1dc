"""From a recipe's chat_template to a template that can train: by name, by file, the tokenizer's."""

import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llava_mole.building import build_model
from llava_mole.errors import ConfigError
from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor
from llava_mole.templates import EXAMPLE, TEMPLATES, chat_template
from llava_mole.templates.choosing import end_of_turn, problem_with, recognised, template_source
from tests.helpers import byte_tokenizer
from tests.test_templates import VENDORS, vendor_template
from tests.tokenizers import bytes_gpt4, llama2

ROOT = Path(__file__).parent.parent


def source_of(name: str) -> str:
    return chat_template(name, image_token="<image>")


class WithTemplate:
    """A tokenizer that brings a template of its own, for one test."""

    def __init__(self, template: Any) -> None:
        self.tokenizer = bytes_gpt4()
        self.template = template

    def __enter__(self) -> Any:
        self.tokenizer.chat_template = self.template
        return self.tokenizer

    def __exit__(self, *_: object) -> None:
        self.tokenizer.chat_template = None


# ---------------------------------------------------------------------- names and files


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_format_can_train(name: str) -> None:
    assert template_source(name, bytes_gpt4(), "<image>") == source_of(name)


def test_the_example_of_the_error_is_a_template_that_can_train(tmp_path: Path) -> None:
    path = tmp_path / "my_format.jinja"
    path.write_text(EXAMPLE)
    source = template_source(str(path), bytes_gpt4(), "<image>")
    with pytest.raises(ConfigError) as caught:
        template_source("my_format", bytes_gpt4(), "<image>")
    assert EXAMPLE in str(caught.value)
    assert "model.chat_template: my_format.jinja" in str(caught.value)
    assert problem_with(source, bytes_gpt4(), "<image>") is None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        template_source(str(tmp_path / "a.jinja"), bytes_gpt4(), "<image>")


PARTLY = "{%- generation -%}{{- lines(m) + '<|im_end|>' -}}{%- endgeneration -%}"
BROKEN = {
    "no marks": (PARTLY, "{{- lines(m) + '<|im_end|>' -}}", "no {% generation %} marks"),
    "never reached": ("m['role'] == 'assistant'", "m['role'] == 'gpt'", "stands '', not the"),
    "no end": (
        PARTLY,
        "{%- generation -%}{{- lines(m) -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
        "never learns to stop",
    ),
    "unknown end": ("<|im_end|>' -}}{%- endg", "<|stop|>' -}}{%- endg", "no token of this vocab"),
    "all learnt": ("m['role'] == 'assistant'", "m['role'] != 'x'", "the question stands between"),
    "another prompt": (
        "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
        "{{- 'ASSISTANT:' -}}{%- endif -%}",
        "is not the beginning of the conversation",
    ),
    "no picture": ("lines(m)", "m['content'][-1]['text']", "renders 0 '<image>' placeholders"),
    "no system": (
        "{%- for m in messages -%}",
        "{%- for m in messages if m['role'] != 'system' -%}",
        "is written without 'Be brief.', which the system says",
    ),
    "first answer only": (
        "== 'assistant'",
        "== 'assistant' and loop.index0 <= 2 - ('system' != messages[0]['role'])",
        "of a conversation of 2 round(s), between its generation marks stands ['A cat.<|im_end|>']",
    ),
    "last answer, undeclared": ("== 'assistant'", "== 'assistant' and loop.last", "{#- learns: la"),
    "system learnt": (
        "== 'assistant'",
        "in ['assistant', 'system']",
        "what the system says stands between its generation marks",
    ),
    "later questions learnt": (
        "m['role'] == 'assistant'",
        "m['role'] == 'assistant' or (m['role'] == 'user' and loop.index0 > 2)",
        "what the user says stands between its generation marks",
    ),
    "syntax": ("endfor", "endfr", "cannot be written with it"),
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN)
def test_a_file_that_cannot_train_is_refused_with_the_reason(damage: str, tmp_path: Path) -> None:
    old, new, reason = BROKEN[damage]
    assert old in EXAMPLE
    path = tmp_path / "broken.jinja"
    path.write_text(EXAMPLE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        template_source(str(path), bytes_gpt4(), "<image>")
    assert reason in str(caught.value)


def test_a_format_may_declare_that_only_the_last_answer_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "last.jinja"
    changed = EXAMPLE.replace("== 'assistant'", "== 'assistant' and loop.last")
    path.write_text("{#- learns: last answer -#}\n" + changed)
    assert template_source(str(path), bytes_gpt4(), "<image>")


@pytest.mark.parametrize("name", ["chatml", "llama3", "phi4", "mistral_v7"])
def test_a_format_whose_marks_the_vocabulary_lacks_is_refused_if_nothing_would_stop(
    name: str,
) -> None:
    tokenizer = llama2(marks=False)
    if name == "mistral_v7":  # it ends with the end-of-sequence token, which every vocabulary has
        assert template_source(name, tokenizer, "<unk>")
        return
    with pytest.raises(ConfigError, match="no token of this vocabulary"):
        template_source(name, tokenizer, "<unk>")


# ---------------------------------------------------------------------- the tokenizer's own


def test_a_base_models_tokenizer_has_none_and_is_told_the_names() -> None:
    with pytest.raises(ConfigError, match=r"no chat template.*name one of .*vicuna_v1"):
        template_source("tokenizer", byte_tokenizer(), "<image>")


@pytest.mark.parametrize("named", [False, True])
def test_the_tokenizers_own_is_taken_if_it_can_train(named: bool) -> None:
    own = source_of("chatml").replace("<|im_start|>", "<start_of_turn>")
    with WithTemplate({"default": own, "rag": "x"} if named else own) as tokenizer:
        assert template_source("tokenizer", tokenizer, "<image>") == own


@pytest.mark.parametrize(
    ("name", "vendor"), [(name, vendor) for name, all_ in VENDORS.items() for vendor in all_]
)
def test_a_vendors_template_without_marks_is_known_by_what_it_writes(
    name: str, vendor: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        WithTemplate(vendor_template(vendor)) as tokenizer,
        caplog.at_level(logging.INFO, "llava_mole"),
    ):
        assert template_source("tokenizer", tokenizer, "<image>") == source_of(name)
    assert repr(name) in caplog.text
    assert ("refuses system turns" in caplog.text) == (vendor == "gemma")


def test_marks_in_a_template_without_places_for_pictures_do_not_hide_the_known_one() -> None:
    with WithTemplate(vendor_template("qwen2_5_training")) as tokenizer:
        assert template_source("tokenizer", tokenizer, "<image>") == source_of("qwen2_5")


@pytest.mark.parametrize("change", [("Hi", "Ho"), ("\\n' + m", "' + m")])
def test_a_template_that_differs_in_one_place_is_not_taken_for_a_known_one(
    change: tuple[str, str],
) -> None:
    own = (
        "{% if messages[0]['role'] == 'system' %}Hi{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    same = own.replace("Hi", "")
    assert recognised(same, bytes_gpt4()) == ("chatml", False)
    other = own.replace(*change)
    with WithTemplate(other) as tokenizer, pytest.raises(ConfigError) as caught:
        template_source("tokenizer", tokenizer, "<image>")
    assert "no {% generation %} marks" in str(caught.value)
    assert EXAMPLE in str(caught.value)


def test_a_format_with_another_default_system_turn_is_not_taken() -> None:
    own = vendor_template("qwen2_5").replace("You are Qwen", "You are Athene")
    assert recognised(own, bytes_gpt4()) == (None, False)


# ---------------------------------------------------------------------- what is built with it


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_generation_stops_at_what_ends_an_answer(name: str) -> None:
    made = LlavaMoleProcessor(
        LlavaMoleImageProcessor({}), bytes_gpt4(), 1, chat_template=source_of(name)
    )
    ends = {"gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>"}
    ends |= dict.fromkeys(["phi3", "phi4_mini"], "<|end|>") | {"plain": "Ċ"}
    ends |= dict.fromkeys(["chatml", "qwen2", "qwen2_5", "phi4"], "<|im_end|>")
    ends |= dict.fromkeys(["qwen3", "qwen3_every_answer"], "<|im_end|>")
    assert made.tokenizer.convert_ids_to_tokens(end_of_turn(made)) == ends.get(name, "</s>")


def test_a_format_of_ones_own_builds_a_model_that_stops_at_its_end(
    tiny_parts: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(EXAMPLE.replace("<|im_end|>", "<pad>"))
    model, made = build_model(tiny_parts.recipe(chat_template=str(path)))
    assert made.tokenizer.pad_token_id in model.generation_config.eos_token_id


def test_the_formats_are_in_the_wheel(tmp_path: Path) -> None:
    """Built by setuptools, as pip does."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "llava_mole", tree / "llava_mole", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, tree / name)
    code = f"import setuptools.build_meta as b; print(b.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        shipped = set(wheel.namelist())
    assert {f"llava_mole/templates/formats/{name}.jinja" for name in TEMPLATES} <= shipped
    assert "llava_mole/templates/macros.jinja" in shipped
