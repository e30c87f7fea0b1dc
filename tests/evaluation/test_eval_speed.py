"""The benchmark of speed, in miniature: what it compares is the same before it is timed."""

from __future__ import annotations

import json
import runpy

import pytest

from llava_mole.clone import ROOT


@pytest.fixture
def benchmark_file(tmp_path):
    from data import common
    from tests.evaluation.conftest import rows, write

    path = tmp_path / "small_en.tsv"
    own = [row for row in rows("test") if row["language"] == "en"]
    own = [{key: "" if cell == "NaN" else cell for key, cell in row.items()} for row in own]
    base = [row | {"index": str(number)} for number, row in enumerate(own)]
    holders: dict[str, str] = {}
    table = []
    for row in base:
        picture = row["comment"].split(";")[0]
        for k, turned in enumerate(common.circular(row)):
            image = holders.get(picture, row["image"]) if k == 0 else holders[picture]
            index = str(int(row["index"]) + k * 1_000_000)
            table.append(turned | {"index": index, "image": image})
            holders.setdefault(picture, row["index"])
    for row in table:
        del row["language"]
    return write(path, table)


def test_all_arms_say_the_same_and_are_timed(tiny_model_dir, benchmark_file, tmp_path, capsys):
    script = runpy.run_path(str(ROOT / "benchmarks" / "eval_speed.py"))
    out = tmp_path / "speed.json"
    argv = ["--model", str(tiny_model_dir), "--data", str(benchmark_file), "--questions", "6"]
    argv += ["--rounds", "1", "--rows-per-batch", "8", "--max-new-tokens", "4", "--json", str(out)]
    assert script["main"](argv) == 0
    found = json.loads(out.read_text())
    assert found["questions"] == 6
    assert set(found["questions_per_second"]) == set(script["ARMS"])
    assert found["harness_against"]["harness"] == 1
    assert all(speed > 0 for speed in found["questions_per_second"].values())
    # float32 weights: `generate` on one row, on many and the harness write the same
    assert all(counts == {"replies": 0, "choices": 0} for counts in found["different"].values())
    assert "questions/s" in capsys.readouterr().out
