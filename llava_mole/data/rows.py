"""Training rows: one picture with several of its questions, drawn by seed and row number alone.

Row i is a pure function of (samples, seed, i), so a run resumes at any row without replaying the
ones before, and every rank draws the same plan. Pictures come in epochs, each a fresh permutation.
Within a row the questions are spread over languages first and drawn by kind second, without
replacement.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from llava_mole.data.sample import Sample
from llava_mole.errors import DataError
from llava_mole.processing import Encoded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One picture set and the questions about it, each an independent conversation."""

    images: tuple[Path, ...]
    samples: tuple[Sample, ...]
    encoded: tuple[Encoded, ...]


class PictureRows(Dataset[Row]):
    """Rows over all samples.

    Args:
        samples: from the readers.
        encode: sample -> tokens; refuses what cannot be trained on.
        rows: how many rows the stage draws.
        questions: questions per row; fewer where a picture has fewer.
        seed: of the plan.
        kind_weights: relative weight of samples by their `kind` metadata; others weigh 1.
        variants: other drawings of a picture, any of which a row may show in its place.
        variant_share: share of rows that do.

    Raises:
        DataError: there is no sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encode: Callable[[Sample], Encoded],
        *,
        rows: int,
        questions: int,
        seed: int,
        kind_weights: Mapping[str, float] | None = None,
        variants: Mapping[Path, Sequence[Path]] | None = None,
        variant_share: float = 0.5,
    ) -> None:
        if not samples:
            raise DataError("no training sample: every source is empty or filtered out")
        self.encode = encode
        self.rows = rows
        self.questions = questions
        self.seed = seed
        self.variants = variants or {}
        self.variant_share = variant_share
        weights = dict(kind_weights or {})
        groups: dict[tuple[Path, ...], dict[str, list[Sample]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.left_out = 0
        for index, sample in enumerate(samples):
            if weights.get(sample.metadata.get("kind", ""), 1.0) <= 0:
                self.left_out += 1
                continue
            # A text-only sample is a row of its own.
            key = sample.images or (Path(f"text-only/{index}"),)
            groups[key][sample.language].append(sample)
        if not groups:
            raise DataError(f"every one of {len(samples)} samples has weight 0 in kind_weights")
        self.groups = [
            {language: _Draw(items, weights) for language, items in by_language.items()}
            for by_language in groups.values()
        ]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.rows

    def plan(self, index: int) -> tuple[tuple[Path, ...], list[Sample]]:
        """Pictures and samples of row `index`; nothing is read or encoded."""
        if not 0 <= index < self.rows:
            raise IndexError(index)
        epoch, place = divmod(index, len(self.groups))
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.groups))
            self._order = (epoch, order)
        by_language = self.groups[int(self._order[1][place])]
        rng = np.random.default_rng((self.seed, 1, index))
        languages = list(by_language)
        rng.shuffle(languages)
        orders = {language: by_language[language].order(rng) for language in languages}
        chosen: list[Sample] = []
        depth = 0
        while len(chosen) < self.questions:
            layer = [orders[name][depth] for name in languages if depth < len(orders[name])]
            if not layer:
                break
            chosen += layer[: self.questions - len(chosen)]
            depth += 1
        images = chosen[0].images
        # Drawn whether or not it is used, so that a share changes no other choice.
        redrawn, pick = rng.random(2)
        drawings = self.variants.get(images[0], ()) if len(images) == 1 else ()
        if drawings and redrawn < self.variant_share:
            images = (drawings[int(pick * len(drawings))],)
        return images, chosen

    def __getitem__(self, index: int) -> Row:
        images, samples = self.plan(index)
        return Row(images, tuple(samples), tuple(self.encode(sample) for sample in samples))


class _Draw:
    """A weighted order of one picture's samples in one language."""

    def __init__(self, samples: list[Sample], weights: Mapping[str, float]) -> None:
        self.samples = samples
        raw = np.array([weights.get(s.metadata.get("kind", ""), 1.0) for s in samples], dtype=float)
        counts: dict[str, int] = defaultdict(int)
        for sample in samples:
            counts[sample.metadata.get("kind", "")] += 1
        # A weight belongs to a kind, not to each of its samples.
        share = np.array([1 / counts[s.metadata.get("kind", "")] for s in samples])
        self.probabilities = raw * share / (raw * share).sum()

    def order(self, rng: np.random.Generator) -> list[Sample]:
        picks = rng.choice(
            len(self.samples), len(self.samples), replace=False, p=self.probabilities
        )
        return [self.samples[int(pick)] for pick in picks]
