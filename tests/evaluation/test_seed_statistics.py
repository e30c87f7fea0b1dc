"""Intervals over seeds and pictures: against formulas, enumerations and simulated sweeps."""

import itertools
import math

import numpy as np
import pytest

from llava_mole.evaluation.statistics import (
    bootstrap,
    hierarchical_bootstrap,
    seed_interval,
    student_t_quantile,
    student_t_tails,
)

# ---------------------------------------------------------------------- Student's t


@pytest.mark.parametrize(
    ("df", "table"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (10, 2.2281), (30, 2.0423), (1e9, 1.96)],
)
def test_quantiles_are_the_tables(df, table):
    assert student_t_quantile(df) == pytest.approx(table, abs=2e-4)
    assert student_t_tails(student_t_quantile(df), df) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("t", [0.1, 1.0, 5.0, 60.0])
def test_tails_are_the_closed_forms(t):
    assert student_t_tails(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-5)
    assert student_t_tails(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-5)
    assert student_t_tails(t, 1.5) < student_t_tails(t, 1)
    assert student_t_tails(t, 1.5) > student_t_tails(t, 2)
    assert student_t_tails(t, 1e6) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=0.01, abs=1e-9)


# ---------------------------------------------------------------------- against formulas


def test_a_balanced_table_is_the_two_way_analysis_of_variance():
    seeds, pictures = 4, 7
    table = np.random.default_rng(1).normal(size=(seeds, pictures))
    table += np.arange(seeds)[:, None]
    rows, columns, whole = table.mean(1), table.mean(0), table.mean()
    ms_seeds = pictures * ((rows - whole) ** 2).sum() / (seeds - 1)
    ms_pictures = seeds * ((columns - whole) ** 2).sum() / (pictures - 1)
    rest = table - rows[:, None] - columns + whole
    ms_rest = (rest**2).sum() / ((seeds - 1) * (pictures - 1))
    of_pictures = max(ms_pictures - ms_rest, 0)
    total = ms_seeds + of_pictures
    assert ms_seeds > ms_rest
    found = seed_interval(table, [str(i) for i in range(pictures)])
    assert found.mean == pytest.approx(whole)
    assert found.se == pytest.approx(math.sqrt(total / (seeds * pictures)))
    spread = ms_seeds**2 / (seeds - 1) + of_pictures**2 / (pictures - 1)
    assert found.df == pytest.approx(total**2 / spread)
    assert found.df < 4
    half = student_t_quantile(found.df) * found.se
    assert (found.low, found.high) == pytest.approx((whole - half, whole + half))
    against = seed_interval(table, [str(i) for i in range(pictures)], null=found.low)
    assert against.p == pytest.approx(0.05, abs=1e-6)


