"""Mixture: many sources, one order of rows, as pure arithmetic.

A row is one visit to a picture with up to `questions` of its samples; with one question a row is
one sample. Row number -> (source, picture, epoch, visit) is a function of the recipe alone: nothing
is drawn in sequence, so any step can be resumed at once, and every rank computes the same order.

    shares      size^(1/T), or given weights, or given numbers of samples; a source is held at its
                repeat limit and the others share what it leaves
    a pass      so many rows that every source (or the first, or a given number) is exhausted
    blocks      a pass is cut into blocks; at every block's end each source has been drawn within
                one row of its share (largest remainders); inside, the order is random
    a source    visits its pictures in epochs, each a fresh permutation; a picture with more samples
                than fit in a row is visited several times an epoch, evenly spread

The counts of two neighbouring blocks never cross, because a block is long enough for the rarest
source to be drawn at least once in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_mole.data.random_order import key_of, permuted, shuffled, uniform
from llava_mole.data.shares import (
    PlannedSource,
    Stop,
    apportioned,
    held,
    largest_remainders,
    mixture_problems,
    rows_wanted,
    shares,
)
from llava_mole.errors import ConfigError

BLOCK = 1024
"""Rows of a block, at least."""
LONGEST_BLOCK = 4_000_000
"""A block is worked out at once, some 100 bytes a row."""


@dataclass(frozen=True)
class Visits:
    """A range of rows, an entry each.

    Attributes:
        source: number of the source.
        group: which of its pictures.
        epoch: how often the source has been gone through before.
        visit: which visit of this epoch to this picture.
    """

    source: np.ndarray
    group: np.ndarray
    epoch: np.ndarray
    visit: np.ndarray

    def __len__(self) -> int:
        return len(self.source)


class SourceOrder:
    """The endless order in which one source's pictures are visited.

    Args:
        sizes: (G,) samples a picture.
        questions: samples a visit, at most.
        key: of the order.
        anew: as in `PlannedSource`.
    """

    def __init__(self, sizes: np.ndarray, questions: int, key: int, anew: bool = False) -> None:
        self.key = key
        self.groups = len(sizes)
        self.visits: np.ndarray | None = None
        self.rows = self.groups
        self.samples = int(sizes.sum(dtype=np.int64))
        """That an epoch draws."""
        if self.groups and int(sizes.max()) > questions:
            self.visits = -(-np.asarray(sizes, dtype=np.int64) // questions)
            self.rows = int(self.visits.sum())
            if anew:
                self.samples = int((self.visits * np.minimum(sizes, questions)).sum())
        self._table: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw numbers (n,) -> (group, epoch, visit), (n,) each."""
        epoch, place = np.divmod(np.asarray(draws, dtype=np.int64), self.rows)
        group = np.empty_like(place)
        visit = np.zeros_like(place)
        for number in np.unique(epoch):
            here = epoch == number
            if self.visits is None:
                key = key_of(self.key, int(number))
                group[here] = permuted(place[here], self.groups, key)
            else:
                groups, visits = self._spread(int(number))
                group[here], visit[here] = groups[place[here]], visits[place[here]]
        return group, epoch, visit

    def _spread(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """One epoch's visits in order: visit j of v falls at random into its v-th of the epoch."""
        if self._table is None or self._table[0] != epoch:
            assert self.visits is not None
            group = np.repeat(np.arange(self.groups), self.visits)
            start = np.cumsum(self.visits) - self.visits
            visit = np.arange(self.rows) - np.repeat(start, self.visits)
            lot = uniform(np.arange(self.rows, dtype=np.uint64), key_of(self.key, epoch))
            order = np.argsort((visit + lot) / np.repeat(self.visits, self.visits), kind="stable")
            self._table = (epoch, group[order], visit[order])
        return self._table[1], self._table[2]


class Mixture:
    """The plan.

    Args:
        sources: in the recipe's order; those without a sample are not drawn.
        questions: samples a row, at most.
        temperature: shares are weight^(1/temperature), normalised: 1 keeps them, more evens them.
        stop: when a pass is over: every source seen once, the first one seen once, or a number of
            samples.
        seed: of every order.

    Raises:
        ConfigError: listing all that makes no sense.
    """

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        *,
        questions: int = 1,
        temperature: float = 1.0,
        stop: Stop | int = "all_exhausted",
        seed: int = 0,
    ) -> None:
        problems = mixture_problems(sources, temperature, stop)
        if problems:
            raise ConfigError("\n".join(problems))
        self.sources = tuple(sources)
        self.seed = seed
        self.orders = [
            SourceOrder(source.sizes, questions, key_of(seed, source.name), source.anew)
            for source in sources
        ]
        per_epoch = np.array([order.rows for order in self.orders], dtype=np.float64)
        drawn = np.array([order.samples for order in self.orders], dtype=np.float64)
        per_row = np.divide(drawn, per_epoch, out=np.ones_like(drawn), where=per_epoch > 0)
        self.requested = shares(sources, temperature)
        """(S,) share of the samples that the recipe asks for."""
        limits = np.array(
            [
                math.floor(source.total * source.repeat_limit / samples)
                if source.repeat_limit
                else math.inf
                for samples, source in zip(per_row, sources, strict=True)
            ]
        )
        wanted = rows_wanted(sources, self.requested, per_row, per_epoch, limits, stop)
        self.wanted = largest_remainders(wanted, round(wanted.sum()))
        """(S,) rows a pass that the shares ask for."""
        self.quotas = held(self.wanted, limits)
        """(S,) rows a pass that are drawn; less than `wanted` where a repeat limit holds."""
        self.rows = int(self.quotas.sum())
        """Rows of one pass."""
        if self.rows == 0:
            raise ConfigError("the mixture is empty: its sources leave no row to draw")
        rarest = min((int(quota), i) for i, quota in enumerate(self.quotas) if quota > 0)
        self.block = min(self.rows, max(BLOCK, -(-self.rows // rarest[0])))
        if self.block > LONGEST_BLOCK:
            raise ConfigError(
                f"source {sources[rarest[1]].name!r} would come once in {self.block:,} rows: leave "
                "it out (weight: 0), or give it more weight"
            )

    @property
    def held(self) -> np.ndarray:
        """(S,) True where a repeat limit keeps a source below its share."""
        return self.quotas < self.wanted

    def repeats(self) -> np.ndarray:
        """(S,) how often a pass goes through each source."""
        per_epoch = np.array([max(order.rows, 1) for order in self.orders])
        return self.quotas / per_epoch

    def drawn_before(self, row: int) -> np.ndarray:
        """(S,) rows of each source before a block's first row."""
        passes, place = divmod(row, self.rows)
        if place % self.block:
            raise ValueError(f"{row} is not a block's first row")
        return passes * self.quotas + apportioned(self.quotas, place, self.rows)

    def plan(self, start: int, stop: int) -> Visits:
        """Rows `start` to `stop` (excluded), any non-negative numbers; passes follow each other."""
        if not 0 <= start <= stop:
            raise ValueError(f"rows {start} to {stop}")
        source = np.empty(stop - start, dtype=np.int16)
        draw = np.empty(stop - start, dtype=np.int64)
        row = start
        while row < stop:
            passes, place = divmod(row, self.rows)
            first = place - place % self.block
            sources, draws = self._block(passes, first)
            skip = place - first
            take = min(len(sources) - skip, stop - row)
            into = slice(row - start, row - start + take)
            source[into], draw[into] = sources[skip : skip + take], draws[skip : skip + take]
            row += take
        group, epoch, visit = (np.empty(len(draw), dtype=np.int32) for _ in range(3))
        for number in np.unique(source):
            here = np.flatnonzero(source == number)
            group[here], epoch[here], visit[here] = self.orders[number](draw[here])
        return Visits(source, group, epoch, visit)

    def _block(self, passes: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, draw number) of each row of the block that begins at `first` of a pass."""
        before = apportioned(self.quotas, first, self.rows)
        length = min(self.block, self.rows - first)
        counts = apportioned(self.quotas, first + length, self.rows) - before
        source = np.repeat(np.arange(len(counts)), counts)
        source = source[shuffled(length, key_of(self.seed, "block", passes, first))]
        # A source's draws keep their order, so that what stands beside it changes nothing.
        begin = np.cumsum(counts) - counts
        draw = np.empty(length, dtype=np.int64)
        draw[np.argsort(source, kind="stable")] = np.arange(length) + np.repeat(
            before + passes * self.quotas - begin, counts
        )
        return source, draw


def share_of_rank(rows: int, rank: int, ranks: int, rows_per_rank: int) -> np.ndarray:
    """The rows of an order of `rows` that one of `ranks` takes: step by step, a run of
    `rows_per_rank` each, in rank order. Together the ranks take every row once; a last step that is
    not full gives the last ranks less."""
    starts = np.arange(rank * rows_per_rank, rows, ranks * rows_per_rank)
    taken = (starts[:, None] + np.arange(rows_per_rank)).reshape(-1)
    return taken[taken < rows]
