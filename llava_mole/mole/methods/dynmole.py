"""DynMoLE (arXiv 2504.00661): the router's entropy decides between all experts and a few.

    p = softmax(W x)    S = normalised Tsallis entropy of p (below)
    S > H: all experts, weights p
    else:  the experts, by falling p, whose running sum stays within top_p, and always the first
           keep_top_k; weights p, never renormalised. The expert that crosses top_p is left out.

    S = (1 - sum_e q_e^q) / (q - 1), divided by its value at the uniform distribution,
        (1 - E^(1 - q)) / (q - 1), where q_e = p_e + eps

One router per linear of the MLP. Loss (released code): 0.01 * mean S + 0.001 * E * sum_e
mean(p * mask)_e mean(p)_e, with weights in place of counts, all routers pooled. The code averages S
over padding too; here both terms are per sample over its attended tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from llava_mole.mole.config import MoleConfig, PerLayer, Place, largest
from llava_mole.mole.context import RouteContext
from llava_mole.mole.losses import balance_per_router, mean_of_records
from llava_mole.mole.route import Route
from llava_mole.mole.router import LinearRouter

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank


def tsallis_entropy(probs: Tensor, index: float, eps: float) -> Tensor:
    """(tokens, E) -> (tokens,), 1 at uniform and 0 at one-hot (up to eps); index 1 is Shannon's."""
    experts = probs.shape[1]
    p = probs + eps
    if index == 1:
        return -(p * p.log()).sum(1) / math.log(experts)
    return (1 - p.pow(index).sum(1)) / (1 - experts ** (1 - index))


def renyi_entropy(probs: Tensor, index: float, eps: float) -> Tensor:
    """As `tsallis_entropy`, log(sum p^q) / (1 - q) over log E."""
    p = probs + eps
    if index == 1:
        return tsallis_entropy(probs, 1, eps)
    return p.pow(index).sum(1).log() / (1 - index) / math.log(probs.shape[1])


ENTROPIES = {"tsallis": tsallis_entropy, "renyi": renyi_entropy}


@dataclass(frozen=True)
class DynMole(MoleConfig):
    """Config of method "dynmole"."""

    method: str = "dynmole"
    num_experts: PerLayer = 6
    r: PerLayer = 24
    lora_alpha: float = 48.0
    lora_dropout: float = 0.05
    entropy: str = "tsallis"
    """"tsallis" or "renyi"."""
    entropy_index: float = 1.1
    """q; 1 is Shannon's entropy."""
    entropy_threshold: float = 0.9
    """H: above it a token uses all experts. 0: always; 1 or more: never."""
    entropy_eps: float = 1e-5
    top_p: float = 0.75
    keep_top_k: int = 2
    """The most probable experts that are always on."""
    entropy_coef: float = 0.01
    balance_coef: float = 0.001

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "softmax(W x); all if its entropy exceeds H, else top-p; per linear"

    def problems(self) -> list[str]:
        problems = super().problems() + self.not_among("entropy", tuple(ENTROPIES))
        problems += self.not_whole("keep_top_k")
        problems += self.below("entropy_threshold", "top_p", "entropy_coef", "balance_coef")
        for key in ("entropy_index", "entropy_eps"):
            problems += self.not_number(key, lambda v: 0 < v < math.inf, "above 0")
        if isinstance(self.keep_top_k, int):
            problems += self.not_above("keep_top_k", "num_experts")
        else:
            problems.append(f"keep_top_k={self.keep_top_k!r}: one number for all layers")
        return problems

    def build_router(self, place: Place) -> EntropyRouter:
        return EntropyRouter(
            place.in_features,
            place.num_experts,
            entropy=self.entropy,
            index=self.entropy_index,
            threshold=self.entropy_threshold,
            eps=self.entropy_eps,
            top_p=self.top_p,
            keep_top_k=self.keep_top_k,
            context=place.context,
            device=place.device,
        )

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        losses = {}
        records = [record for record in context.records if record.num_experts > 1]
        if records and self.entropy_coef:
            entropies = [record.route.extras["entropy"] for record in records]
            mean = mean_of_records(context, entropies, num_samples)
            losses["entropy"] = self.entropy_coef * mean
        if records and self.balance_coef:
            balance = balance_per_router(context, num_samples, of_weights=True, pool="all")
            assert balance is not None
            losses["balance"] = self.balance_coef * balance
        return losses

    def routers_learn(self) -> bool:
        return largest(self.num_experts) > 1


class EntropyRouter(LinearRouter):
    """See the module."""

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        entropy: str,
        index: float,
        threshold: float,
        eps: float,
        top_p: float,
        keep_top_k: int,
        context: RouteContext,
        device: Any = None,
    ) -> None:
        super().__init__(
            width,
            num_experts,
            top_k=None,
            gate="scaled",
            bias=False,
            context=context,
            device=device,
        )
        self.entropy, self.index, self.eps = ENTROPIES[entropy], index, eps
        self.threshold, self.top_p, self.keep_top_k = threshold, top_p, keep_top_k

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> Route:
        probs = super().forward(x).probs
        assert probs is not None
        if self.num_experts == 1:
            return Route(None, probs, probs, {"entropy": torch.zeros_like(probs[:, 0])})
        entropy = self.entropy(probs, self.index, self.eps)
        with torch.no_grad():
            falling, order = probs.sort(dim=1, descending=True)
            on = falling.cumsum(1) <= self.top_p
            on[:, : self.keep_top_k].fill_(True)
            mask = torch.zeros_like(on).scatter(1, order, on)
            if self.threshold < 1:  # eps lifts the entropy of a flat token above 1
                mask |= (entropy > self.threshold).unsqueeze(1)
        return Route(None, probs * mask, probs, {"entropy": entropy})
