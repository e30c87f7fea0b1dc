"""The command as a person gives it: real processes, budgets, what is refused, what help teaches."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from tqdm import tqdm

from llava_mole.errors import ConfigError
from llava_mole.ranks import cores
from llava_mole.sweeping import command
from llava_mole.sweeping.dry_run import dry_run
from llava_mole.sweeping.expected import beyond_budget, past, seconds_left
from llava_mole.sweeping.plan import plan_runs
from llava_mole.sweeping.run_folder import read_json
from llava_mole.sweeping.scheduling import Slot, Started, do_runs, last_words, make_slots
from llava_mole.sweeping.watching import STARTED_BY, watch_sweep
from tests.sweeping.conftest import edit, parsed, recording

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_runs_are_processes_that_succeed_and_fail_alone(trained: Path) -> None:
    """One goes its way; the other's model was lost after it was trained."""
    edit(trained, claims={})
    sweep = edit(trained, arms__lora__set={"stages.instruct.learning_rates.lora": 0.02})
    lora, moe = plan_runs(sweep, trained, seeds=[0])
    (moe.folder / "done.json").unlink()
    shutil.rmtree(moe.folder / "model")
    shutil.rmtree(moe.folder / "predictions")
    console = recording()
    parallel = min(2, cores())
    code = do_runs(sweep, trained, [lora, moe], split="dev", parallel=parallel, again=True,
                   console=console)  # fmt: skip
    said = console.export_text()
    assert code == 1
    assert "lora/seed-0: what was there is now in" in said
    assert "lora/seed-0: done in" in said
    first_failed = said.index("moe/seed-0: failed") < said.index("lora/seed-0: done in")
    told = "1 of 2 runs have ended (1 failed)" if first_failed else "1 of 2 runs have ended"
    assert told in said
    assert "moe/seed-0: failed (exit code 2)" in said
    assert "its model is not there any more" in said
    assert read_json(lora.folder / "done.json")["digest"] == lora.digest
    assert (lora.folder / "output.log").read_text("utf-8").strip()
    assert do_runs(sweep, trained, [lora], split="dev", console=console) == 0
    assert "1 of 1 runs are done already" in console.export_text()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_a_sweep_that_is_killed_takes_its_runs_with_it() -> None:
    receiver, sender = os.pipe()
    sweep = os.fork()
    if not sweep:
        os.environ[STARTED_BY] = str(os.getpid())
        run = os.fork()
        if run:
            os.write(sender, f"{run}\n".encode())
        else:
            watch_sweep()
        time.sleep(60)
        os._exit(0)
    run = int(os.read(receiver, 20))
    time.sleep(1.5)
    assert alive(run)  # as long as the sweep is
    os.kill(sweep, signal.SIGKILL)
    os.waitpid(sweep, 0)
    deadline = time.monotonic() + 20
    while alive(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---------------------------------------------------------------------- before anything starts


def test_a_dry_run_tells_arms_apart_and_finds_what_is_missing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = edit(
        trained,
        arms__twice={"set": {"stages.instruct.steps": 6}},
        arms__fresh={"set": {"seed_of_nothing": 1}},
    )
    with pytest.raises(ConfigError, match=r"arms.fresh: seed_of_nothing: unknown key"):
        plan_runs(sweep, trained)
    sweep = edit(trained, arms={k: v for k, v in vars_of(trained)["arms"].items() if k != "fresh"})
    console = Console(width=160)
    assert dry_run(sweep, plan_runs(sweep, trained), "dev", console) == 2
    said = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in said.splitlines() if line.count("│") > 5}
    assert "moe, over the base:\n  model.experts: {" in said
    trains = {arm: int(row.split("│")[2].replace(",", "")) for arm, row in rows.items()}
    assert 0 < trains["lora"] < trains["moe"]
    assert trains["lora"] == trains["twice"]
    assert rows["twice"].split("│")[4].strip() == "6"
    assert rows["lora"].split("│")[5] == rows["moe"].split("│")[5] != rows["twice"].split("│")[5]
    assert "arms.twice: would not see what lora sees" in said
    assert "done: 4 (lora/seed-0, moe/seed-0, lora/seed-1, moe/seed-1)" in said
    assert "to do: 2 (twice/seed-0, twice/seed-1)" in said


