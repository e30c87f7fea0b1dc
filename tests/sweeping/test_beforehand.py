"""What the arms of a sweep start from is trained first, where it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_mole.errors import ConfigError, DataError
from llava_mole.sweeping import command
from llava_mole.sweeping.beforehand import to_train, train_starts, waiting
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


def keys(sweep: Any, path: Path, arms: list[str] | None = None) -> list[str]:
    """Names of the folders that are to be trained."""
    return [Path(one.key).name for one in to_train(sweep, path, arms or sweep.arm_names())]


@pytest.mark.slow
def test_a_model_that_arms_start_from_is_trained_once(
    staged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = read_sweep(staged)
    assert keys(sweep, staged) == ["start"]
    assert keys(sweep, staged, ["anew"]) == []

    assert command.run(parsed(str(staged), "--dry-run")) == 0
    said = capfd.readouterr().out
    assert f"first: llava-mole train --config {tmp_path / 'recipe.yaml'}" in said
    assert "told of these when that is there: lora, moe" in said
    assert "to do: 1 (anew/seed-0)" in said
    with pytest.raises(ConfigError, match=r"no folder .*; --prepare trains what `starts` names"):
        plan_runs(sweep, staged, arms=["lora"])

    assert command.run(parsed(str(staged), "--prepare")) == 0
    said = capfd.readouterr().out
    assert "first, 1 of 1: llava-mole train" in said
    assert "trained first: 1; runs that may begin: 3" in said
    assert (tmp_path / "start" / "model").is_dir()
    assert not (tmp_path / "other").exists()
    assert not (sweep.out / "runs").exists()
    assert len(plan_runs(sweep, staged)) == 3
    assert keys(sweep, staged) == []

    # the same folder in other words, and without the data that it was trained on
    starts = vars_of(staged)["starts"]
    edit(staged, starts={f"{tmp_path}/data/../start/": starts[str(tmp_path / "start")]})
    (tmp_path / "data" / "train.json").rename(tmp_path / "train.json")
    assert keys(read_sweep(staged), staged) == []
    (tmp_path / "train.json").rename(tmp_path / "data" / "train.json")

    # a start of the start that is not there is not needed any more
    second = {"recipe": "onward.yaml", "set": {"model.start_from": str(tmp_path / "gone/model")}}
    (tmp_path / "start").rename(tmp_path / "second")
    moved = {"model.start_from": str(tmp_path / "second/model")}
    first = starts[str(tmp_path / "start")]
    both = {str(tmp_path / "second"): second, str(tmp_path / "gone"): first}
    sweep = edit(staged, starts=both, set=moved)
    assert keys(sweep, staged, ["lora"]) == []

    (tmp_path / "second").rename(tmp_path / "start")
    starts[str(tmp_path / "start")]["set"]["stages.instruct.steps"] = 2
    sweep = edit(staged, starts=starts, set={})
    with pytest.raises(ConfigError, match=r"starts\..*/start: .* another recipe:\n.*steps: 1 -> 2"):
        to_train(sweep, staged, ["lora"])


def vars_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def test_what_is_wrong_is_told_before_anything_is_trained(
    staged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(staged, arms__lora__set={"stages.instruct.stepss": 3})
    for words in ([], ["--dry-run"], ["--prepare"]):
        with pytest.raises(ConfigError, match=r"arms.lora: .*stepss: unknown key"):
            command.run(parsed(str(staged), *words))
    edit(staged, arms__lora__set={})
    with pytest.raises(ConfigError, match="test is not scored"):
        command.run(parsed(str(staged), "--split", "test"))
    with pytest.raises(ConfigError, match="--parallel bla"):
        command.run(parsed(str(staged), "--prepare", "--parallel", "bla"))
    table = tmp_path / "noise" / "eval_dev.tsv"
    whole = table.read_text("utf-8")
    table.write_text(whole.replace("language", "tongue", 1), encoding="utf-8")
    values = vars_of(staged)["evaluate"]
    edit(staged, evaluate={"domains": values["domains"]})
    with pytest.raises(DataError, match="no column language"):
        command.run(parsed(str(staged)))
    table.write_text(whole, encoding="utf-8")
    sweep = edit(staged, evaluate__domains__shapes=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        command.run(parsed(str(staged)))
    assert command.run(parsed(str(staged), "--dry-run", "--only", "lora")) == 2
    assert "nowhere" in capfd.readouterr().out
    edit(staged, **{f"starts__{tmp_path / 'start'}__recipe": "none.yaml"})
    with pytest.raises(ConfigError, match=r"starts\..*/start: recipe .*none.yaml not found"):
        command.run(parsed(str(staged)))
    assert not (tmp_path / "start").exists()
    assert not (sweep.out / "runs").exists()


def test_a_start_that_is_not_trained_stops_the_sweep(staged: Path, tmp_path: Path) -> None:
    sweep = read_sweep(staged)
    missing = to_train(sweep, staged, sweep.arm_names())
    (tmp_path / "data" / "train.json").write_text("[]", encoding="utf-8")
    console = recording()
    assert train_starts(missing, console) == 2
    assert f"starts.{tmp_path / 'start'}: not trained (exit status 2)" in console.export_text()
    assert command.run(parsed(str(staged))) == 1
    assert not (sweep.out / "runs").exists()


def test_starts_follow_each_other(staged: Path, tmp_path: Path) -> None:
    """Whatever their order in the file; arms name only the last."""
    values = vars_of(staged)
    second = {"recipe": "onward.yaml"}
    third = {"recipe": "onward.yaml", "set": {"model": {"start_from": f"{tmp_path}/second/model"}}}
    starts = {str(tmp_path / "third"): third, str(tmp_path / "second"): second, **values["starts"]}
    moved = {"model.start_from": str(tmp_path / "x/../third/model")}
    sweep = edit(staged, starts=starts, set=moved)
    assert keys(sweep, staged, ["lora"]) == ["start", "second", "third"]
    assert waiting(sweep, staged, ["lora", "anew"], to_train(sweep, staged, ["lora"])) == ["lora"]
    circle = {"recipe": "onward.yaml", "set": {"model.start_from": f"{tmp_path}/third/model"}}
    sweep = edit(staged, starts=starts | {str(tmp_path / "second"): circle})
    with pytest.raises(ConfigError, match=r"starts\..*: it starts from itself"):
        to_train(sweep, staged, ["lora"])


def test_a_home_folder_is_meant_in_both_places(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    start = vars_of(staged)["starts"][str(tmp_path / "start")]
    sweep = edit(staged, starts={"~/begun": start}, set={"model.start_from": "~/begun/model"})
    (one,) = to_train(sweep, staged, ["lora"])
    assert one.changes[-1] == f"output_dir={tmp_path / 'begun'}"


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
    with pytest.raises(ConfigError, match=r"starts\.2024: YAML reads 2024 here"):
        edit(trained, reuse={"": ["lora"]}, starts={2024: {"recipe": "recipe.yaml"}})
