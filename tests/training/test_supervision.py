"""Nothing is trained on without a label, from the file to the batch: the sample is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_mole.cli import main
from llava_mole.data.collator import Collator
from llava_mole.data.rows import Row
from llava_mole.data.sample import Sample, Turn
from llava_mole.data.sources import SourceSpec, open_source
from llava_mole.errors import DataError
from llava_mole.templates import EXAMPLE
from llava_mole.training.data import encode_sample
from tests.test_templates import processor


def said(*turns: tuple[str, str]) -> Sample:
    return Sample(tuple(Turn(role, text) for role, text in turns), (), "d", "en", "data.json:7")  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_refused_by_the_reader(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "data.jsonl"
    good = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    bad = [{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]
    path.write_text("".join(json.dumps({"conversations": c}) + "\n" for c in (good, bad)))
    source = open_source(SourceSpec(path=path, language="en"))
    with pytest.raises(DataError, match=r"data\.jsonl:2: turn 2: the answer is empty"):
        [source[number] for number in range(len(source))]


def test_an_empty_answer_among_others_is_refused_where_it_is_encoded() -> None:
    """Its end-of-turn token alone would be learnt: to say nothing."""
    sample = said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " "))
    with pytest.raises(DataError, match=r"data\.json:7: turn 4: the answer is empty"):
        encode_sample(processor("chatml"), sample)


def test_a_conversation_in_which_nothing_is_learnt_is_refused() -> None:
    for name, sample in (
        ("chatml", said(("user", "a"))),
        # of several rounds, Qwen3 without thinking learns the last, and here the last asks
        ("qwen3", said(("user", "a"), ("assistant", "b"), ("user", "c"))),
    ):
        with pytest.raises(DataError, match=r"data\.json:7: no supervised token"):
            encode_sample(processor(name), sample)


def test_a_last_question_without_answer_leaves_the_answers_before_it_learnt() -> None:
    made = processor("chatml")
    sample = said(("user", "a"), ("assistant", "b"), ("user", "c"))
    labels = [label for label in encode_sample(made, sample).labels if label >= 0]
    assert made.decode(labels) == "b<|im_end|>"


def test_marks_that_never_match_are_refused_by_the_samples_name() -> None:
    """A template of a saved folder, edited by hand: it is not tried out again."""
    made = processor("chatml")
    made.chat_template = made.chat_template.replace("== 'assistant'", "== 'gpt'")
    sample = said(("user", "a"), ("assistant", "b"))
    with pytest.raises(DataError, match=r"data\.json:7: no supervised token.*chat template"):
        encode_sample(made, sample)
    row = Row((), (sample,), (made.encode(sample.messages()),))
    with pytest.raises(DataError, match=r"data\.json:7: no supervised token"):
        Collator(made, share_prefix=False, parrot=False, max_length=512)([row])


def test_what_a_template_refuses_names_the_sample() -> None:
    with pytest.raises(DataError, match=r"data\.json:7: the chat template refuses .* found assist"):
        encode_sample(processor("gemma"), said(("assistant", "b"), ("user", "a")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("== 'assistant'", "between its generation marks stands ''"),
        ("generation", "no {% generation"),
    ],
)
def test_a_dry_run_refuses_a_template_that_teaches_nothing(
    recipe_file: Path, tmp_path: Path, capsys: Any, change: str, reason: str
) -> None:
    path = tmp_path / "mute.jinja"
    broken = EXAMPLE.replace(change, "== 'gpt'") if "==" in change else EXAMPLE
    if change == "generation":
        broken = broken.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    path.write_text(broken)
    command = ["train", "--config", str(recipe_file), "--dry-run", f"model.chat_template={path}"]
    assert main(command) == 2
    assert reason in capsys.readouterr().err


def test_a_dry_run_shows_the_mask_of_a_named_template(recipe_file: Path, capsys: Any) -> None:
    for name in ("chatml", "vicuna_v1"):
        command = ["train", "--config", str(recipe_file), "--dry-run"]
        assert main([*command, f"model.chat_template={name}"]) == 0
        assert "tokens are supervised" in capsys.readouterr().out


def test_an_unknown_name_is_told_with_the_other_problems(recipe_file: Path, capsys: Any) -> None:
    command = [
        "train",
        "--config",
        str(recipe_file),
        "model.chat_template=vicuna",
        "model.dtype=float8",
    ]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "did you mean 'vicuna_v1'" in told
    assert "model.dtype='float8'" in told
    assert main([*command[:3], "model.chat_template=none.jinja", command[-1]]) == 2
    told = capsys.readouterr().err
    assert "model.chat_template='none.jinja': no such file" in told
    assert "model.dtype='float8'" in told
