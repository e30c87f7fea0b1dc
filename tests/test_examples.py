"""The examples run as their first lines say, and do what they print."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

ROOT = Path(__file__).resolve().parents[1]
SFT = ROOT / "examples" / "trl_sft.py"


def example(path: Path) -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_losses(said: str) -> tuple[list[float], list[float]]:
    """Loss and balance loss of each line of the table."""
    rows = re.findall(r"^ *\d+ +(\d+\.\d+) +(\d+\.\d+)$", said, flags=re.MULTILINE)
    return [float(a) for a, _ in rows], [float(b) for _, b in rows]


@pytest.mark.slow
def test_trl_sft_learns_balances_and_leaves_an_adapter_that_loads(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SFT), "--out", str(tmp_path), "--steps", "32"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    losses, balance = printed_losses(run.stdout)
    assert len(losses) == 8
    assert losses[-1] < 0.4 * losses[0]
    # Perfect balance of 4 experts costs 0.25, all tokens in one expert about 1; weight 0.01.
    assert all(0.0024 < value < 0.01 for value in balance)
    assert "layers.1.mlp" in run.stdout
    loaded, trained = re.findall(r"model (\d+\.\d+), of the trained one (\d+\.\d+)", run.stdout)[0]
    assert float(loaded) == pytest.approx(float(trained), abs=2e-6)
    assert {path.name for path in (tmp_path / "adapters" / "default").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert (tmp_path / "checkpoint-32" / "adapters" / "default").is_dir()
    assert not list(tmp_path.rglob("model.safetensors"))


def test_trl_sft_trains_a_saved_model_with_lora_beside_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = example(SFT)
    torch.manual_seed(0)
    model, processor = sft.tiny_llava()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    arguments = ["--model", str(tmp_path / "base"), "--out", str(out), "--lora", "--steps", "4"]
    arguments += ["--rows", "16", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["trl_sft.py", *arguments])
    sft.main()
    said = capsys.readouterr().out
    loaded, trained = re.findall(r"model (\d+\.\d+), of the trained one (\d+\.\d+)", said)[0]
    assert float(loaded) == pytest.approx(float(trained), abs=2e-6)
    assert (out / "adapter_model.safetensors").is_file()  # PEFT's own, with its LoRA


def test_answers_match_the_pictures() -> None:
    sft = example(SFT)
    for row in sft.drawn_questions(20, 32, seed=5):
        answer = row["completion"][0]["content"]
        colours = row["images"][0].convert("RGB").getcolors()
        assert len(colours) >= 2  # the shape and white
        if "colour" in row["prompt"][0]["content"]:
            shown = sft.Image.new("RGB", (1, 1), answer).getpixel((0, 0))
            assert shown in {colour for _, colour in colours}
        else:
            assert answer in sft.SHAPES
