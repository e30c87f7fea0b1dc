"""Going on, going back, starting anew: what a run's folder allows, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_mole.cli import main
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import publish, remove_folder, sweep
from llava_mole.sweeping.plan import recipe_digest
from llava_mole.training.resume import find_position, latest_checkpoint, only_run, prepare_folder
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(out)}:{name}": value
        for path in sorted((out / "model").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def lines(out: Path, stage: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["stage"] == stage]


def test_a_later_stage_begins_alike_in_a_run_that_went_on(
    recipe_file: Path, tmp_path: Path
) -> None:
    """Parrot's first weights are drawn: an unbroken run has drawn dropout masks before."""
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file, ["model.lora.lora_dropout=0.2"])
    run_recipe(recipe)
    whole = weights(out)
    shutil.rmtree(out / "stages" / "3-parrot")
    shutil.rmtree(out / "stages" / "1-warm")  # only what comes last counts
    result = run_recipe(recipe)
    assert list(result.ends) == ["parrot"]
    assert same(weights(out), whole)


def test_a_run_goes_back_to_a_checkpoint_and_puts_aside_what_came_after(
    recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file)
    run_recipe(recipe)
    whole, log = weights(out), (out / "log.jsonl").read_text()
    result = run_recipe(recipe, resume=out / "stages" / "2-instruct" / "checkpoint-2")
    assert list(result.ends) == ["instruct", "parrot"]
    assert same(weights(out), whole)
    aside = out / "earlier-1"
    assert (aside / "log.jsonl").read_text() == log
    assert (aside / "stages" / "2-instruct" / "checkpoint-4").is_dir()
    assert (aside / "stages" / "3-parrot" / "model").is_dir()
    assert [e["step"] for e in lines(out, "instruct") if "loss" in e] == [1, 2, 3, 4]
    assert [e["step"] for e in lines(out, "parrot") if "loss" in e] == [1, 2]


def test_another_recipe_goes_on_from_a_checkpoint_with_its_own_rates(
    recipe_file: Path, tmp_path: Path
) -> None:
    run_recipe(load_recipe(recipe_file))
    checkpoint = tmp_path / "run" / "stages" / "2-instruct" / "checkpoint-2"
    other = tmp_path / "other"
    halved = [f"stages.instruct.learning_rates.{p}=0.005" for p in ("projector", "experts")]
    changes = [f"output_dir={other}", *halved, "stages.parrot=null"]
    result = run_recipe(load_recipe(recipe_file, changes), resume=checkpoint)
    assert list(result.ends) == ["instruct"]
    assert [e["step"] for e in lines(other, "instruct") if "loss" in e] == [3, 4]
    first = lines(tmp_path / "run", "instruct")
    before = {e["step"]: e["learning_rate"] for e in first if "loss" in e}
    after = {e["step"]: e["learning_rate"] for e in lines(other, "instruct") if "loss" in e}
    assert after == {step: pytest.approx(before[step] / 2) for step in (3, 4)}
    # The run it came from is as it was, and the new one can be stopped and go on by itself.
    assert latest_checkpoint(checkpoint.parent).name == "checkpoint-4"
    assert (other / "stages" / "2-instruct" / "checkpoint-2").is_dir()
    assert run_recipe(load_recipe(recipe_file, changes)).ends == {}


def test_a_changed_recipe_is_refused_key_by_key_unless_no_weight_depends_on_it(
    recipe_file: Path, tmp_path: Path
) -> None:
    run_recipe(load_recipe(recipe_file, ["stages.parrot=null"]))
    free = ["training.logging_steps=2", "training.save_steps=1", "training.report_to=none"]
    assert run_recipe(load_recipe(recipe_file, ["stages.parrot=null", *free])).ends == {}
    changed = ["stages.parrot=null", "stages.instruct.learning_rates.lora=0.5", "seed=4"]
    with pytest.raises(ConfigError) as caught:
        run_recipe(load_recipe(recipe_file, changed))
    for expected in ("another recipe", "seed: 0 -> 4", "--resume none",
                     "stages.1.learning_rates.lora: 0.01 -> 0.5"):  # fmt: skip
        assert expected in str(caught.value)
    assert "logging_steps" not in str(caught.value)


