"""Languages in given shares: exact in every source, whatever it holds; strict about names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mole.data.language_shares import by_language
from llava_mole.data.mixture import Mixture
from llava_mole.data.pool import Keep, ListedSamples, Pool
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import ConfigError

SIX = {"en": 84.0, "zh": 9.0, "pt": 2.0, "ar": 1.5, "tr": 1.5, "ru": 2.0}


def pool(name: str, counts: dict[str, int], **options) -> Pool:
    """A source with so many one-picture samples in each language."""
    samples = [
        Sample(
            (Turn("user", "<image>?"), Turn("assistant", "x")),
            (Path(f"{name}-{language}-{number // 2}.png"),),
            name,
            language,
            f"{name}:{number}",
            {"kind": "naming" if number % 2 else "kind"},
        )
        for language, count in counts.items()
        for number in range(count)
    ]
    return Pool(ListedSamples(samples, name), **options)


def drawn(parts: list[Pool], rows: int, **options) -> dict[tuple[str, str], float]:
    """(source, language) -> share of the first rows' samples, read from the samples themselves."""
    mixture = Mixture([part.planned for part in parts], **options)
    plan = mixture.plan(0, rows)
    counts: dict[tuple[str, str], int] = {}
    for source, group, epoch, visit in zip(
        plan.source, plan.group, plan.epoch, plan.visit, strict=True
    ):
        part = parts[source]
        for record in part.visit(int(group), int(epoch), int(visit), 1, seed=0):
            sample = part.source[int(record)]
            key = (sample.domain, sample.language)
            counts[key] = counts.get(key, 0) + 1
    total = sum(counts.values())
    return {key: count / total for key, count in counts.items()}


def test_84_percent_english_in_every_source_whatever_they_hold() -> None:
    even, odd = dict.fromkeys(SIX, 20), dict(zip(SIX, (4, 60, 8, 8, 10, 2), strict=True))
    parts = by_language([pool("a", even), pool("b", odd)], SIX)
    shares = drawn(parts, 20_000, stop=20_000)
    for name, size in (("a", 120 / 212), ("b", 92 / 212)):
        for language, weight in SIX.items():
            assert shares[name, language] == pytest.approx(size * weight / 100, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(2, 30), min_size=2, max_size=4),
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.floats(1, 20),
)
def test_sources_keep_their_shares_under_any_temperature(sizes, weights, temperature) -> None:
    named = dict(zip(("en", "ar", "tr"), weights, strict=True))
    pools = [pool(f"s{i}", dict.fromkeys(named, size)) for i, size in enumerate(sizes)]
    whole = Mixture([one.planned for one in pools], temperature=temperature)
    cut = Mixture([part.planned for part in by_language(pools, named, temperature)])
    by_source = cut.requested.reshape(len(sizes), 3)
    np.testing.assert_allclose(by_source.sum(1), whole.requested, rtol=1e-9)
    wanted = np.array(weights) / sum(weights)
    np.testing.assert_allclose(by_source / by_source.sum(1, keepdims=True),
                               np.tile(wanted, (len(sizes), 1)), rtol=1e-9)  # fmt: skip


def test_given_weights_and_numbers_of_samples_are_shared_out_too() -> None:
    named = {"en": 3.0, "ar": 1.0}
    weighted = [pool("a", {"en": 4, "ar": 9}, share={"weight": 2.0}),
                pool("b", {"en": 9, "ar": 4}, share={"weight": 1.0})]  # fmt: skip
    mixture = Mixture([part.planned for part in by_language(weighted, named)])
    np.testing.assert_allclose(mixture.requested, [1 / 2, 1 / 6, 1 / 4, 1 / 12])
    counted = [pool("a", {"en": 4, "ar": 9}, share={"samples": 10})]
    parts = by_language(counted, named)
    assert [part.planned.samples for part in parts] == [8, 2]  # 7.5 and 2.5, adding up to 10


def test_a_language_of_weight_0_is_left_out_and_stays_in_the_tables() -> None:
    parts = by_language([pool("a", {"en": 4, "ar": 4})], {"en": 1.0, "ar": 0.0})
    assert [part.name for part in parts] == ["a/en", "a/ar"]
    shares = drawn(parts, 40, stop=40)
    assert shares == {("a", "en"): 1.0}


def test_filters_of_the_source_hold_and_are_counted_by_reason() -> None:
    whole = pool("a", {"en": 6, "ar": 6}, keep=Keep(kinds=["kind"]))
    english, arabic = by_language([whole], {"en": 1.0, "ar": 1.0})
    assert (len(english.records), len(arabic.records)) == (3, 3)
    assert english.left_out == {"language not kept": 6, "kind not kept": 3}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"en": 1.0, "ar": 1.0, "ru": 1.0}, "language_weights.ru: no sample is in that language"),
        ({"en": 1.0}, "nothing for 'ar'"),
        ({"en": 0.0, "ar": 1.0}, "source 'b' has 'en' only, all of weight 0"),
    ],
)
def test_what_does_not_fit_the_sources_is_refused_by_name(weights, message) -> None:
    pools = [pool("a", {"en": 2, "ar": 2}), pool("b", {"en": 2})]
    with pytest.raises(ConfigError, match=message):
        by_language(pools, weights)
