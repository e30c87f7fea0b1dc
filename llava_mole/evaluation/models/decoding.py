"""Greedy replies of our models: a question and all of its passes are one tree row.

The passes of a question differ only behind a common beginning: chat format, picture, question.
That beginning is the prefix of a tree (`tree.py`), each pass a branch that sees the prefix and
itself. So one forward pass computes a question whole, its picture and its words once; and a step of
decoding adds one token to every branch. Branches see nothing of each other, so each gets the reply
it would get alone. Where a picture's tokens depend on the whole question (Parrot) every pass is a
row of its own, with one branch.

Prompts are computed in passes of rows of one width, which depends on the row alone (`padded`), so
little is padded. Then all rows of a batch are decoded together: a step costs about the same for a
few branches as for many.

The readable twin is `model.generate(do_sample=False)`; `tests/evaluation/test_decoding.py` holds
them against each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
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


PREFILL_TOKENS = 2048
"""Computed in one pass over prompts, or one row of more: enough to keep a processor busy."""


def prefill_parts(sizes: Sequence[int]) -> list[list[int]]:
    """Which trees' prompts are computed together: numbers of trees of one padded width, at most
    `PREFILL_TOKENS` in all. A function of the sizes alone, the widest first."""
    order = sorted(range(len(sizes)), key=lambda n: (-padded(sizes[n]), n))
    parts: list[list[int]] = []
    for width, group in itertools.groupby(order, key=lambda n: padded(sizes[n])):
        numbers, room = list(group), max(1, PREFILL_TOKENS // width)
        parts += [numbers[start : start + room] for start in range(0, len(numbers), room)]
    return parts


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
        trees: B questions.
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
    decoder = decoder_of(model.language_model)
    parts: list[_Batch] = []
    going: list[tuple[int, int]] = []  # (tree, branch) whose next token is in `chosen`, in order
    chosen: list[int] = []
    first: dict[tuple[int, int], dict[int, float]] = {}
    for numbers in prefill_parts([one.size for one in trees]):
        some = [trees[number] for number in numbers]
        part = _Batch(some, numbers, padded(some[0].size), pad_id, device)
        inputs: dict[str, Any] = {
            name: value[numbers].to(device) for name, value in steering.items()
        }
        if features is not None:
            inputs["image_features"] = features[numbers].to(device)
        cache = part.cache if max_new_tokens > 1 else None
        with heads.only_at(decoder, part.last):
            logits = model(
                input_ids=part.input_ids, segment_ids=part.segments, cache=cache,
                use_cache=cache is not None, **inputs,
            ).logits[0]  # fmt: skip
        places = [(n, branch) for n in numbers for branch in range(len(trees[n].branches))]
        if wanted:
            found = logits[:, list(wanted)].float() - heads.log_normalizers(logits)[:, None]
            for place, row in zip(places, found.tolist(), strict=True):
                first[place] = dict(zip(wanted, row, strict=True))
        going += places
        chosen += best(logits)
        parts.append(part)

    tokens: dict[tuple[int, int], list[int]] = {place: [] for place in going}
    unfinished = set(going)
    batch = joined(parts) if max_new_tokens > 1 else None
    for step in range(max_new_tokens):
        next_tokens = {
            place: token for place, token in zip(going, chosen, strict=True) if token not in ends
        }
        for place, token in next_tokens.items():
            tokens[place].append(token)
        unfinished = set(next_tokens)
        if batch is None or not next_tokens or step == max_new_tokens - 1:
            break
        batch.keep({tree for tree, _ in next_tokens})
        ids, positions, mask, active = batch.step(model, next_tokens)
        with heads.only_at(decoder, active):
            logits = model(
                input_ids=ids, position_ids=positions, attention_mask=mask, cache=batch.cache,
                use_cache=True,
            ).logits[0]  # fmt: skip
        going, chosen = list(next_tokens), best(logits)
    written = {
        place: Written(said, place not in unfinished, first.get(place, {}))
        for place, said in tokens.items()
    }
    return [[written[n, b] for b in range(len(one.branches))] for n, one in enumerate(trees)]


def best(logits: Tensor) -> list[int]:
    """(S, V) -> the most likely token of each row, the first of equal ones. (`argmax` takes four
    times as long as `max` on CPUs.)"""
    return logits.max(dim=-1).indices.tolist()


class _Batch:
    """Trees as rows of a width, and what the cache holds of them.

    Attributes:
        input_ids, segments: (B, W).
        last: (B, W) True at each branch's last token.
        rows: numbers of the trees that are still going, in the order of the rows.
        cache: without a config, for windows are the masks' business, not the cache's.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        numbers: Sequence[int],
        width: int,
        pad_id: int,
        device: torch.device,
    ) -> None:
        self.branches = max(len(one.branches) for one in trees)
        self.rows = list(numbers)
        self.pad_id = pad_id
        self.cache = DynamicCache()
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
        self.key_segments = self.segments
        self.key_positions = tree.tree_positions(self.segments)
        self.next = after.to(device)  # position of each branch's next token

    def keep(self, trees: Collection[int]) -> None:
        """Drop the rows of all trees but these."""
        if len(trees) == len(self.rows):
            return
        places = [place for place, number in enumerate(self.rows) if number in trees]
        stay = torch.tensor(places, device=self.next.device)
        self.rows = [self.rows[place] for place in places]
        self.cache.batch_select_indices(stay)
        self.key_segments, self.key_positions = self.key_segments[stay], self.key_positions[stay]
        self.next = self.next[stay]

    def step(
        self, model: LlavaMoleForConditionalGeneration, tokens: dict[tuple[int, int], int]
    ) -> tuple[Tensor, Tensor, Any, Tensor]:
        """One token for every branch: (ids, positions, mask, (R, K) True at the tokens given)."""
        device = self.next.device
        ids = torch.full((len(self.rows), self.branches), self.pad_id)
        active = torch.zeros_like(ids, dtype=torch.bool)
        where = {row: place for place, row in enumerate(self.rows)}
        for (row, branch), token in tokens.items():
            ids[where[row], branch] = token
            active[where[row], branch] = True
        ids, active = ids.to(device), active.to(device)
        numbers = torch.arange(1, self.branches + 1, device=device).expand_as(ids)
        segments = torch.where(active, numbers, torch.full_like(ids, -1))
        positions = self.next.clone()
        self.key_segments = torch.cat([self.key_segments, segments], dim=1)
        self.key_positions = torch.cat([self.key_positions, positions], dim=1)
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        mask = tree.step_masks(
            model.language_model.config, segments, positions,
            self.key_segments, self.key_positions, embedding.weight.dtype,
        )  # fmt: skip
        self.next = self.next + active
        return ids, positions, mask, active