def test_a_changed_frequency_of_checkpoints_takes_effect_at_once(
    recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run_recipe(load_recipe(recipe_file, ["stages.parrot=null"]))
    folder = out / "stages" / "2-instruct"
    for path in (folder / "model", folder / "checkpoint-4"):
        shutil.rmtree(path)
    changes = ["stages.parrot=null", "training.save_steps=1", "training.save_total_limit=5"]
    run_recipe(load_recipe(recipe_file, changes))
    assert {p.name for p in folder.glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (2, 3, 4)
    }


def test_a_checkpoint_of_other_parts_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    run_recipe(load_recipe(recipe_file, ["stages.parrot=null"]))
    checkpoint = tmp_path / "run" / "stages" / "2-instruct" / "checkpoint-2"
    rates = "stages.instruct.learning_rates={projector: 0.01, lora: 0.01}"
    changes = [f"output_dir={tmp_path / 'other'}", "stages.parrot=null", rates]
    with pytest.raises(CheckpointError, match=r"optimizer of projector .*experts.*this recipe"):
        run_recipe(load_recipe(recipe_file, changes), resume=checkpoint)


@pytest.mark.parametrize("how", ["gone", "cut", "no mark", "weights only", "other stage"])
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    out = tmp_path / "run"
    only = ["stages.parrot=null", "stages.warm=null", "stages.instruct.steps=2"]
    only += [f"training.save_only_model={str(how == 'weights only').lower()}"]
    run_recipe(load_recipe(recipe_file, only))
    checkpoint = out / "stages" / "1-instruct" / "checkpoint-2"
    if how == "gone":
        shutil.rmtree(checkpoint)
    elif how == "cut":
        os.truncate(checkpoint / "optimizer.pt", 100)
    elif how == "no mark":
        (checkpoint / "stage.json").unlink()
    elif how == "other stage":
        mark = json.loads((checkpoint / "stage.json").read_text())
        (checkpoint / "stage.json").write_text(json.dumps({**mark, "stage": "align"}))
    command = ["train", "--config", str(recipe_file), *only, "--resume", str(checkpoint)]
    assert main(command) == 2
    said = capsys.readouterr().err
    expected = {"gone": "no such folder", "cut": "optimizer.pt: 100 bytes", "no mark": "stage.json",
                "weights only": "save_only_model", "other stage": "'align'"}  # fmt: skip
    assert expected[how] in said
    assert str(checkpoint) in said
    assert (out / "model").is_dir()  # nothing was put aside


def test_no_resume_starts_anew(recipe_file: Path, tmp_path: Path) -> None:
    only = ["stages.parrot=null", "stages.warm=null", "stages.instruct.steps=1"]
    recipe = load_recipe(recipe_file, only)
    run_recipe(recipe)
    assert run_recipe(recipe).ends == {}
    for words in (["--no-resume"], ["--resume", "none"]):
        before = (tmp_path / "run" / "log.jsonl").read_text().count("\n")
        (tmp_path / "run" / "log.jsonl").write_text("")
        assert main(["train", "--config", str(recipe_file), *only, *words]) == 0
        assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == before


def test_two_runs_cannot_share_a_folder(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    with only_run(tmp_path / "run"), pytest.raises(ConfigError, match="another run is writing"):
        run_recipe(recipe)
    assert not (tmp_path / "run" / ".lock").exists()


# ---------------------------------------------------------------------- half-made things


def test_a_recipe_file_is_never_half_written(recipe_file: Path, tmp_path: Path) -> None:
    """A kill while it is written leaves it as it was, or not there."""
    out = tmp_path / "run"
    recipe = load_recipe(recipe_file)
    prepare_folder(recipe, "auto")
    before = (out / "recipe.json").read_text()
    (out / ".recipe.json.0a1b2c3d").write_text(before[:50])
    prepare_folder(recipe, "auto")
    assert [path.name for path in out.iterdir()] == ["recipe.json"]


def test_what_kills_leave_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = [".model.building-01234567", ".checkpoint-4.removed-89abcdef", ".log.jsonl.0a1b2c3d"]
    kept = [".lock", ".gitignore", ".cache.building-xyz", "checkpoint-4", ".notes.removed-1"]
    for name in left + kept:
        (tmp_path / name).mkdir()
    assert {path.name for path in sweep(tmp_path)} == set(left)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_folder_goes_away_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while its files are deleted: no half of it is left under its name."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "weights").write_text("w")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    assert not folder.exists()
    written = tmp_path / "new"
    written.mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    (written / "weights").write_text("new")
    with pytest.raises(KeyboardInterrupt):
        publish(written, tmp_path / "checkpoint-3")
    assert (tmp_path / "checkpoint-3" / "weights").read_text() == "new"


def test_a_run_that_is_there_is_found_by_its_last_part(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert find_position(recipe).number == 0
    run_recipe(recipe)
    position = find_position(recipe)
    assert (position.number, position.checkpoint) == (3, None)
    assert position.model == tmp_path / "run" / "stages" / "3-parrot" / "model"
    shutil.rmtree(position.model)
    position = find_position(recipe)
    assert (position.number, position.model) == (2, None)
    assert position.checkpoint.name == "checkpoint-2"


@pytest.mark.parametrize(
    "name", ["rng_state.pth", "trainer_state.json", "log_sums_0.json", "stage.json"]
)
def test_a_checkpoint_damaged_in_place_is_passed_over(
    recipe_file: Path, tmp_path: Path, name: str
) -> None:
    only = ["stages.parrot=null", "stages.warm=null"]
    run_recipe(load_recipe(recipe_file, only))
    folder = tmp_path / "run" / "stages" / "1-instruct"
    damaged = folder / "checkpoint-4" / name
    if name == "stage.json":
        mark = json.loads(damaged.read_text())
        del mark["parts"]
        damaged.write_text(json.dumps(mark))
    else:
        damaged.write_bytes((b"\x80\xff" * damaged.stat().st_size)[: damaged.stat().st_size])
    assert latest_checkpoint(folder) == folder / "checkpoint-2"
    with pytest.raises(CheckpointError, match=name):
        run_recipe(load_recipe(recipe_file, only), resume=folder / "checkpoint-4")


@pytest.mark.parametrize("what", ["data", "template", "start", "recipe.json"])
def test_a_run_goes_on_only_with_the_files_it_began_with(
    recipe_file: Path, data: Path, tmp_path: Path, what: str
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("one")
    recipe = load_recipe(recipe_file, [f"model.chat_template={template}"])
    start = tmp_path / "start" / "model.safetensors"
    start.parent.mkdir()
    start.write_text("weights")
    recipe.model.start_from = str(start.parent)
    digest = recipe_digest(recipe)
    prepare_folder(recipe, "auto")
    (tmp_path / "run" / "stages" / "1-warm").mkdir(parents=True)
    prepare_folder(recipe, "auto")
    (start.parent / "README.md").write_text("what a person reads")
    assert recipe_digest(recipe) == digest
    changed = {"data": data / "train.json", "template": template, "start": start}.get(what)
    if changed is None:
        (tmp_path / "run" / "recipe.json").unlink()
    else:
        changed.write_text(changed.read_text() + " ")
        assert recipe_digest(recipe) != digest
    with pytest.raises(ConfigError) as caught:
        prepare_folder(recipe, "auto")
    named = {"start": str(start.parent), "recipe.json": "recipe.json is missing"}
    assert named.get(what, str(changed)) in str(caught.value)
    assert "--resume none" in str(caught.value)
    prepare_folder(recipe, "none")


def test_a_run_of_a_version_that_did_not_hash_its_start_goes_on(
    recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_file, [])
    prepare_folder(recipe, "auto")
    (tmp_path / "run" / "stages" / "1-warm").mkdir(parents=True)
    recipe.model.start_from = str(tmp_path / "start")
    (tmp_path / "start").mkdir()
    described = tmp_path / "run" / "recipe.json"
    written = json.loads(described.read_text("utf-8"))
    written["model"]["start_from"] = recipe.model.start_from
    described.write_text(json.dumps(written), "utf-8")
    prepare_folder(recipe, "auto")
    assert recipe.model.start_from in json.loads(described.read_text("utf-8"))["content"]
