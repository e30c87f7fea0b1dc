"""Intervals and tests: Wilson's, a bootstrap over pictures or questions, McNemar's, Holm's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): right at 0, at n and for small n.

    Args:
        z: normal quantile; the default gives 95 %.

    Returns:
        (low, high); (0, 1) if n is 0.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding would leave 0 of n at 1e-17 and n of n below 1.
    low = 0.0 if correct == 0 else middle - half
    return low, 1.0 if correct == n else middle + half


def bootstrap_mean(
    correct: Sequence[bool | float],
    pictures: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean over groups (languages) of the accuracy, with a 95 % interval.

    Questions about one picture, in six languages, are not six independent trials: pictures are
    drawn with replacement, each with all its questions, the same draw for every group.

    Args:
        correct, pictures, groups: one entry per question; what stands for a picture may be any unit
            that is drawn as one. Without groups all are one group.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        (mean, low, high).
    """
    if not len(correct):
        return math.nan, math.nan, math.nan
    mean, means = bootstrap(correct, pictures, groups, draws=draws, seed=seed)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return mean, float(low), float(high)


def score_interval(
    scores: Sequence[bool | float], units: Sequence[str], groups: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """`bootstrap_mean` of scores from 0 to 1; Wilson's interval where all of them are 0, or all 1.

    Every draw from equal scores is the same: a bootstrap would say that 40 of 40 are 100 to 100 %.
    Wilson's n is the number of units there, as what is drawn as one is one trial; with groups that
    of the group with the fewest, which errs on the wide side.

    Returns:
        (mean, low, high).
    """
    if not len(scores) or scores[0] not in (0, 1) or any(score != scores[0] for score in scores):
        return bootstrap_mean(scores, units, groups)
    drawn: dict[str, set[str]] = {}
    for unit, group in zip(units, [""] * len(units) if groups is None else groups, strict=True):
        drawn.setdefault(group, set()).add(unit)
    n = min(map(len, drawn.values()))
    return float(scores[0]), *wilson(n * int(scores[0]), n)


def bootstrap(
    values: Sequence[bool | float],
    units: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, NDArray[np.float64]]:
    """(mean, (draws,) means of drawn samples); arguments as in `bootstrap_mean`."""
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    labels = np.asarray(["" for _ in values] if groups is None else groups)
    labels, group = np.unique(labels, return_inverse=True)
    total = np.zeros((len(names), len(labels)))
    asked = np.zeros_like(total)
    np.add.at(total, (unit, group), np.asarray(values, dtype=float))
    np.add.at(asked, (unit, group), 1.0)
    mean = float((total.sum(0) / asked.sum(0)).mean())
    rng = np.random.default_rng(seed)
    share = np.full(len(names), 1 / len(names))
    means = np.empty(draws)
    for start in range(0, draws, 250):  # 10,000 units at once would be 160 MB
        times = rng.multinomial(len(names), share, size=min(250, draws - start))
        # A draw may leave a small group without any question: it has no say in that draw then.
        drawn = times @ asked
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.where(drawn > 0, (times @ total) / drawn, np.nan)
        means[start : start + len(times)] = np.nanmean(found, axis=1)
    return mean, means


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947): of the questions that one of two
    models gets right and the other does not, is either more often the one?

    Args:
        only_first, only_second: how many questions only this model gets right.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = at_most = 1  # n over 0; each next binomial follows from the one before
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        at_most += ways
    return min(1.0, 2 * at_most / 2**n)  # integers: exact for any n


def sign_flip(
    changes: Sequence[float],
    units: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of paired differences whose units' signs are drawn at random (Fisher 1935).

    Args:
        changes: a difference for each pair.
        units: what is drawn as one; all of its differences change sign together.
        groups: then of the mean over groups (languages) of mean differences.

    Returns:
        (1 + draws at least as far from 0) / (1 + draws).
    """
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    labels = np.asarray(["" for _ in changes] if groups is None else groups)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    total = np.zeros(len(names))
    np.add.at(total, unit, np.asarray(changes, dtype=float) / sizes[group])
    rng = np.random.default_rng(seed)
    far, found = 0, abs(total.sum()) - 1e-12
    for start in range(0, draws, 1000):
        signs = rng.integers(0, 2, (min(1000, draws - start), len(names)), dtype=np.int8) * 2 - 1
        far += int((np.abs(signs @ total) >= found).sum())
    return (1 + far) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, in the given order (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for place, number in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = worst
    return corrected
