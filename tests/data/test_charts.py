"""The chart data set: true to its tables, fair by construction, held-out parts never trained."""

# ruff: noqa: E402  (the skip and the path must come before our imports)
import csv
import importlib.util
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in (
    "arabic_reshaper", "bidi", "fontTools", "pandas", "fontpkg_lora", "fontpkg_noto_kufi_arabic",
    "fontpkg_noto_sans", "fontpkg_noto_sans_arabic", "fontpkg_noto_serif", "fontpkg_roboto",
    "fontpkg_rubik", "fontpkg_amiri", "pylopdf_fonts_zh_cn",
):  # fmt: skip
    pytest.importorskip(package, reason="needs the starter extra")
for package in ("vega_datasets", "statsmodels", "plotly"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the tables of {package}", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import charts
import charts_drawing as drawing
import charts_items as items
import charts_layouts as layouts
import charts_questions as ask
import charts_tables as tables
import common
from charts_plan import Chart, course, plan
from charts_text import Line

from llava_mole.data import read_llava_json
from llava_mole.errors import ConfigError, DataError
from llava_mole.languages import LANGUAGES

SMALL = {"limit": 100, "eval_items": 16, "progress": False, "kinds": ask.ALL_KINDS}
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def parts() -> dict[str, list]:
    return tables.load_tables()


@pytest.fixture(scope="module")
def planned(parts) -> list[Chart]:
    return plan(parts, {"train": 300, "dev": 120, "test": 120}, seed=5)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("charts") / "set"
    charts.build(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def names(built) -> dict[str, dict]:
    return json.loads((built / "names.json").read_text("utf-8"))


def rows_of(path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def picture_of(row: dict) -> str:
    return row["comment"].split(";")[0].removeprefix("picture=")


# --- tables, layouts, fonts ----------------------------------------------------------------------


def test_every_listed_table_is_read_and_belongs_to_one_split(parts):
    listed = [name for members in tables.SPLITS.values() for name in members]
    assert len(set(listed)) == len(listed)
    for split, members in tables.SPLITS.items():
        assert {part.table for part in parts[split]} == set(members)


@pytest.mark.parametrize("what", ["table", "layout", "font"])
def test_no_split_shares_tables_layouts_or_fonts_with_another(planned, what):
    used = {name: {getattr(c, what) for c in planned if c.split == name} for name in SPLITS}
    assert all(used.values())
    assert not used["train"] & used["dev"]
    assert not used["train"] & used["test"]
    assert not used["dev"] & used["test"]


def test_splits_share_no_font_file():
    files = {
        split: {
            place
            for fonts in layouts.FONTS
            if fonts.split == split
            for place in (fonts.latin, fonts.arabic, fonts.chinese)
            if place is not None
        }
        for split in SPLITS
    }
    assert not files["train"] & (files["dev"] | files["test"])
    assert not files["dev"] & files["test"]


def test_known_values_come_from_the_tables(parts):
    wheat = next(part for part in parts["train"] if part.title == "wheat_price")
    assert (wheat.columns[0], wheat.values[0, 0]) == ("1565", 41)
    births = next(part for part in parts["train"] if part.title == "births")
    assert births.values[births.rows.index("FRA"), births.columns.index("1961")] == 2.87


def test_bars_lines_and_pies_show_numbers_of_their_table_unchanged(planned, parts):
    known = defaultdict(set)
    for members in parts.values():
        for part in members:
            if isinstance(part, tables.Grid):
                known[part.table, part.title] |= set(part.values.ravel().tolist())
    checked = [c for c in planned if c.drawing != "scatter"]
    assert len(checked) > 400
    for chart in checked:
        assert {value for row in chart.values for value in row} <= known[chart.table, chart.title]


def test_pies_show_parts_of_a_whole_only(planned, parts):
    whole = {
        (part.table, part.title)
        for members in parts.values()
        for part in members
        if isinstance(part, tables.Grid) and part.parts
    }
    assert {(c.table, c.title) for c in planned if c.drawing in ("pie", "donut")} <= whole


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([1, 2, 3, 4, 6], "rise"),
        ([9, 7, 6, 3, 1], "fall"),
        ([1, 3, 7, 8, 5, 2, 1], "peak"),
        ([8, 6, 2, 1, 3, 5, 9], "dip"),
        ([1, 9, 2, 8, 1, 9, 2], None),
        ([4, 4, 4, 4, 4], None),
        ([1, 2, np.nan, 3, 4], None),
    ],
)
def test_a_course_is_named_only_where_it_is_clear(values, answer):
    assert course(np.array(values, dtype=float)) == answer


def test_answers_follow_from_the_values_and_colours_in_names_json(names):
    seen = Counter()
    for entry in names.values():
        values, answers = entry["values"][0], entry["answers"]
        top = values.index(max(values))
        for kind in answers:
            seen[kind] += 1
        if "place" in answers:
            assert answers["place"] == str(top + 1)
        if "count" in answers:
            assert answers["count"] == str(len(values))
        for kind in ("largest", "largest_bar"):
            if kind in answers:
                assert answers[kind] == entry["colours"][top]
                assert len(set(entry["colours"])) == len(values)
        if "trend" in answers:
            half = len(values) // 2
            ends, middle = (values[0], values[-1]), values[half // 2 + 1 : -(half // 2) or None]
            {
                "rise": lambda ends=ends: ends[0] < ends[1],
                "fall": lambda ends=ends: ends[0] > ends[1],
                "peak": lambda ends=ends, middle=middle: max(ends) < max(middle),
                "dip": lambda ends=ends, middle=middle: min(ends) > min(middle),
            }[answers["trend"]]() or pytest.fail(str(entry))
    assert set(seen) == set(ask.ALL_KINDS)


def test_the_longest_bar_stands_out_by_a_quarter_the_largest_slice_by_half(planned):
    for chart in planned:
        if {"place", "largest", "largest_bar"} & set(chart.answers):
            first, second = sorted(chart.values[0], reverse=True)[:2]
            assert first >= (1.5 if "largest" in chart.answers else 1.25) * second


def test_pixels_of_a_bar_chart_show_its_highest_bar_where_the_answer_says(planned):
    """Columns of the picture in the bars' colour: the longest lies in the answer's part."""
    agree = total = 0
    for chart in planned:
        if chart.drawing != "plain" or "place" not in chart.answers:
            continue
        if layouts.BY_NAME[chart.layout].fill not in ("flat", "rounded", "outlined"):
            continue
        pixels = np.asarray(drawing.draw(chart, 0).convert("RGB"), dtype=int)
        colour = layouts.COLOURS[chart.colours[0]]
        inked = (abs(pixels - np.array(colour)).sum(axis=2) < 90).sum(axis=0)
        left, right = np.flatnonzero(inked > 4)[[0, -1]]
        best = inked >= inked.max() - 1
        middle = np.flatnonzero(best).mean()
        place = 1 + int((middle - left) / (right - left + 1) * len(chart.values[0]))
        agree, total = agree + (str(place) == chart.answers["place"]), total + 1
    assert total > 20
    assert agree >= 0.95 * total


def test_pixels_of_a_pie_show_most_of_the_largest_colour(planned):
    pies = [c for c in planned if c.drawing == "pie"][:30]
    for chart in pies:
        pixels = np.asarray(drawing.draw(chart, 0), dtype=int).reshape(-1, 3)
        nearest = [
            abs(pixels - np.array(layouts.COLOURS[name])).sum(axis=1) for name in chart.colours
        ]
        near = np.argmin(nearest, axis=0)[np.min(nearest, axis=0) < 80]
        assert chart.colours[np.bincount(near).argmax()] == chart.answers["largest"]


def test_every_colour_keeps_its_name_under_any_shade():
    rng = random.Random(0)
    for name in layouts.COLOURS:
        for _ in range(50):
            shade = np.array(layouts.shade(name, rng))
            gaps = {other: abs(shade - np.array(c)).sum() for other, c in layouts.COLOURS.items()}
            assert min(gaps, key=gaps.__getitem__) == name


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ask.ALL_KINDS)
def test_forms_are_enough_distinct_and_held_out_ones_never_trained(kind, language):
    trained, held_out = ask.TRAINED[kind][language], ask.HELD_OUT[kind][language]
    assert len(set(trained)) == len(trained) >= 3
    assert len(held_out) >= 1
    assert not set(trained) & set(held_out)


def test_forms_keep_their_languages_punctuation():
    for forms in (ask.TRAINED, ask.HELD_OUT):
        for kind in ask.ALL_KINDS:
            assert all(form[-1] in "？。" and "?" not in form for form in forms[kind]["zh"])
            assert all(form[-1] in "؟." and "?" not in form for form in forms[kind]["ar"])
            assert all("," not in form for form in forms[kind]["zh"] + forms[kind]["ar"])


@pytest.mark.parametrize("place", range(len(LANGUAGES)))
def test_answers_and_titles_exist_in_every_language_and_answers_differ(place):
    for labels in ask.LABELS.values():
        words = [texts[place] for texts in labels.values()]
        assert len(set(words)) == len(words)
    assert all(texts[place] for texts in ask.TITLES.values())


def test_every_course_question_names_its_four_answers():
    for forms in (ask.TRAINED, ask.HELD_OUT):
        for language in ("en", "zh", "pt", "tr", "ru"):
            for form in forms["trend"][language]:
                for answer in ask.LABELS["trend"]:
                    assert ask.answer_text("trend", answer, language) in form


def test_every_title_can_be_set_in_the_fonts_of_every_split():
    for fonts in layouts.FONTS:
        for language in fonts.languages:
            for key in ask.TITLES:
                assert Line(ask.title(key, language), fonts, 30).width > 20


def test_a_character_without_a_glyph_is_refused_by_name():
    with pytest.raises(DataError, match=r"no glyph for '𓀀' \(U\+13000"):
        Line("Nile 𓀀", layouts.FONTS_BY_NAME["Rubik"], 20)


# --- the files -----------------------------------------------------------------------------------


def test_training_items_are_read_by_our_own_reader(built):
    samples = read_llava_json(built / "train.json", built)
    assert {sample.language for sample in samples} == set(LANGUAGES)
    assert {sample.domain for sample in samples} == {"charts"}
    assert {sample.metadata["kind"] for sample in samples} == set(ask.ALL_KINDS)
    assert len({sample.metadata["id"] for sample in samples}) == len(samples)


def test_training_shows_trained_charts_in_trained_forms_only(built, names):
    train = json.loads((built / "train.json").read_text("utf-8"))
    assert {names[item["picture"]]["split"] for item in train} == {"train"}
    for item in train:
        question = item["conversations"][0]["value"].removeprefix("<image>\n")
        assert question in ask.TRAINED[item["kind"]][item["language"]]


def test_pictures_have_the_towers_size_and_all_are_listed(built, names):
    files = sorted((built / "images").iterdir())
    assert {path.stem for path in files} == set(names)
    assert {Image.open(path).size for path in files} == {(224, 224)}


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_asks_held_out_forms_about_its_own_charts(built, names, split):
    rows = rows_of(built / f"eval_{split}.tsv")
    assert tuple(rows[0]) == common.COLUMNS
    assert len(rows) == len(ask.ALL_KINDS) * len(LANGUAGES) * SMALL["eval_items"]
    for row in rows:
        entry = names[picture_of(row)]
        kind, language = row["category"], row["language"]
        assert entry["split"] == split
        assert row["question"] in ask.HELD_OUT[kind][language]
        right = ask.answer_text(kind, entry["answers"][kind], language)
        assert row[row["answer"]] == right
        assert len({row[letter] for letter in "ABCD"}) == 4


@pytest.mark.parametrize("split", SPLITS)
def test_any_guess_from_question_and_options_is_right_once_in_four(built, split):
    """Blocks of four: same words, same options, each of them right once, each letter once."""
    cells = defaultdict(list)
    for row in rows_of(built / f"eval_{split}.tsv"):
        cells[row["category"], row["language"]].append(row)
    assert len(cells) == len(ask.ALL_KINDS) * len(LANGUAGES)
    for rows in cells.values():
        for block in (rows[start : start + 4] for start in range(0, len(rows), 4)):
            offered = [sorted(row[letter] for letter in "ABCD") for row in block]
            assert all(same == offered[0] for same in offered)
            assert len({row["question"] for row in block}) == 1
            assert sorted(row[row["answer"]] for row in block) == offered[0]
            assert {row["answer"] for row in block} == set("ABCD")


def test_the_same_items_are_asked_in_every_language(built):
    cells = defaultdict(list)
    for row in rows_of(built / "eval_test.tsv"):
        cells[row["category"], row["language"]].append((row["comment"], row["answer"]))
    for kind in ask.ALL_KINDS:
        assert all(cells[kind, language] == cells[kind, "en"] for language in LANGUAGES)


def test_options_of_places_and_slices_can_all_be_in_the_picture(planned):
    for split in SPLITS:
        members = [chart for chart in planned if chart.split == split]
        for row in items.evaluation_rows(split, members, ("place", "largest"), 16, seed=2):
            chart = next(c for c in members if c.key == row["picture"])
            if row["language"] != "en":
                continue
            options = {row[letter] for letter in "ABCD"}
            if row["category"] == "largest":
                assert options <= set(chart.colours)
            else:
                there = {ask.answer_text("place", str(n + 1), "en") for n in range(5)}
                assert options <= there
                assert 4 <= len(chart.values[0]) <= 5


def test_trained_answers_are_about_even_within_a_kind(planned):
    members = [chart for chart in planned if chart.split == "train"]
    train = items.training_items(members, ("trend", "count", "largest"), seed=0)
    for kind, expected in (("trend", 4), ("count", 5), ("largest", len(layouts.COLOURS))):
        answers = Counter(
            i["conversations"][1]["value"]
            for i in train
            if i["kind"] == kind and i["language"] == "ru"
        )
        assert len(answers) == expected
        assert max(answers.values()) / sum(answers.values()) < 1.7 / expected


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    charts.build(tmp_path / "again", **(SMALL | {"workers": 1}))
    for first in sorted(built.glob("*.*")) + sorted((built / "images").iterdir())[::20]:
        assert (tmp_path / "again" / first.relative_to(built)).read_bytes() == first.read_bytes()


def test_another_seed_gives_other_charts(parts):
    first, again, other = (plan(parts, {"dev": 100}, seed) for seed in (0, 0, 1))
    assert first == again
    assert [chart.values for chart in first] != [chart.values for chart in other]


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="not an earlier build of the data set 'charts'"):
        charts.build(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / "thesis.txt").read_text() == "do not touch"


def test_bad_arguments_are_all_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"limit is 3.*eval_items is 0.*kinds is \['hue'\]"):
        charts.build(tmp_path / "x", limit=3, kinds=["hue"], eval_items=0)


def test_the_command_reports_an_error_without_a_traceback(tmp_path, capsys):
    assert charts.main(["--out", str(tmp_path / "x"), "--limit", "3", "--quiet"]) == 2
    assert "error: limit is 3" in capsys.readouterr().err
