"""What a source holds twice: conversations, files, pixels, drawings that look the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llava_mole.inspection.alike import SAME, Pairs, similarity
from llava_mole.inspection.fingerprints import HASHES, Fingerprints

BITS = 7
"""Of 128 hash bits, that may differ between two pictures of a source that are compared."""
_BANDS = BITS + 1
"""Bits are dealt out into so many hands: pictures that differ in fewer bits share one whole."""
_PAIRS = 2**16
_BUCKET = 512


def repeated(keys: NDArray[np.bytes_]) -> list[tuple[int, int]]:
    """(place, first place of the same key) for every key that was there before, in order."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    earliest = first[which]
    places = np.flatnonzero(earliest != np.arange(len(keys)))
    return list(zip(places.tolist(), earliest[places].tolist(), strict=True))


def same_pictures(
    prints: Fingerprints, read: NDArray[np.bool_]
) -> Iterator[tuple[int, int, str, float]]:
    """Pictures that are there already: (place, earlier place, how, correlation), in order, each
    place once, by the strongest of "bytes", "pixels" and "looks".

    What looks the same is compared with the first picture of each hash, not with all of them.

    Args:
        prints: (n,) of different names.
        read: (n,) which of them could be read.
    """
    there = np.flatnonzero(read)
    found: dict[int, tuple[int, str, float]] = {}
    for how in ("bytes", "pixels"):
        keys = np.ascontiguousarray(prints[how][there]).view("S32")
        for place, first in repeated(keys):
            found.setdefault(int(there[place]), (int(there[first]), how, 1.0))
    left = np.array([n for n in there.tolist() if n not in found and not prints["flat"][n]], int)
    for place, first, score in _looks(prints, left):
        known = found.get(place)
        if known is None or (known[1] == "looks" and first < known[0]):
            found[place] = (first, "looks", score)
    yield from ((place, *found[place]) for place in sorted(found))


def _looks(prints: Fingerprints, places: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
    """(place, earlier place, correlation) of pairs that look the same."""
    words = np.stack([prints[name][places] for name in HASHES], axis=1)
    if not len(words):
        return
    _, first, which = np.unique(words, axis=0, return_index=True, return_inverse=True)
    earliest = first[which.reshape(-1)]
    later = np.flatnonzero(earliest != np.arange(len(words)))
    same_hash = np.stack([later, earliest[later]], axis=1)
    pairs = [same_hash, *(first[some] for some in _close(words[first]))]
    for some in pairs:
        for start in range(0, len(some), _PAIRS):
            ordered = places[np.sort(some[start : start + _PAIRS], axis=1)]
            scores = similarity(prints[ordered[:, 0]], prints[ordered[:, 1]])
            for (one, other), score in zip(ordered.tolist(), scores.tolist(), strict=True):
                if score >= SAME:
                    yield other, one, score


def _close(words: NDArray[np.uint64]) -> Iterator[Pairs]:
    """(k, 2) pairs of different rows (n, 2) that differ in at most `BITS` bits; a pair may come
    several times."""
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), 16), axis=1)
    for band in range(_BANDS):
        # Every eighth bit: neighbouring ones are alike in many pictures and would tell little.
        hand = np.packbits(bits[:, band::_BANDS], axis=1).view(np.uint16).reshape(-1)
        order = np.argsort(hand, kind="stable")
        edges = np.flatnonzero(np.diff(hand[order])) + 1
        for bucket in np.split(order, edges):
            yield from _within(words, bucket)


def _within(words: NDArray[np.uint64], bucket: NDArray[np.int64]) -> Iterator[Pairs]:
    """Close pairs of one bucket, each against those after it."""
    for start in range(0, len(bucket) - 1, _BUCKET):
        one = bucket[start : start + _BUCKET]
        rest = bucket[start:]
        differing = sum(
            np.bitwise_count(words[one, word][:, None] ^ words[rest, word]) for word in (0, 1)
        )
        left, right = np.nonzero(np.asarray(differing) <= BITS)
        after = right > left
        if after.any():
            yield np.stack([one[left[after]], rest[right[after]]], axis=1)