def vars_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


class JustStarted(Started):
    seconds = 0.0


def test_the_time_that_is_left_goes_by_the_runs_that_ended(trained: Path) -> None:
    sweep = edit(trained, seeds=[0, 1, 2])
    runs = plan_runs(sweep, trained, seeds=[2])
    known = past(sweep, "dev")
    took = {arm: 60 * fmean(minutes) for arm, minutes in known.runs.items()}
    assert seconds_left(runs, [], 1, known) == pytest.approx(sum(took.values()))
    assert seconds_left(runs, [], 3, known) == pytest.approx(max(took.values()))
    late = Started(runs[0], Slot(), None, time.monotonic() - 3600)  # longer than any took
    own = took[runs[1].arm]
    assert seconds_left(runs[1:], [late], 1, known) == pytest.approx(own)
    assert seconds_left(runs[1:], [late], 2, known) == pytest.approx(own)
    begun = JustStarted(runs[0], Slot(), None, 0.0)
    alone = seconds_left([], [begun], 2, known)
    assert alone == pytest.approx(took[runs[0].arm])  # another slot does not help it
    trained_ones = plan_runs(sweep, trained, seeds=[0])
    scored = replace(known, scorings={arm: [0.5] for arm in known.runs})  # theirs may round to 0
    assert known.scorings.keys() == known.runs.keys()
    assert seconds_left(trained_ones, [], 1, scored) == pytest.approx(30 * len(trained_ones))
    assert seconds_left(trained_ones, [], 1, past(sweep, "test")) == 0  # none was scored on it
    shutil.rmtree(sweep.out)
    assert seconds_left(runs, [], 1, past(sweep, "dev")) == 0


def test_no_run_is_started_beyond_the_budget(trained: Path) -> None:
    spent = 0.0
    for number, path in enumerate((trained.parent / "out").glob("runs/*/*/done.json"), start=1):
        path.write_text(json.dumps(read_json(path) | {"minutes": 0.1 * number}), "utf-8")
        spent += 0.1 * number
    sweep = edit(trained, minutes=2 * spent, seeds=[0, 1, 2])
    (run,) = plan_runs(sweep, trained, arms=["moe"], seeds=[2])
    assert beyond_budget(sweep, run, [], past(sweep, "dev")) is None
    sweep = edit(trained, minutes=spent + 1e-4)
    assert "moe/seed-2 would take about" in beyond_budget(sweep, run, [], past(sweep, "dev"))
    scored = Started(*plan_runs(sweep, trained, arms=["moe"], seeds=[0]), Slot(), None, 0.0, 1.0)
    sweep = edit(trained, minutes=spent + 1.5)  # the run that is scored now was trained as well
    assert "moe/seed-2 would take" in beyond_budget(
        sweep, run, [scored, scored], past(sweep, "dev")
    )
    sweep = edit(trained, minutes=spent + 1e-4)
    console = recording()
    assert do_runs(sweep, trained, [run], split="dev", console=console) == 0
    assert "not started: moe/seed-2" in console.export_text()
    assert not run.folder.exists()


def test_question_files_are_looked_for_before_anything_is_trained(sweep_file) -> None:
    path = sweep_file()
    (path.parent / "noise" / "eval_dev.tsv").unlink()
    assert command_fails(path, "noise/eval_dev.tsv")
    assert not (path.parent / "out" / "runs").exists()


def command_fails(path: Path, *said: str, options: tuple[str, ...] = ()) -> bool:
    with pytest.raises((ConfigError, ValueError)) as error:
        command.run(parsed(str(path), *options))
    return all(word in str(error.value) for word in said)


