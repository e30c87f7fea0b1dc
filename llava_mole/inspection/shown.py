"""Which pictures a source shows, and which records show each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Places:
    """Where pictures are shown, in the order of the records; n of them.

    Attributes:
        keys: (n,) 16 bytes that tell a picture's file, or its content where the data hold it.
        records: (n,) numbers.
        slots: (n,) which of the record's pictures.
    """

    keys: NDArray[np.bytes_]
    records: NDArray[np.int64]
    slots: NDArray[np.int32]

    @classmethod
    def of(cls, shown: Sequence[tuple[bytes, int, int]]) -> Places:
        keys, records, slots = zip(*shown, strict=True) if shown else ((), (), ())
        return cls(np.array(keys, "S16"), np.array(records, np.int64), np.array(slots, np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        if not parts:
            return cls.of([])
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in cls.__annotations__))


class Shown:
    """Different pictures, in the order in which they are first shown.

    Args:
        places: of all pictures.
    """

    def __init__(self, places: Places) -> None:
        _, first, which = np.unique(places.keys, return_index=True, return_inverse=True)
        in_order = np.argsort(first)
        rank = np.empty(len(first), np.int64)
        rank[in_order] = np.arange(len(first))
        self._by_picture = np.argsort(rank[which], kind="stable")
        self._ends = np.cumsum(np.bincount(rank[which], minlength=len(first)))
        self._records = places.records
        first = first[in_order]
        self.first = np.stack([places.records[first], places.slots[first]], axis=1)
        """(k, 2) record and slot that show each picture first"""

    def __len__(self) -> int:
        return len(self.first)

    def records(self, picture: int) -> list[int]:
        """Numbers of the records that show a picture, each once, in order."""
        start = int(self._ends[picture - 1]) if picture else 0
        places = self._by_picture[start : int(self._ends[picture])]
        return [int(number) for number in np.unique(self._records[places])]
