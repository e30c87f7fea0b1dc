"""`llava-mole inspect` from its arguments to what it prints, and how it counts tokens."""

import argparse
import io
import json

import pytest
from rich.console import Console

from llava_mole.errors import ConfigError, DataError
from llava_mole.inspection.command import add_arguments, run
from llava_mole.inspection.lengths import measure_of
from llava_mole.inspection.report import CHECKS, show
from llava_mole.templates import chat_template
from tests.helpers import byte_tokenizer
from tests.inspection.sets import look, record, scene, write, write_benchmark


def run_with(*words) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with one token per byte."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_clean_source_exits_with_0_and_says_what_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path / "cache"))
    spec = write(tmp_path, [record(f"{n}.png", domain="blobs") for n in range(3)])
    assert run_with(spec.path, "--language", "en") == 0
    said = capsys.readouterr().out
    assert "LLaVA JSONL, 3 items" in said
    assert "3 records, 3 of them samples; 3 pictures" in said
    assert "blobs" in said
    assert "0 errors, 0 warnings, 0 notes" in said


def test_errors_exit_with_1_and_are_shown_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path / "cache"))
    spec = write(tmp_path, [record("2.png"), *[record(f"gone{n}.png") for n in range(7)]])
    bench = write_benchmark(tmp_path / "b.tsv", [{"question": "?", "image": scene(2)}])
    out = tmp_path / "out.json"
    assert run_with(spec.path, "--language", "en", "--against", bench, "--json", out) == 1
    said = capsys.readouterr().out
    assert "error image-missing: 7" in said
    assert "and 2 more" in said
    assert CHECKS["leak-picture"] in said
    assert f"{spec.path}:1: image '2.png' is the benchmark's at {bench}:2" in said
    assert f"compared with {bench}: 1 rows, 1 pictures" in said
    assert json.loads(out.read_text())["counts"]["errors"] == 8


def test_what_cannot_be_read_is_an_error_of_ours(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        run_with(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="--workers: 0"):
        run_with(tmp_path / "none.json", "--workers", "0")
    with pytest.raises(ConfigError, match=r"--same-from: 0\.5"):
        run_with(tmp_path / "none.json", "--same-from", "0.5")


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path):
    spec = write(tmp_path, [record(domain="[red]x[/red]"), record("[bold].png")])
    screen = Console(file=io.StringIO(), width=200)
    show(look(spec, tmp_path), screen)
    said = screen.file.getvalue()
    assert "[red]x[/red]" in said
    assert "[bold].png" in said


# --- token lengths --------------------------------------------------------------------------------


def test_tokens_are_counted_and_cut_answers_told(tmp_path, tokenizer):
    spec = write(tmp_path, [record(), record("1.png", answer=" ".join(["blob"] * 40))])
    measure = measure_of(tokenizer=tokenizer, max_length=100, tokens_per_image=5)
    inspection = look(spec, tmp_path, measure=measure)
    short, long = sorted(inspection.tables.tokens)
    question, answer = (
        len("\nWhat can be seen in this picture?"),
        len("A few soft blobs of colour."),
    )
    assert long - short == 199 - answer
    assert question + answer + 5 <= short <= question + answer + 12
    [finding] = inspection.findings.first["too-long"]
    assert (finding.where, finding.value) == (f"{spec.path}:2", long)
    # Of what lies beyond, all is answer (and its end) but the line break that closes the turn.
    beyond = f"{long - 101} of 200 tokens of the answers lie beyond"
    assert finding.message.startswith(f"{long} tokens, 100 fit: {beyond}")


def test_a_placeholder_token_in_the_text_is_an_error(tmp_path, tokenizer):
    spec = write(tmp_path, [record(question="What is <unused0> here in the picture?")])
    measure = measure_of(tokenizer=tokenizer)
    measure.processor.image_token = "<unused0>"
    measure.processor.chat_template = measure.processor.chat_template.replace(
        "<image>", "<unused0>"
    )
    [finding] = look(spec, tmp_path, measure=measure).findings.first["placeholder-in-text"]
    assert (finding.severity, finding.where) == ("error", f"{spec.path}:1")


def test_turns_that_the_chat_template_refuses_are_an_error(tmp_path, tokenizer):
    answered_first = record()
    answered_first["conversations"].reverse()
    spec = write(tmp_path, [record(), answered_first])
    measure = measure_of(tokenizer=tokenizer)
    measure.processor.chat_template = chat_template("gemma", image_token="<image>")
    [finding] = look(spec, tmp_path, measure=measure).findings.first["chat-template"]
    assert (finding.severity, finding.where) == ("error", f"{spec.path}:2")


def test_a_model_folder_counts_as_the_model_does(tmp_path, tiny_model_dir):
    measure = measure_of(tokenizer=tiny_model_dir)
    assert measure.processor.tokens_per_image == 4
    inspection = look(write(tmp_path, [record()]), tmp_path, measure=measure)
    assert inspection.measured.endswith("4 per picture")
    assert inspection.tables.tokens.total() == 1


def test_a_recipe_counts_as_its_training_would(tmp_path, tiny_parts):
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "language_model": str(tiny_parts.language_model("llama")),
            "vision_model": f"local-dir:{tiny_parts.tower('vit')}",
            "dtype": "float32",
        },
        "data": {"sources": [{"path": str(write(tmp_path, [record()]).path)}]},
        "stages": [{"name": "align", "steps": 1, "learning_rates": {"projector": 0.001}}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    measure = measure_of(config=path)
    assert (measure.processor.tokens_per_image, measure.max_length) == (4, 2048)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 5}, "Give --config or --tokenizer"),
        ({"config": "c.yaml", "tokenizer": "t"}, "give one of them"),
        ({"tokenizer": "nowhere"}, "no such folder"),
        ({"tokenizer": "empty"}, "no tokenizer that can be loaded"),
        ({"config": "nowhere.yaml"}, "not found"),
    ],
)
def test_a_wrong_choice_of_tokens_is_named(tmp_path, options, words):
    (tmp_path / "empty").mkdir()
    given = {k: tmp_path / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(ConfigError, match=words):
        measure_of(**given)
