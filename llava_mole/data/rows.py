"""Training rows: the plan of a mixture with its samples read and encoded.

Row i is a function of the recipe and i alone, so a run resumes at any row, and every rank reads the
same order. Rows of like length are put side by side: inside a window of the plan they are sorted by
length and cut into micro-batches, whose order is then random. Both stay functions of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from llava_mole.data.mixture import Mixture, Visits
from llava_mole.data.pool import Pool
from llava_mole.data.random_order import key_of, shuffled, uniform
from llava_mole.data.sample import ImageRef, Sample
from llava_mole.errors import DataError
from llava_mole.processing import Encoded

AT_ONCE = 1024
"""Planned rows kept at hand."""


@dataclass(frozen=True)
class Row:
    """One picture set and the questions about it, each an independent conversation."""

    images: tuple[ImageRef, ...]
    samples: tuple[Sample, ...]
    encoded: tuple[Encoded, ...]


class MixtureRows(Dataset[Row]):
    """Rows of a mixture, in training order.

    Args:
        pools: its sources, in the mixture's order.
        mixture: the plan.
        encode: sample -> tokens; refuses what cannot be trained on.
        rows: how many rows are drawn.
        questions: questions per row; fewer where a picture has fewer.
        seed: of questions, drawings and lengths' order.
        variants: other drawings of a picture, any of which a row may show in its place.
        variant_share: share of rows that do.
        batch: rows of a micro-batch, of all processes together.
        window: micro-batches among which rows of like length are put together; 1: the planned
            order.
        length: row -> tokens, for the window's order; None: of its longest conversation.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        mixture: Mixture,
        encode: Callable[[Sample], Encoded],
        *,
        rows: int,
        questions: int,
        seed: int,
        variants: Mapping[Path, Sequence[Path]] | None = None,
        variant_share: float = 0.5,
        batch: int = 1,
        window: int = 1,
        length: Callable[[Row], int] | None = None,
    ) -> None:
        self.pools = pools
        self.mixture = mixture
        self.encode = encode
        self.rows = rows
        self.questions = questions
        self.seed = seed
        self.variants = variants or {}
        self.variant_share = variant_share
        self.batch = batch
        self.window = window
        self.length = length or longest_conversation
        self._planned: tuple[int, Visits] | None = None
        self._window: tuple[int, list[Row], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.rows

    def visits(self, index: int) -> tuple[int, int, int, int]:
        """(source, picture, epoch, visit) of planned row `index`."""
        start = index - index % AT_ONCE
        if self._planned is None or self._planned[0] != start:
            self._planned = (start, self.mixture.plan(start, start + AT_ONCE))
        plan, place = self._planned[1], index - start
        return (
            int(plan.source[place]),
            int(plan.group[place]),
            int(plan.epoch[place]),
            int(plan.visit[place]),
        )

    def records(self, index: int) -> tuple[Pool, np.ndarray]:
        """The pool and the record numbers of planned row `index`; nothing is read."""
        if not 0 <= index < self.rows:
            raise IndexError(index)
        source, group, epoch, visit = self.visits(index)
        pool = self.pools[source]
        return pool, pool.visit(group, epoch, visit, self.questions, self.seed)

    def plan(self, index: int) -> tuple[tuple[ImageRef, ...], list[Sample]]:
        """Pictures and samples of planned row `index`; read, not encoded.

        Raises:
            DataError: a record cannot be read, or shows another picture than when it was indexed.
        """
        pool, records = self.records(index)
        chosen = [pool.source[int(record)] for record in records]
        images = chosen[0].images
        for sample in chosen:
            if sample.images != images:
                raise DataError(
                    f"{sample.source}: shows other pictures than {chosen[0].source}, which it "
                    "shared them with when the source was indexed; was the file changed since?"
                )
        return self._drawn(images, self.visits(index)), chosen

    def _drawn(
        self, images: tuple[ImageRef, ...], visit: tuple[int, int, int, int]
    ) -> tuple[ImageRef, ...]:
        """The pictures, or another drawing of the one."""
        if len(images) != 1 or not isinstance(images[0], Path):
            return images
        drawings = self.variants.get(images[0], ())
        if not drawings:
            return images
        key = key_of(self.seed, "drawing", *visit)
        redrawn, pick = uniform(np.arange(2, dtype=np.uint64), key)
        return (drawings[int(pick * len(drawings))],) if redrawn < self.variant_share else images

    def __getitem__(self, index: int) -> Row:
        """Row `index` of the training order."""
        if not 0 <= index < self.rows:
            raise IndexError(index)
        if self.window == 1:
            return self._row(index)
        size = self.batch * self.window
        start = index - index % size
        if self._window is None or self._window[0] != start:
            rows = [self._row(i) for i in range(start, min(start + size, self.rows))]
            self._window = (start, rows, self._by_length(rows, start))
        _, rows, order = self._window
        return rows[order[index - start]]

    def _by_length(self, rows: Sequence[Row], start: int) -> np.ndarray:
        """Order of a window: sorted, cut into micro-batches, these shuffled."""
        lengths = np.array([self.length(row) for row in rows])
        lots = shuffled(len(rows), key_of(self.seed, "ties", start))
        order = lots[np.argsort(lengths[lots], kind="stable")]
        full = len(rows) // self.batch * self.batch
        batches = order[:full].reshape(-1, self.batch)
        batches = batches[shuffled(len(batches), key_of(self.seed, "batches", start))]
        return np.concatenate([batches.reshape(-1), order[full:]])

    def _row(self, index: int) -> Row:
        images, samples = self.plan(index)
        return Row(images, tuple(samples), tuple(self.encode(sample) for sample in samples))


def longest_conversation(row: Row) -> int:
    """Tokens of the longest of a row's conversations."""
    return max(len(item.input_ids) for item in row.encoded)
