"""A whole recipe on tiny parts: stages, logs, resuming, and what a dry run tells."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_mole import ranks
from llava_mole.cli import main
from llava_mole.errors import ConfigError, DataError
from llava_mole.training.data import read_data, read_variants
from llava_mole.training.dry_run import dry_run
from llava_mole.training.recipe import SourceRecipe
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from llava_mole.training.warm_start import embedding_statistics


def log_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_recipe_runs_all_stages_and_leaves_a_model_that_loads(
    recipe_file: Path, tmp_path: Path
) -> None:
    result = run_recipe(load_recipe(recipe_file))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    assert loaded.parrot is not None
    ids = torch.tensor([[1, 70, 71, 72]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, result.model(ids).logits, rtol=0, atol=0)
    lines = log_lines(tmp_path / "run")
    assert {line["stage"] for line in lines} == {"warm", "instruct", "parrot"}
    step = next(line for line in lines if line["stage"] == "instruct" and line["step"] == 2)
    assert step["loss"] == pytest.approx(step["loss_language"] + step["loss_balance"], rel=1e-3)
    assert sum(step["experts_tr"]) == pytest.approx(1, abs=1e-3)


def test_a_finished_stage_is_not_run_again_and_a_killed_one_goes_on(
    recipe_file: Path, tmp_path: Path
) -> None:
    whole = run_recipe(load_recipe(recipe_file, [f"output_dir={tmp_path / 'whole'}"]))
    run = tmp_path / "run"
    recipe = load_recipe(recipe_file)
    run_recipe(recipe)
    # As if the process had died in the second stage, after its checkpoint of step 2.
    import shutil

    shutil.rmtree(run / "model")
    shutil.rmtree(run / "stages" / "3-parrot")
    shutil.rmtree(run / "stages" / "2-instruct" / "model")
    shutil.rmtree(run / "stages" / "2-instruct" / "checkpoint-4")
    warm = (run / "stages" / "1-warm" / "model" / "model.safetensors").stat().st_mtime_ns
    run_recipe(recipe)
    assert (run / "stages" / "1-warm" / "model" / "model.safetensors").stat().st_mtime_ns == warm
    for name in ("model.safetensors", "adapters/experts/adapter_model.safetensors"):
        resumed = load_file(run / "model" / name)
        expected = load_file(tmp_path / "whole" / "model" / name)
        assert resumed.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(resumed[key], tensor, rtol=0, atol=0, msg=key)
    steps = [line["step"] for line in log_lines(run) if line["stage"] == "instruct"]
    assert sorted(set(steps)) == [1, 2, 3, 4]
    assert [s for s in steps if s < 4] == [1, 2, 3]
    assert whole.seconds.keys() == {"warm", "instruct", "parrot"}


def test_another_recipe_in_the_same_folder_is_refused(recipe_file: Path) -> None:
    run_recipe(load_recipe(recipe_file, ["stages.instruct.steps=1"]))
    with pytest.raises(ConfigError, match="another recipe"):
        run_recipe(load_recipe(recipe_file, ["stages.instruct.steps=2"]))


def test_time_runs_out_before_steps_do(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["minutes=0.06", "stages.instruct.steps=100000"]
    overrides += ["stages.warm.share_of_time=0.2", "stages.parrot.share_of_time=0.2"]
    overrides += ["stages.instruct.share_of_time=0.5", "training.save_strategy='no'"]
    run_recipe(load_recipe(recipe_file, overrides))
    lines = [line for line in log_lines(tmp_path / "run") if line["stage"] == "instruct"]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert 0 < len(rates) < 100000
    assert rates[-1] < 0.5 * max(rates)


def test_a_dry_run_shows_recipe_parameters_mixture_and_a_masked_sample(recipe_file: Path) -> None:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    dry_run(load_recipe(recipe_file), console)
    text = console.export_text()
    for expected in ("output_dir", "trained in instruct", "routers", "realised", "tr", "naming"):
        assert expected in text
    assert "of" in text
    assert "tokens are supervised" in text
    assert "its image is conditioned on 'What is it?'" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.warm.warm_start.kind=title", "drop the stage"),
        ("stages.warm.warm_start.also={colour: 1}", "warm_start.also.colour"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    assert main(["train", "--config", str(recipe_file), "--dry-run", change]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_trains_and_reports_errors_in_one_message(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(recipe_file), "--stages.instruct.steps", "1"]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert main(["train", "--config", str(recipe_file), "stages.instruct.stepz=1"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_two_workers_train_what_one_trains(recipe_file: Path, tmp_path: Path) -> None:
    """The same rows in every step, shared; warm start and Parrot included."""
    options = ["--config", str(recipe_file)]
    runs = {}
    for workers in (1, 2):
        out = tmp_path / f"{workers}"
        assert main(["train", *options, f"workers={workers}", f"output_dir={out}"]) == 0
        runs[workers] = log_lines(out)
        assert (out / "model" / "config.json").is_file()
    assert [line["step"] for line in runs[1]] == [line["step"] for line in runs[2]]
    for one, two in zip(runs[1], runs[2], strict=True):
        for name in ("loss", "loss_language", "loss_balance", "loss_contrastive", "grad_norm"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), (name, one)


def test_without_a_warm_start_the_projector_meets_the_embeddings(
    recipe_file: Path, tmp_path: Path
) -> None:
    still = ["stages.instruct.learning_rates.projector=1e-9"]
    result = run_recipe(
        load_recipe(recipe_file, ["stages.warm=null", "stages.parrot=null", *still])
    )
    projector = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert projector["projector.input_scale"] != 1
    data = read_data([SourceRecipe(str(tmp_path / "data" / "train.json"))])
    seen = result.model.projector(result.features(data.pictures())[:, 1:].float())
    texts = [turn.text for s in data.samples for turn in s.turns if turn.role == "assistant"]
    tokens = [token for text in texts for token in result.processor.question_ids(text)]
    mean, spread = embedding_statistics(result.model, tokens)
    assert 0.3 * spread < (seen - mean).std() < 3 * spread


def test_workers_share_a_projector_that_was_solved_for(recipe_file: Path, tmp_path: Path) -> None:
    """One solves, all get its centres and values; a stopped run reads them again."""
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe["model"]["projector"] = {"type": "rbf", "units": 6}
    recipe["stages"][0] = {"name": "warm", "kind": "warm_start", "warm_start": {"method": "ridge"}}
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    options = ["--config", str(recipe_file)]
    losses = {}
    for workers in (1, 2):
        run = [*options, f"workers={workers}", f"output_dir={tmp_path / str(workers)}"]
        assert main(["train", *run]) == 0
        lines = log_lines(tmp_path / str(workers))
        assert lines[0]["stage"] == "warm"
        assert (lines[0]["units"], lines[0]["drawings"]) == (6, 7)
        losses[workers] = [line["loss"] for line in lines if "loss" in line]
    assert losses[2] == pytest.approx(losses[1], rel=2e-3)
    saved = tmp_path / "1" / "model" / "model.safetensors"
    before = load_file(saved)
    shutil.rmtree(tmp_path / "1" / "stages" / "3-parrot")
    assert main(["train", *options, f"output_dir={tmp_path / '1'}"]) == 0
    after = load_file(saved)
    assert before["projector.centres"].any()
    for name in before:
        if name.startswith("projector."):
            assert torch.equal(after[name], before[name])


def test_workers_stop_together_when_time_is_up(recipe_file: Path, tmp_path: Path) -> None:
    options = ["minutes=0.1", "stages.instruct.steps=100000", "stages.instruct.share_of_time=0.5"]
    options += ["stages.warm.share_of_time=0.2", "stages.parrot.share_of_time=0.2", "workers=2"]
    options += ["training.save_strategy='no'"]
    assert main(["train", "--config", str(recipe_file), *options]) == 0
    steps = [line["step"] for line in log_lines(tmp_path / "run") if line["stage"] == "instruct"]
    assert 0 < max(steps) < 100000


def test_a_worker_that_fails_ends_the_run_and_is_heard(
    recipe_file: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / "images" / "3.png").write_bytes(b"not a picture")  # the second one's: 1, 3, ...
    assert main(["train", "--config", str(recipe_file), "workers=2"]) == 2
    said = capfd.readouterr().err
    assert "3.png" in said
    assert said.count("llava-mole train: ") == 1
    assert "llava_mole/cli.py" not in said  # no traceback of ours


def test_rows_that_workers_cannot_share_are_refused_before_one_is_started(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["workers=2", "stages.instruct.pictures_per_step=3"]
    assert main(["train", "--config", str(recipe_file), *options]) == 2
    assert "stages.instruct.pictures_per_step=3" in capsys.readouterr().err
    assert main(["train", "--config", str(recipe_file), "--dry-run", *options]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGTERM, marks=pytest.mark.thorough), signal.SIGKILL]
)
def test_workers_end_with_the_process_that_started_them(
    recipe_file: Path, tmp_path: Path, sent: int
) -> None:
    options = ["workers=2", "stages.instruct.steps=100000", "training.save_strategy='no'"]
    command = [sys.executable, "-m", "llava_mole.cli", "train", "--config", str(recipe_file)]
    launcher = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        log = tmp_path / "run" / "log.jsonl"
        while not (log.is_file() and '"instruct"' in log.read_text()):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        workers = psutil.Process(launcher.pid).children()
        assert len(workers) == 2
        launcher.send_signal(sent)
        launcher.wait(timeout=30)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        launcher.kill()


def test_who_is_to_blame_when_ranks_fail() -> None:
    assert ranks.blamed([1, 2]) == 1  # rank 0 only missed rank 1, which had something to say
    assert ranks.blamed([2, 2]) == 0
    assert ranks.blamed([1, -9]) == 1
    assert ranks.blamed([1, 1]) == 0


def test_fewer_cores_start_a_number_that_shares_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(ranks, "cores", lambda: 3)
    assert [ranks.affordable(wanted) for wanted in (1, 2, 3, 4, 8)] == [1, 2, 3, 2, 2]


def test_a_warm_start_for_a_kind_that_is_not_there_is_refused_at_once(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.warm.warm_start.also={tone: 1}"])
    with pytest.raises(DataError, match=r"warm_start\.also\.tone: 0 pictures"):
        run_recipe(recipe)


def test_a_missing_data_file_says_how_to_make_it(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["data.sources.0.path=nowhere.json"])
    with pytest.raises(DataError, match=r"nowhere\.json.*no such file.*data/openmoji"):
        run_recipe(recipe)


def test_variants_are_found_however_the_data_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    (tmp_path / "link").symlink_to(data)
    for folder in (data, Path(data.name), tmp_path / "link"):
        source = SourceRecipe(str(folder / "train.json"), variants=str(data / "names.json"))
        found = read_data([source])
        (picture,) = found.variants
        assert picture in {path for sample in found.samples for path in sample.images}
        assert [path.name for path in found.variants[picture]] == ["other.png"]
        assert len(found.pictures()) == len({s.images[0] for s in found.samples}) + 1


def test_every_spelling_of_a_picture_gets_its_variants(data: Path, tmp_path: Path) -> None:
    items = json.loads((data / "train.json").read_text(encoding="utf-8"))
    items[1]["image"] = "images/../images/0.png"
    (data / "train.json").write_text(json.dumps(items), encoding="utf-8")
    sources = [SourceRecipe(str(data / "train.json"), variants=str(data / "names.json"))] * 2
    found = read_data(sources)
    assert len(found.variants) == 2
    assert all([path.name for path in paths] == ["other.png"] for paths in found.variants.values())


@pytest.mark.parametrize(
    "names",
    [
        "[]",
        '{"0": []}',
        '{"0": {"variants": [{"file": "a.png"}]}}',
        '{"0": {"variants": [{"file": 3, "keeps_colour": true}]}}',
        '{"0": {"variants": null}}',
    ],
)
def test_a_file_of_variants_of_another_shape_is_refused(tmp_path: Path, names: str) -> None:
    (tmp_path / "names.json").write_text(names)
    with pytest.raises(DataError, match=r"data.sources.variants: .*names.json: .*expected"):
        read_variants(tmp_path / "names.json")


@pytest.mark.parametrize("part", ["vision", "language_model"])
def test_what_a_stage_trained_stays_when_a_later_one_freezes_it(
    recipe_file: Path, tmp_path: Path, part: str
) -> None:
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    stage = {**recipe["stages"][1], "steps": 2}
    first = {**stage, "name": "first", "learning_rates": {"projector": 0.01, part: 0.05}}
    second = {**stage, "name": "second", "learning_rates": {"projector": 0.01}}
    recipe["stages"] = [first, second]
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    result = run_recipe(load_recipe(recipe_file))
    trained = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert trained.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in trained.items())
    # A run that is killed after the first stage and goes on loses nothing either.
    shutil.rmtree(tmp_path / "run" / "stages" / "2-second")
    again = run_recipe(load_recipe(recipe_file)).model.state_dict()
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again.items())
    prefix = "vision_tower." if part == "vision" else "language_model."
    moved = [name for name in trained if name.startswith(prefix)]
    assert moved
    assert all(torch.equal(trained[name], again[name]) for name in moved)
    if part == "vision":  # no features of the tower as it was
        files = read_data(load_recipe(recipe_file).data).pictures()
        result.model.eval()
        kept = result.features(files)
        result.features.clear()
        assert torch.equal(kept, result.features(files))


def test_variants_of_other_pictures_are_an_error(data: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    (tmp_path / "images").mkdir()
    names.write_text(json.dumps({"0": {"variants": [{"file": "o.png", "keeps_colour": True}]}}))
    with pytest.raises(DataError, match=r"no sample of .*train.json shows any of them"):
        read_data([SourceRecipe(str(data / "train.json"), variants=str(names))])


def test_variants_outside_their_folder_are_refused(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(
        json.dumps({"0": {"variants": [{"file": "../../etc/passwd", "keeps_colour": True}]}})
    )
    with pytest.raises(DataError, match="outside"):
        read_variants(names)


def test_every_recipe_that_ships_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing lies that a recipe could start from
    configs = Path(__file__).resolve().parents[2] / "configs"
    found = sorted(set(configs.rglob("*.yaml")) - set((configs / "accelerate").iterdir()))
    sweeps = set(configs.rglob("*-sweep.yaml"))  # tests/sweeping/test_sweep_file.py has those
    found = [path for path in found if path not in sweeps]
    assert found
    for path in found:
        if "start_from" in yaml.safe_load(path.read_text(encoding="utf-8"))["model"]:
            # What it starts from is not in the repository; test_published_recipes.py has it.
            with pytest.raises(ConfigError, match=r": one problem\n  model\.start_from: no folder"):
                load_recipe(path)
        else:
            load_recipe(path)
