"""Packs: two files from which a report comes out the same, and none of the questions' words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from llava_mole.cli import main
from llava_mole.errors import ConfigError, DataError
from llava_mole.folders import sha256_file
from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.packing import add_to_pack, read_pack, write_pack
from llava_mole.sweeping.report import make_report, to_json
from llava_mole.training.resume import only_run


def rate(arm, seed, domain, language, picture):
    return {"a": 0.4, "b": 0.7}[arm]


@pytest.fixture
def packed(written, tmp_path):
    """(sweep, folder of its pack)."""
    sweep = written(rate, arms={"a": {}, "b": {"other_data": "twice"}},
                    claims={"it": {"first": "b", "second": "a"}})  # fmt: skip
    return sweep, write_pack(sweep, read_answers(sweep, "dev"), tmp_path / "pack")


def test_the_report_is_the_same_without_the_runs(packed):
    sweep, folder = packed
    expected = to_json(sweep, make_report(sweep, "dev"))
    shutil.rmtree(sweep.out)
    answers = read_pack(sweep, "dev", folder)
    found = to_json(sweep, make_report(sweep, "dev", answers))
    assert found["claims"][0]["verdict"] == "supported"
    assert json.dumps(found) == json.dumps(expected)


def test_what_a_specialist_was_not_asked_stays_unasked(written, tmp_path):
    alone = {"other_data": "shapes alone", "domains": ["shapes"]}
    claim = {"first": "b", "second": "a", "domains": ["shapes"]}
    sweep = written(rate, arms={"a": {}, "b": alone}, claims={"it": claim})
    expected = to_json(sweep, make_report(sweep, "dev"))
    answers = read_pack(sweep, "dev", write_pack(sweep, read_answers(sweep, "dev"), tmp_path / "p"))
    shutil.rmtree(sweep.out)
    assert json.dumps(to_json(sweep, make_report(sweep, "dev", answers))) == json.dumps(expected)
    sweep.arms["b"].domains = None
    with pytest.raises(DataError, match=r"a run was not asked all .* arms\.NAME\.domains"):
        read_pack(sweep, "dev", tmp_path / "p")


def part(answers, wanted):
    """What a machine has that did the runs (arm, seed) for which `wanted` is true."""
    names = ("shown", "withheld", "orders", "runs", "recipes", "attempts")
    some = {name: {key: value for key, value in getattr(answers, name).items() if wanted(*key)}
            for name in names}  # fmt: skip
    return replace(answers, **some)


def test_seeds_of_two_machines_make_one_pack(packed, tmp_path):
    sweep, _ = packed
    answers = read_answers(sweep, "dev")
    # both machines have the second seed
    first, later = part(answers, lambda _, seed: seed < 2), part(answers, lambda _, seed: seed > 0)
    assert add_to_pack(sweep, first, tmp_path / "p") == ([], [])
    assert add_to_pack(sweep, later, tmp_path / "p") == (["a/seed-0", "b/seed-0"], [])
    expected = to_json(sweep, make_report(sweep, "dev"))
    found = to_json(sweep, make_report(sweep, "dev", read_pack(sweep, "dev", tmp_path / "p")))
    assert json.dumps(found) == json.dumps(expected)
    for name in ("dev.csv", "dev.json"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "pack" / name).read_bytes()


def test_a_specialist_of_another_machine_joins(written, tmp_path):
    alone = {"other_data": "shapes alone", "domains": ["shapes"]}
    sweep = written(rate, arms={"a": {}, "b": alone})
    shutil.move(sweep.out / "runs" / "b", tmp_path / "b")
    both = read_answers(sweep, "dev")
    shutil.move(sweep.out / "runs" / "a", tmp_path / "a")
    shutil.move(tmp_path / "b", sweep.out / "runs" / "b")
    one = read_answers(sweep, "dev")
    assert set(one.column("domain")) == {"shapes"}
    for name, order in (("p", (both, one)), ("q", (one, both))):
        for answers in order:
            add_to_pack(sweep, answers, tmp_path / name)
    shutil.move(tmp_path / "a", sweep.out / "runs" / "a")
    write_pack(sweep, read_answers(sweep, "dev"), tmp_path / "whole")
    for name in ("p", "q"):
        found = read_pack(sweep, "dev", tmp_path / name)
        whole = read_pack(sweep, "dev", tmp_path / "whole")
        assert found.questions == whole.questions
        assert to_json(sweep, make_report(sweep, "dev", found)) == to_json(
            sweep, make_report(sweep, "dev", whole)
        )


def other_questions(answers, sweep):
    other = replace(answers.questions[0], prompt="another")
    return replace(answers, questions=(other, *answers.questions[1:]))


def other_recipe(answers, sweep):
    return replace(answers, recipes={key: {"arm": "c", "younger": 1} for key in answers.recipes})


def other_samples(answers, sweep):
    """The pack keeps b with seed 0; here a drew something else with that seed."""
    drew = {"digest": "other", "content": "other", "stages": []}
    answers = part(answers, lambda arm, seed: (arm, seed) == ("a", 0))
    return replace(answers, other_data={}, orders={("a", 0): drew})


def other_arms(answers, sweep):
    sweep.arms = {"b": sweep.arms["b"]}
    return answers


def stale(answers, sweep):
    return replace(answers, stale=["a/seed-1"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_questions, r"the pack's 120 questions on shapes are not the 120 that these runs"),
        (other_recipe, r"a/seed-0 and a/seed-1 are of other recipes, data or starts: arm: a \| c"),
        (other_samples, r"did not see the same samples"),
        (other_arms, r"has a/seed-0, which the sweep file does not have"),
        (stale, r"scored with other settings or questions than evaluate has now: a/seed-1"),
    ],
)
def test_runs_that_do_not_belong_together_are_not_packed_together(packed, tmp_path, change, said):
    sweep, folder = packed
    answers = read_answers(sweep, "dev")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    later = part(answers, lambda _, seed: seed > 0) if change is not other_samples else answers
    with pytest.raises(DataError, match=said):
        add_to_pack(sweep, change(later, sweep), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_that_answers_otherwise_than_the_pack_is_named(packed):
    sweep, folder = packed
    answers = read_answers(sweep, "dev")
    answers.shown["a", 1] = 1 - answers.shown["a", 1]
    assert add_to_pack(sweep, answers, folder) == ([], ["a/seed-1"])
    assert add_to_pack(sweep, answers, folder) == ([], [])


def test_a_pack_that_was_half_written_is_told(packed):
    sweep, folder = packed
    (folder / "dev.csv").write_text((folder / "dev.csv").read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(
        DataError, match=r"dev\.csv is not the one that .*dev\.json was written with"
    ):
        read_pack(sweep, "dev", folder)
    with pytest.raises(DataError, match=r"remove dev\.csv and dev\.json"):
        add_to_pack(sweep, read_answers(sweep, "dev"), folder)


def test_a_pack_has_no_words_of_the_questions(packed):
    sweep, folder = packed
    words = {w for question in read_answers(sweep, "dev").questions for w in question.texts}
    text = "".join(path.read_text("utf-8") for path in folder.iterdir())
    assert words
    assert not [word for word in words if len(word) > 3 and word in text]


def test_the_command_line_packs_and_reports(packed, tmp_path, capsys):
    sweep, folder = packed
    path = tmp_path / "again.yaml"
    values = {
        "base": "unused.yaml", "output_dir": str(sweep.out), "seeds": sweep.seeds,
        "arms": {"a": {}, "b": {"other_data": "twice"}},
        "evaluate": {"domains": sweep.evaluate.domains, "items": sweep.evaluate.items,
                     "languages": sweep.evaluate.languages, "withheld": sweep.evaluate.withheld},
        "claims": {"it": {"first": "b", "second": "a"}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    assert main(["sweep", str(path), "--pack", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "dev.csv").read_bytes() == (folder / "dev.csv").read_bytes()
    words = ["sweep", str(path), "--report", "--from", str(folder), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "it: supported" in capsys.readouterr().out
    assert (tmp_path / "out" / "report" / "dev" / "domains.png").is_file()
    assert main(["sweep", str(path), "--from", str(folder)]) == 2
    assert "only with --report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["runs"]["a/seed-0"].update(shown="01"), "not 240 of 0, 1 and -"),
        (lambda values: values["runs"]["a/seed-0"].pop("done"), r"no pack of a sweep .*done"),
        (lambda values: values["settings"].update(items=3), "was packed with evaluate="),
        (lambda values: values.update(split="test"), r"is of test, not of dev"),
        (lambda values: values["runs"]["a/seed-0"].update(seed=1), r"says that it is a/seed-1"),
        (lambda values: values["runs"]["a/seed-0"].update(done={}), r"no pack of a sweep"),
        (lambda values: values["runs"]["a/seed-0"].update(order={}), r"no pack of a sweep"),
        (lambda values: values["runs"]["a/seed-0"].update(attempts="x"), r"no pack of a sweep"),
        (lambda values: values["runs"]["a/seed-0"]["done"].update(peak_gib={}), "no pack of a"),
        (lambda values: values.update(test_scorings=[1]), r"no pack of a sweep"),
    ],
    ids=[
        "marks",
        "figures",
        "settings",
        "split",
        "name",
        "done",
        "order",
        "attempts",
        "peak",
        "scorings",
    ],
)
def test_a_damaged_pack_is_refused_by_name(packed, change, said):
    sweep, folder = packed
    values = json.loads((folder / "dev.json").read_text("utf-8"))
    change(values)
    (folder / "dev.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(DataError, match=said):
        read_pack(sweep, "dev", folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines, lines[-1]], "a question stands there twice"),
        (lambda lines: [*lines[:-1], b"\xff" + lines[-1]], "no pack of a sweep .*Unicode"),
    ],
    ids=["twice", "bytes"],
)
def test_a_damaged_table_of_questions_is_refused_by_name(packed, change, said):
    sweep, folder = packed
    table = folder / "dev.csv"
    lines = change(table.read_bytes().splitlines(keepends=True))
    table.write_bytes(b"".join(lines))
    values = json.loads((folder / "dev.json").read_text("utf-8"))
    values["questions"] = sha256_file(table)
    (folder / "dev.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(DataError, match=said):
        read_pack(sweep, "dev", folder)


def test_a_pack_of_other_domains_is_refused(packed):
    sweep, folder = packed
    less = replace(sweep, evaluate=replace(sweep.evaluate, domains={"noise": "nowhere"}))
    with pytest.raises(DataError, match=r"has questions on shapes: not in evaluate\.domains"):
        read_pack(less, "dev", folder)
    domains = {**sweep.evaluate.domains, "more": "nowhere"}
    more = replace(sweep, evaluate=replace(sweep.evaluate, domains=domains))
    with pytest.raises(DataError, match="has no question on more"):
        read_pack(more, "dev", folder)


def test_two_that_pack_at_once_do_not_take_each_others_runs_away(packed):
    sweep, folder = packed
    with only_run(folder), pytest.raises(ConfigError, match="another run is writing in"):
        add_to_pack(sweep, read_answers(sweep, "dev"), folder)


def test_what_is_not_there_is_told(packed, tmp_path):
    sweep, _ = packed
    with pytest.raises(DataError, match=r"no run of .* is scored on test"):
        write_pack(sweep, read_answers(sweep, "test"), tmp_path / "none")
    with pytest.raises(DataError, match=r"no test\.csv with test\.json"):
        read_pack(sweep, "test", tmp_path / "pack")
