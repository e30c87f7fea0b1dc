"""Reports: from the folders alone, every figure from the predictions; and looks at test."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from PIL import Image

from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.results import points
from llava_mole.sweeping.one_run import do_run
from llava_mole.sweeping.plan import plan_runs
from llava_mole.sweeping.report import claim_line, make_report, to_markdown, write_report
from llava_mole.sweeping.run_folder import read_lines
from llava_mole.sweeping.scoring import check_choice
from llava_mole.sweeping.sweep_file import read_sweep
from tests.sweeping.conftest import edit, sign


def rate(arm, seed, domain, language, picture):
    return {"a": 0.4, "b": 0.7}[arm]


def test_every_figure_is_worked_out_again_from_the_predictions(written):
    """With plain dictionaries, as anybody could."""
    sweep = written(rate, claims={"it": {"first": "b", "second": "a"}})
    folder = write_report(sweep, make_report(sweep, "dev"))
    with (folder / "marks.csv").open(encoding="utf-8") as file:
        marks = {(row["arm"], row["by"], row["name"]): row for row in csv.DictReader(file)}
    right = defaultdict(list)
    for path in sorted((sweep.out / "runs").glob("*/*/predictions/dev/*.jsonl")):
        arm = path.relative_to(sweep.out / "runs").parts[0]
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            likeliest = row["logprobs"].index(max(row["logprobs"]))
            mark = row["letters"][likeliest] == row["answer"]
            right[arm, path.stem, row["language"]].append(mark)
    for arm in ("a", "b"):
        by_domain = {
            domain: fmean(fmean(right[arm, domain, language]) for language in ("en", "tr"))
            for domain in ("shapes", "noise")
        }
        for domain, mean in by_domain.items():
            assert float(marks[arm, "domain", domain]["mean"]) == pytest.approx(mean, abs=1e-6)
        whole = marks[arm, "all", "all"]
        assert float(whole["mean"]) == pytest.approx(fmean(by_domain.values()), abs=1e-6)
        assert float(whole["low"]) < float(whole["mean"]) < float(whole["high"])
        turkish = fmean(fmean(right[arm, domain, "tr"]) for domain in ("shapes", "noise"))
        assert float(marks[arm, "language", "tr"]["mean"]) == pytest.approx(turkish, abs=1e-6)
        kind = marks[arm, "kind", "shapes: naming"]
        if arm == "b":
            apart = float(whole["mean"]) - float(marks["a", "all", "all"]["mean"])
            assert float(whole["less"]) == pytest.approx(apart, abs=1e-5)
            assert 0 < float(whole["less_low"]) < apart < float(whole["less_high"])
        else:
            assert whole["less"] == ""
        assert float(kind["mean"]) == pytest.approx(by_domain["shapes"], abs=1e-6)


def test_a_report_is_tables_pictures_and_a_line_for_each_claim(written):
    claims = {"b_wins": {"first": "b", "second": "a", "about": "more is more"}}
    sweep = written(rate, claims=claims)
    folder = write_report(sweep, make_report(sweep, "dev"))
    text = (folder / "report.md").read_text("utf-8")
    assert "- b_wins: supported: +" in text
    assert "5 seeds, 120 pictures. more is more" in text
    assert "| arm | shapes | noise | mean | less the reference |" in text
    assert "| arm | en | tr | mean | less the reference |" in text
    assert "| kind | a | b |" in text
    assert "| b | 100 | 3 | 3 | 1.50 |" in text  # seconds a step, × those of a, the first arm
    for name in ("claims.png", "domains.png", "languages.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300
            assert picture.convert("L").getextrema()[0] < 128
    values = json.loads((folder / "report.json").read_text("utf-8"))
    assert values["claims"][0]["verdict"] == "supported"
    assert len(values["runs"]) == 10
    with (folder / "claims.csv").open(encoding="utf-8") as file:
        (claim,) = csv.DictReader(file)
    assert float(claim["p_holm"]) == pytest.approx(values["claims"][0]["p_holm"], rel=1e-4)
    edit(Path(sweep.out).parent / "written.yaml", reference="b")
    again = read_sweep(Path(sweep.out).parent / "written.yaml")
    assert "| a | 100 | 3 | 2 | 0.67 |" in to_markdown(again, make_report(again, "dev"))


def test_really_trained_runs_make_a_report_and_it_is_the_same_again(trained):
    sweep = read_sweep(trained)
    report = make_report(sweep, "dev")
    assert len(report.marks) == 2 * (1 + 2 + 2 + 4)  # all, domains, languages, kinds
    assert len(report.costs) == 4
    first = to_markdown(sweep, report)
    shutil.rmtree(sweep.out / "runs" / "moe" / "seed-0" / "model")
    assert to_markdown(sweep, make_report(sweep, "dev")) == first
    assert report.verdicts[0].seeds == (0, 1)


def test_before_the_first_run_a_report_says_what_is_missing(sweep_file):
    sweep = read_sweep(sweep_file())
    folder = write_report(sweep, make_report(sweep, "dev"))
    text = (folder / "report.md").read_text("utf-8")
    assert "- experts_help: not decidable; not scored on dev: moe/seed-0, lora/seed-0" in text
    assert "4 of 4 runs are not scored" in text
    assert not (folder / "claims.png").exists()


def test_scores_of_other_settings_are_told(trained):
    told = "4 runs were scored with other settings"
    assert told not in "\n".join(make_report(read_sweep(trained), "dev").notes)
    sweep = edit(trained, evaluate__items=3)
    assert told in "\n".join(make_report(sweep, "dev").notes)


def test_answers_without_a_picture_that_are_not_there_yet_are_told(written, tmp_path):
    written(rate)
    sweep = edit(tmp_path / "written.yaml", evaluate__withheld=True)
    report = make_report(sweep, "dev")
    assert not report.marks
    assert any("10 runs were scored with other settings" in note for note in report.notes)


def test_a_mark_that_was_changed_by_hand_is_found(written):
    sweep = written(rate, seeds=(0,))
    path = sweep.out / "runs" / "a" / "seed-0" / "predictions" / "dev" / "noise.jsonl"
    lines = path.read_text("utf-8").splitlines()
    row = json.loads(lines[4])
    row["correct"] = not row["correct"]
    path.write_text("\n".join([*lines[:4], json.dumps(row), *lines[5:]]), "utf-8")
    with pytest.raises(DataError, match=r"noise.jsonl:5"):
        make_report(sweep, "dev")


def test_runs_that_were_asked_other_questions_are_refused(written):
    sweep = written(rate)
    path = sweep.out / "runs" / "b" / "seed-1" / "predictions" / "dev" / "noise.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(lines[:-1]), "utf-8")
    with pytest.raises(DataError, match=r"noise.jsonl was changed after it was written"):
        make_report(sweep, "dev")
    sign(sweep.out / "runs" / "b" / "seed-1")
    with pytest.raises(DataError, match=r"b/seed-1 was asked other .*1 of 120 are missing"):
        make_report(sweep, "dev")


def test_seeds_of_several_recipes_are_not_put_together(written):
    sweep = written(rate, claims={"it": {"first": "b", "second": "a"}})
    about = sweep.out / "runs" / "b" / "seed-1" / "run.json"
    values = json.loads(about.read_text("utf-8"))
    values["recipe"]["rank"], whole = 8, values["recipe"] | {"rank": 4}
    about.write_text(json.dumps(values), "utf-8")
    other = about.parents[1] / "seed-0" / "run.json"
    first = json.loads(other.read_text("utf-8"))
    other.write_text(json.dumps(first | {"recipe": whole | first["recipe"]}), "utf-8")
    report = make_report(sweep, "dev")
    (verdict,) = report.verdicts
    assert verdict.verdict == "not decidable"
    assert "b/seed-0 and b/seed-1 are of other recipes" in verdict.reason
    assert "rank: 4 | 8" in verdict.reason
    assert any("tables mix several recipes" in note for note in report.notes)


def test_what_nothing_is_known_of_has_no_interval(written):
    sweep = written(rate, pictures=1, claims={"it": {"first": "b", "second": "a"}})
    report = make_report(sweep, "dev")
    (verdict,) = report.verdicts
    assert "nan" not in claim_line(verdict)
    assert "nan" not in to_markdown(sweep, report)
    assert "± 50" not in to_markdown(sweep, report)
    folder = write_report(sweep, report)
    json.loads((folder / "report.json").read_text("utf-8"), parse_constant=pytest.fail)


def test_files_of_two_recipes_in_one_folder_are_refused(written):
    sweep = written(rate)
    (sweep.out / "runs" / "b" / "seed-1" / "trained.json").write_text('{"digest": "x"}', "utf-8")
    with pytest.raises(DataError, match="b/seed-1: its files are of several recipes"):
        make_report(sweep, "dev")


def test_missing_runs_and_unlike_machines_are_told(written):
    sweep = written(rate, arms={"a": {}, "b": {"other_data": "twice"}})
    folder = sweep.out / "runs" / "b" / "seed-1"
    done = json.loads((folder / "done.json").read_text("utf-8"))
    (folder / "done.json").write_text(json.dumps(done | {"threads": 8}), "utf-8")
    (sweep.out / "runs" / "a" / "seed-4" / "done.json").unlink()
    notes = "\n".join(make_report(sweep, "dev").notes)
    assert "1 of 10 runs are not scored: a/seed-4" in notes
    assert "different processes and threads ((1, 1), (1, 8))" in notes
    assert "b is declared to see other data: twice" in notes


# ---------------------------------------------------------------------- the test split


def test_test_is_refused_until_a_choice_is_written_down(trained):
    sweep = read_sweep(trained)
    (run,) = plan_runs(sweep, trained, arms=["moe"], seeds=[0])
    with pytest.raises(ConfigError, match="the protocol names no arm, not moe"):
        do_run(sweep, run, split="test")
    assert not (run.folder / "predictions" / "test").exists()
    sweep = edit(trained, protocol={"chosen": ["lora"], "reason": "small"})
    with pytest.raises(ConfigError, match="the protocol names lora, not moe"):
        check_choice(sweep, ["moe", "lora"])


def test_a_run_that_is_trained_for_test_is_scored_on_test_alone(trained):
    edit(trained, protocol={"chosen": ["lora"], "reason": "small"}, seeds=[0, 1, 2])
    sweep = read_sweep(trained)
    (run,) = plan_runs(sweep, trained, arms=["lora"], seeds=[2])
    do_run(sweep, run, split="test")
    assert [path.name for path in (run.folder / "predictions").iterdir() if path.is_dir()] == [
        "test"
    ]
    done = json.loads((run.folder / "done.json").read_text("utf-8"))
    assert set(done["accuracy"]) == {"test"}
    do_run(sweep, run)
    done = json.loads((run.folder / "done.json").read_text("utf-8"))
    assert set(done["accuracy"]) == {"dev", "test"}


def test_every_scoring_on_test_is_on_record_and_a_second_is_seen(trained):
    choice = trained.parent / "choice.yaml"
    edit(trained, protocol="choice.yaml")
    choice.write_text(yaml.safe_dump({"chosen": ["moe"], "reason": "best on dev"}), "utf-8")
    sweep = read_sweep(trained)
    (run,) = plan_runs(sweep, trained, arms=["moe"], seeds=[0])
    for _ in range(2):  # the second finds it done
        do_run(sweep, run, split="test")
        line, other = read_lines(sweep.out / "test_scorings.jsonl")
    assert (line["domain"], other["domain"]) == ("shapes", "noise")
    assert (line["run"], line["digest"]) == ("moe/seed-0", run.digest)
    assert line["reason"] == "best on dev"
    report = make_report(sweep, "test")
    assert {mark.arm for mark in report.marks} == {"moe"}
    assert report.verdicts[0].verdict == "not decidable"
    assert "1 of 2 runs are not scored: moe/seed-1" in report.notes
    assert "**" not in "\n".join(report.notes)
    assert "test was scored 1 times, 1 runs; see test_scorings.jsonl" in report.notes
    shutil.rmtree(run.folder / "predictions" / "test")
    choice.write_text(yaml.safe_dump({"chosen": ["moe", "lora"], "reason": "both"}), "utf-8")
    sweep = read_sweep(trained)
    do_run(sweep, run, split="test")
    notes = "\n".join(make_report(sweep, "dev").notes)
    assert "**scored on test more than once**: moe/seed-0 2 times" in notes
    assert "**the choice changed between scorings on test**" in notes


@pytest.mark.parametrize("share", [0.0525, -0.0525, 0.0535, 0.66025])
def test_points_are_the_same_where_sums_are_rounded_otherwise(share):
    near = {math.nextafter(share, 1), share, math.nextafter(share, -1)}
    assert len({points(one, "+") for one in near}) == 1
    assert abs(float(points(share)) - 100 * share) <= 0.05 + 1e-9
