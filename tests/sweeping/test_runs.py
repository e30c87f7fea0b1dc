"""Runs: what they leave, that arms see the same samples, that a kill costs nothing but time."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.one_run import changed_folder, do_run, is_finished
from llava_mole.sweeping.order import order_of, where_they_part
from llava_mole.sweeping.plan import PlannedRun, arm_recipe, plan_runs, resolved
from llava_mole.sweeping.run_folder import (
    append_line,
    put_aside,
    read_json,
    read_lines,
    write_json,
)
from llava_mole.sweeping.scoring import check_files
from llava_mole.sweeping.sweep_file import Sweep, read_sweep
from llava_mole.sweeping.watching import STARTED_BY
from llava_mole.training.data import read_stages
from tests.sweeping.conftest import edit

ROOT = Path(__file__).resolve().parents[2]


def planned(path: Path, arm: str, seed: int = 0) -> tuple[Sweep, PlannedRun]:
    sweep = read_sweep(path)
    (run,) = plan_runs(sweep, path, arms=[arm], seeds=[seed])
    return sweep, run


def weights(folder: Path) -> dict[str, Any]:
    return {
        f"{path.relative_to(folder)}:{name}": value
        for path in sorted((folder / "model").rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def answers(folder: Path, split: str = "dev") -> dict[str, str]:
    files = sorted((folder / "predictions" / split).glob("*.jsonl"))
    return {path.name: path.read_text("utf-8") for path in files}


# ---------------------------------------------------------------------- what a run leaves


def test_a_run_says_what_it_was_and_what_it_took(trained: Path) -> None:
    sweep, run = planned(trained, "moe", 1)
    done = read_json(run.folder / "done.json")
    assert (done["arm"], done["seed"], done["digest"]) == ("moe", 1, run.digest)
    assert done["steps"] == 3
    assert done["step_seconds"] > 0
    assert done["peak_gib"]["process"] > 0.1
    assert done["parameters"]["experts"]["trained"] == done["parameters"]["experts"]["total"] > 0
    assert done["parameters"]["language_model"]["trained"] == 0
    assert {split: set(of) for split, of in done["accuracy"].items()} == {
        "dev": {"shapes", "noise"}
    }
    assert read_json(run.folder / "run.json")["recipe"]["seed"] == 1
    assert not (run.folder / "stages").exists()
    assert (run.folder / "model" / "config.json").is_file()
    lines = answers(run.folder)["shapes.jsonl"].splitlines()
    assert len(lines) == 2 * 2 * 4  # kinds, languages, items
    assert {json.loads(line)["condition"] for line in lines} == {"trained"}
    assert is_finished(sweep, run, "dev")
    assert not is_finished(sweep, run, "test")


def test_arms_of_a_seed_see_the_same_samples_and_seeds_do_not(trained: Path) -> None:
    digests = {
        (arm, seed): read_json(planned(trained, arm, seed)[1].folder / "order.json")["digest"]
        for arm in ("lora", "moe")
        for seed in (0, 1)
    }
    assert digests["lora", 0] == digests["moe", 0] != digests["lora", 1] == digests["moe", 1]


def test_the_order_is_that_of_the_rows_that_are_trained_on(sweep_file: Callable[..., Path]) -> None:
    """Changed data, more rows, or the same rows in larger steps: all are another order."""
    path = sweep_file()
    _, run = planned(path, "lora")
    before = order_of(run.recipe, read_stages(run.recipe))
    assert [stage["rows"] for stage in before["stages"]] == [6]
    assert before["stages"][0]["samples"] == 12
    run.recipe.stages[0].learning_rates["lora"] = 0.5
    assert where_they_part(before, order_of(run.recipe, read_stages(run.recipe))) is None
    run.recipe.stages[0].steps = 6
    twice = order_of(run.recipe, read_stages(run.recipe))
    assert "from row 0 on" in where_they_part(before, twice)
    run.recipe.stages[0].steps, run.recipe.stages[0].pictures_per_step = 2, 3
    larger = order_of(run.recipe, read_stages(run.recipe))
    assert larger["stages"][0]["digest"] == before["stages"][0]["digest"]
    assert "2 and 3 rows a step" in where_they_part(before, larger)
    train = path.parent / "data" / "train.json"
    train.write_text(train.read_text("utf-8").replace("thing a", "thing z"), "utf-8")
    assert "other data files" in where_they_part(
        larger, order_of(run.recipe, read_stages(run.recipe))
    )


def test_an_arm_that_would_see_other_samples_is_refused_before_it_trains(trained: Path) -> None:
    twice = {"set": {"stages.instruct.steps": 6}}
    edit(trained, arms__twice=twice)
    sweep, run = planned(trained, "twice")
    with pytest.raises(ConfigError, match=r"twice/seed-0 and lora/seed-0 would not see the same"):
        do_run(sweep, run)
    assert not (run.folder / "log.jsonl").exists()
    assert not (run.folder / "order.json").exists()  # no other arm is held against it
    edit(trained, arms__twice=twice | {"other_data": "twice the samples"})
    sweep, run = planned(trained, "twice")
    do_run(sweep, run)
    assert read_json(run.folder / "done.json")["steps"] == 6


# ---------------------------------------------------------------------- not again, or again


def test_what_is_done_is_not_done_again(trained: Path) -> None:
    sweep, run = planned(trained, "lora")
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")}
    do_run(sweep, run)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")} == before


def test_a_run_of_an_earlier_version_is_the_same_run(trained: Path) -> None:
    """It had fewer keys, so another digest."""
    sweep, run = planned(trained, "moe")
    for name in ("run.json", "trained.json", "done.json"):
        values = read_json(run.folder / name)
        values["digest"] = "0123456789abcdef"
        if "recipe" in values:
            del values["recipe"]["model"]["experts"]["shared_expert_r"]
            del values["recipe"]["threads"], values["recipe"]["stages"][0]["warm_start"]
        write_json(run.folder / name, values)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")}
    do_run(sweep, run)
    shutil.rmtree(run.folder / "predictions")  # to be scored anew
    do_run(sweep, run)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")} == before
    names = ("run.json", "trained.json", "done.json")
    assert {read_json(run.folder / name)["digest"] for name in names} == {"0123456789abcdef"}
    assert ("moe", run.seed) in read_answers(sweep, "dev").runs
    edit(trained, arms__moe__set={"model.experts.shared_expert_r": 2})
    with pytest.raises(ConfigError, match=r"shared_expert_r: 0 -> 2"):
        do_run(sweep, planned(trained, "moe")[1])


def test_a_packed_recipe_is_the_same_wherever_its_files_lie(trained: Path, tmp_path: Path) -> None:
    _, run = planned(trained, "moe")
    moved = copy.deepcopy(run.recipe)
    for source in moved.data.sources:
        path = Path(source.path)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        source.path = str(shutil.copy(path, tmp_path / "elsewhere" / path.name))
    moved.seed, moved.workers, moved.output_dir = 9, 2, "another"
    moved.model.language_model = f"/elsewhere/{Path(moved.model.language_model).name}"
    assert arm_recipe(resolved(moved)) == arm_recipe(resolved(run.recipe))
    Path(moved.data.sources[0].path).write_text("[]")
    assert arm_recipe(resolved(moved)) != arm_recipe(resolved(run.recipe))


def test_another_recipe_is_refused_with_both_digests_and_put_aside_when_asked(
    trained: Path,
) -> None:
    sweep, old = planned(trained, "lora")
    edit(trained, arms__lora__set={"stages.instruct.learning_rates.lora": 0.5})
    sweep, run = planned(trained, "lora")
    assert old.digest != run.digest
    with pytest.raises(ConfigError) as error:
        do_run(sweep, run)
    assert f"{old.digest} -> {run.digest}" in str(error.value)
    assert "stages.0.learning_rates.lora: 0.01 -> 0.5" in str(error.value)
    before = weights(run.folder)
    do_run(sweep, run, again=True)
    aside = sweep.out / "earlier" / "1" / "lora" / "seed-0"
    assert weights(aside).keys() == before.keys()
    assert all(weights(aside)[name].equal(value) for name, value in before.items())
    assert read_json(run.folder / "done.json")["digest"] == run.digest
    assert any(not weights(run.folder)[name].equal(value) for name, value in before.items())


def test_logging_may_change_without_doing_a_run_again(trained: Path) -> None:
    edit(trained, set={"training.logging_steps": 3, "workers": 2})
    sweep, run = planned(trained, "lora")
    assert is_finished(sweep, run, "dev")


def test_questions_that_changed_are_asked_again_of_the_model_that_is_there(trained: Path) -> None:
    sweep = edit(trained, evaluate__items=2, evaluate__withheld=True)
    _, run = planned(trained, "lora")
    before = weights(run.folder)
    assert not is_finished(sweep, run, "dev")
    do_run(sweep, run)
    assert len(answers(run.folder)["shapes.jsonl"].splitlines()) == 2 * 2 * 2 * 2
    assert all(weights(run.folder)[name].equal(value) for name, value in before.items())


def test_a_file_of_questions_that_was_built_anew_is_asked_again(trained: Path) -> None:
    sweep, _ = planned(trained, "lora")
    copy = trained.parent / "shapes"
    shutil.copytree(sweep.evaluate.domains["shapes"], copy)
    edit(trained, evaluate__domains__shapes=str(copy))
    sweep, run = planned(trained, "lora")
    assert is_finished(sweep, run, "dev")  # the same questions, elsewhere
    noise = (run.folder / "predictions" / "dev" / "noise.jsonl").stat().st_mtime_ns
    head, *lines = (copy / "eval_dev.tsv").read_text("utf-8").splitlines(keepends=True)
    place = head.split("\t").index("question")
    cells = [line.split("\t") for line in lines]
    asked = ["\t".join([*row[:place], "Anew: " + row[place], *row[place + 1 :]]) for row in cells]
    (copy / "eval_dev.tsv").write_text("".join([head, *asked]), "utf-8")
    assert not is_finished(sweep, run, "dev")
    assert run.name in read_answers(sweep, "dev").stale
    do_run(sweep, run)
    found = answers(run.folder)
    assert found["shapes.jsonl"].count("Anew: ") == len(found["shapes.jsonl"].splitlines())
    assert (run.folder / "predictions" / "dev" / "noise.jsonl").stat().st_mtime_ns == noise
    assert is_finished(sweep, run, "dev")


def test_predictions_that_are_not_as_written_are_made_anew(trained: Path) -> None:
    sweep, run = planned(trained, "lora")
    path = run.folder / "predictions" / "dev" / "noise.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match=r"noise\.jsonl was changed after it was written"):
        read_answers(sweep, "dev")
    do_run(sweep, run)
    assert path.read_bytes() == whole


def test_kinds_that_no_file_has_are_refused_before_anything_is_trained(trained: Path) -> None:
    sweep = edit(trained, evaluate__kinds=["naming", "nameing"])
    with pytest.raises(DataError, match=r"unknown 'nameing'; did you mean 'naming'"):
        check_files(sweep.evaluate, "dev")
    sweep = edit(trained, evaluate__kinds=["none"])
    with pytest.raises(DataError, match=r"eval_dev.tsv has choice, naming in ar, en"):
        check_files(sweep.evaluate, "dev")


def test_a_line_of_the_log_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"reason": "best\u2028on dev"})  # no end of a line, but Python's
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda to, data: write(to, data[:5]))  # as on a full disk
        with pytest.raises(CheckpointError, match="No space left"):
            append_line(path, {"lost": True})
    append_line(path, {"next": 1})
    assert read_lines(path) == [{"reason": "best\u2028on dev"}, {"next": 1}]


def test_a_run_whose_sweep_is_gone_before_it_looks_does_not_go_on() -> None:
    watching = "from llava_mole.sweeping.watching import watch_sweep; watch_sweep(); print('alone')"
    for parent, code in ((1, 1), (0, 0)):  # not this process, and none
        found = subprocess.run(
            [sys.executable, "-c", watching], env=os.environ | {STARTED_BY: str(parent)},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (found.returncode, found.stdout) == (code, "" if code else "alone\n")


def test_a_run_that_does_not_say_what_it_is_can_be_put_aside(trained: Path) -> None:
    sweep, run = planned(trained, "lora")
    write_json(run.folder / "run.json", {})
    with pytest.raises(CheckpointError, match="no digest with a recipe"):
        is_finished(sweep, run, "dev")
    assert changed_folder(run)


def test_a_run_is_scored_on_the_domains_of_its_arm(trained: Path) -> None:
    sweep = edit(trained, arms__lora__domains=["noise"], evaluate__items=2, claims={})
    _, run = planned(trained, "lora")
    do_run(sweep, run)
    assert is_finished(sweep, run, "dev")
    found = json.loads((run.folder / "predictions" / "dev" / "scored.json").read_text())
    assert list(found["domains"]) == ["noise"]
    sweep = edit(trained, arms__lora__domains=None)
    assert not is_finished(sweep, run, "dev")


def test_of_a_run_nothing_but_figures_may_be_kept(trained: Path) -> None:
    sweep = edit(trained, keep="nothing")
    _, run = planned(trained, "lora")
    do_run(sweep, run)
    assert not (run.folder / "model").exists()
    assert is_finished(sweep, run, "dev")
    do_run(sweep, run)
    sweep = edit(trained, evaluate__items=2)
    with pytest.raises(CheckpointError, match=r"its model is not there any more \(keep: nothing\)"):
        do_run(sweep, run)


# ---------------------------------------------------------------------- killed


class Server:
    """Runs, each in a forked child."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeping.fork_server"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, path: Path, run: str) -> int:
        order = {"sweep": str(path), "run": run, "split": "dev"}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> int:
        return int(self.process.stdout.readline())


