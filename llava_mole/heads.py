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


def predecessors(
    labels: Tensor, segment_ids: Tensor | None = None, tree_ids: Tensor | None = None
) -> Tensor:
    """(B, T) True at the positions whose next token is supervised.

    Raises:
        DataError: no token is supervised, or a branch starts with a supervised token (its
            predecessor is the shared prefix or another sample, not the token before it).
    """
    supervised = labels[:, 1:] != -100
    if not bool(supervised.any()):
        raise DataError("no supervised token in this batch: every label is -100")
    if segment_ids is not None:
        begins = segment_ids[:, 1:] != segment_ids[:, :-1]
        if tree_ids is not None:
            begins = begins | (tree_ids[:, 1:] != tree_ids[:, :-1])
        crossing = supervised & begins
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


ROWS = 2
"""Rows of logits worked on at a time on a CPU: 2 x 262k in float32 are the size of its cache."""


def float_rows(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """A few rows of (S, V) at a time, as float32 in one buffer that the next ones overwrite.

    On a CPU a fresh copy per chunk is dear: its pages are touched for the first time. Accelerators
    take all rows at once.
    """
    total = logits.shape[0]
    rows = max(1, min(ROWS if logits.device.type == "cpu" else total, total))
    buffer = torch.empty(rows, logits.shape[1], dtype=torch.float32, device=logits.device)
    for start in range(0, total, rows):
        part = slice(start, min(start + rows, total))
        yield part, buffer[: part.stop - start].copy_(logits[part])


def log_normalizers(logits: Tensor) -> Tensor:
    """log sum exp of each row in float32, (S, V) -> (S,), without keeping a float32 copy; no
    gradient."""
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    for part, values in float_rows(logits.detach()):
        top = values.amax(dim=1, keepdim=True)
        out[part] = values.sub_(top).exp_().sum(dim=1).log_().add_(top.squeeze(1))
    return out


class SupervisedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy in float32 without a float32 copy of the logits.

    `F.cross_entropy(logits.float(), …)` writes and keeps three float32 arrays of (S, V); this keeps
    the logits as they are, one log-sum-exp per row, and writes the gradient in the logits' dtype.
    Twin: `F.cross_entropy(logits.float(), targets, reduction="sum")`, held equal by a test.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (S, V), targets (S,) -> scalar float32."""
        norms = log_normalizers(logits)
        picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1).float()
        ctx.save_for_backward(logits, targets, norms)
        return (norms - picked).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        out = torch.empty_like(logits)
        for part, values in float_rows(logits):
            values.sub_(norms[part].unsqueeze(1)).exp_()
            index = targets[part].unsqueeze(1)
            values.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            out[part] = values.mul_(grad)
        return out, None


def supervised_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of -log softmax(logits)[target]; (S, V), (S,) -> scalar float32."""
    return SupervisedCrossEntropy.apply(logits, targets)