def uneven(pictures=24):
    """Seeds, pictures with one to three questions, languages of unequal size, two domains."""
    rng = np.random.default_rng(2)
    units, groups, strata = [], [], []
    for picture in range(pictures):
        for language in ("en", "tr", "zh")[: 1 + picture % 3]:
            for _ in range(1 + (picture % 5 == 0)):
                # The same names in both domains: they are other pictures.
                units.append(str(picture // 2))
                groups.append(language)
                strata.append(("charts", "flags")[picture % 2])
    return rng.integers(0, 2, (3, len(units))), units, groups, strata


def test_the_mean_is_over_domains_of_means_over_languages():
    values, units, groups, strata = uneven()
    cells = list(zip(strata, groups, strict=True))
    by_domain = []
    for domain in ("charts", "flags"):
        by_language = [
            np.mean([values[:, i] for i in range(len(units)) if cells[i] == (domain, language)])
            for language in dict.fromkeys(groups)
            if (domain, language) in cells
        ]  # fmt: skip
        by_domain.append(np.mean(by_language))
    assert seed_interval(values, units, groups, strata).mean == pytest.approx(np.mean(by_domain))
    mean, _ = hierarchical_bootstrap(values, units, groups, strata, draws=1)
    assert mean == pytest.approx(np.mean(by_domain))


def test_with_one_seed_it_is_the_spread_of_pictures_alone():
    values, units, groups, strata = uneven(pictures=240)  # linearised: for many
    named = [f"{domain} {unit}" for domain, unit in zip(strata, units, strict=True)]
    own = [i for i, domain in enumerate(strata) if domain == "charts"]
    one = values[0, own]
    where = [[names[i] for i in own] for names in (named, groups)]
    found = seed_interval(one[None], *where)
    _, draws = bootstrap(one, *where, draws=5000)
    assert found.seeds == 1
    assert found.df == 119
    assert found.se == pytest.approx(draws.std() * math.sqrt(120 / 119), rel=0.05)


def test_the_bootstrap_is_every_draw_of_seeds_and_pictures():
    values = np.array([[1, 0, 1, 0.0], [0, 1, 1, 0.5]])
    units = ["a", "a", "b", "c"]
    own = {"a": [0, 1], "b": [2], "c": [3]}
    every = []
    for seeds in itertools.product(range(2), repeat=2):
        for drawn in itertools.product("abc", repeat=3):
            columns = [column for name in drawn for column in own[name]]
            every.append(values[np.ix_(seeds, columns)].mean())
    _, means = hierarchical_bootstrap(values, units, draws=40_000)
    assert means.mean() == pytest.approx(np.mean(every), abs=0.004)
    assert means.std() == pytest.approx(np.std(every), rel=0.02)
    for level in (0.1, 0.5, 0.9):
        share = np.mean(np.array(every) <= np.quantile(means, level))
        assert share == pytest.approx(np.mean(means <= np.quantile(means, level)), abs=0.01)


def test_what_a_seed_gives_both_arms_is_no_difference_between_them():
    rng = np.random.default_rng(3)
    luck = rng.normal(size=(5, 1))
    first, second = luck + rng.normal(0.2, 0.1, (5, 40)), luck + rng.normal(0, 0.1, (5, 40))
    units = [str(i) for i in range(40)]
    paired = seed_interval(first - second, units)
    assert paired.low > 0
    assert seed_interval(first, units).se > 10 * paired.se


def test_nothing_that_varies_has_no_width():
    same = seed_interval(np.zeros((5, 9)), list("abcdefghi"))
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    ahead = seed_interval(np.ones((5, 9)), list("abcdefghi"))
    assert (ahead.low, ahead.high, ahead.p) == (1, 1, 2.0**-8)


def test_a_domain_of_one_picture_has_no_interval():
    found = seed_interval(np.ones((3, 3)), ["a", "b", "c"], strata=["x", "x", "y"])
    assert found.mean == 1
    assert math.isnan(found.low)
    assert math.isnan(found.p)


# ---------------------------------------------------------------------- simulated sweeps


def simulated(rng, seeds, pictures, *, of_seeds, of_pictures, languages=2):
    """Differences of two arms, right or wrong on each of (seeds, pictures · languages) questions.

    Both arms share a picture's ease. How much the second is better hangs on the seed and on the
    picture; over all seeds and pictures by 0.1.
    """
    ease = rng.uniform(0.3, 0.6, (1, pictures, 1))
    gain = (
        0.1 + rng.normal(0, of_seeds, (seeds, 1, 1)) + rng.normal(0, of_pictures, (1, pictures, 1))
    )
    shape = (seeds, pictures, languages)
    first = rng.random(shape) < ease
    second = rng.random(shape) < np.clip(ease + gain, 0, 1)
    return (second.astype(float) - first).reshape(seeds, -1)


def coverage(interval, sweeps=300, seeds=5, pictures=80, **variances):
    """Share of simulated sweeps whose interval holds the truth."""
    rng = np.random.default_rng(7)
    units = [str(i) for i in range(pictures) for _ in range(2)]
    held = 0
    for _ in range(sweeps):
        low, high = interval(simulated(rng, seeds, pictures, **variances), units)
        held += low <= 0.1 <= high
    return held / sweeps


def by_t(values, units):
    found = seed_interval(values, units)
    return found.low, found.high


def percentiles(values, units):
    return np.quantile(hierarchical_bootstrap(values, units, draws=150)[1], [0.025, 0.975])


def pictures_only(values, units):
    found = seed_interval(values.mean(0)[None], units)
    return found.low, found.high


BOTH = {"of_seeds": 0.15, "of_pictures": 0.1}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "variances",
    [BOTH, {"of_seeds": 0.06, "of_pictures": 0.12}, {"of_seeds": 0.0, "of_pictures": 0.12}],
    ids=["seeds", "both", "pictures"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, variances):
    """Nominal 95 %; 300 sweeps have a standard error of 1.3 points."""
    assert 0.90 <= coverage(by_t, seeds=seeds, **variances) <= 0.99


def test_pictures_alone_would_be_too_sure_of_themselves():
    assert coverage(pictures_only, seeds=5, **BOTH) < 0.65


@pytest.mark.parametrize(("seeds", "at_most"), [(3, 0.9), (5, 0.92)])
def test_percentiles_are_too_narrow_for_few_seeds(seeds, at_most):
    assert coverage(percentiles, seeds=seeds, sweeps=200, **BOTH) < at_most


def test_arms_that_are_alike_are_told_apart_no_more_often_than_said():
    rng = np.random.default_rng(11)
    units = [str(i) for i in range(60)]
    found = []
    for _ in range(300):
        of_seeds, of_pictures = rng.normal(0, 0.05, (5, 1)), rng.normal(0, 0.1, 60)
        values = of_seeds + of_pictures + rng.normal(0, 0.3, (5, 60))
        found.append(seed_interval(values, units).p)
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


@pytest.mark.parametrize("variances", [BOTH, {"of_seeds": 0.06, "of_pictures": 0.12}])
def test_a_p_that_holm_asks_of_six_claims_is_as_rare_as_it_says(variances):
    """0.0083, far out in the tail; 2000 sweeps have a standard error of 0.2 points."""
    rng = np.random.default_rng(11)
    units = [str(i) for i in range(80) for _ in range(2)]
    sweeps = (simulated(rng, 5, 80, **variances) for _ in range(2000))
    found = [seed_interval(values, units, null=0.1).p for values in sweeps]
    assert 0.001 <= np.mean(np.array(found) < 0.05 / 6) <= 0.0143
