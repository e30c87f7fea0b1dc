"""benchmarks/experiments.py: every packed run is made by a step, after what it starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llava_mole.cli import build_parser
from llava_mole.sweeping.beforehand import real, starts_of_arms
from llava_mole.sweeping.sweep_file import read_sweep
from tests.sweeping.conftest import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load_script("experiments", monkeypatch)


def steps_of_all(script: Any) -> list[Any]:
    return script.steps(script.in_order(script.names_of_packs()), "2", Path("out"))


def test_every_pack_is_made_anew(script: Any) -> None:
    words = [" ".join(step.words) for step in steps_of_all(script)]
    for name in script.names_of_packs():
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
    for step in steps_of_all(script):
        if "sweep" in step.words:
            path = ROOT / step.words[3]
            sweep = read_sweep(path)
            assert set(script.OTHER.findall(script.without_comments(path))) <= made, path
            assert {Path(folder).name for folder in sweep.reuse} <= made, path
            files = [path, sweep.base, *(one.recipe for one in sweep.starts.values())]
            texts = [script.without_comments(one) for one in files]
            read = {name for text in texts for name in script.DATA.findall(text)}
            assert {f"datasets/{name}" for name in read} <= made, path
        made.add(step.name)


def test_every_model_that_an_arm_starts_from_has_its_training(script: Any) -> None:
    for name in script.names_of_packs():
        path = ROOT / script.sweep_path(name)
        sweep = read_sweep(path)
        made = {real(Path(folder, "model")) for folder in sweep.starts}
        for arm, start in starts_of_arms(sweep, path, sweep.arm_names()).items():
            assert start in {None, *made} or "/runs/sweeps/" in str(start), (name, arm)


def test_commands_are_the_tools_own(script: Any) -> None:
    for step in steps_of_all(script):
        if step.words[0] == "-m":
            command, *rest = step.words[2:]
            build_parser(command).parse_known_args([command, *rest])
        else:
            assert (ROOT / step.words[0]).is_file()


def test_a_sweep_brings_what_it_starts_from(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--list", "--only", "domain-oracle-dev"]) == 0
    said = capsys.readouterr().out
    assert said.index("domain-mix-dev-sweep.yaml") < said.index("domain-oracle-dev-sweep.yaml")
    assert "data/flags.py" in said
    assert "answer_styles" not in said
    assert "language-84" not in said


def test_it_stops_at_a_failure_and_goes_on_there(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    once = f"open({str(made)!r}, 'x')"
    needed = tmp_path / "needed"
    found = [
        script.Step("first", ("-c", once), (made,)),
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


def test_pictures_of_the_pages_that_take_a_model_are_drawn_anew(script: Any) -> None:
    pages = "".join((ROOT / "docs" / name).read_text("utf-8") for name in script.PAGES)
    words = [word for step in steps_of_all(script) for word in step.words]
    shown = re.findall(r"images/results/([\w.-]+-tokens\.png)", pages)
    assert shown
    assert {f"out/images/results/{name}" for name in shown} <= set(words)
