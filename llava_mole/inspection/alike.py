"""Pictures that look the same: found by hash, settled by thumbnail.

The search compares the 128 bits of `fingerprints.py` and lets many wrong pairs through. Each pair
is then laid one over the other, with up to 5 % of one picture cut away: it counts if grey values
correlate and, where both are in colour, colours agree.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llava_mole.inspection.fingerprints import CELLS, HASHES, Fingerprints, windows

BITS = 26
"""Of 128, that may differ in a pair worth laying over each other."""
CORRELATION = 0.95
"""Of grey values, from which two pictures are told to look alike."""
SAME = 0.975
"""Correlation from which they count as the same picture."""
AGREEMENT = 0.8
"""Cosine of colours, from which they agree."""
COLOURFUL = 4.0
"""Root mean square of the colour differences (of 127) below which a picture counts as grey."""

_GRID = 16
_CUTS = [(0.0, 0.0), (0.0, 0.025), (0.025, 0.0), (0.025, 0.025), (0.0, 0.05), (0.05, 0.0)]
"""Shares cut off before and after, in each direction: at most 5 % together."""
_WINDOWS = np.stack([windows(_GRID, *cut) for cut in _CUTS])
_HOPEFUL = 0.4
"""Correlation without any cut below which no cut of 5 % makes a pair look the same."""
_BLOCK = 2**17
"""Pairs compared at a time."""
_BATCH = 64

Pairs = NDArray[np.int64]


def alike(one: Fingerprints, other: Fingerprints) -> tuple[Pairs, NDArray[np.floating]]:
    """Pairs of pictures, one of each array, that look the same.

    Args:
        one, other: (n,) and (m,). Flat pictures look like nothing.

    Returns:
        (k, 2) places in `one` and `other`, in the order of `one`; (k,) correlations.
    """
    found: list[Pairs] = [np.zeros((0, 2), np.int64)]
    scores: list[NDArray[np.floating]] = [np.zeros(0, np.float32)]
    for pairs in _candidates(one, other):
        score = similarity(one[pairs[:, 0]], other[pairs[:, 1]])
        found.append(pairs[score >= CORRELATION])
        scores.append(score[score >= CORRELATION])
    return np.concatenate(found), np.concatenate(scores)


def near(one: Fingerprints, other: Fingerprints, bits: int = BITS) -> Pairs:
    """(k, 2) pairs whose hashes differ in at most `bits` of 128; none that is flat."""
    return np.concatenate([np.zeros((0, 2), np.int64), *_candidates(one, other, bits)])


def _candidates(one: Fingerprints, other: Fingerprints, bits: int = BITS) -> Iterator[Pairs]:
    """Every hash against every other, in blocks that stay in a core's cache."""
    there = np.flatnonzero(~other["flat"])
    if not len(there):
        return
    step = max(1, _BLOCK // len(there))
    words = [np.ascontiguousarray(other[name][there]) for name in HASHES]
    xor = np.empty((step, len(there)), np.uint64)
    count = np.empty(xor.shape, np.uint8)
    differing = np.empty(xor.shape, np.uint8)
    for start in range(0, len(one), step):
        some = one[start : start + step]
        n = len(some)
        differing[:n] = 0
        for name, word in zip(HASHES, words, strict=True):
            np.bitwise_xor(some[name][:, None], word, out=xor[:n])
            np.bitwise_count(xor[:n], out=count[:n])
            differing[:n] += count[:n]
        close = differing[:n] <= bits
        close[some["flat"]] = False
        if close.any():
            left, right = np.nonzero(close)
            yield np.stack([left + start, there[right]], axis=1)


def similarity(one: Fingerprints, other: Fingerprints) -> NDArray[np.floating]:
    """(n,) best correlation of grey values over the cuts; 0 where it cannot be high, or colours
    disagree.

    Args:
        one, other: (n,) each; pair i is one[i] and other[i].
    """
    score = np.zeros(len(one), np.float32)
    agree = np.flatnonzero(_colours_agree(one["colour"], other["colour"]))
    for start in range(0, len(agree), _BATCH):
        pairs = agree[start : start + _BATCH]
        a, b = one["grey"][pairs].astype(np.float32), other["grey"][pairs].astype(np.float32)
        plain_a, plain_b = _unit(_seen(a, _WINDOWS[:1])), _unit(_seen(b, _WINDOWS[:1]))
        hopeful = np.flatnonzero((plain_a * plain_b).sum((1, 2)) >= _HOPEFUL)
        if not len(hopeful):
            continue
        cut_a = (_unit(_seen(a[hopeful], _WINDOWS)) * plain_b[hopeful]).sum(2)
        cut_b = (_unit(_seen(b[hopeful], _WINDOWS)) * plain_a[hopeful]).sum(2)
        score[pairs[hopeful]] = np.maximum(cut_a.max(1), cut_b.max(1))
    return score


def _seen(grey: NDArray[np.floating], windows: NDArray[np.floating]) -> NDArray[np.floating]:
    """(n, w², g²): each thumbnail (n, SIDE, SIDE) through each pair of w windows (w, g, SIDE)."""
    w, g, side = windows.shape
    flat = windows.reshape(w * g, side)
    views = (flat @ grey @ flat.T).reshape(-1, w, g, w, g)
    return np.ascontiguousarray(views.transpose(0, 1, 3, 2, 4)).reshape(-1, w * w, g * g)


def _unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    centred = values - values.mean(-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / np.maximum(length, 1e-6)


def _colours_agree(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(n,) True also where either picture is grey."""
    a, b = (x.reshape(len(x), 2 * CELLS * CELLS).astype(np.float32) for x in (one, other))
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    grey = np.minimum(*lengths) < COLOURFUL * np.sqrt(a.shape[1])
    return grey | ((a * b).sum(1) >= AGREEMENT * lengths[0] * lengths[1])
