"""benchmarks/experiments.py: every packed run is made by a step, after what it starts from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_mole.cli import build_parser
from tests.sweeping.conftest import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load_script("experiments", monkeypatch)


def test_every_pack_is_made_anew(script: Any) -> None:
    folders = {path.parent.name for path in (ROOT / script.PACKS).glob("*/*.json")}
    assert folders <= set(script.SWEEPS)
    found = script.steps(script.SWEEPS, "2", Path("out"))
    words = [" ".join(step.words) for step in found]
    for name in folders:
        for split, runs in script.packed(name).items():
            (sweep,) = [
                line for line in words
                if f"/{name}-sweep.yaml --split {split} --parallel" in line
            ]  # fmt: skip
            arms = {run.partition("/")[0] for run in runs}
            if "--only" in sweep:
                assert set(sweep.split("--only ")[1].split()) == arms
    assert words[-1].startswith("benchmarks/results.py")


def test_what_a_step_reads_is_made_before_it(script: Any) -> None:
    made: set[str] = set()
    for step in script.steps(script.SWEEPS, "2", Path("out")):
        if "train" in step.words or "sweep" in step.words:
            at = step.words[3] if step.words[3] != "--config" else step.words[4]
            text = (ROOT / at).read_text("utf-8")
            assert {f"runs/{name}" for name in script.START.findall(text)} <= made, at
            assert set(script.OTHER.findall(text)) <= made, at
            assert {f"datasets/{name}" for name in script.DATA.findall(text)} <= made, at
        made.add(step.name)


def test_commands_are_the_tools_own(script: Any) -> None:
    for step in script.steps(script.SWEEPS, "2", Path("out")):
        if step.words[0] == "-m":
            command, *rest = step.words[2:]
            build_parser(command).parse_known_args([command, *rest])
        elif step.words[0] != "-c":
            assert (ROOT / step.words[0]).is_file()


def test_a_run_that_two_sweeps_share_is_copied_whole(script: Any, tmp_path: Path) -> None:
    found = script.steps(["domain-steps-dev", "domain-regimes-dev"], "2", Path("out"))
    (copy,) = [step for step in found if step.words[0] == "-c"]
    (tmp_path / "runs/sweeps/domain-steps-dev/runs/lora-1e-3/seed-100").mkdir(parents=True)
    half = tmp_path / "runs/sweeps/domain-regimes-dev/runs/lora-1e-3.part"
    half.mkdir(parents=True)  # an earlier copy that was stopped
    subprocess.run([sys.executable, *copy.words], cwd=tmp_path, check=True)
    assert (half.with_suffix("") / "seed-100").is_dir()
    assert not half.exists()
    assert copy.made == ROOT / half.with_suffix("").relative_to(tmp_path)


def test_a_sweep_brings_what_it_starts_from(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--list", "--only", "domain-oracle-dev"]) == 0
    said = capsys.readouterr().out
    assert said.index("domain-mix-dev-sweep.yaml") < said.index("domain-oracle-dev-sweep.yaml")
    assert "data/flags.py" in said
    assert "output_dir=runs/base  # " in said
    assert "answer_styles" not in said
    assert "base-84" not in said


def test_it_stops_at_a_failure_and_goes_on_there(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    once = f"open({str(made)!r}, 'x')"
    needed = tmp_path / "needed"
    found = [
        script.Step("first", ("-c", once), made),
        script.Step("second", ("-c", f"open({str(needed)!r})")),
        script.Step("third", ("-c", "print('the end')")),
    ]
    monkeypatch.setattr(script, "steps", lambda *_: found)
    words = ["--out", str(tmp_path / "out")]
    assert script.main(words) == 1
    said = capfd.readouterr().out
    assert "[2/3]" in said
    assert "goes on from it" in said
    assert "the end" not in said
    needed.touch()
    assert script.main(words) == 0
    said = capfd.readouterr().out
    assert "[1/3]" not in said
    assert "the end" in said
