"""Conditional MixLoRA (arXiv 2402.15896): a LoRA put together for each instruction from factors.

A bank of E rank-1 factors a_e and b_e. Per sequence and linear, with h the mean of the linear's
input over the prompt:

    I_A = top-r of softmax(W_A h)
    c   = sum_j softmax(W_AB[j] a_{I_A[j]})                     conditional factor selection
    I_B = top-r of softmax(W_B h) + ifs_weight * softmax(c)     the code applies softmax twice
    y   = W0 x + (alpha / r) sum_j w_j b_{I_B[j]} (a_{I_A[j]} . x)

Factors are paired by position, so the order of both choices matters. In the released configuration
w_j = 1: indices only, and the routers never get a gradient (`gate: "none"`, the default).
`"straight_through"` and `"scaled"` are ours: with s_j = p_A p_B, w_j = 1 forward with s_j's
gradient, or r s_j / sum s.

The released code averages h over the whole sequence, answer included, and while decoding over the
one new token, so routes drift. Here h is the mean over the prompt (tokens before the first
supervised label in training, all attended tokens at prefill), and decoding keeps prefill's route.

Routes need the whole prompt in one pass: chunked prefill and generating without a cache route
otherwise. With activation checkpointing, call backward before the next forward pass: recomputation
reads what the last pass was told about its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llava_mole.errors import ConfigError
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import ALL_LINEARS, MoleConfig, PerLayer, Place, largest
from llava_mole.mole.context import SHARED_PREFIX, RouteContext
from llava_mole.mole.route import PairedRoute
from llava_mole.mole.router import Router, float32_linear

GATES = ("none", "straight_through", "scaled")


@dataclass(frozen=True)
class ConditionalMixLora(MoleConfig):
    """Config of method "conditional_mixlora"."""

    method: str = "conditional_mixlora"
    num_experts: PerLayer = 16
    """Rank-1 factors on each side; the paper also uses 32."""
    r: PerLayer = 4
    """Factors chosen on each side; the paper also uses 2 and 8."""
    lora_alpha: float = 32.0
    """The paper's is 2 * num_experts."""
    target_modules: str | tuple[str, ...] = ALL_LINEARS
    gate: str = "none"
    ifs_weight: float = 1.0
    """Weight of the conditional term in the choice of B's factors."""

    scope: ClassVar[str] = "linear"
    rule: ClassVar[str] = "per sequence, r factors of A and r of B, paired; per linear"
    prefix_depends_on_question: ClassVar[bool] = True

    def problems(self) -> list[str]:
        problems = super().problems() + self.not_among("gate", GATES)
        problems += self.below("ifs_weight") + self.one_rank("factors are of rank 1")
        if self.kernel not in ("auto", "masked", "reference"):
            problems.append(
                f"kernel={self.kernel!r}: cannot pair rank units of A and B; allowed are auto, "
                "masked, reference"
            )
        whole = isinstance(self.num_experts, int) and isinstance(self.r, int)
        if whole and self.r > self.num_experts:  # type: ignore[operator]
            problems.append(
                f"r={self.r}: r factors are chosen from num_experts={self.num_experts}; give more "
                "experts or a smaller r"
            )
        return problems

    def build_bank(self, place: Place) -> ExpertBank:
        if place.r > place.num_experts:
            raise ConfigError(
                f"{place.name}: r={place.r} factors are chosen from num_experts={place.num_experts}"
            )
        return ExpertBank(
            place.in_features,
            place.out_features,
            [1] * place.num_experts,
            scaling=self.scaling_at(place),
            dropout=self.lora_dropout,
            kernel=self.kernel,
            dtype=place.dtype,
            device=place.device,
        )

    def build_router(self, place: Place) -> FactorRouter:
        return FactorRouter(
            place.in_features,
            place.num_experts,
            place.r,
            gate=self.gate,
            ifs_weight=self.ifs_weight,
            context=place.context,
            device=place.device,
        )

    def routers_learn(self) -> bool:
        # With one pair of factors, "scaled" is s / s.
        learns = self.gate == "straight_through" or (self.gate == "scaled" and largest(self.r) > 1)
        return learns and largest(self.num_experts) > 1

    def refuses_merge(self) -> str | None:
        return "each sequence puts together its own LoRA"