def test_what_cannot_be_done_is_refused_in_words(trained: Path) -> None:
    assert command_fails(trained, "a number from 1, or gpus", options=("--parallel", "0"))
    assert command_fails(trained, "the protocol names no arm", options=("--split", "test"))
    assert command_fails(trained, "a run is ARM/seed-N", options=("--one", "lora"))
    assert command_fails(trained, "--only: unknown 'lorra'; did you mean 'lora'?",
                         options=("--only", "lorra"))  # fmt: skip
    assert command_fails(trained, "--seeds: 7 is none of", options=("--seeds", "7"))
    if not torch.accelerator.is_available():
        assert command_fails(trained, "cores, a run needs one", options=("--parallel", "9999"))
    edit(trained, arms__lora__set={"stages.instruct.learning_rates.lora": 0.02})
    assert command_fails(trained, "lora/seed-0: digest:", "lora/seed-1: digest:", "--again")


def test_runs_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.accelerator.is_available() or not hasattr(os, "sched_getaffinity"):
        pytest.skip("of CPUs")
    assert [slot.cores for slot in make_slots(1)] == [None]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    slots = make_slots(2)
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3)]
    assert slots[0].environment == {"OMP_NUM_THREADS": "2"}


def test_a_report_needs_neither_the_recipe_nor_a_model(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(trained, base="gone.yaml")
    assert command.run(parsed(str(trained), "--report")) == 0
    said = capsys.readouterr().out
    assert "## Claims" in said
    assert "- experts_help: not" in said


def test_help_teaches_and_is_quick() -> None:
    program = (
        "import sys, llava_mole_cli\n"
        "sys.argv[1:] = ['sweep', '--help']\n"
        "try:\n    llava_mole_cli.main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', [n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert "heavy: []" in found.stdout
    assert "--split test" in found.stdout
    assert "arms:" in found.stdout


def test_a_failed_runs_last_words_are_no_progress_bars(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    said = io.StringIO("Traceback:\n")
    said.seek(0, io.SEEK_END)
    for _ in tqdm(range(2000), desc="training", file=said, mininterval=0, miniters=1):
        pass
    with tqdm(total=9, file=said) as bar:
        bar.update(3)
        said.write("data.json:3: no picture\r\n")
    output.write_text("early\n" * 40 + said.getvalue() + "\nerror: at the end", newline="")
    words = last_words(output)
    assert words[-3:] == ["Traceback:", "data.json:3: no picture", "error: at the end"]
    assert words[:-3] == ["early"] * 9
    output.write_bytes(b"")
    assert last_words(output) == []
    output.unlink()
    assert last_words(output) == []


def test_what_only_looks_like_a_bar_is_among_the_last_words(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    said = io.StringIO()
    for _ in tqdm(range(3), desc="stage", file=said, mininterval=0, miniters=1):
        for _ in tqdm(range(3), desc="held out", file=said, position=1, mininterval=0, miniters=1):
            pass
    with tqdm(file=said) as endless:
        endless.update(4)
        said.write("Traceback:")
    errors = ["ValueError: expected share 100%| got [1, 2]", "only 50%| of the rows [x] were read",
              "error: the picture"]  # fmt: skip
    output.write_text(
        said.getvalue() + "\n\x1b[2J" + "\n".join(errors) + "  50%|#    | 1/2 [00:01<00:01, 1it/s]",
        "utf-8",
    )
    assert last_words(output) == ["Traceback:", *errors]
    # A line of any length is no work, and is cut.
    for rubbish in ("0" * 4_000_000, "1%|" * 1_000_000):
        output.write_text(rubbish + "the end\nerror: end", "utf-8")
        started = time.process_time()
        cut, end = last_words(output)
        assert time.process_time() - started < 5
        assert end == "error: end"
        assert len(cut) <= 2000
        assert cut.endswith("the end")
