"""How many rows of each source: requests to shares, shares to whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llava_mole.errors import ConfigError

MOST = 10**15
"""Samples or rows of a pass."""

Stop = Literal["all_exhausted", "first_exhausted"]


@dataclass(frozen=True)
class PlannedSource:
    """What the planner knows of a source.

    Attributes:
        name: unique in the mixture; the source's own order follows from it and the seed, so
            another source beside it changes nothing.
        sizes: (G,) samples of each of its pictures.
        weight: its share relative to the other sources'; None: its number of samples.
        samples: drawn per pass, in place of a share.
        cap: number of samples above which the size counts no further.
        repeat_limit: times a sample may come in one pass, on average.
        anew: every visit to a picture draws as many samples as it has room for, in place of the
            picture's visits sharing them out.
    """

    name: str
    sizes: np.ndarray = field(repr=False)
    weight: float | None = None
    samples: int | None = None
    cap: int | None = None
    repeat_limit: float | None = None
    anew: bool = False

    @property
    def total(self) -> int:
        return int(self.sizes.sum(dtype=np.int64))


def mixture_problems(
    sources: Sequence[PlannedSource], temperature: float, stop: Stop | int
) -> list[str]:
    """Everything in the request that cannot be met."""
    problems = []
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"sources: two are named {name!r}; give each a name of its own")
    if not sources:
        problems.append("sources: empty; name at least one")
    elif all(source.total == 0 for source in sources):
        problems.append("sources: none has a sample; are they empty, or filtered out?")
    for key in ("weight", "samples"):
        given = [s.name for s in sources if vars(s)[key] is not None]
        others = [s.name for s in sources if vars(s)[key] is None]
        if given and others:
            problems.append(
                f"sources: {key} is given for {', '.join(given)} but not for {', '.join(others)}: "
                "the two cannot be compared; give it for all or for none"
            )
    if any(s.weight is not None for s in sources) and any(s.samples is not None for s in sources):
        problems.append("sources: weight and samples are both given; use one of them for all")
    if any(s.weight is not None for s in sources) and any(s.cap is not None for s in sources):
        problems.append("sources: cap limits a source's size, but weights are given in its place")
    for source in sources:
        for key in ("weight", "samples", "cap", "repeat_limit"):
            value = vars(source)[key]
            least = 0 if key in ("weight", "samples") else None  # 0 leaves a source out
            if isinstance(value, int) and value > MOST:
                problems.append(f"source {source.name!r}: {key}: must be at most {MOST:,}")
            elif value is not None and not (math.isfinite(value) and (value > 0 or value == least)):
                problems.append(f"source {source.name!r}: {key}={value!r}: must be above 0")
    if not temperature > 0 or math.isnan(temperature):
        problems.append(f"temperature={temperature!r}: must be above 0 (1 keeps the shares)")
    counted = any(source.samples is not None for source in sources)
    if counted and (temperature != 1 or any(s.cap is not None for s in sources)):
        problems.append("temperature and cap change shares; with samples given there are none")
    if isinstance(stop, bool) or (isinstance(stop, int) and stop < 1):
        problems.append(f"length={stop!r}: must be a number of samples above 0")
    if isinstance(stop, int) and stop > MOST:
        problems.append(f"length: must be at most {MOST:,} samples")
    if isinstance(stop, int) and counted:
        problems.append("length: the sum of the sources' samples already says it; leave it out")
    if not isinstance(stop, int) and stop not in ("all_exhausted", "first_exhausted"):
        problems.append(
            f"length={stop!r}: expected all_exhausted, first_exhausted or a number of samples"
        )
    return problems


def shares(sources: Sequence[PlannedSource], temperature: float) -> np.ndarray:
    """(S,) the share of samples asked for each source; adds up to 1."""
    if any(source.samples is not None for source in sources):
        raw = np.array([s.samples if s.total else 0 for s in sources], dtype=np.float64)
    else:
        raw = np.array([_weight(source) for source in sources], dtype=np.float64)
        known = raw > 0
        # Relative to the largest first, or a high power of a small number is 0.
        raw[known] = (raw[known] / raw.max()) ** (1 / temperature)
    return raw / raw.sum() if raw.sum() else raw


def _weight(source: PlannedSource) -> float:
    if source.total == 0:
        return 0.0
    return source.weight if source.weight is not None else min(source.total, source.cap or math.inf)


def rows_wanted(
    sources: Sequence[PlannedSource],
    share: np.ndarray,
    per_row: np.ndarray,
    per_epoch: np.ndarray,
    limits: np.ndarray,
    stop: Stop | int,
) -> np.ndarray:
    """(S,) rows of each source in a pass, not yet whole numbers; limits are not applied yet.

    Args:
        share: (S,) of samples.
        per_row: (S,) samples of a row on average.
        per_epoch: (S,) rows to go through a source once.
        limits: (S,) rows that repeat limits allow. With "all_exhausted" what a held source leaves
            to the others makes a pass shorter.
    """
    if any(source.samples is not None for source in sources):
        given = [source.samples if source.total else 0 for source in sources]
        return np.array(given, dtype=np.float64) / per_row
    rows = share / per_row
    drawn = rows > 0
    if not drawn.any():
        raise ConfigError("every source has weight 0: nothing to draw")
    if isinstance(stop, int):
        return stop * rows
    # Of a capped source the cap is all there is.
    part = [min(1.0, (s.cap or math.inf) / max(s.total, 1)) for s in sources]
    needed = np.minimum(per_epoch * np.array(part), limits)
    passes = needed[drawn] / rows[drawn]
    if stop == "first_exhausted":
        return passes.min() * rows
    return shortest(passes.max() * rows, needed, limits)


def shortest(rows: np.ndarray, needed: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`rows` scaled down as far as every source still has the rows it needs once it is `held`."""
    whole = round(rows.sum())
    if not (rows > limits).any():
        return rows
    share = rows / rows.sum()
    low, high = 0, whole  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        given = held(largest_remainders(share * middle, middle), limits)
        enough = (given[share > 0] >= np.floor(needed[share > 0])).all()
        low, high = (low, middle) if enough else (middle, high)
    return share * high


