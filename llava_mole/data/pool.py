"""Pool: the samples of one source that a mixture draws from, grouped by picture.

Filters and kind weights decide who is in; who is left out is counted by reason. What a visit to a
picture asks is a function of seed, source, epoch, picture and visit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from llava_mole.data.random_order import key_of, uniform
from llava_mole.data.sample import Sample
from llava_mole.data.shares import PlannedSource
from llava_mole.data.source_index import SourceIndex, group_of
from llava_mole.errors import ConfigError


class Samples(Protocol):
    """What a pool needs of a source; `sources.Source` is one."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Sample: ...

    def index(self) -> SourceIndex: ...


class ListedSamples:
    """Samples in memory as a source. A mixture's order does not hang on where their pictures lie.

    Args:
        samples: of one source.
        name: unique in a mixture.
    """

    def __init__(self, samples: Sequence[Sample], name: str = "samples") -> None:
        self.samples = samples
        self.name = name

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int, /) -> Sample:
        return self.samples[number]

    def index(self) -> SourceIndex:
        codes: dict[str, dict[str, int]] = {"domains": {}, "languages": {}, "kinds": {}}

        def code(names: str, value: str) -> int:
            return codes[names].setdefault(value, len(codes[names]))

        kinds = [code("kinds", str(s.metadata.get("kind", ""))) for s in self.samples]
        pictures: dict[int, int] = {}
        groups = [group_of(s, i, ".") for i, s in enumerate(self.samples)]
        return SourceIndex(
            group=np.array([pictures.setdefault(g, len(pictures)) for g in groups], np.uint64),
            domain=np.array([code("domains", s.domain) for s in self.samples], np.int16),
            language=np.array([code("languages", s.language) for s in self.samples], np.int16),
            kind=np.array(kinds, np.int16),
            text_bytes=np.array([s.text_bytes for s in self.samples], np.int32),
            turns=np.array([len(s.turns) for s in self.samples], np.int32),
            images=np.array([len(s.images) for s in self.samples], np.int16),
            domains=tuple(codes["domains"]),
            languages=tuple(codes["languages"]),
            kinds=tuple(codes["kinds"]),
        )


@dataclass(frozen=True)
class Keep:
    """Which samples of a source take part; None: all.

    Attributes:
        domains, languages, kinds: names.
        min_bytes, max_bytes: of a sample's text, all turns together, in UTF-8.
    """

    domains: Sequence[str] | None = None
    languages: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None


