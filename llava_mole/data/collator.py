"""Collator: rows -> one batch, as trees where questions may share their picture, packed or not.

A row becomes one tree when all its conversations start with the same tokens up to their last image
and the visual tokens do not depend on the question. Otherwise each conversation stands alone, which
computes the same at more cost. Nothing is truncated: a conversation longer than the context is
refused by name (`data.too_long: drop` leaves such samples out before the order is planned).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llava_mole.data.packing import PADDING, Tree, branched, packed, shared_prefix, single
from llava_mole.data.rows import Row
from llava_mole.data.sample import ImageRef
from llava_mole.errors import DataError
from llava_mole.processing import IGNORE, Encoded, LlavaMoleProcessor, pad


@dataclass
class Collator:
    """Rows to tensors.

    Args:
        processor: of the model.
        share_prefix: build trees where possible.
        parrot: emit what steers each image.
        max_length: tokens of a conversation, at most: the language model's context, or less.
        packing: tokens of a row into which several trees are packed; None: a row each.
        features: pictures -> (N, 1 + P, D_v), for a frozen tower; None: pixels.
        load_pixels: pictures -> (N, 3, H, W), when `features` is None.
        note_sources: also say which samples are in a batch: `sources`, as `languages`.
    """

    processor: LlavaMoleProcessor
    share_prefix: bool
    parrot: bool
    max_length: int
    packing: int | None = None
    features: Callable[[Sequence[ImageRef]], Tensor] | None = None
    load_pixels: Callable[[Sequence[ImageRef]], Tensor] | None = None
    note_sources: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns input_ids, labels (B, T); attention_mask (B, T), or segment_ids (B, T) where
        pictures or rows are shared, with tree_ids (B, T) where packed rows hold trees;
        image_features (N, 1 + P, D_v) or pixel_values; question_ids, question_mask (N, Q) with
        Parrot; `languages`, one per sample in the order of statistics.

        Raises:
            DataError: a conversation is longer than the context, or nothing in it is supervised.
        """
        trees = [tree for row in rows for tree in self.trees(row)]
        lines = [[tree] for tree in trees]
        if self.packing is not None:
            lines = packed(trees, self.packing)
        ordered = [tree for line in lines for tree in line]
        batch: dict[str, Any] = {
            "input_ids": self._padded(lines, "input_ids", self.processor.pad_id),
            "labels": self._padded(lines, "labels", IGNORE),
            "languages": [language for tree in ordered for language in tree.languages],
        }
        if self.note_sources:
            batch["sources"] = [source for tree in ordered for source in tree.sources]
        batch.update(self._layout(lines))
        images = [image for tree in ordered for image in tree.images]
        if images:
            if self.features is not None:
                batch["image_features"] = self.features(images)
            else:
                assert self.load_pixels is not None
                batch["pixel_values"] = self.load_pixels(images)
            if self.parrot:
                questions = [question for tree in ordered for question in tree.questions]
                batch.update(self.processor.steering(questions))
        return batch

    def trees(self, row: Row) -> list[Tree]:
        """One tree where the row's conversations may share their picture, else one for each."""
        for sample, item in zip(row.samples, row.encoded, strict=True):
            check_trainable(sample.source, item, self.max_length)
        languages = [sample.language for sample in row.samples]
        sources = [sample.source for sample in row.samples]
        if self.share_prefix and len(row.encoded) > 1:
            prefix = shared_prefix(row.encoded, self.processor.image_token_id)
            if prefix:
                return [branched(row.encoded, prefix, row.images, languages, sources)]
        return [
            single(item, row.images, language, source)
            for item, language, source in zip(row.encoded, languages, sources, strict=True)
        ]

    def _padded(self, lines: Sequence[Sequence[Tree]], key: str, value: int) -> Tensor:
        rows = [[entry for tree in line for entry in getattr(tree, key)] for line in lines]
        return pad(rows, value, left=False)[0]

    def _layout(self, lines: Sequence[Sequence[Tree]]) -> dict[str, Tensor]:
        """Who may see whom."""
        segments = self._padded(lines, "segments", PADDING)
        if self.packing is None:
            if self.share_prefix:
                return {"segment_ids": segments}
            return {"attention_mask": (segments >= 0).long()}
        numbers = [
            [number for number, tree in enumerate(line) for _ in range(len(tree))] for line in lines
        ]
        tree_ids = pad(numbers, PADDING, left=False)[0]
        if bool((segments > 0).any()):
            return {"segment_ids": segments, "tree_ids": tree_ids}
        # Without branches each sample is a segment of its own, and needs no second number.
        return {"segment_ids": tree_ids.where(tree_ids == PADDING, tree_ids + 1)}


def longest_tree(collator: Collator) -> Callable[[Row], int]:
    """Row -> tokens of its longest tree: how wide it makes a batch."""
    return lambda row: max(len(tree) for tree in collator.trees(row))


def check_trainable(source: str, item: Encoded, max_length: int) -> None:
    """Raises DataError for what cannot be trained on as it is."""
    if len(item.input_ids) > max_length:
        raise DataError(
            f"{source}: {len(item.input_ids)} tokens, at most {max_length} fit; shorten it, "
            "or leave out all that do not fit with data.too_long=drop (nothing is truncated)"
        )
    check_supervised(source, item)


def check_supervised(source: str, item: Encoded) -> None:
    """Raises DataError for a conversation in which no token has a label."""
    if item.supervised == 0:
        raise DataError(
            f"{source}: no supervised token: no turn of the assistant stands where the chat "
            "template learns one. Is the answer empty, or does the last turn ask? "
            "`train --dry-run` shows a sample with its mask"
        )


def count_batch(batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Supervised tokens and samples of a batch."""
    return (batch["labels"][:, 1:] != IGNORE).sum(), len(batch["languages"])
