"""Packs: two files from which a report comes out the same, and none of the questions' words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from llava_mole.cli import main
from llava_mole.errors import DataError
from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.packing import add_to_pack, read_pack, write_pack
from llava_mole.sweeping.report import make_report, to_json


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


def only(answers, seeds):
    """What a machine has that did these seeds."""
    some = {name: {key: value for key, value in getattr(answers, name).items() if key[1] in seeds}
            for name in ("shown", "withheld", "orders", "runs", "attempts")}  # fmt: skip
    return replace(answers, **some)


def test_seeds_of_two_machines_make_one_pack(packed, tmp_path):
    sweep, _ = packed
    answers = read_answers(sweep, "dev")
    first, later = sweep.seeds[:1], sweep.seeds[1:]
    # both machines have the first of the later seeds
    assert add_to_pack(sweep, only(answers, sweep.seeds[:2]), tmp_path / "p") == []
    kept = add_to_pack(sweep, only(answers, later), tmp_path / "p")
    assert kept == [f"{arm}/seed-{seed}" for seed in first for arm in ("a", "b")]
    expected = to_json(sweep, make_report(sweep, "dev"))
    found = to_json(sweep, make_report(sweep, "dev", read_pack(sweep, "dev", tmp_path / "p")))
    assert json.dumps(found) == json.dumps(expected)


def test_runs_that_do_not_belong_together_are_not_packed_together(packed, tmp_path):
    sweep, _ = packed
    answers = read_answers(sweep, "dev")
    mine = only(answers, [1])
    add_to_pack(sweep, only(answers, [0]), tmp_path / "p")
    before = (tmp_path / "p" / "dev.json").read_bytes()
    other = replace(answers.questions[0], prompt="another")
    asked = replace(mine, questions=(other, *answers.questions[1:]))
    with pytest.raises(DataError, match=r"its 240 questions are not the 240 that these runs"):
        add_to_pack(sweep, asked, tmp_path / "p")
    add_to_pack(sweep, only(answers, [0]), tmp_path / "q")
    drew = {"digest": "other", "content": "other", "stages": []}
    sweep.arms["b"].other_data = None
    half = replace(only(answers, [0]), other_data={}, orders={("a", 0): drew, ("b", 0): drew})
    for name in ("shown", "withheld", "runs", "attempts", "orders"):
        getattr(half, name).pop(("b", 0), None)
    with pytest.raises(DataError, match=r"did not see the same samples"):
        add_to_pack(sweep, half, tmp_path / "q")
    assert (tmp_path / "p" / "dev.json").read_bytes() == before


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
    ],
    ids=["marks", "figures", "settings"],
)
def test_a_damaged_pack_is_refused_by_name(packed, change, said):
    sweep, folder = packed
    values = json.loads((folder / "dev.json").read_text("utf-8"))
    change(values)
    (folder / "dev.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(DataError, match=said):
        read_pack(sweep, "dev", folder)


def test_what_is_not_there_is_told(packed, tmp_path):
    sweep, _ = packed
    with pytest.raises(DataError, match=r"no run of .* is scored on test"):
        write_pack(sweep, read_answers(sweep, "test"), tmp_path / "none")
    with pytest.raises(DataError, match=r"no test\.csv with test\.json"):
        read_pack(sweep, "test", tmp_path / "pack")
