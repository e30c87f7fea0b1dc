"""Intervals: Wilson's for one accuracy, a bootstrap over pictures for means over languages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

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
    groups: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean over groups (languages) of the accuracy, with a 95 % interval.

    Questions about one picture, in six languages, are not six independent trials: pictures are
    drawn with replacement, each with all its questions, the same draw for every group.

    Args:
        correct, pictures, groups: one entry per question.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        (mean, low, high).
    """
    if not len(correct):
        return math.nan, math.nan, math.nan
    names, picture = np.unique(np.asarray(pictures), return_inverse=True)
    labels, group = np.unique(np.asarray(groups), return_inverse=True)
    hits = np.zeros((len(names), len(labels)))
    asked = np.zeros_like(hits)
    np.add.at(hits, (picture, group), np.asarray(correct, dtype=float))
    np.add.at(asked, (picture, group), 1.0)
    mean = float((hits.sum(0) / asked.sum(0)).mean())
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    # A draw may leave a small group without any question: it then has no say in that draw.
    drawn = times @ asked
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nanmean(np.where(drawn > 0, (times @ hits) / drawn, np.nan), axis=1)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return mean, float(low), float(high)
