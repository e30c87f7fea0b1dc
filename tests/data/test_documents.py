"""The documents data set: held out means unseen, blind guesses are at chance, answers are true."""

# ruff: noqa: E402  (the skip and the path must come before our imports)
import base64
import calendar
import csv
import io
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in ("babel", "emoji", "segno", "barcode", "fontpkg_rubik", "paperang_p2_fonts_cjk"):
    pytest.importorskip(package, reason="needs the starter extra")

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import common
import documents
import documents_contents as contents
import documents_items as items
import documents_layouts as layouts
import documents_pages as pages
import documents_questions as ask
import documents_typefaces as typefaces
import documents_words as words
from documents_plan import SPLITS, Document, plan

from llava_mole.data import read_llava_json
from llava_mole.errors import ConfigError, DataError
from llava_mole.languages import LANGUAGES

SMALL = {"limit": 144, "eval_items": 16, "progress": False}
ALL_KINDS = documents.ALL_KINDS


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("documents") / "set"
    documents.build(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def names(built) -> dict[str, dict]:
    return json.loads((built / "names.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def full() -> dict[str, list[Document]]:
    """The default set's documents, without pictures."""
    return {split: plan(split, count, seed=0) for split, count in documents.PICTURES.items()}


def rows_of(path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def some(document: Document, **changes) -> Image.Image:
    return pages.draw(replace(document, **changes), seed=0).picture


# --- what is held out ----------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["dev", "test"])
def test_held_out_layouts_share_neither_name_heading_nor_body_with_trained_ones(other):
    for recipe in layouts.RECIPES:
        trained, held_out = layouts.layouts(recipe, "train"), layouts.layouts(recipe, other)
        assert trained
        assert held_out
        for field in ("name", "heading", "body"):
            assert not {getattr(one, field) for one in trained} & {
                getattr(one, field) for one in held_out
            }


def test_dev_and_test_share_no_heading_or_body_either():
    for recipe in layouts.RECIPES:
        dev, test = layouts.layouts(recipe, "dev"), layouts.layouts(recipe, "test")
        assert not {(one.heading, one.body) for one in dev} & {
            (one.heading, one.body) for one in test
        }
        assert not {one.body for one in dev} & {one.body for one in test}


@pytest.mark.parametrize("script", typefaces.SCRIPTS)
def test_no_typeface_is_used_in_two_splits(script):
    used = [face for split in SPLITS for face in typefaces.TYPEFACES[script][split]]
    assert len(set(used)) == len(used)


def test_goods_places_months_headings_and_sentences_belong_to_one_split():
    for by_split in (contents.PLACES, contents.MONTHS, contents.YEARS, words.SENTENCES):
        members = [member for split in SPLITS for member in by_split[split]]
        assert len(set(members)) == len(members)
    for language in LANGUAGES:
        goods = [contents.good_name(sign, language) for s in SPLITS for sign in contents.GOODS[s]]
        assert len(set(goods)) == len(goods)
        for place in (LANGUAGES.index(language),):
            for by_split in words.HEADINGS.values():
                assert len({texts[place] for texts in by_split.values()}) == len(SPLITS)


def test_a_pictures_layout_and_typeface_are_those_of_its_split(names):
    for facts in names.values():
        split = facts["split"]
        assert facts["typeface"] in typefaces.typefaces(facts["written_in"], split)
        assert facts["layout"] in {one.name for one in layouts.layouts(facts["recipe"], split)}


# --- question forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_forms_are_enough_distinct_and_held_out_ones_never_trained(kind, language):
    trained, held_out = ask.TRAINED[kind][language], ask.HELD_OUT[kind][language]
    assert len(set(trained)) == len(trained) >= 3
    assert held_out
    assert not set(trained) & set(held_out)


def test_forms_keep_their_languages_punctuation():
    for kind in ALL_KINDS:
        for forms in (ask.TRAINED[kind], ask.HELD_OUT[kind]):
            assert all(form[-1] in "？。" and "?" not in form for form in forms["zh"])
            assert all(form[-1] in "؟." and "?" not in form for form in forms["ar"])
            for language in ("en", "pt", "tr", "ru"):
                assert all(form[-1] in "?." for form in forms[language])


@pytest.mark.parametrize("kind", ask.ANSWERS)
def test_answers_exist_in_every_language_and_differ(kind):
    assert all(len(texts) == len(LANGUAGES) for texts in ask.ANSWERS[kind].values())
    for place in range(len(LANGUAGES)):
        said = [texts[place] for texts in ask.ANSWERS[kind].values()]
        assert len(set(said)) == len(said)


def test_a_number_is_answered_in_western_digits_everywhere():
    assert {ask.answer_text("count", 4, language) for language in LANGUAGES} == {"4"}


# --- contents ------------------------------------------------------------------------------------


def drawer(language: str, split: str = "train") -> contents.Contents:
    return contents.Contents(language, split, contents.random.Random(3))


@pytest.mark.parametrize(
    ("language", "price"),
    [
        ("en", "$12.50"), ("zh", "¥12.50"), ("pt", "R$ 12,50"),
        ("ar", "١٢٫٥٠ ج.م."), ("tr", "₺12,50"), ("ru", "12,50 ₽"),
    ],
)  # fmt: skip
def test_prices_are_written_as_the_country_writes_them(language, price):
    assert drawer(language).price(contents.Decimal("12.50")) == price


@pytest.mark.parametrize(
    ("language", "months"),
    [
        ("en", "January March April June July September October"),
        ("pt", "Janeiro Março Abril Junho Julho Setembro Outubro"),
        ("ar", "يناير مارس أبريل يونيو يوليو سبتمبر أكتوبر"),
        ("tr", "Ocak Mart Nisan Haziran Temmuz Eylül Ekim"),
        ("ru", "Январь Март Апрель Июнь Июль Сентябрь Октябрь"),
    ],
)
def test_a_calendar_names_its_month_in_its_own_language(language, months):
    seen = set()
    for seed in range(60):
        one = contents.Contents(language, "train", contents.random.Random(seed))
        seen.add(one.month_page[0].split()[0])
    assert seen == set(months.split())


def test_a_week_starts_as_in_the_country():
    first = {language: drawer(language).month_page[1][0] for language in LANGUAGES}
    assert first == {"en": "Su", "zh": "一", "pt": "dom", "ar": "س", "tr": "Pt", "ru": "пн"}


def test_days_stand_under_their_weekday():
    """Independent of the builder: the first of a month by the standard library's calendar."""
    for seed in range(20):
        one = contents.Contents("en", "train", contents.random.Random(seed))
        title, weekdays, weeks = one.month_page
        month, year = title.split()
        day = contents.date(int(year), list(calendar.month_name).index(month), 1)
        assert weekdays[weeks[0].index("1")] == day.strftime("%a")[:2]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_can_be_set_in_every_typeface_of_the_split(language, split):
    place = LANGUAGES.index(language)
    texts = [contents.good_name(sign, language) for sign in contents.GOODS[split]]
    texts += [contents.place_name(zone, language) for zone in contents.PLACES[split]]
    texts += [by_split[split][place] for by_split in words.HEADINGS.values()]
    texts += [sentence[place] for sentence in words.SENTENCES[split]]
    for table in (words.LABELS, words.SIGNS):
        texts += [said[place] for said in table.values()]
    one = drawer(language, split)
    texts += [words.GREETINGS[place], one.price(one.amount()), one.date(), one.time()]
    texts += [one.month_page[0], *one.month_page[1], *map(one.number, range(1, 32))]
    for face in typefaces.typefaces(language, split):
        setter = typefaces.Setter(language, split, face)
        assert all(setter.width(text, 20) > 0 for text in texts)


def test_a_character_without_a_glyph_is_refused_by_name():
    setter = typefaces.Setter("en", "dev", "Lora")
    with pytest.raises(DataError, match=r"no glyph for '书' .*in Lora, Montserrat; it occurs in"):
        setter.width("a 书", 20)


# --- fairness ------------------------------------------------------------------------------------


def test_features_come_evenly_and_apart_from_type_and_language(full):
    for split, documents_ in full.items():
        for feature in ("colour", "mark", "place", "count", "number"):
            seen = Counter(getattr(d, feature) for d in documents_)
            del seen[None]
            assert max(seen.values()) - min(seen.values()) <= 5
        assert len({Counter(d.written_in for d in documents_)[one] for one in LANGUAGES}) == 1
        if split == "train":
            for feature in ("mark", "place"):
                for by in ("type", "written_in"):
                    cells = Counter((getattr(d, by), getattr(d, feature)) for d in documents_)
                    sizes = [n for (_, value), n in cells.items() if value]
                    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_in_evaluation_any_guess_from_the_options_alone_is_right_once_in_four(full, kind):
    """Blocks of four: the same words and options, each of them right once, each letter once."""
    for split, documents_ in full.items():
        rows = items.evaluation_rows(split, documents_, [kind], 100, seed=0)
        for language in LANGUAGES:
            asked = [row for row in rows if row["language"] == language]
            assert len(asked) == 100
            for block in (asked[start : start + 4] for start in range(0, 100, 4)):
                options = [sorted(row[letter] for letter in "ABCD") for row in block]
                assert all(same == options[0] for same in options)
                assert len(set(options[0])) == 4
                assert len({row["question"] for row in block}) == 1
                assert sorted(row[row["answer"]] for row in block) == options[0]
                assert {row["answer"] for row in block} == set("ABCD")


def test_every_trained_answer_of_a_kind_is_given_equally_often(full):
    train = items.training_items(full["train"], ALL_KINDS, seed=0)
    for kind in ALL_KINDS:
        keys = {item["picture"] for item in train if item["kind"] == kind}
        said = Counter(items.answer(d, kind) for d in full["train"] if d.key in keys)
        assert len(set(said.values())) == 1
        for language in LANGUAGES:
            texts = Counter(
                item["conversations"][1]["value"]
                for item in train
                if (item["kind"], item["language"]) == (kind, language)
            )
            assert max(texts.values()) - min(texts.values()) <= 1


def test_the_language_asked_tells_nothing_about_the_language_written(full):
    train = items.training_items(full["train"], ask.KINDS, seed=0)
    written = {document.key: document.written_in for document in full["train"]}
    pairs = Counter((item["language"], written[item["picture"]]) for item in train)
    for language in LANGUAGES:
        row = [pairs[asked, language] for asked in LANGUAGES]
        assert max(row) < 1.15 * min(row)


def test_a_small_set_has_every_recipe_and_language_in_every_split():
    for count in documents.sizes(documents.SMALLEST_SET).values():
        documents_ = plan("dev", count, seed=0)
        assert {document.recipe for document in documents_} == set(layouts.RECIPES)
        assert set(Counter(d.written_in for d in documents_).values()) == {count // 6}


def test_the_default_set_is_large_enough(full):
    assert 10_000 < len(items.training_items(full["train"], ask.KINDS, seed=0)) < 40_000


# --- the files -----------------------------------------------------------------------------------


def test_training_items_are_read_by_our_own_reader(built):
    samples = read_llava_json(built / "train.json", built)
    assert {sample.language for sample in samples} == set(LANGUAGES)
    assert {sample.domain for sample in samples} == {"documents"}
    assert {sample.metadata["kind"] for sample in samples} == set(ask.KINDS)
    assert len({sample.metadata["id"] for sample in samples}) == len(samples)
    assert all(len(sample.turns) == 2 and len(sample.images) == 1 for sample in samples)


def test_training_shows_trained_pictures_trained_forms_and_true_answers(built, names):
    for item in json.loads((built / "train.json").read_text("utf-8")):
        facts, kind, language = names[item["picture"]], item["kind"], item["language"]
        question, said = (turn["value"] for turn in item["conversations"])
        assert facts["split"] == "train"
        assert question.removeprefix("<image>\n") in ask.TRAINED[kind][language]
        key = facts["type" if kind == "document_type" else kind]
        assert said == ask.answer_text(kind, key, language)


@pytest.mark.parametrize("split", SPLITS)
def test_evaluation_rows_have_mmmbs_columns_resolvable_pictures_and_true_answers(
    built, names, split
):
    rows = rows_of(built / f"eval_{split}.tsv")
    assert tuple(rows[0]) == common.COLUMNS
    assert Counter((row["category"], row["language"]) for row in rows) == dict.fromkeys(
        ((kind, language) for kind in ask.KINDS for language in LANGUAGES), 16
    )
    for row in rows:
        source = row if len(row["image"]) > 60 else rows[int(row["image"])]
        assert Image.open(io.BytesIO(base64.b64decode(source["image"]))).size == (224, 224)
        key = re.match(r"picture=([a-z0-9-]+);", row["comment"])[1]
        assert source["comment"].startswith(f"picture={key};")
        assert names[key]["split"] == split == row["split"]
        kind, language = row["category"], row["language"]
        assert row["question"] in ask.HELD_OUT[kind][language]
        truth = names[key]["type" if kind == "document_type" else kind]
        assert row[row["answer"]] == ask.answer_text(kind, truth, language)


def test_evaluation_asks_the_same_in_every_language(built):
    cells = defaultdict(list)
    for row in rows_of(built / "eval_dev.tsv"):
        cells[row["category"], row["language"]].append((row["comment"], row["answer"]))
    for kind in ask.KINDS:
        assert all(cells[kind, language] == cells[kind, "en"] for language in LANGUAGES)


def test_every_listed_picture_exists(built, names):
    assert {path.stem for path in (built / "images").iterdir()} == set(names)


# --- what is said is what is drawn ---------------------------------------------------------------


def test_the_script_noted_is_that_of_the_letters_written(names):
    blocks = {"latin": "LATIN", "chinese": "CJK", "arabic": "ARABIC", "cyrillic": "CYRILLIC"}
    for facts in names.values():
        letters = [c for c in "".join(facts["written"]) if c.isalpha()]
        own = [c for c in letters if unicodedata.name(c).startswith(blocks[facts["script"]])]
        assert len(own) == len(letters) > 0


def test_as_many_goods_or_places_are_written_as_the_list_has_entries(names):
    checked = 0
    for facts in names.values():
        language, split = facts["written_in"], facts["split"]
        listed = [contents.good_name(sign, language) for sign in contents.GOODS[split]]
        listed += [contents.place_name(zone, language) for zone in contents.PLACES[split]]
        if facts["recipe"] == "form":
            listed = [words.LABELS[key][LANGUAGES.index(language)] for key in words.FIELDS]
        if facts["count"] is not None:
            assert sum(text in listed for text in facts["written"]) == facts["count"]
            checked += 1
    assert checked > 60


def test_the_total_of_a_receipt_is_the_sum_of_its_prices(names):
    digits = str.maketrans("٠١٢٣٤٥٦٧٨٩٫", "0123456789.")
    for facts in names.values():
        if facts["recipe"] == "receipt":
            plain = [text.translate(digits) for text in facts["written"]]
            amounts = [
                float(re.sub(r"[^0-9.]", "", text.replace(",", ".")).strip("."))
                for text in plain
                if re.search(r"\d+[.,]\d\d", text)
            ]
            assert len(amounts) == facts["count"] + 1
            assert max(amounts) == pytest.approx(sum(amounts) - max(amounts))


def test_the_mark_is_drawn_in_the_corner_that_is_noted():
    """From pixels: nothing changes as often along a line as a barcode."""
    wide = ("form", "table", "calendar", "ticket")
    seen = set()
    for document in plan("train", 108, seed=1):
        if document.mark != "barcode" or document.type not in wide:
            continue
        picture = np.asarray(some(document).convert("L"), dtype=float)
        steps = np.abs(np.diff(picture, axis=1))
        busy = np.lib.stride_tricks.sliding_window_view(steps, (24, 48))[::4, ::4].sum((2, 3))
        y, x = np.unravel_index(busy.argmax(), busy.shape)
        place = (
            f"{'top' if 4 * y + 12 < 112 else 'bottom'}_{'left' if 4 * x + 24 < 112 else 'right'}"
        )
        assert document.place == place
        seen.add(place)
    assert len(seen) == 4


def test_marks_and_colours_change_the_picture_and_nothing_else_is_random():
    document = next(d for d in plan("test", 54, seed=0) if d.mark == "stamp")
    first = some(document)
    assert first.size == (224, 224)
    assert some(document).tobytes() == first.tobytes()
    assert some(document, mark="barcode").tobytes() != first.tobytes()
    changed = "blue" if document.colour != "blue" else "red"
    assert some(document, colour=changed).tobytes() != first.tobytes()


def test_the_only_strong_colour_in_a_picture_is_the_one_noted():
    hues = {"red": (245, 12), "green": (70, 115), "blue": (138, 172), "purple": (184, 208)}
    seen = 0
    for document in plan("dev", 54, seed=0):
        if document.colour in hues:
            hue, saturation, value = (
                np.asarray(c, dtype=int) for c in some(document).convert("HSV").split()
            )
            strong = (saturation > 90) & (value > 70)
            low, high = hues[document.colour]
            inside = (hue >= low) | (hue <= high) if low > high else (hue >= low) & (hue <= high)
            assert strong.mean() > 0.01
            assert inside[strong].mean() > 0.9
            seen += 1
    assert seen > 20


def test_arabic_documents_are_mirrored():
    """The total's label stands at the start of the line, its price at the end."""
    from documents_drawing import Sheet

    for language, face, starts_left in (
        ("en", "Lora", True),
        ("ar", "IBM Plex Sans Arabic", False),
    ):
        setter = typefaces.Setter(language, "dev", face)
        sheet = Sheet((400, 100), setter, (200, 0, 0), contents.random.Random(0))
        start, end = sheet.split((0, 0, 400, 100), 0.5)
        assert (start[0] < end[0]) == starts_left
        sheet.text((0, 0, 400, 100), words.LABELS["total"][LANGUAGES.index(language)], 30)
        dark = np.asarray(sheet.image.convert("L")) < 128
        assert (np.nonzero(dark)[1].mean() < 200) == starts_left


# --- building ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(built, tmp_path):
    documents.build(tmp_path / "again", **(SMALL | {"workers": 1}))
    for name in ("train.json", "names.json", "eval_test.tsv", "dataset.json"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes()
    assert plan("train", 108, seed=1) != plan("train", 108, seed=0)


def test_kinds_beyond_the_default_are_asked_on_request(full):
    train = items.training_items(full["train"], ask.EXTRA_KINDS, seed=0)
    assert {item["kind"] for item in train} == set(ask.EXTRA_KINDS)
    said = {i["conversations"][1]["value"] for i in train if i["language"] == "ru"}
    assert said == {w[5] for w in words.SIGNS.values()} | {str(n) for n in range(1, 10)}


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="not an earlier build of the data set 'documents'"):
        documents.build(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / "thesis.txt").read_text() == "do not touch"


def test_bad_arguments_are_all_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"limit is 3.*eval_items is 0.*workers is 0.*'colour'"):
        documents.build(tmp_path / "x", limit=3, kinds=["colour"], eval_items=0, workers=0)


def test_the_command_reports_an_error_without_a_traceback(tmp_path, capsys):
    assert documents.main(["--out", str(tmp_path / "x"), "--limit", "3", "--quiet"]) == 2
    assert "error: limit is 3" in capsys.readouterr().err


def test_a_built_set_says_that_it_is_current(built, tmp_path):
    assert documents.is_current(built)
    assert not documents.is_current(tmp_path)