@pytest.fixture
def server() -> Iterator[Server]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Server()
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=30)


def test_killed_again_and_again_a_run_ends_with_the_same_weights_and_answers(
    trained: Path, server: Server
) -> None:
    """Before, while and after it trains, while it is scored. Meanwhile nobody else may do it."""
    sweep, run = planned(trained, "moe")
    expected, figures = weights(run.folder), answers(run.folder)
    put_aside(sweep, run)
    edit(trained, set={"training.save_steps": 1})
    marks = [
        run.folder / "order.json",
        run.folder / "stages" / "1-instruct" / "checkpoint-2",
        run.folder / "trained.json",
        run.folder / "predictions" / "dev" / "shapes.jsonl",
    ]
    begun = run.folder / "attempts.jsonl"
    for number, mark in enumerate(marks, start=1):
        child = server.start(trained, run.name)
        deadline = time.monotonic() + 60
        while not mark.exists() or begun.read_bytes().count(b"\n") < number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(child, signal.SIGSTOP)  # its lock is still held
        if mark is marks[0]:
            edited, same = planned(trained, "moe")
            with pytest.raises(ConfigError, match="another run is writing in"):
                do_run(edited, same)
        os.kill(child, signal.SIGKILL)
        assert server.read() == -signal.SIGKILL
        assert not (run.folder / "done.json").exists()
    assert (run.folder / "trained.json").exists()
    server.start(trained, run.name)
    assert server.read() == 0
    found = weights(run.folder)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())
    assert answers(run.folder) == figures
    assert len(read_lines(run.folder / "attempts.jsonl")) == len(marks) + 1


def test_a_run_that_was_killed_while_scored_keeps_the_domains_that_were_done(
    trained: Path,
) -> None:
    sweep, run = planned(trained, "lora")
    folder = run.folder / "predictions" / "dev"
    marks = json.loads((folder / "scored.json").read_text("utf-8"))
    before = answers(run.folder)
    del marks["domains"]["noise"]
    (folder / "scored.json").write_text(json.dumps(marks), "utf-8")
    (folder / "noise.jsonl").unlink()
    (folder / ".noise.jsonl.12345678").write_text("half", "utf-8")
    (run.folder / "done.json").unlink()
    kept = (folder / "shapes.jsonl").stat().st_mtime_ns
    do_run(sweep, run)
    assert (folder / "shapes.jsonl").stat().st_mtime_ns == kept
    assert answers(run.folder) == before
    assert not list(folder.glob(".noise*"))
