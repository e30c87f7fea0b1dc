"""Copies of real pictures are recognised; different pictures are not taken for each other."""

import numpy as np
import pytest

from llava_mole.inspection.alike import BITS, CORRELATION, SAME, alike, near, similarity
from llava_mole.inspection.duplicates import same_pictures
from llava_mole.inspection.fingerprints import HASHES, stacked
from tests.inspection import copies


@pytest.fixture(scope="module")
def drawings():
    return copies.drawings(200)


@pytest.fixture(scope="module")
def photos():
    return copies.photos()


@pytest.mark.parametrize("kind", ["drawings", "photos"])
@pytest.mark.parametrize(
    ("change", "alike_share", "same_share"),
    [
        ("half the size", 1.0, 1.0),
        ("JPEG, quality 30", 1.0, 0.98),
        ("grey", 1.0, 1.0),
        ("up to 5 % cut off", 0.95, 0.80),
        ("cut, 150 × 150, grey, JPEG", 0.95, 0.80),
    ],
)
def test_copies_are_found(request, kind, change, alike_share, same_share):
    images = request.getfixturevalue(kind)[::2]
    rng = np.random.default_rng(0)
    changed = [copies.COPIES[change](image, rng) for image in images]
    scores = copies.found(copies.prints_of(changed), copies.prints_of(images))
    assert (scores >= CORRELATION).mean() >= alike_share
    assert (scores >= SAME).mean() >= same_share


def test_different_drawings_are_rarely_taken_for_alike(drawings):
    wrong = copies.confused(copies.prints_of(drawings))
    assert len(wrong) <= 12  # of 19,900 pairs: hearts, clock faces, men and women
    assert (wrong >= SAME).sum() <= 4


def test_different_photographs_are_not_taken_for_alike(photos):
    wrong = copies.confused(copies.prints_of(photos))
    assert len(wrong) <= 1  # the chess board in grey and in RGB, which is no mistake


def test_the_blocked_search_finds_what_a_plain_loop_finds():
    one, other = copies.random_prints(300, 0), copies.random_prints(200, 1)
    other[:100] = one[:100]
    other["along_rows"][:50] ^= np.uint64(0b1011)
    other["flat"][10] = one["flat"][20] = True
    expected = []
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            bits = sum(int(a[name] ^ b[name]).bit_count() for name in HASHES)
            if bits <= BITS and not a["flat"] and not b["flat"]:
                expected.append([i, j])
    assert near(one, other).tolist() == expected
    assert len(expected) == 98


def test_nothing_is_like_nothing():
    for one, other in ((0, 5), (5, 0), (0, 0)):
        pairs, scores = alike(copies.random_prints(one, 0), copies.random_prints(other, 1))
        assert pairs.shape == (0, 2)
        assert scores.shape == (0,)


def test_similarity_does_not_depend_on_the_order_of_a_pair(photos):
    prints = copies.prints_of(photos[:40])
    turned = copies.prints_of([copies.cropped(p, np.random.default_rng(1)) for p in photos[:40]])
    np.testing.assert_allclose(similarity(prints, turned), similarity(turned, prints), atol=1e-6)


def test_near_duplicates_within_a_source_are_found_without_comparing_all_pairs(drawings):
    rng = np.random.default_rng(0)
    originals = copies.prints_of(drawings[:120])
    small = copies.prints_of([copies.COPIES["JPEG, quality 30"](d, rng) for d in drawings[:120]])
    both = np.concatenate([originals, small])
    found = list(same_pictures(both, np.ones(len(both), bool)))
    assert {place for place, *_ in found if place >= 120} == set(range(120, 240))
    assert all(first < place for place, first, *_ in found)


def test_each_repeated_picture_is_told_once_by_the_strongest_reason(photos):
    first = copies.prints_of(photos[:1])
    whole = np.concatenate([first] * 3)
    whole["bytes"][2] = np.void(bytes(32))
    found = list(same_pictures(whole, np.array([True, True, True])))
    assert found == [(1, 0, "bytes", 1.0), (2, 0, "pixels", 1.0)]
    assert list(same_pictures(whole, np.array([True, False, False]))) == []
    assert list(same_pictures(stacked([]), np.zeros(0, bool))) == []