class FactorRouter(Router):
    """See the module.

    Attributes:
        weight_A, weight_B: (E, d_in), W_A and W_B.
        weight_AB: (r, E, d_in).
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        chosen: int,
        *,
        gate: str,
        ifs_weight: float,
        context: RouteContext,
        device: Any = None,
    ) -> None:
        super().__init__(num_experts, context)
        self.chosen, self.gate, self.ifs_weight = chosen, gate, ifs_weight
        self.weight_A = nn.Parameter(torch.empty(num_experts, width, device=device))
        self.weight_B = nn.Parameter(torch.empty(num_experts, width, device=device))
        self.weight_AB = nn.Parameter(torch.empty(chosen, num_experts, width, device=device))
        for weight in (self.weight_A, self.weight_B, *self.weight_AB):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def forward(self, x: Tensor, bank: ExpertBank | None = None) -> PairedRoute:
        assert bank is not None
        sequence, rows = sequences(self.context, len(x), x.device)
        if self.context.decoding:
            return self.continued(sequence, rows)
        pooled = prompt_means(self.context, x, sequence, rows)
        probs_a = float32_linear(pooled, self.weight_A).softmax(1)
        chosen_a, units_a = probs_a.topk(self.chosen, dim=1)
        factors = bank.A.detach().float()[units_a]  # (S, r, d)
        conditional = torch.einsum("srd,red->sre", factors, self.weight_AB.float()).softmax(2)
        probs_b = float32_linear(pooled, self.weight_B).softmax(1)
        probs_b = probs_b + self.ifs_weight * conditional.sum(1).softmax(1)
        chosen_b, units_b = probs_b.topk(self.chosen, dim=1)
        weights = None
        if self.gate != "none":
            scores = chosen_a * chosen_b
            if self.gate == "scaled":
                weights = self.chosen * scores / scores.sum(1, keepdim=True)
            else:
                weights = 1 + scores - scores.detach()
        probs_b = probs_b / (1 + self.ifs_weight)  # of two softmaxes: sums to 1 again
        route = PairedRoute(sequence, units_a, units_b, weights, probs_b)
        kept = None if weights is None else weights.detach()
        prefill = PairedRoute(sequence, units_a, units_b, kept, probs_b.detach())
        self.context.kept[self.name] = prefill
        return route

    def continued(self, sequence: Tensor, rows: int) -> PairedRoute:
        """Prefill's choice for the tokens of a decoding step."""
        before = self.context.kept.get(self.name)
        if before is None or len(before.units_a) != rows:
            found = "none" if before is None else f"one of {len(before.units_a)} sequences"
            raise ConfigError(
                f"router {self.name!r} continues {rows} sequences but has a prompt's route for "
                f"{found}: prefill and decode the same batch"
            )
        return PairedRoute(sequence, before.units_a, before.units_b, before.weights, before.probs)


def sequences(context: RouteContext, tokens: int, device: torch.device) -> tuple[Tensor, int]:
    """(tokens,) number of each token's sequence, and how many there are.

    Raises:
        ConfigError: a picture's prefix is shared by several questions, or nothing says which
            tokens belong together.
    """
    if context.segment_ids is None or context.segment_ids.numel() != tokens:
        raise ConfigError(
            "this method routes whole sequences and finds none here: put its experts into a "
            "decoder, not into a vision tower"
        )
    if context.tree_ids is not None:
        raise ConfigError(
            "this method's experts depend on the question, so no prefix can be shared: provide "
            "segment_ids 1, 2, … for the samples of a packed row, without tree_ids"
        )
    segments = context.segment_ids
    count = int(segments.max().clamp(min=0)) + 1
    if count > 2:
        shared = (segments == SHARED_PREFIX).any(1) & (segments >= 2).any(1)
        if bool(shared.any()):
            raise ConfigError(
                "this method's experts depend on the question, so several questions cannot share "
                "a prefix: give each its own row"
            )
    row = torch.arange(segments.shape[0], device=device).unsqueeze(1)
    branch = segments.clamp(min=0)
    if count == 2:  # a prefix and its only branch are one sequence
        branch = torch.zeros_like(branch)
        count = 1
    else:
        branch = branch.masked_fill((segments == SHARED_PREFIX).any(1, keepdim=True), 0)
    return (row * count + branch).reshape(-1), segments.shape[0] * count


def prompt_means(context: RouteContext, x: Tensor, sequence: Tensor, rows: int) -> Tensor:
    """(tokens, d) -> (S, d) float32 means over each sequence's prompt."""
    assert context.segment_ids is not None
    pooled = context.segment_ids >= 0
    if context.prompt_mask is not None:
        pooled = pooled & context.prompt_mask.to(pooled.device)
    if not context.padding_known and len(pooled) > 1:
        raise ConfigError(
            "these experts read the prompt, and the attention mask does not tell its padding; say "
            "it with mole_context(model)[0].provide(segment_ids=...), -1 at padding and else 0"
        )
    keep = pooled.reshape(-1).float()
    counts = torch.zeros(rows, device=x.device).index_add(0, sequence, keep)
    if bool(((counts == 0) & occupied(context, sequence, rows)).any()):
        raise ConfigError("a sequence has no prompt: its first token is supervised or masked")
    sums = torch.zeros(rows, x.shape[1], device=x.device)
    sums = sums.index_add(0, sequence, x.float() * keep.unsqueeze(1))
    return sums / counts.clamp(min=1).unsqueeze(1)


def occupied(context: RouteContext, sequence: Tensor, rows: int) -> Tensor:
    """(S,) whether a sequence has any token that is not padding."""
    assert context.segment_ids is not None
    real = (context.segment_ids >= 0).reshape(-1).float()
    return torch.zeros(rows, device=real.device).index_add(0, sequence, real) > 0
