"""Rows of a batch as trees, and several trees in one row of tokens.

A tree is a prefix with branches: one picture and several questions about it, each an independent
conversation. A conversation alone is a prefix without branches. Packing puts whole trees one after
the other into fewer, fuller rows; masks and positions keep them apart (`llava_mole/tree.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llava_mole.data.sample import ImageRef
from llava_mole.processing import IGNORE, Encoded

PADDING = -1


@dataclass
class Tree:
    """Tokens that share one attention mask.

    Attributes:
        input_ids, labels, segments: T each; segment 0 is the prefix, 1, 2, … its branches.
        images: of its placeholders, in order.
        questions: per image, the tokens that steer it.
        languages, sources: per sample, in order of branches; its 'file:line'.
    """

    input_ids: list[int]
    labels: list[int]
    segments: list[int]
    images: Sequence[ImageRef]
    questions: Sequence[list[int]]
    languages: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)


def single(item: Encoded, images: Sequence[ImageRef], language: str, source: str = "") -> Tree:
    """A conversation alone."""
    segments = [0] * len(item.input_ids)
    used = images[: len(item.questions)]
    # Nothing in it comes before its first token; in a packed row another conversation would.
    labels = [IGNORE, *item.labels[1:]]
    return Tree(item.input_ids, labels, segments, used, item.questions, [language], [source])


def branched(
    items: Sequence[Encoded],
    prefix: int,
    images: Sequence[ImageRef],
    languages: list[str],
    sources: list[str] | None = None,
) -> Tree:
    """Conversations that begin with the same `prefix` tokens, as branches."""
    ids, labels, segments = list(items[0].input_ids[:prefix]), [IGNORE] * prefix, [0] * prefix
    for number, item in enumerate(items, start=1):
        ids += item.input_ids[prefix:]
        labels += item.labels[prefix:]
        segments += [number] * (len(item.input_ids) - prefix)
    used = images[: len(items[0].questions)]
    return Tree(ids, labels, segments, used, items[0].questions, languages, sources or [])


def shared_prefix(encoded: Sequence[Encoded], image_token_id: int) -> int:
    """Length of the common start up to and including the last image token; 0 if not shareable."""
    lengths = set()
    for item in encoded:
        places = [i for i, token in enumerate(item.input_ids) if token == image_token_id]
        lengths.add(places[-1] + 1 if places else 0)
    if len(lengths) != 1:
        return 0
    length = lengths.pop()
    starts = {tuple(item.input_ids[:length]) for item in encoded}
    # A branch's first token is predicted from the prefix, so it must not be supervised.
    begins_with_answer = any(
        len(item.labels) <= length or item.labels[length] != IGNORE for item in encoded
    )
    supervised = any(label != IGNORE for item in encoded for label in item.labels[:length])
    return 0 if len(starts) > 1 or begins_with_answer or supervised else length


def packed(trees: Sequence[Tree], capacity: int) -> list[list[Tree]]:
    """Trees in as few rows as first-fit decreasing finds, then evened out.

    Every tree is in one row, whole; one longer than the capacity has a row of its own. Rows of
    even length waste least, since a batch is as wide as its longest.

    Args:
        capacity: tokens of a row.
    """
    order = sorted(range(len(trees)), key=lambda i: -len(trees[i]))
    rows: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = len(trees[index])
        for number, left in enumerate(room):
            if length <= left:
                rows[number].append(index)
                room[number] -= length
                break
        else:
            rows.append([index])
            room.append(max(0, capacity - length))
    even = _evened(trees, order, len(rows))
    longest = max((_length(trees, row) for row in rows), default=0)
    if max((_length(trees, row) for row in even), default=0) <= longest:
        rows = even
    return [[trees[index] for index in sorted(row)] for row in rows]


def _evened(trees: Sequence[Tree], order: Sequence[int], count: int) -> list[list[int]]:
    """Longest first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    lengths = [0] * count
    for index in order:
        shortest = lengths.index(min(lengths))
        rows[shortest].append(index)
        lengths[shortest] += len(trees[index])
    return rows


def _length(trees: Sequence[Tree], row: Sequence[int]) -> int:
    return sum(len(trees[index]) for index in row)
