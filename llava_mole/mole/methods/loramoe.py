"""LoRAMoE (arXiv 2312.09979): every expert, weighted by a softmax router; one router per linear.

    p = softmax(W x)    y = W0 x + (alpha / r) sum_e p_e B_e A_e x

On the linears of the MLP, 8 experts of rank 4. Its "localised balance" loss wants one half of the
experts for one type of sample, the other for the other: the expert's mass on a sample is
multiplied by 1 + delta where the types agree and by 1 - delta where not, and the dispersion of all
these numbers over the batch, summed over linears, is the loss. The released configuration gives it
weight 0. Types come in with `mole_context(model)[0].provide(sample_types=...)`, per row 1 (the
first half of the experts) or 0 (the second), as in the released code; without them every factor
is 1.

`dispersion: "cv_squared"` is the released code's, unbiased variance / mean^2;
`"variance_over_mean"` is how we remember the paper's equation (not verified). The code takes an
expert's mass as a sum over all tokens, padding too; here it is the mean over a sample's attended
tokens, so that longer samples do not count as dispersion. It is a statistic of a batch: under
accumulation the micro-batches' values are averaged, which is not the value of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava_mole.errors import ConfigError
from llava_mole.mole.config import MoleConfig, PerLayer, Place, largest
from llava_mole.mole.context import RouteContext
from llava_mole.mole.losses import means_by_sample
from llava_mole.mole.router import LinearRouter


@dataclass(frozen=True)
class LoraMoe(MoleConfig):
    """Config of method "loramoe"."""

    method: str = "loramoe"
    num_experts: PerLayer = 8
    r: PerLayer = 4
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    balance_coef: float = 0.0
    """Weight of the localised balance loss; the released configuration's is 0."""
    balance_delta: float = 0.1
    """delta above."""
    dispersion: str = "cv_squared"

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "all experts, softmax(W x), per linear"

    def problems(self) -> list[str]:
        problems = super().problems() + self.below("balance_coef")
        problems += self.not_among("dispersion", ("cv_squared", "variance_over_mean"))
        if not 0 <= self.balance_delta < 1:
            problems.append(f"balance_delta={self.balance_delta!r}: must be in [0, 1)")
        return problems

    def build_router(self, place: Place) -> LinearRouter:
        return self.new_linear_router(place, "scaled")

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        records = [record for record in context.records if record.num_experts > 1]
        if not self.balance_coef or not records:
            return {}
        values = []
        for record in records:
            mass = means_by_sample(context, record.probs)  # (S, E)
            factors = type_factors(context, len(mass), record.num_experts, self.balance_delta)
            values.append(dispersion(mass * factors.to(mass), self.dispersion))
            samples = len(mass)
        share = 1.0 if num_samples is None else samples / num_samples
        return {"balance": self.balance_coef * torch.stack(values).sum() * share}

    def routers_learn(self) -> bool:
        return largest(self.num_experts) > 1

    def refuses_merge(self) -> str | None:
        if largest(self.num_experts) == 1:
            return None
        return "each token weights the experts its own way"


def type_factors(context: RouteContext, samples: int, experts: int, delta: float) -> Tensor:
    """(S, E): 1 + delta where sample and expert are of one type, 1 - delta elsewhere."""
    if context.sample_types is None:
        return torch.ones(samples, experts)
    types = context.sample_types.cpu()
    if context.segment_ids is not None and len(types) == len(context.segment_ids) != samples:
        types = types[(context.segment_ids >= 0).any(1).cpu()]  # rows of padding are no samples
    if types.shape != (samples,):
        raise ConfigError(
            f"sample_types of shape {tuple(context.sample_types.shape)} for {samples} samples"
        )
    of_expert = (torch.arange(experts) < experts // 2).long()
    same = types[:, None] == of_expert
    return torch.where(same, 1 + delta, 1 - delta)


def dispersion(values: Tensor, kind: str) -> Tensor:
    if values.numel() < 2:  # a batch of nothing but padding
        return values.sum()
    mean = values.mean()
    return values.var() / (mean**2 if kind == "cv_squared" else mean)
