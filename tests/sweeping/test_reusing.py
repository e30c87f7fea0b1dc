"""Runs that another sweep has done are copied, if they are the same."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from llava_mole.errors import CheckpointError
from llava_mole.sweeping import reusing
from llava_mole.sweeping.one_run import do_run
from llava_mole.sweeping.plan import PlannedRun, plan_runs
from llava_mole.sweeping.report import looks_at_test
from llava_mole.sweeping.reusing import copy_runs, reusable
from llava_mole.sweeping.run_folder import PREDICTIONS, read_json, read_lines
from llava_mole.sweeping.scheduling import do_runs
from llava_mole.sweeping.scoring import TEST_SCORINGS, scores_left
from llava_mole.sweeping.sweep_file import Sweep, read_sweep
from llava_mole.training.resume import only_run
from tests.sweeping.conftest import edit, recording

CHOICE = {"chosen": ["lora"], "reason": "best on dev"}


def begun(path: Path, **changes: Any) -> tuple[Sweep, list[PlannedRun], Path]:
    """A sweep that reuses the trained one's LoRA, its runs of seed 0, and that one's folder."""
    there = read_sweep(path).out
    mine = there.with_name("mine")
    sweep = edit(path, output_dir=str(mine), reuse={str(there): ["lora"]}, **changes)
    return sweep, plan_runs(sweep, path, seeds=[0]), there


def said(sweep: Sweep, runs: list[PlannedRun], split: str = "dev") -> str:
    console = recording()
    copy_runs(sweep, runs, split, console)
    return console.export_text()


def test_a_run_is_copied_whole(trained: Path) -> None:
    sweep, runs, there = begun(trained)
    assert reusable(sweep, runs[0]).folder == there / "runs/lora/seed-0"
    assert said(sweep, runs).count("copied from") == 1
    assert [path.name for path in (sweep.out / "runs").iterdir()] == ["lora"]
    for name in ("done.json", "predictions/dev/shapes.jsonl", "model/config.json"):
        one, other = (place / "runs/lora/seed-0" / name for place in (there, sweep.out))
        assert one.read_bytes() == other.read_bytes()
    assert said(sweep, runs) == ""  # it is here
    assert reusable(sweep, runs[1]) is None  # not named
    assert do_runs(sweep, trained, runs[:1], split="dev", console=recording()) == 0


def test_answers_on_test_come_along_under_the_protocol_alone(trained: Path) -> None:
    donor = edit(trained, protocol=CHOICE)
    (run,) = plan_runs(donor, trained, arms=["lora"], seeds=[0])
    do_run(donor, run, split="test")
    sweep, runs, there = begun(trained)
    said(sweep, runs)
    assert not (sweep.out / "runs/lora/seed-0/predictions/test").exists()
    assert list(read_json(sweep.out / "runs/lora/seed-0/done.json")["accuracy"]) == ["dev"]
    assert scores_left(sweep, runs[0], "test")
    shutil.rmtree(sweep.out)
    said(sweep, runs[:1], "test")
    assert not scores_left(sweep, runs[0], "test")
    lines = read_lines(sweep.out / TEST_SCORINGS)
    assert {line["domain"] for line in lines} == {"shapes", "noise"}
    assert {line["copied_from"] for line in lines} == {str(there / "runs/lora/seed-0")}
    notes = looks_at_test(lines)
    assert "copied from another sweep that scored them: lora/seed-0" in notes
    assert not any("more than once" in note for note in notes)


def test_what_is_of_no_use_is_told_and_not_copied(trained: Path, tmp_path: Path) -> None:
    sweep, runs, there = begun(trained)
    here = there / "runs/lora/seed-0"
    keep = tmp_path / "kept"
    shutil.copytree(here, keep)

    def refused() -> str:
        told = said(sweep, runs)
        assert not (sweep.out / "runs/lora/seed-0/run.json").exists()
        shutil.rmtree(here)
        shutil.copytree(keep, here)
        return told

    (here / "done.json").unlink()
    assert "it is not done" in refused()
    (here / "done.json").write_text("{", encoding="utf-8")
    assert "its files cannot be read" in refused()
    (here / "run.json").unlink()
    assert "no run is there" in refused()
    with only_run(here / PREDICTIONS):
        assert "a process is at work on it" in refused()
    rate = {"stages.instruct.learning_rates.lora": 0.02}
    runs = plan_runs(edit(trained, arms__lora__set=rate), trained, seeds=[0])
    assert "another recipe (stages.0.learning_rates.lora: 0.01 -> 0.02)" in refused()
    sweep = edit(trained, arms__lora__set={}, evaluate__items=2)
    runs = plan_runs(sweep, trained, seeds=[0])
    shutil.rmtree(here / "model")
    assert "its model is not there any more, and shapes, noise would" in refused()
    assert "copied from" in said(sweep, runs)  # with its model it is asked anew


def test_a_copy_that_fails_leaves_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, runs, _ = begun(trained)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reusing.shutil, "copy2", full)
        with pytest.raises(CheckpointError, match="no room"):
            said(sweep, runs)
    files = [path for path in (sweep.out / "runs").rglob("*") if path.is_file()]
    assert files == []
    assert "copied from" in said(sweep, runs)


def test_a_copy_keeps_what_the_sweep_keeps(trained: Path) -> None:
    sweep, runs, _ = begun(trained, keep="nothing")
    said(sweep, runs)
    assert not (sweep.out / "runs/lora/seed-0/model").exists()
    assert not scores_left(sweep, runs[0], "dev")