def joined(parts: Sequence[_Batch]) -> _Batch:
    """Rows of several widths as one batch to decode: narrow ones get places that nobody sees.

    Takes the parts' caches apart, so that at most one layer is held twice.
    """
    whole = parts[0]
    if len(parts) == 1:
        return whole
    width = max(part.key_segments.shape[1] for part in parts)
    whole.branches = max(part.branches for part in parts)
    whole.rows = [number for part in parts for number in part.rows]

    def together(pieces: list[Tensor], size: int, value: int = 0) -> Tensor:
        """Concatenated in the first dimension, the last one filled up to `size`."""
        return torch.cat([F.pad(one, (0, size - one.shape[-1]), value=value) for one in pieces])

    whole.key_segments = together([part.key_segments for part in parts], width, -1)
    whole.key_positions = together([part.key_positions for part in parts], width)
    whole.next = together([part.next for part in parts], whole.branches)
    for layers in zip(*(part.cache.layers for part in parts), strict=True):
        for name in ("keys", "values"):  # (B, heads, W, D)
            pieces = []
            for layer in layers:
                states = getattr(layer, name)
                pieces.append(F.pad(states, (0, 0, 0, width - states.shape[2])))
                setattr(layer, name, None)
            setattr(layers[0], name, torch.cat(pieces))
    return whole
