"""Logits only where a label is supervised, through the model's own head.

With a vocabulary of 262k, logits at every position cost more than all layers. Calling `lm_head` on
selected hidden states would skip what a family does after it (Gemma 2's soft cap, Cohere's logit
scale). So the selection is made where the decoder hands its output to the model's own forward: a
hook swaps (B, T, D) for the (1, S, D) that are needed, and the rest is the family's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llava_mole.errors import DataError


def predecessors(labels: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """(B, T) True at the positions whose next token is supervised.

    Raises:
        DataError: no token is supervised, or a branch starts with a supervised token (its
            predecessor is the shared prefix, not the token before it).
    """
    supervised = labels[:, 1:] != -100
    if not bool(supervised.any()):
        raise DataError("no supervised token in this batch: every label is -100")
    if segment_ids is not None:
        crossing = supervised & (segment_ids[:, 1:] != segment_ids[:, :-1])
        if bool(crossing.any()):
            row, column = crossing.nonzero()[0].tolist()
            raise DataError(
                f"row {row}: the branch that starts at token {column + 1} starts with a supervised "
                "token; a branch needs at least one token of question before its answer"
            )
    return torch.cat([supervised, torch.zeros_like(supervised[:, :1])], dim=1)


@contextmanager
def only_at(decoder: nn.Module, keep: Tensor | None) -> Iterator[None]:
    """Inside, the decoder's last hidden state is (1, S, D): those at `keep` (B, T), row by row."""
    if keep is None:
        yield
        return

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[keep].unsqueeze(0)
        return output

    handle = decoder.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()
