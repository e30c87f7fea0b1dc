"""The digits data set: other hands held out, fair by construction, deterministic."""

import csv
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="needs the starter extra")

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import digits
import digits_drawing as drawing
import digits_items as items
import digits_questions as ask

from llava_mole.data import read_llava_json
from llava_mole.errors import ConfigError
from llava_mole.languages import LANGUAGES

SMALL = {
    "limit": 80,
    "renderings": 1,
    "pairs": 30,
    "several": 40,
    "eval_items": 24,
    "progress": False,
}
TEXTS = ("train.json", "names.json", "dataset.json", "eval_train.tsv", "eval_dev.tsv")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "set"
    digits.build(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def names(built) -> dict[str, dict]:
    return json.loads((built / "names.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def train(built) -> list[dict]:
    return json.loads((built / "train.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=["train", "dev", "test"])
def rows(request, built) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    with (built / f"eval_{request.param}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def picture_of(row: dict) -> str:
    return re.match(r"picture=([^;]+);", row["comment"])[1]


# --- handwriting and sheets -----------------------------------------------------------------------


def test_splits_cover_all_records_once_and_begin_where_a_form_begins():
    every = [record for records in drawing.RECORDS.values() for record in records]
    assert every == list(range(1797))
    for records in drawing.RECORDS.values():
        first = [drawing.value(record) for record in records[:20]]
        assert first == [*range(10), *range(10)]


@pytest.mark.parametrize("families", [drawing.PAPERS, drawing.INKS])
def test_no_two_splits_share_a_paper_or_an_ink(families):
    every = [member for members in families.values() for member in members]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("paper", [p for papers in drawing.PAPERS.values() for p in papers])
def test_ink_lies_where_the_digit_was_put_and_nowhere_else(paper):
    split = next(name for name, papers in drawing.PAPERS.items() if paper in papers)
    one = drawing.Written(record=3, x=0.3, y=0.6, size=0.45)
    with_ink = drawing.draw((one,), paper, split, random.Random(4))
    without = drawing.draw((), paper, split, random.Random(4))
    change = np.abs(np.asarray(with_ink, dtype=int) - np.asarray(without, dtype=int)).sum(-1) > 90
    y, x = np.argwhere(change).mean(0) / drawing.PIXELS
    assert abs(x - 0.3) < 0.06
    assert abs(y - 0.6) < 0.06
    assert 0.01 < change.mean() < 0.25
    assert not change[:, round(0.75 * drawing.PIXELS) :].any()


def test_a_drawn_digit_still_has_the_shape_of_its_bitmap():
    for record in range(0, 40):
        one = drawing.Written(record, 0.5, 0.5, 0.8)
        drawn = drawing.draw((one,), "plain", "dev", random.Random(record)).convert("L")
        ink = np.asarray(drawn, dtype=float).max() - np.asarray(drawn, dtype=float)
        side = round(0.8 * drawing.PIXELS)
        margin = (drawing.PIXELS - side) // 2
        cut = Image.fromarray(ink[margin : margin + side, margin : margin + side].astype("uint8"))
        small = np.asarray(cut.resize((8, 8), Image.Resampling.BOX), dtype=float)
        bitmap = drawing._data()[0][record]
        assert np.corrcoef(small.ravel(), bitmap.ravel())[0, 1] > 0.55, record


def test_digits_of_a_pair_are_far_enough_apart_and_stand_side_by_side():
    made = items.sheets("dev", drawing.RECORDS["dev"], renderings=1, pairs=40, several=20, seed=1)
    pairs = [sheet for sheet in made if sheet.sort == "pair"]
    assert len(pairs) == 40
    for sheet in pairs:
        left, right = sheet.values
        assert abs(left - right) >= items.LEAST_APART
        assert sheet.written[0].x < 0.5 < sheet.written[1].x
    assert sum(sheet.values[0] > sheet.values[1] for sheet in pairs) == 20


def test_several_digits_are_of_one_size_and_do_not_overlap():
    made = items.sheets("dev", drawing.RECORDS["dev"], renderings=1, pairs=10, several=40, seed=1)
    sheets = [sheet for sheet in made if sheet.sort == "several"]
    assert Counter(len(sheet.written) for sheet in sheets) == {1: 10, 2: 10, 3: 10, 4: 10}
    for sheet in sheets:
        assert len({digit.size for digit in sheet.written}) == 1
        for number, one in enumerate(sheet.written):
            for other in sheet.written[:number]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= 0.39


def test_size_does_not_tell_how_many_digits_there_are():
    made = items.sheets("dev", drawing.RECORDS["dev"], renderings=1, pairs=10, several=400, seed=1)
    sizes = {
        count: [s.written[0].size for s in made if s.sort == "several" and len(s.written) == count]
        for count in range(1, 5)
    }
    means = [sum(found) / len(found) for found in sizes.values()]
    assert max(means) - min(means) < 0.02


# --- the files ------------------------------------------------------------------------------------


def test_training_items_are_read_by_our_own_reader(built):
    samples = read_llava_json(built / "train.json", built)
    assert {sample.language for sample in samples} == set(LANGUAGES)
    assert {sample.domain for sample in samples} == {"digits"}
    assert {sample.metadata["kind"] for sample in samples} == set(ask.KINDS)
    assert len({sample.metadata["id"] for sample in samples}) == len(samples)


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    digits.build(tmp_path / "again", **SMALL)
    for name in TEXTS:
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name


def test_someone_elses_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an earlier build of the data set 'digits'"):
        digits.build(tmp_path, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_too_small_numbers_are_refused_all_at_once(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"limit is 3.*pairs is 1: expected 10 or more"):
        digits.build(tmp_path / "set", limit=3, pairs=1)
    assert digits.main(["--out", str(tmp_path / "set"), "--limit", "3", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_attribution_names_the_source_and_the_manifest_what_is_held_out(built):
    text = (built / "ATTRIBUTION.txt").read_text("utf-8")
    assert "CC BY 4.0" in text
    manifest = json.loads((built / "dataset.json").read_text("utf-8"))
    assert manifest["held_out"]["records"]["dev"] == [1157, 1415]
    assert manifest["held_out"]["papers"]["test"] == ["kraft", "crumpled"]


def test_every_record_is_of_its_pictures_split(names):
    for known in names.values():
        assert all(record in drawing.RECORDS[known["split"]] for record in known["records"])
        assert known["paper"] in drawing.PAPERS[known["split"]]
        assert known["values"] == [drawing.value(record) for record in known["records"]]


def test_held_out_forms_are_never_trained(train, rows):
    asked = {item["conversations"][0]["value"].removeprefix("<image>\n") for item in train}
    assert not asked & {row["question"] for row in rows}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ask.KINDS)
def test_there_are_three_trained_forms_and_none_of_them_is_held_out(kind, language):
    trained, held_out = ask.TRAINED[kind][language], ask.HELD_OUT[kind][language]
    assert len(set(trained)) == len(trained) >= 3
    assert held_out
    assert not set(trained) & set(held_out)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ask.KINDS)
def test_answers_are_words_that_differ(kind, language):
    words = [ask.answer_text(kind, answer, language) for answer in ask.answers(kind)]
    assert len(set(words)) == len(words)
    assert not any(re.search(r"\d", word) for word in words)


def test_every_language_and_kind_has_its_rows(rows):
    counts = Counter((row["category"], row["language"]) for row in rows)
    assert set(counts) == {(kind, language) for kind in ask.KINDS for language in LANGUAGES}
    assert set(counts.values()) == {SMALL["eval_items"]}


# --- right answers and guesses --------------------------------------------------------------------


def expected(kind: str, values: list[int], language: str) -> str:
    """The right answer, from the digits alone."""
    if kind == "digit":
        return ask.DIGITS[language][values[0]]
    if kind == "count":
        return ask.COUNTS[language][len(values) - 1]
    place = LANGUAGES.index(language)
    if kind == "parity":
        return ask.PARITY["even" if values[0] in (0, 2, 4, 6, 8) else "odd"][place]
    if kind == "greater":
        return ask.SIDES["left" if values[0] == max(values) else "right"][place]
    return ask.YES_NO[language][0 if values[0] in (6, 7, 8, 9) else 1]


def test_right_answers_follow_from_what_is_written(rows, train, names):
    for row in rows:
        values = names[picture_of(row)]["values"]
        assert row[row["answer"]] == expected(row["category"], values, row["language"])
        assert row["category"] != "over_five" or values[0] != 5
    for item in train:
        values = names[item["picture"]]["values"]
        said = item["conversations"][1]["value"]
        assert said == expected(item["kind"], values, item["language"])


def test_options_differ_and_letters_are_even(rows):
    for kind in ask.KINDS:
        mine = [row for row in rows if row["category"] == kind and row["language"] == "ar"]
        count = 4 if kind in ("digit", "count") else 2
        for row in mine:
            options = [row[letter] for letter in "ABCD" if row[letter]]
            assert len(set(options)) == len(options) == count
        letters = Counter(row["answer"] for row in mine)
        assert max(letters.values()) - min(letters.values()) <= 2
        assert len(letters) == count


def test_no_answer_is_right_more_often_than_it_is_offered(rows):
    for kind in ask.KINDS:
        offered, right = Counter(), Counter()
        for row in rows:
            if row["category"] == kind and row["language"] == "en":
                options = [row[letter] for letter in "ABCD" if row[letter]]
                offered.update({option: 1 / len(options) for option in options})
                right[row[row["answer"]]] += 1
        assert all(abs(right[answer] - offered[answer]) <= 2 for answer in offered)
