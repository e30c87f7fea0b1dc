"""Rows: what is drawn is a function of seed and row number alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_mole.data.mixture import Mixture
from llava_mole.data.pool import Keep, ListedSamples, Pool
from llava_mole.data.rows import MixtureRows
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import ConfigError, DataError
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


def rows(items: list[Sample], **options: Any) -> MixtureRows:
    settings = {"rows": 200, "questions": 4, "seed": 0, **options}
    pool = Pool(ListedSamples(items), kind_weights=settings.pop("kind_weights", None))
    mixture = Mixture([pool.planned], questions=settings["questions"], seed=settings["seed"])
    return MixtureRows([pool], mixture, encode, **settings)


def encode(sample: Sample) -> Encoded:
    """As many tokens as its text has characters."""
    length = sum(len(turn.text) for turn in sample.turns)
    return Encoded([1] * length, [1] * length, [])


def test_a_row_depends_on_seed_and_number_alone() -> None:
    one, two = rows(samples()), rows(samples())
    forwards = [one.plan(index) for index in range(50)]
    backwards = [two.plan(index) for index in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [rows(samples(), seed=1).plan(index) for index in range(50)]


@pytest.mark.parametrize("root", ["/one", "/another/folder"])
def test_the_order_does_not_hang_on_where_the_pictures_lie(root: str) -> None:
    samples = [
        Sample(
            (Turn("user", "<image>?"), Turn("assistant", "x")), (Path(root) / f"{number % 5}.png",),
            "tiny", "en", f"tiny:{number}", {},
        )
        for number in (3, 1, 4, 1, 0, 2)
    ]  # fmt: skip
    pool = Pool(ListedSamples(samples))
    assert pool.records.tolist() == [0, 1, 3, 2, 4, 5]
    assert np.diff(pool.starts).tolist() == [1, 2, 1, 1, 1]


def test_a_longer_plan_starts_as_a_shorter_one() -> None:
    short, long = rows(samples(), rows=10), rows(samples(), rows=1000)
    assert [short.plan(i) for i in range(10)] == [long.plan(i) for i in range(10)]


def test_every_epoch_asks_every_question_once_in_an_order_of_its_own() -> None:
    plan = rows(samples())
    length = plan.mixture.rows
    assert length == 5 * 3  # nine questions a picture, four a row
    epochs = []
    for epoch in range(4):
        drawn = [plan.plan(length * epoch + i) for i in range(length)]
        asked = [(s.images, s.language, s.metadata["kind"]) for _, some in drawn for s in some]
        assert len(set(asked)) == len(asked) == 45
        epochs.append(tuple(asked))
    assert len(set(epochs)) == 4


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


def test_weights_of_kinds_that_a_source_lacks_change_nothing() -> None:
    items = samples()
    plain = Pool(ListedSamples(items))
    weighted = Pool(ListedSamples(items), kind_weights={"elsewhere": 5.0})
    assert not weighted.drawn_by_weight
    assert not weighted.planned.anew
    first = plain.visit(0, 0, 0, 2, 0).tolist()
    assert weighted.visit(0, 0, 0, 2, 0).tolist() == first


def test_kind_weights_belong_to_the_kind_not_to_its_samples() -> None:
    many = [sample("a.png", "en", "naming", str(i)) for i in range(10)]
    plan = rows([*many, sample("a.png", "en", "colour")], questions=1, rows=2000,
                kind_weights={"naming": 1.0, "colour": 3.0})  # fmt: skip
    kinds = Counter(plan.plan(index)[1][0].metadata["kind"] for index in range(2000))
    # 3/4 of 2,000 draws: a binomial deviation of 20, five of them allowed.
    assert abs(kinds["colour"] - 1500) < 100


def test_a_kind_of_weight_zero_is_left_out_and_counted() -> None:
    plan = rows(samples(), kind_weights={"size": 0.0}, questions=9)
    assert plan.pools[0].left_out == {"kind of weight 0": 15}
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
    with pytest.raises(ConfigError, match="none has a sample"):
        rows([])
    with pytest.raises(ConfigError, match="none has a sample"):
        rows([sample("a.png", "en")] * 2, kind_weights={"naming": 0})


def test_rows_of_like_length_are_put_side_by_side_and_their_batches_shuffled() -> None:
    items = [sample(f"{i}.png", "en", text="x" * (i * 7 % 50)) for i in range(96)]
    settings = {"questions": 1, "rows": 96, "batch": 4}
    plain = rows(items, **settings)
    grouped = rows(items, **settings, window=8)
    lengths = [len(grouped[i].encoded[0].input_ids) for i in range(96)]
    batches = [lengths[i : i + 4] for i in range(0, 96, 4)]
    before = [len(plain[i].encoded[0].input_ids) for i in range(96)]
    waste = [
        sum(max(values[i : i + 4]) * 4 for i in range(0, 96, 4)) / sum(values)
        for values in (before, lengths)
    ]
    assert waste[1] < 1.1 < waste[0]
    longest = [max(batch) for batch in batches[:8]]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_a_window_holds_the_rows_of_the_plan_and_can_be_entered_anywhere() -> None:
    items = [sample(f"{i}.png", "en", text="x" * (i * 7 % 50)) for i in range(50)]
    settings = {"questions": 1, "rows": 90, "batch": 4, "window": 5}
    forwards = rows(items, **settings)
    order = [forwards[i].samples for i in range(90)]
    for start in range(0, 90, 20):
        stop = min(start + 20, 90)
        planned = [tuple(forwards.plan(i)[1]) for i in range(start, stop)]
        assert sorted(map(str, order[start:stop])) == sorted(map(str, planned))
    assert rows(items, **settings)[47].samples == order[47]
    assert rows(items, **settings)[89].samples == order[89]


def test_a_row_beyond_the_plan_ends_iteration() -> None:
    plan = rows(samples(), rows=3)
    assert len(plan) == 3
    assert len(list(plan)) == 3
    with pytest.raises(IndexError):
        plan[3]


def test_languages_take_turns_in_proportion() -> None:
    items = [sample("a.png", "en", text=str(i)) for i in range(8)]
    items += [sample("a.png", "tr", text=str(i)) for i in range(4)]
    plan = rows(items, questions=3)
    for visit in range(4):
        languages = Counter(s.language for s in plan.plan(visit)[1])
        assert languages == {"en": 2, "tr": 1}


@pytest.mark.parametrize(
    ("keep", "count", "reason"),
    [
        (Keep(languages=["en", "tr"]), 30, {"language not kept": 15}),
        (Keep(kinds=["naming"]), 15, {"kind not kept": 30}),
        (Keep(max_bytes=14), 15, {"over 14 bytes": 30}),
        (Keep(min_bytes=15, languages=["zh"]), 10, {"language not kept": 30, "under 15 bytes": 5}),
    ],
)
def test_filters_leave_out_and_count(keep: Keep, count: int, reason: dict[str, int]) -> None:
    pool = Pool(ListedSamples(samples()), keep=keep)
    assert (pool.planned.total, pool.left_out) == (count, reason)


def test_a_filter_that_names_nothing_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"keep.languages: no sample has 'english'.*'en'"):
        Pool(ListedSamples(samples()), keep=Keep(languages=["english"]))


def test_pictures_that_changed_since_the_index_are_refused() -> None:
    items = samples(1)
    plan = rows(items, questions=9)
    items[0] = sample("other.png", "en")
    with pytest.raises(DataError, match="changed since"):
        plan.plan(0)
