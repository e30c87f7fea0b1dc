"""Greedy replies of our models: a question and all of its passes are one tree row.

The passes of a question differ only behind a common beginning: chat format, picture, question.
That beginning is the prefix of a tree (`tree.py`), each pass a branch that sees the prefix and
itself. So one forward pass computes a question whole, its picture and its words once; and a step of
decoding adds one token to every branch. Branches see nothing of each other, so each gets the reply
it would get alone. Where a picture's tokens depend on the whole question (Parrot) every pass is a
row of its own, with one branch.

Rows are padded to a width that depends on the row alone (`padded`): what shares its batch changes
no shape but the batch's.

The readable twin is `model.generate(do_sample=False)`; `tests/evaluation/test_decoding.py` holds
them against each other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llava_mole import heads, tree
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of


@dataclass(frozen=True)
class Tree:
    """A question in tokens.

    Attributes:
        prefix: what all passes begin with, image placeholders included.
        branches: the rest of each pass, at least one token.
        question: tokens that steer the picture (Parrot).
    """

    prefix: list[int]
    branches: list[list[int]]
    question: list[int]

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(len(branch) for branch in self.branches)


@dataclass(frozen=True)
class Written:
    """What a pass got.

    Attributes:
        tokens: the reply, its end token left out.
        finished: it ended with an end token.
        first: token -> log-probability as the reply's first, of the tokens that were asked for.
    """

    tokens: list[int]
    finished: bool
    first: dict[int, float]


def padded(length: int) -> int:
    """The width of a row: the next multiple of 16, of 64 beyond 512. Few widths make full
    batches."""
    step = 16 if length <= 512 else 64
    return -(-length // step) * step


def common_beginning(passes: Sequence[Sequence[int]], pictures: Collection[int]) -> int:
    """Tokens that all passes of a question begin with; 0 if a picture is not among them.

    Args:
        passes: tokens of each.
        pictures: tokens that stand for pictures.

    Returns:
        The length. At least one token of each pass is left behind it: its logits come from there.
    """
    first, shortest = passes[0], min(len(ids) for ids in passes)
    length = 0
    while length < shortest - 1 and all(ids[length] == first[length] for ids in passes[1:]):
        length += 1
    behind = any(token in pictures for ids in passes for token in ids[length:])
    return 0 if behind else length


@torch.inference_mode()
def write(
    model: LlavaMoleForConditionalGeneration,
    trees: Sequence[Tree],
    features: Tensor | None,
    steering: dict[str, Tensor],
    *,
    max_new_tokens: int,
    ends: frozenset[int],
    pad_id: int,
    wanted: Sequence[int] = (),
) -> list[list[Written]]:
    """Greedy replies of a batch.

    Args:
        trees: B questions, all of one padded size.
        features: (B, 1 + P, D_v) of each question's picture; None where pictures are withheld.
        steering: question_ids and question_mask, (B, Q), for a model that is conditioned.
        max_new_tokens: 0 reads first log-probabilities only.
        ends: token ids that end a reply.
        pad_id: any token of the vocabulary.
        wanted: tokens whose log-probability as the first one is wanted.

    Returns:
        By question and branch.
    """
    device = model.device
    batch = _Batch(trees, padded(max(one.size for one in trees)), pad_id, device)
    inputs: dict[str, Any] = {name: value.to(device) for name, value in steering.items()}
    if features is not None:
        inputs["image_features"] = features.to(device)
    cache = DynamicCache()  # without a config: windows are the masks' business, not the cache's
    decoder = decoder_of(model.language_model)
    with heads.only_at(decoder, batch.last):
        logits = model(
            input_ids=batch.input_ids, segment_ids=batch.segments, cache=cache, use_cache=True,
            **inputs,
        ).logits[0]  # fmt: skip
    first: list[dict[int, float]] = [{} for _ in range(len(logits))]
    if wanted:
        found = logits[:, list(wanted)].float() - heads.log_normalizers(logits)[:, None]
        first = [dict(zip(wanted, row, strict=True)) for row in found.tolist()]

    places = [(row, branch) for row, one in enumerate(trees) for branch in range(len(one.branches))]
    tokens: dict[tuple[int, int], list[int]] = {place: [] for place in places}
    going = list(places)  # whose next token the logits are, in their order
    for step in range(max_new_tokens):
        chosen = logits.argmax(-1).tolist()
        next_tokens = {
            place: token for place, token in zip(going, chosen, strict=True) if token not in ends
        }
        for place, token in next_tokens.items():
            tokens[place].append(token)
        going = list(next_tokens)
        if not going or step == max_new_tokens - 1:
            break
        rows = sorted({row for row, _ in going})
        if len(rows) < len(batch.rows):
            cache.batch_select_indices(batch.keep(rows))
        ids, positions, mask, active = batch.step(model, next_tokens)
        with heads.only_at(decoder, active):
            logits = model(
                input_ids=ids, position_ids=positions, attention_mask=mask, cache=cache,
                use_cache=True,
            ).logits[0]  # fmt: skip
    finished = set(places) - set(going)
    written = {
        place: Written(tokens[place], place in finished, first[number])
        for number, place in enumerate(places)
    }
    return [[written[r, b] for b in range(len(one.branches))] for r, one in enumerate(trees)]


class _Batch:
    """Trees as rows of a width, and what the cache holds of them.

    Attributes:
        input_ids, segments: (B, W).
        last: (B, W) True at each branch's last token.
        rows: numbers of the questions that are still going.
    """

    def __init__(
        self, trees: Sequence[Tree], width: int, pad_id: int, device: torch.device
    ) -> None:
        self.branches = max(len(one.branches) for one in trees)
        self.rows = list(range(len(trees)))
        self.pad_id = pad_id
        ids = torch.full((len(trees), width), pad_id)
        segments = torch.full_like(ids, -1)
        last = torch.zeros_like(ids, dtype=torch.bool)
        after = torch.zeros(len(trees), self.branches, dtype=torch.long)
        for number, one in enumerate(trees):
            line, owner = list(one.prefix), [0] * len(one.prefix)
            for branch, rest in enumerate(one.branches, start=1):
                line += rest
                owner += [branch] * len(rest)
                last[number, len(line) - 1] = True
                after[number, branch - 1] = len(one.prefix) + len(rest)
            ids[number, : len(line)] = torch.tensor(line)
            segments[number, : len(line)] = torch.tensor(owner)
        self.input_ids, self.segments, self.last = (
            ids.to(device),
            segments.to(device),
            last.to(device),
        )
        self._key_segments = self.segments
        self._key_positions = tree.tree_positions(self.segments)
        self._next = after.to(device)  # position of each branch's next token

    def keep(self, rows: Sequence[int]) -> Tensor:
        """Drop all rows but these; their places among those that there were."""
        stay = torch.tensor([self.rows.index(row) for row in rows], device=self._next.device)
        self.rows = list(rows)
        self._key_segments, self._key_positions = (
            self._key_segments[stay],
            self._key_positions[stay],
        )
        self._next = self._next[stay]
        return stay

    def step(
        self, model: LlavaMoleForConditionalGeneration, tokens: dict[tuple[int, int], int]
    ) -> tuple[Tensor, Tensor, Any, Tensor]:
        """One token for every branch: (ids, positions, mask, (R, K) True at the tokens given)."""
        device = self._next.device
        ids = torch.full((len(self.rows), self.branches), self.pad_id)
        active = torch.zeros_like(ids, dtype=torch.bool)
        where = {row: place for place, row in enumerate(self.rows)}
        for (row, branch), token in tokens.items():
            ids[where[row], branch] = token
            active[where[row], branch] = True
        ids, active = ids.to(device), active.to(device)
        numbers = torch.arange(1, self.branches + 1, device=device).expand_as(ids)
        segments = torch.where(active, numbers, torch.full_like(ids, -1))
        positions = self._next.clone()
        self._key_segments = torch.cat([self._key_segments, segments], dim=1)
        self._key_positions = torch.cat([self._key_positions, positions], dim=1)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        mask = tree.step_masks(
            model.language_model.config, segments, positions,
            self._key_segments, self._key_positions, embedding.weight.dtype,
        )  # fmt: skip
        self._next = self._next + active
        return ids, positions, mask, active
