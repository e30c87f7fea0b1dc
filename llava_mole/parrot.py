"""LanguageConditionedMoE: visual tokens re-expressed for the language of the question (Parrot).

    q = summary of the image                                   (its projected class token)
    z = softmax(q E^T / sqrt(D)) E          E: embeddings of the question
    w = softmax(R z)                        one weight vector per image, not per token
    G = H + alpha * sum_i w_i expert_i(H)                      H: the image's visual tokens

Source: arXiv 2406.02539, Eq. 2-5, and its released code; where they disagree, see `ParrotConfig`.
There is no balance loss in either. The code leaves every image of a sample but the first at zero;
that is a bug, not an option: here every image has its own question.

Two controls of the same shape and size read no text (`ParrotConfig.condition_on`): "picture" puts q
itself in the place of z, "nothing" a vector of ones. They tell what language conditioning adds from
what six more experts add; neither is in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole.configuration import ParrotConfig
from llava_mole.errors import DataError


class LanguageExpert(nn.Module):
    """`silu_mlp`: down(SiLU(up(x))). `swiglu`: down(SiLU(gate(x)) * up(x)). No biases."""

    def __init__(self, width: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False) if kind == "swiglu" else None
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, D) -> (N, P, D)."""
        if self.gate is None:
            return self.down(F.silu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LanguageConditionedMoE(nn.Module):
    """See the module's docstring.

    Args:
        width: D.
        config: the named options.
    """

    def __init__(self, width: int, config: ParrotConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size or width
        self.router = nn.Linear(width, config.num_experts, bias=False)
        self.experts = nn.ModuleList(
            LanguageExpert(width, hidden, config.expert) for _ in range(config.num_experts)
        )
        self.reset_last_matrix()

    def reset_last_matrix(self) -> None:
        """With "zero", the module is the identity until it learns."""
        if self.config.last_matrix == "zero":
            for expert in self.experts:
                nn.init.zeros_(expert.down.weight)  # type: ignore[union-attr,arg-type]

    def gate(
        self, summary: Tensor, question: Tensor | None = None, question_mask: Tensor | None = None
    ) -> Tensor:
        """Weights of the language experts, one vector per image.

        Args:
            summary: (N, D) projected summary token.
            question: (N, Q, D) embeddings of the text that steers each image; not read by the
                controls.
            question_mask: (N, Q) True at real tokens. An image without any text (a picture with
                no question) gets the weights of a zero vector: uniform.

        Returns:
            (N, num_experts), rows sum to 1. float32.
        """
        steering = self.steering(summary, question, question_mask)
        weights = F.linear(steering, self.router.weight.float()).softmax(dim=-1)
        if self.config.top_k is None:
            return weights
        best = weights.topk(self.config.top_k, dim=-1)
        kept = torch.zeros_like(weights).scatter(1, best.indices, best.values)
        return kept / kept.sum(dim=-1, keepdim=True)

    def steering(
        self, summary: Tensor, question: Tensor | None, question_mask: Tensor | None
    ) -> Tensor:
        """(N, D) float32, what the router reads; arguments as in `gate`.

        Raises:
            DataError: the module reads text and was given none.
        """
        if self.config.condition_on == "picture":
            return summary.float()
        if self.config.condition_on == "nothing":
            return torch.ones_like(summary, dtype=torch.float32)
        if question is None or question_mask is None:
            raise DataError(
                "the language-conditioned MoE needs the question of each image: pass question_ids "
                "and question_mask, as the processor returns them"
            )
        scores = torch.einsum("nd,nqd->nq", summary.float(), question.float())
        scores = scores / math.sqrt(summary.shape[-1])
        scores = scores.masked_fill(~question_mask, torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=-1) * question_mask
        return torch.einsum("nq,nqd->nd", attention, question.float())

    def forward(
        self,
        tokens: Tensor,
        summary: Tensor,
        question: Tensor | None = None,
        question_mask: Tensor | None = None,
    ) -> Tensor:
        """Condition each image's tokens on its question.

        Args:
            tokens: (N, P, D) projected visual tokens.
            summary, question, question_mask: see `gate`.

        Returns:
            (N, P, D).
        """
        with torch.autocast(tokens.device.type, enabled=False):
            weights = self.gate(summary, question, question_mask).to(tokens.dtype)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            update = expert(tokens).to(tokens.dtype)
            mixed = mixed + weights[:, index, None, None] * update
        if self.config.residual == "experts_scaled":
            return tokens + self.config.alpha * mixed
        return mixed + self.config.alpha * tokens
