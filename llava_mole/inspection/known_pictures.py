"""The pictures of benchmarks, to be recognised among others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llava_mole.inspection.alike import alike
from llava_mole.inspection.fingerprints import Fingerprints, stacked


@dataclass(frozen=True)
class Match:
    """Two pictures that are, or look, the same.

    Attributes:
        place: among the pictures looked at.
        known: among the known pictures.
        how: "bytes", "pixels" or "looks".
        correlation: of grey values; 1 where bytes or pixels are equal.
    """

    place: int
    known: int
    how: str
    correlation: float


@dataclass(frozen=True)
class KnownPictures:
    """Fingerprints (m,) of different files."""

    prints: Fingerprints = field(default_factory=lambda: stacked([]))
    _by_hash: dict[tuple[str, bytes], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for how in ("bytes", "pixels"):
            for number, value in enumerate(self.prints[how]):
                self._by_hash.setdefault((how, bytes(value)), []).append(number)

    def __len__(self) -> int:
        return len(self.prints)

    def matches(self, prints: Fingerprints, read: NDArray[np.bool_]) -> list[Match]:
        """In the order of `prints` (n,); a pair once, by the strongest of what it shares.

        Args:
            read: (n,) which of them are there.
        """
        there = np.flatnonzero(read)
        if not len(self) or not len(there):
            return []
        found: dict[tuple[int, int], Match] = {}
        for how in ("bytes", "pixels"):
            for place in map(int, there):
                for number in self._by_hash.get((how, bytes(prints[place][how])), ()):
                    found.setdefault((place, number), Match(place, number, how, 1.0))
        pairs, scores = alike(prints[there], self.prints)
        for (one, number), score in zip(pairs.tolist(), scores.tolist(), strict=True):
            place = int(there[one])
            found.setdefault((place, number), Match(place, number, "looks", score))
        return [found[key] for key in sorted(found)]