def held(wanted: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(S,) whole rows no larger than `limits`; what a held source leaves goes to the others in
    proportion. Less in sum only where every source is held."""
    total = int(wanted.sum())
    fixed = np.zeros(len(wanted), dtype=bool)
    rows = wanted.astype(np.float64)
    while True:
        over = ~fixed & (rows > limits)
        if not over.any():
            break
        fixed |= over
        rows[fixed] = limits[fixed]
        free = wanted * ~fixed
        left = max(0.0, total - rows[fixed].sum())
        rows = np.where(fixed, limits, free * (left / free.sum() if free.sum() else 0.0))
    return largest_remainders(rows, round(rows.sum()))


def largest_remainders(wanted: np.ndarray, total: int) -> np.ndarray:
    """(S,) whole numbers that add up to `total`, each within one of what is wanted (Hamilton)."""
    base = np.floor(wanted).astype(np.int64)
    rest = total - int(base.sum())
    order = np.argsort(-(wanted - base), kind="stable")
    base[order[:rest]] += 1
    return base


def apportioned(quotas: np.ndarray, row: int, rows: int) -> np.ndarray:
    """(S,) how often each source comes in the first `row` of `rows`: in whole numbers, within one
    of the exact share, by largest remainders. Exact integers throughout."""
    exact = [int(quota) * row for quota in quotas]
    base = np.array([value // rows for value in exact], dtype=np.int64)
    rest = row - int(base.sum())
    order = sorted(range(len(exact)), key=lambda i: (-(exact[i] % rows), i))
    base[order[:rest]] += 1
    return base
