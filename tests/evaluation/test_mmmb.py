"""eval/mmmb.py from the command line to its files."""

import importlib.util
import json
from pathlib import Path

import pytest

from llava_mole.evaluation.tables import recompute

SCRIPT = Path(__file__).resolve().parents[2] / "eval" / "mmmb.py"


@pytest.fixture(scope="module")
def mmmb():
    spec = importlib.util.spec_from_file_location("mmmb", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_from_folder_to_report(mmmb, tiny_model_dir, tsv, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", tiny_model_dir, "--data", tsv("test"), "--out", out, "--limit", 4]
    assert mmmb.main([*map(str, arguments), "--languages", "cn", "ar", "--device", "cpu"]) == 0
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert set(report["languages"]) == {"zh", "ar"}
    assert report["languages"]["zh"]["n"] == 4
    assert len(report["data"][0]["sha256"]) == 64
    assert report["protocol"]["closing_lines"]["ar"].startswith("أجب")
    cell = recompute(out / "predictions.jsonl").cells[0]
    assert vars(cell) == report["categories"][0]
    assert (out / "report.md").read_text("utf-8").startswith("| language |")


def test_language_from_the_file_name(mmmb, tsv):
    path = tsv()
    named = path.with_name("mmmb_cn.tsv")
    lines = [line.split("\t")[:-1] for line in path.read_text("utf-8").splitlines()]
    named.write_text("\n".join("\t".join(line) for line in lines), "utf-8")
    assert {item.language for item in mmmb.load_items([named], None)} == {"zh"}
    other = named.rename(path.with_name("questions.tsv"))
    assert {item.language for item in mmmb.load_items([other], ["tr"])} == {"tr"}


def test_errors_end_with_a_message(mmmb, tiny_model_dir, tsv, tmp_path, capsys):
    arguments = ["--model", str(tiny_model_dir), "--out", str(tmp_path / "o"), "--data"]
    assert mmmb.main([*arguments, str(tsv(row0_answer="Q"))]) == 1
    assert "eval_train.tsv:2: column answer" in capsys.readouterr().err
    assert mmmb.main([*arguments, str(tsv()), "--rows-per-batch", "-1"]) == 1
    assert "rows_per_batch=-1" in capsys.readouterr().err
    assert mmmb.main(["--model", "/nope", *arguments[2:], str(tsv())]) == 1
    assert "no config.json" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
