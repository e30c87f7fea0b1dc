"""Random orders that are functions of a key and a place: no state, the same on every machine.

numpy's generators may change their streams between versions and cannot jump to the middle of a
permutation. Here a number is hashed (splitmix64), and a permutation of any size is evaluated at any
place in constant time (a Feistel network, walked until it lands inside).
"""

from __future__ import annotations

import hashlib

import numpy as np

Words = np.ndarray
"""uint64 arrays; their arithmetic wraps."""

FEISTEL_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A 64-bit key from whole numbers and texts; order counts."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: Words, key: int) -> Words:
    """Hash each number under a key: splitmix64 (Steele, Lea, Flood 2014) over value + key."""
    out = (values + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
    out ^= out >> np.uint64(30)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def uniform(values: Words, key: int) -> np.ndarray:
    """A number in [0, 1) for each value, float64."""
    return (mix(values, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(size: int, key: int) -> np.ndarray:
    """A permutation of range(size) in full, int64; costs a sort."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64), key), kind="stable")


def permuted(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each place of range(size) goes; int64. No table is made.

    A balanced Feistel network permutes the next even number of bits; a place that leaves the range
    is sent through again, which again is a permutation (cycle walking, Black and Rogaway 2002).
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [key_of(key, number) for number in range(FEISTEL_ROUNDS)]
    out = np.asarray(places).astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        left, right = out[outside] >> half, out[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right, round_key) & mask)
        out[outside] = (left << half) | right
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)
