"""benchmarks/mole_step.py on a tiny shape: arms are checked, timed in pairs and reported."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "mole_step.py"
TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
ARMS = [
    "base",
    "peft",
    "E4",
    "E4-masked",
    "E4-tiled",
    "E4-shared",
    "E4-beside",
    "E4-loop",
    "E4-gather",
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("mole_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(module.SIZES, "smollm2-135m", TINY)
    return module


@pytest.mark.parametrize(
    ("kind", "arms"),
    [
        ("step", ["base", "peft", "E4", "E4-shared", "E4-beside"]),
        pytest.param("step", ARMS, marks=pytest.mark.thorough),
        pytest.param("layer", ARMS, marks=pytest.mark.thorough),
        pytest.param("decode", ARMS[1:5], marks=pytest.mark.thorough),
    ],
)
def test_every_arm_is_timed_beside_pefts_lora(
    script: Any, kind: str, arms: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    values = ["--size", "smollm2-135m", "--batch", "2", "--length", "32", "--rounds", "2"]
    values += ["--vocabulary", "64", "--out", str(tmp_path), "--arms", *arms]
    monkeypatch.setattr(sys, "argv", ["mole_step.py", kind, *values])
    script.main()
    found = json.loads((tmp_path / "result.json").read_text())
    for dtype in ("bfloat16", "float32"):
        assert set(found["ratios"][dtype]) == set(arms)
        assert found["ratios"][dtype]["peft"] == 1.0
        assert all(len(times) == 2 for times in found["results"][dtype]["times"].values())
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_arm_that_does_not_do_what_it_is_timed_for_stops_the_run(script: Any) -> None:
    arm = script.Arm("E4", script.base_model("smollm2-135m", 64), torch.bfloat16)
    ids = torch.randint(4, 64, (2, 8))
    assert "reference within" in arm.check(ids, script.autocast_for("cpu", "bfloat16"))
    for name, parameter in arm.model.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
    with pytest.raises((RuntimeError, AssertionError)):
        arm.check(ids, script.autocast_for("cpu", "bfloat16"))
