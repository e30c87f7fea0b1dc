"""Intervals, against published values and against what they must do."""

import pytest

from llava_mole.evaluation.conditions import blind_accuracy
from llava_mole.evaluation.statistics import bootstrap_mean, wilson


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
