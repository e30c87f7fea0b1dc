"""Rows that are being written: prompts in a KV cache, a token more for each at every step.

A row is a tree (`tree.py`): a prefix, and branches that see the prefix and themselves. The passes
of a question under evaluation are branches of one row; a conversation has one branch. Rows may come
and go between steps, and each may be of its own length: masks and positions are ours, so what
shares a batch changes nothing but the shapes of products.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from llava_mole import tree
from llava_mole.errors import ConfigError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor


@dataclass(frozen=True)
class Tree:
    """A row in tokens.

    Attributes:
        prefix: what all branches begin with, image placeholders included.
        branches: the rest of each, at least one token.
        question: tokens that steer the picture (Parrot).
    """

    prefix: list[int]
    branches: list[list[int]]
    question: list[int]

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(len(branch) for branch in self.branches)


def padded(length: int) -> int:
    """The width of a row: the next multiple of 16, of 64 beyond 512. Few widths make full
    batches."""
    step = 16 if length <= 512 else 64
    return -(-length // step) * step


def best(logits: Tensor) -> list[int]:
    """(S, V) -> the most likely token of each row, the first of equal ones. (`argmax` takes four
    times as long as `max` on CPUs.)"""
    return logits.max(dim=-1).indices.tolist()


class Rows:
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

    def compact(self, slack: int = 0) -> None:
        """Close the gaps that rows of unlike length, and rows that are gone, leave in the cache;
        nothing where they are at most `slack` places wide. Keys hold their positions already."""
        real = self.key_segments >= 0
        width = int(real.sum(dim=1).max())
        if real.shape[1] - width <= slack:
            return
        order = torch.argsort(~real, dim=1, stable=True)[:, :width]
        self.key_segments = self.key_segments.gather(1, order)
        self.key_positions = self.key_positions.gather(1, order)
        for layer in self.cache.layers:
            for name in ("keys", "values"):  # (R, heads, C, D)
                states = getattr(layer, name)
                where = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                setattr(layer, name, states.gather(2, where.to(states.device)))

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


def joined(parts: Sequence[Rows]) -> Rows:
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


def rows_supported(model: LlavaMoleForConditionalGeneration) -> bool:
    """Whether rows of ours can be written together: a family whose masks `tree.py` knows, and no
    experts that are routed by the whole prompt."""
    experts = model.config.mole_part
    if experts is not None and experts.prefix_depends_on_question:
        return False  # their routes are kept beside a plain cache, for one batch at a time
    try:
        tree.check_supported(model.config.text_config)
    except ConfigError:
        return False
    return True


def end_tokens(
    model: LlavaMoleForConditionalGeneration, processor: LlavaMoleProcessor
) -> frozenset[int]:
    """Tokens that end a reply, as `generate` has them.

    Raises:
        ConfigError: none is known, so no reply would end.
    """
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    if ends is None:
        raise ConfigError("neither generation_config.json nor the tokenizer names an end token")
    return frozenset([ends] if isinstance(ends, int) else ends)
