"""Intervals, against published values and against what they must do."""

import math
import time
from fractions import Fraction

import pytest

from llava_mole.evaluation.conditions import blind_accuracy
from llava_mole.evaluation.statistics import bootstrap_mean, mcnemar, score_interval, wilson


def test_wilson_against_published_values():
    # Newcombe 1998, Table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_is_a_mean_over_languages_and_seeded():
    correct = [1, 1, 0, 0, 1, 0]
    pictures = ["a", "b", "c", "d", "a", "b"]
    languages = ["en"] * 4 + ["tr"] * 2
    mean, low, high = bootstrap_mean(correct, pictures, languages)
    assert mean == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert 0 <= low < mean < high <= 1
    assert bootstrap_mean(correct, pictures, languages) == (mean, low, high)


def test_languages_of_one_picture_are_not_independent():
    pictures = [str(i % 50) for i in range(300)]
    languages = [str(i // 50) for i in range(300)]
    same = [i % 50 < 25 for i in range(300)]
    _, low, high = bootstrap_mean(same, pictures, languages)
    _, low_one, high_one = bootstrap_mean(same[:50], pictures[:50], languages[:50])
    assert high - low == pytest.approx(high_one - low_one, rel=0.1)


def test_blind_accuracy_sees_frequent_answers_only():
    once = [(name, ("a", "b", "c", "d")) for name in "abcd"]
    assert blind_accuracy(once) < 0.25 + 1e-9
    often = [("grey", ("grey", "pink", "red", "blue"))] * 10
    assert blind_accuracy(often) == 1.0


@pytest.mark.parametrize("score", [0, 1, False, True, 0.0, 1.0])
def test_equal_scores_have_wilsons_interval(score):
    units = [str(i) for i in range(40)]
    assert score_interval([score] * 40, units) == (score, *wilson(40 * int(score), 40))
    low, high = score_interval([score] * 40, units)[1:]
    assert high - low == pytest.approx(0.0876, abs=1e-4)  # 1.96² / (40 + 1.96²)


def test_what_is_drawn_as_one_is_one_trial():
    units = [str(i % 10) for i in range(40)]
    assert score_interval([1] * 40, units) == (1.0, *wilson(10, 10))


def test_wilsons_n_is_that_of_the_smallest_group():
    units = [str(i) for i in range(50)]
    languages = ["en"] * 45 + ["tr"] * 5
    assert score_interval([1] * 50, units, languages) == (1.0, *wilson(5, 5))
    same = [str(i % 20) for i in range(40)]
    twice = ["en"] * 20 + ["tr"] * 20
    assert score_interval([0] * 40, same, twice) == (0.0, *wilson(0, 20))


@pytest.mark.parametrize("scores", [[1, 1, 0, 1], [0.5] * 4, [1, 1, 1, 0.9]])
def test_other_scores_are_bootstrapped(scores):
    assert score_interval(scores, list("abcd")) == bootstrap_mean(scores, list("abcd"))


def test_no_scores_have_no_interval():
    assert all(math.isnan(value) for value in score_interval([], []))


def test_mcnemar_is_exact():
    for a in range(12):
        for b in range(12):
            tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
            assert mcnemar(a, b) == float(min(Fraction(1), Fraction(2 * tail, 2 ** (a + b))))


def test_mcnemar_of_thousands_is_quick():
    """Each binomial by itself takes more than 20 s together; one from the other, 0.1 s."""
    start = time.perf_counter()
    assert mcnemar(9_800, 10_000) == pytest.approx(0.1573, abs=5e-4)  # erfc(199 / √(2 · 19800))
    assert time.perf_counter() - start < 5
