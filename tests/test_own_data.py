"""The README's path: somebody's LLaVA, JSON and questions, from convert to an answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_mole.building import build_model
from llava_mole.cli import main
from llava_mole.structure import model_without_weights
from llava_mole.training.parts import count_parameters
from llava_mole.training.schema import load_recipe

ROOT = Path(__file__).resolve().parents[1]


def script(path: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, str(ROOT / path), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted LLaVA and the data, as the README makes them."""
    folder = tmp_path_factory.mktemp("own")
    script("examples/tiny_llava.py", str(folder / "tiny-llava"))
    script("examples/own_data.py", str(folder / "mine"))
    assert main(["convert", str(folder / "tiny-llava"), "--out", str(folder / "llava")]) == 0
    return folder


def changes(parts: Path) -> list[str]:
    return [
        f"output_dir={parts / 'run'}", f"model.start_from={parts / 'llava'}",
        f"data.sources.0.path={parts / 'mine' / 'train.json'}",
        f"data.sources.0.image_root={parts / 'mine' / 'pictures'}",
        f"data.held_out.0.path={parts / 'mine' / 'held_out.json'}",
        f"data.held_out.0.image_root={parts / 'mine' / 'pictures'}",
    ]  # fmt: skip


def test_without_weights_a_model_that_starts_from_a_folder_is_as_large(parts: Path) -> None:
    recipe = load_recipe(ROOT / "configs" / "own-data.yaml", changes(parts))
    built = count_parameters(build_model(recipe.model)[0])
    planned = count_parameters(model_without_weights(recipe.model))
    assert [row[:2] for row in planned] == [row[:2] for row in built]


@pytest.mark.slow
def test_from_a_llava_and_a_json_to_an_answer(parts: Path, capsys: pytest.CaptureFixture) -> None:
    data, recipe = parts / "mine", str(ROOT / "configs" / "own-data.yaml")
    pictures = ["--image-root", str(data / "pictures")]
    against = ["--against", str(data / "test_en.tsv")]
    assert main(["inspect", str(data / "train.json"), *pictures, *against]) == 0
    assert main(["train", "--config", recipe, "--dry-run", *changes(parts)]) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings" in said
    assert "rows of 262 tokens" in said  # the longest there is, not what the context could hold
    assert main(["train", "--config", recipe, *changes(parts)]) == 0
    log = [json.loads(line) for line in (parts / "run" / "log.jsonl").read_text().splitlines()]
    held_out = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert held_out[-1] < held_out[0]
    results = parts / "results"
    script(
        "eval/mmbench.py", "--model", str(parts / "run" / "model"), "--data",
        str(data / "test_en.tsv"), "--passes", "vanilla", "--style", "letters",
        "--out", str(results),
    )  # fmt: skip
    assert json.loads((results / "report.json").read_text())["figures"][0]["n"] == 4
    picture = ["--image", str(data / "pictures" / "red-cross.png")]
    assert main(["chat", "--model", str(parts / "run" / "model"), *picture, "Which shape?"]) == 0
