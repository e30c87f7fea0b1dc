"""benchmarks/other_artists.py: the same questions, another artist's pictures."""

import importlib.util
from pathlib import Path

import pytest

from llava_mole.evaluation.tables import read_predictions
from tests import helpers

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "other_artists.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("other_artists", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path):
    """One artist drew P0 to P4, the other P0 to P2, under another spelling of the same name."""
    for name, count, suffix in (("a", 5, ""), ("b", 3, "-fe0f")):
        (tmp_path / name).mkdir()
        for number in range(count):
            drawn = helpers.picture(100 + number)
            drawn.save(tmp_path / name / f"p{number}{suffix}.png")
    return tmp_path


def test_all_rows_are_about_the_same_things(script, folders, tiny_model_dir, tsv, capsys):
    data = tsv("train").parent
    pictures = [f"a={folders / 'a'}", f"b={folders / 'b'}"]
    out = folders / "out"
    arguments = ["--model", tiny_model_dir, "--data", data, "--out", out, "--pictures", *pictures]
    assert script.main([*map(str, arguments), "--items", "2"]) == 0
    rows = read_predictions(out / "predictions.jsonl")
    asked = {
        name: [(row.index, row.picture) for row in rows if row.condition == name]
        for name in ("own", "a", "b")
    }
    assert asked["own"] == asked["a"] == asked["b"]
    assert len(asked["own"]) == 2 * 3  # languages
    assert {picture for _, picture in asked["own"]} <= {"P0", "P1", "P2"}
    assert {row.kind for row in rows} == {"naming"}
    own, a = ([row.logprobs for row in rows if row.condition == name] for name in ("own", "a"))
    assert own != a  # the model was shown something else
    assert "| own | naming |" in (out / "report.md").read_text("utf-8")
    assert "6 items of 2 things" in capsys.readouterr().out


def test_a_folder_without_pictures_is_an_error(script, tmp_path, tiny_model_dir, tsv, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["--model", tiny_model_dir, "--data", tsv("train").parent, "--out", tmp_path / "o"]
    assert script.main([*map(str, arguments), "--pictures", f"x={tmp_path / 'empty'}"]) == 1
    assert "no *.png in" in capsys.readouterr().err
    helpers.picture(1).save(tmp_path / "empty" / "p0.png")
    named = [*map(str, arguments), "--pictures", f"x={tmp_path / 'empty'}"]
    for change, message in (
        (["--items", "0"], "--items 0: must be at least 1"),
        (["--model", "/nope"], "--model /nope: no config.json there"),
        (["--pictures", "twitter"], "expected NAME=FOLDER"),
        (["--pictures", "own=x"], "none `own`"),
    ):
        assert script.main([*named, *change]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
