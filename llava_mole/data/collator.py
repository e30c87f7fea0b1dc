"""Collator: rows -> one batch, as trees where questions may share their picture.

A row becomes one tree when all its conversations start with the same tokens up to their last image
and the visual tokens do not depend on the question. Otherwise each conversation is a row of its
own, which computes the same at more cost. Nothing is truncated: a conversation longer than the
context is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llava_mole.data.rows import Row
from llava_mole.errors import DataError
from llava_mole.processing import IGNORE, Encoded, LlavaMoleProcessor, pad


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


@dataclass
class Collator:
    """Rows to tensors.

    Args:
        processor: of the model.
        share_prefix: build trees where possible.
        parrot: emit what steers each image.
        max_length: context of the language model.
        features: path -> (1 + P, D_v), for a frozen tower; None: pixels.
        load_pixels: path -> (3, H, W), when `features` is None.
    """

    processor: LlavaMoleProcessor
    share_prefix: bool
    parrot: bool
    max_length: int
    features: Callable[[Sequence[Path]], Tensor] | None = None
    load_pixels: Callable[[Sequence[Path]], Tensor] | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns input_ids, labels, segment_ids (B, T); image_features (N, 1 + P, D_v) or
        pixel_values; question_ids, question_mask (N, Q) with Parrot; `languages`, one per sample
        in the order of statistics.

        Raises:
            DataError: a conversation is longer than the context, or nothing in it is supervised.
        """
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        segments: list[list[int]] = []
        images: list[Path] = []
        questions: list[list[int]] = []
        languages: list[str] = []
        for row in rows:
            for sample, item in zip(row.samples, row.encoded, strict=True):
                check_trainable(sample.source, item, self.max_length)
            prefix = 0
            if self.share_prefix and len(row.encoded) > 1:
                prefix = shared_prefix(row.encoded, self.processor.image_token_id)
            languages += [sample.language for sample in row.samples]
            if prefix:
                tree = ([*row.encoded[0].input_ids[:prefix]], [IGNORE] * prefix, [0] * prefix)
                for number, item in enumerate(row.encoded, start=1):
                    tree[0].extend(item.input_ids[prefix:])
                    tree[1].extend(item.labels[prefix:])
                    tree[2].extend([number] * (len(item.input_ids) - prefix))
                ids.append(tree[0])
                labels.append(tree[1])
                segments.append(tree[2])
                images += row.images[: len(row.encoded[0].questions)]
                questions += row.encoded[0].questions
            else:
                for item in row.encoded:
                    ids.append(item.input_ids)
                    labels.append(item.labels)
                    segments.append([0] * len(item.input_ids))
                    images += row.images[: len(item.questions)]
                    questions += item.questions
        batch: dict[str, Any] = {
            "input_ids": pad(ids, self.processor.pad_id, left=False)[0],
            "labels": pad(labels, IGNORE, left=False)[0],
            "languages": languages,
        }
        padded_segments = pad(segments, -1, left=False)[0]
        if self.share_prefix:
            batch["segment_ids"] = padded_segments
        else:
            batch["attention_mask"] = (padded_segments >= 0).long()
        if images:
            if self.features is not None:
                batch["image_features"] = self.features(images)
            else:
                assert self.load_pixels is not None
                batch["pixel_values"] = self.load_pixels(images)
            if self.parrot:
                batch.update(self.processor.steering(questions))
        return batch


def check_trainable(source: str, item: Encoded, max_length: int) -> None:
    if len(item.input_ids) > max_length:
        raise DataError(
            f"{source}: {len(item.input_ids)} tokens, the context holds {max_length}; shorten it "
            "or leave it out (nothing is truncated)"
        )
    if item.supervised == 0:
        raise DataError(f"{source}: no supervised token; is the answer empty?")


def count_batch(batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Supervised tokens and samples of a batch."""
    return (batch["labels"][:, 1:] != IGNORE).sum(), len(batch["languages"])
