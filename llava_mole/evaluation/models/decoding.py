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
from torch import Tensor

from llava_mole import heads
from llava_mole.decoding import Rows, Tree, best, joined, padded
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of


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
    parts: list[Rows] = []
    going: list[tuple[int, int]] = []  # (tree, branch) whose next token is in `chosen`, in order
    chosen: list[int] = []
    first: dict[tuple[int, int], dict[int, float]] = {}
    for numbers in prefill_parts([one.size for one in trees]):
        some = [trees[number] for number in numbers]
        part = Rows(some, numbers, padded(some[0].size), pad_id, device)
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
