"""Conditions, figures, and that every figure follows from the predictions file."""

import json
from dataclasses import replace

import pytest

from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.conditions import item_key, swap_pictures
from llava_mole.evaluation.contact_sheet import contact_sheet, drawable
from llava_mole.evaluation.generation import generate_answers, same_answer
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.prompts import ask
from llava_mole.evaluation.report import evaluate_conditions, markdown_table, render_table
from llava_mole.evaluation.tables import read_predictions, recompute, tabulate


@pytest.fixture(scope="module")
def parts(tiny_model):
    return tiny_model("gemma3_text", mole=True, parrot=True, tower="cnn")


def test_report_and_recomputation_agree(parts, tsv, tmp_path):
    path = tmp_path / "out" / "predictions.jsonl"
    report = evaluate_conditions(
        *parts, tsv("train"), tsv("test"), predictions=path, progress=False, items_per_cell=5
    )
    assert recompute(path) == report.tables
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(lines) == 4 * 3 * 3 * 5
    english = report.by_language()["en"]
    named = [r for r in lines if (r["condition"], r["kind"]) == ("trained", "naming")]
    right = [r["correct"] for r in named if r["language"] == "en"]
    assert english["likelihood"] == sum(right) / 5
    assert english["conditions"]["withheld"]["yes_no"]["chance"] == 0.5
    assert all(r["shown"] is None for r in lines if r["condition"] == "withheld")
    assert all(r["shown"] != r["picture"] for r in lines if r["condition"] == "swapped")
    assert json.loads(json.dumps(report.to_dict()))["protocol"]["normalization"].startswith("mean")
    assert "| trained | naming |" in markdown_table(report.tables)
    assert render_table(report.tables).row_count == 12


def test_another_normalization_needs_no_model(parts, tsv, tmp_path):
    path = tmp_path / "p.jsonl"
    options = {"conditions": ["trained"], "predictions": path, "progress": False}
    evaluate_conditions(*parts, tsv(), **options)
    by_sum = recompute(path, "sum")
    assert evaluate_conditions(*parts, tsv(), normalization="sum", **options).tables == by_sum


def test_a_mean_of_answers_that_are_all_right_has_an_interval_all_the_same(parts, tsv, tmp_path):
    path = tmp_path / "p.jsonl"
    evaluate_conditions(*parts, tsv(), conditions=["trained"], predictions=path, progress=False)
    rows = [row for row in read_predictions(path) if row.kind == "naming"]
    right = [replace(row, answer=row.choice("mean"), chosen=row.choice("mean")) for row in rows]
    [mean] = tabulate(right).means
    assert mean.accuracy == mean.high == 1
    assert 0.5 < mean.low < 1


def test_a_changed_prediction_is_found(parts, tsv, tmp_path):
    path = tmp_path / "p.jsonl"
    evaluate_conditions(
        *parts, tsv(), conditions=["withheld"], predictions=path, progress=False, kinds=["naming"]
    )
    lines = path.read_text("utf-8").splitlines()
    row = json.loads(lines[3])
    row["chosen"] = next(letter for letter in row["letters"] if letter != row["chosen"])
    path.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]), "utf-8")
    with pytest.raises(DataError, match=r"p.jsonl:4: chosen"):
        recompute(path)


def test_a_swapped_picture_answers_none_of_the_options(tsv):
    items = read_items(tsv())
    swaps = swap_pictures(items, seed=0)
    by_key = {}
    for item in items:
        other = swaps[item.index]
        assert other.picture != item.picture
        assert other.category == item.category
        if item.category != "yes_no":
            assert not {v.right for v in items if item_key(v) == item_key(other)} & set(
                item.options.values()
            )
        assert by_key.setdefault(item_key(item), other.picture) == other.picture
    assert swap_pictures(items, seed=0) == swaps
    assert {i: o.picture for i, o in swap_pictures(items, seed=1).items()} != {
        i: o.picture for i, o in swaps.items()
    }


def test_swapping_needs_other_pictures(tsv):
    with pytest.raises(DataError, match="no picture to swap in among 1 items"):
        swap_pictures(read_items(tsv())[:3], seed=0)


def test_wrong_settings_are_refused_before_the_work(parts, tsv):
    with pytest.raises(ConfigError, match="allowed are trained, unseen"):
        evaluate_conditions(*parts, tsv(), conditions=["seen"])
    with pytest.raises(ConfigError, match=r"eval_test\.tsv"):
        evaluate_conditions(*parts, tsv())
    with pytest.raises(ConfigError, match="normalization='median'"):
        evaluate_conditions(*parts, tsv(), conditions=["trained"], normalization="median")


def test_generated_answers_come_back_in_order(parts, tsv):
    queries = [ask(item, "answers", item.image) for item in read_items(tsv())[:7]]
    together = generate_answers(*parts, queries, max_new_tokens=4, rows_per_batch=3)
    alone = [generate_answers(*parts, [query], max_new_tokens=4)[0] for query in queries]
    assert together == alone


def test_same_answer_ignores_case_composition_and_stops():
    assert same_answer(" Cafe\u0301. ", "café")
    assert same_answer("猫。", "猫")
    assert not same_answer("red", "red apple")


def test_contact_sheet_is_drawn_whatever_the_model_says(parts, tsv, tmp_path):
    from PIL import Image

    path = tmp_path / "sheet.png"
    answers = contact_sheet(*parts, tsv("test"), tsv("train"), path, cards=(6, 6))
    assert len(answers) == 6
    with Image.open(path) as sheet:
        assert sheet.width > 1400
        assert sheet.getcolors(maxcolors=1) is None
    assert drawable("a\U00012000b\nc") == "a□b c"
