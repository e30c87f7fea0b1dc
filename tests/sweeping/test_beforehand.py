"""What a sweep does before its runs: trains what they start from, copies what another has done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.sweeping import command
from llava_mole.sweeping.beforehand import copy_runs, reusable, to_train, train_starts, trainings
from llava_mole.sweeping.plan import plan_runs
from llava_mole.sweeping.sweep_file import read_sweep
from tests.sweeping.conftest import edit, parsed, recording

PROJECTOR = {"projector": 0.01}


@pytest.fixture
def staged(sweep_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A sweep whose arms start from tmp_path/start, which a recipe of its own trains, but for
    `anew`; tmp_path/other is no arm's start."""
    path = sweep_file(
        seeds=[0],
        starts={
            str(tmp_path / name): {
                "recipe": "recipe.yaml",
                "set": {"model.lora": None, "stages.instruct.learning_rates": PROJECTOR,
                        "stages.instruct.steps": 1},
            }
            for name in ("start", "other")
        },
        arms__anew={},
    )  # fmt: skip
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text("utf-8"))
    (tmp_path / "onward.yaml").write_text(
        yaml.safe_dump(
            recipe | {"model": {"start_from": str(tmp_path / "start/model"), "dtype": "float32",
                                "lora": recipe["model"]["lora"]}}
        ),
        encoding="utf-8",
    )  # fmt: skip
    anew = {f"model.{key}": recipe["model"][key] for key in ("language_model", "vision_model")}
    edit(path, base="onward.yaml", arms__anew__set={"model.start_from": None, **anew})
    return path


@pytest.mark.slow
def test_a_model_that_arms_start_from_is_trained_once(
    staged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep(staged)
    arms = sweep.arm_names()
    assert [one.folder for one in trainings(sweep, staged, ["anew"])] == []
    assert [one.folder for one in to_train(sweep, staged, arms)] == [str(tmp_path / "start")]

    assert command.run(parsed(str(staged), "--dry-run")) == 0
    said = capfd.readouterr().out
    assert f"first: llava-mole train --config {tmp_path / 'recipe.yaml'}" in said
    assert "after that, told when it is there: lora, moe" in said
    assert "to do: 1 (anew/seed-0)" in said

    with pytest.raises(ConfigError, match=r"no folder .*; --prepare trains what `starts` names"):
        plan_runs(sweep, staged, arms=["lora"])

    assert command.run(parsed(str(staged), "--prepare")) == 0
    assert "first, 1 of 1: llava-mole train" in capfd.readouterr().out
    assert (tmp_path / "start" / "model").is_dir()
    assert not (tmp_path / "other").exists()
    assert not (sweep.out / "runs").exists()
    assert len(plan_runs(sweep, staged)) == 3
    assert to_train(sweep, staged, arms) == []

    starts = f"starts__{tmp_path / 'start'}__set__stages.instruct.steps"
    sweep = edit(staged, **{starts: 2})
    with pytest.raises(ConfigError, match=r"starts\..*/start: .* another recipe:\n.*steps: 1 -> 2"):
        to_train(sweep, staged, arms)


def test_a_start_that_is_not_trained_stops_the_sweep(staged: Path, tmp_path: Path) -> None:
    key = f"starts__{tmp_path / 'start'}__set__stages.instruct.learning_rates"
    sweep = edit(staged, **{key: {"projecter": 0.01}})
    console = recording()
    assert train_starts(sweep, staged, sweep.arm_names(), console) == 2
    said = console.export_text()
    assert f"starts.{tmp_path / 'start'}: not trained (exit status 2)" in said
    assert command.run(parsed(str(staged))) == 1
    assert not (sweep.out / "runs").exists()


def test_starts_follow_each_other(staged: Path, tmp_path: Path) -> None:
    """The second goes on from the first; arms name only the second."""
    values = yaml.safe_load(staged.read_text("utf-8"))
    second = {"recipe": "onward.yaml", "set": {}}
    starts = {**values["starts"], str(tmp_path / "second"): second}
    moved = {"model.start_from": str(tmp_path / "second/model")}
    sweep = edit(staged, starts=starts, arms={"lora": {"set": moved}}, claims={})
    assert [Path(one.folder).name for one in trainings(sweep, staged, ["lora"])] == [
        "start", "second",
    ]  # fmt: skip


def test_a_run_of_another_sweep_is_copied_if_it_is_the_same(trained: Path, tmp_path: Path) -> None:
    there = read_sweep(trained).out
    sweep = edit(trained, output_dir=str(tmp_path / "mine"), reuse={str(there): ["lora"]})
    runs = plan_runs(sweep, trained)
    half = sweep.out / "runs" / "lora" / "seed-0.part"
    half.mkdir(parents=True)  # a copy that was stopped
    (half / "left").touch()
    console = recording()
    copy_runs(sweep, runs, console)
    assert console.export_text().count("copied from") == 2
    assert sorted(path.name for path in (sweep.out / "runs").rglob("seed-*")) == [
        "seed-0", "seed-1",
    ]  # fmt: skip
    for name in ("done.json", "predictions/dev/shapes.jsonl"):
        one, other = (place / "runs/lora/seed-0" / name for place in (there, sweep.out))
        assert one.read_bytes() == other.read_bytes()
    assert not (sweep.out / "runs/lora/seed-0/left").exists()
    assert all(reusable(sweep, run) is None for run in runs)  # here already, or not named

    shutil.rmtree(sweep.out)
    sweep = edit(trained, arms__lora__set={"stages.instruct.learning_rates.lora": 0.02})
    assert all(reusable(sweep, run) is None for run in plan_runs(sweep, trained))
    (there / "runs/lora/seed-0/done.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"done\.json cannot be read"):
        reusable(sweep, plan_runs(sweep, trained)[0])


def test_names_and_folders_are_checked(trained: Path, tmp_path: Path) -> None:
    out = read_sweep(trained).output_dir
    with pytest.raises(ConfigError) as caught:
        edit(
            trained,
            reuse={out: ["lora"], str(tmp_path): ["lorra"]},
            starts={"runs/base": {"recipe": "recipe.yaml", "set": {"output_dir": "x"}}},
        )
    said = str(caught.value)
    assert f"reuse.{out}: that is this sweep's own output_dir" in said
    assert f"reuse.{tmp_path}: unknown 'lorra'; did you mean 'lora'?" in said
    assert "starts.runs/base.set.output_dir: it is runs/base" in said
