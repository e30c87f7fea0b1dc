"""Rows: what is drawn is a function of seed and row number alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llava_mole.data.rows import PictureRows
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import DataError
from llava_mole.processing import Encoded

LANGUAGES = ("en", "zh", "tr")


def sample(picture: str | None, language: str, kind: str = "naming", text: str = "") -> Sample:
    images = (Path(picture),) if picture else ()
    turns = (Turn("user", f"{'<image>' * len(images)}{kind}?{text}"), Turn("assistant", "x"))
    return Sample(turns, images, "d", language, "f:1", {"kind": kind})


def samples(pictures: int = 5) -> list[Sample]:
    kinds = ("naming", "colour", "size")
    return [
        sample(f"{picture}.png", language, kind)
        for picture in range(pictures)
        for language in LANGUAGES
        for kind in kinds
    ]


def rows(items: list[Sample], **options: Any) -> PictureRows:
    settings = {"rows": 200, "questions": 4, "seed": 0, **options}
    return PictureRows(items, lambda s: Encoded([1], [1], []), **settings)


def test_a_row_depends_on_seed_and_number_alone() -> None:
    one, two = rows(samples()), rows(samples())
    forwards = [one.plan(index) for index in range(50)]
    backwards = [two.plan(index) for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [rows(samples(), seed=1).plan(index) for index in range(50)]


def test_a_longer_plan_starts_as_a_shorter_one() -> None:
    short, long = rows(samples(), rows=10), rows(samples(), rows=1000)
    assert [short.plan(i) for i in range(10)] == [long.plan(i) for i in range(10)]


def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own() -> None:
    plan = rows(samples())
    epochs = [[plan.plan(5 * e + i)[0][0].name for i in range(5)] for e in range(6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_all_questions_of_a_row_are_about_its_picture_and_none_comes_twice() -> None:
    plan = rows(samples(), questions=9)
    for index in range(20):
        images, chosen = plan.plan(index)
        assert {s.images for s in chosen} == {images}
        assert len({(s.language, s.metadata["kind"]) for s in chosen}) == 9


def test_questions_spread_over_languages_first() -> None:
    plan = rows(samples(), questions=3)
    for index in range(20):
        assert {s.language for s in plan.plan(index)[1]} == set(LANGUAGES)


def test_a_picture_with_fewer_questions_gives_what_it_has() -> None:
    plan = rows([sample("a.png", "en"), sample("a.png", "zh")], questions=6)
    assert len(plan.plan(0)[1]) == 2


def test_kind_weights_belong_to_the_kind_not_to_its_samples() -> None:
    many = [sample("a.png", "en", "naming", str(i)) for i in range(10)]
    plan = rows([*many, sample("a.png", "en", "colour")], questions=1, rows=2000,
                kind_weights={"naming": 1.0, "colour": 3.0})  # fmt: skip
    kinds = Counter(plan.plan(index)[1][0].metadata["kind"] for index in range(2000))
    # 3/4 of 2,000 draws: a binomial deviation of 20, five of them allowed.
    assert abs(kinds["colour"] - 1500) < 100


def test_a_kind_of_weight_zero_is_left_out_and_counted() -> None:
    plan = rows(samples(), kind_weights={"size": 0.0}, questions=9)
    assert plan.left_out == 15
    assert {s.metadata["kind"] for i in range(20) for s in plan.plan(i)[1]} == {"naming", "colour"}


def test_other_drawings_take_the_pictures_place() -> None:
    variants = {Path("0.png"): [Path("0-a.png"), Path("0-b.png")]}
    plan = rows(samples(1), variants=variants)
    seen = Counter(plan.plan(index)[0][0].name for index in range(200))
    assert set(seen) == {"0.png", "0-a.png", "0-b.png"}
    assert min(seen.values()) > 30


def test_text_only_samples_are_rows_of_their_own() -> None:
    plan = rows([sample(None, "en"), sample(None, "en", "colour"), sample("a.png", "en")])
    drawn = [plan.plan(index) for index in range(3)]
    assert sorted(len(images) for images, _ in drawn) == [0, 0, 1]
    assert all(len(chosen) == 1 for _, chosen in drawn)


def test_no_sample_is_refused() -> None:
    with pytest.raises(DataError, match="no training sample"):
        rows([])
    with pytest.raises(DataError, match="every one of 2 samples has weight 0"):
        rows([sample("a.png", "en")] * 2, kind_weights={"naming": 0})


def test_a_row_beyond_the_plan_ends_iteration() -> None:
    plan = rows(samples(), rows=3)
    assert len(plan) == 3
    assert len(list(plan)) == 3
    with pytest.raises(IndexError):
        plan[3]