class Pool:
    """One source, filtered and grouped.

    Args:
        source: its samples.
        keep: filters.
        without: (n,) bool, samples to leave out for another reason, e.g. because they do not fit.
        reason: that one, for the count.
        kind_weights: how often a kind of question is drawn, relative to 1; 0 leaves it out. Without
            any, every sample of a picture comes once an epoch; with some, each visit draws anew.
        share: weight, samples, cap and repeat_limit of the `PlannedSource`.
        name: in tables; its order follows from it. None: the source's.

    Raises:
        ConfigError: a filter names something that the source does not have.
    """

    def __init__(
        self,
        source: Samples,
        *,
        keep: Keep | None = None,
        without: np.ndarray | None = None,
        reason: str = "left out",
        kind_weights: Mapping[str, float] | None = None,
        share: Mapping[str, float | None] | None = None,
        name: str | None = None,
    ) -> None:
        self.source = source
        self.name = name or source.name
        self.index = source.index()
        self.keep, self._without, self._reason = keep or Keep(), without, reason
        self.weights = dict(kind_weights or {})
        self.left_out: dict[str, int] = {}
        """reason -> samples"""
        kept = np.ones(len(source), dtype=bool)
        for why, fits in self._filters(self.keep, without, reason):
            self.left_out[why] = int((kept & ~fits).sum())
            kept &= fits
        self.left_out = {why: count for why, count in self.left_out.items() if count}
        records = np.flatnonzero(kept)
        order = np.argsort(self.index.group[records], kind="stable")
        self.records = records[order]
        """(n,) record numbers, those of a picture side by side"""
        groups = self.index.group[self.records]
        first = np.ones(len(groups), dtype=bool)
        first[1:] = groups[1:] != groups[:-1]
        self.starts = np.append(np.flatnonzero(first), len(groups))
        """(G + 1,) where each picture's records begin"""
        there = [self.index.kinds[code] for code in np.unique(self.index.kind[self.records])]
        self.drawn_by_weight = len({self.weights.get(kind, 1.0) for kind in there}) > 1
        """Its kinds differ in weight: a visit draws anew, in place of taking turns."""
        sizes = np.diff(self.starts).astype(np.int32)
        self.planned = PlannedSource(
            self.name,
            sizes,
            anew=self.drawn_by_weight,
            **(share or {}),  # type: ignore[arg-type]
        )

    def _filters(
        self, keep: Keep, without: np.ndarray | None, reason: str
    ) -> list[tuple[str, np.ndarray]]:
        index = self.index
        found = []
        for single, plural in (("domain", "domains"), ("language", "languages"), ("kind", "kinds")):
            wanted = vars(keep)[plural]
            if wanted is None:
                continue
            names = list(getattr(index, plural))
            unknown = [name for name in wanted if name not in names]
            if unknown:
                raise ConfigError(
                    f"source {self.source.name!r}: keep.{plural}: no sample has {unknown[0]!r}; "
                    f"there are {', '.join(map(repr, sorted(names)))}"
                )
            codes = [names.index(name) for name in wanted]
            found.append((f"{single} not kept", np.isin(getattr(index, single), codes)))
        if keep.min_bytes is not None:
            found.append((f"under {keep.min_bytes} bytes", index.text_bytes >= keep.min_bytes))
        if keep.max_bytes is not None:
            found.append((f"over {keep.max_bytes} bytes", index.text_bytes <= keep.max_bytes))
        dropped = [code for code, kind in enumerate(index.kinds) if self.weights.get(kind, 1) <= 0]
        if dropped:
            found.append(("kind of weight 0", ~np.isin(index.kind, dropped)))
        if without is not None:
            found.append((reason, ~without))
        return found

    def only(self, language: str, name: str, share: Mapping[str, float | None]) -> Pool:
        """Its samples in one language, as a pool of that name and share."""
        return Pool(
            self.source,
            keep=replace(self.keep, languages=[language]),
            without=self._without,
            reason=self._reason,
            kind_weights=self.weights,
            share=share,
            name=name,
        )

    def visit(self, group: int, epoch: int, visit: int, questions: int, seed: int) -> np.ndarray:
        """(k,) record numbers that a visit to a picture asks about, k <= questions.

        Languages take turns, in proportion to what they have; within a language the order is
        random, or by kind weights.
        """
        members = self.records[self.starts[group] : self.starts[group + 1]]
        if len(members) == 1:
            return members
        # With weights each visit draws for itself, without them visits share one order.
        turn = visit if self.drawn_by_weight else 0
        key = key_of(seed, self.name, "visit", epoch, int(group), turn)
        lots = uniform(np.arange(len(members), dtype=np.uint64), key)
        languages = self.index.language[members]
        if self.drawn_by_weight:
            # Exponential clocks draw by weight without replacement (Efraimidis, Spirakis 2006).
            lots = -np.log1p(-lots) / self._chances(self.index.kind[members], languages)
        place = np.empty(len(members))
        present = np.unique(languages)
        starts = uniform(present.astype(np.uint64), key_of(key, "languages"))
        for language, start in zip(present, starts, strict=True):
            mine = np.flatnonzero(languages == language)
            depth = np.empty(len(mine))
            depth[np.argsort(lots[mine], kind="stable")] = np.arange(len(mine))
            place[mine] = (depth + start) / (1 if self.drawn_by_weight else len(mine))
        order = members[np.argsort(place, kind="stable")]
        first = 0 if self.drawn_by_weight else visit * questions
        return order[first : first + questions]

    def _chances(self, kinds: np.ndarray, languages: np.ndarray) -> np.ndarray:
        """(k,) a kind's weight, shared by its samples in a language."""
        chances = np.array([self.weights.get(self.index.kinds[kind], 1.0) for kind in kinds])
        pairs = kinds.astype(np.int64) * (len(self.index.languages) + 1) + languages
        _, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        return chances / counts[inverse]
