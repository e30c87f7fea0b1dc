"""Route statistics: who uses which expert.

Two ways of counting. *Chosen*: an expert that is on counts 1 / k, however strong its gate; that is
what balance losses look at. *Shares*: an expert counts by its gate's part of the token's gates, so
that dense softmax, top-k and SMoRA's units are seen as they act; without gates it is the same.
What experts know of domains or languages: `mutual_information`, of information.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_mole.errors import ConfigError
from llava_mole.mole.adapters import adapter_of, mole_context
from llava_mole.mole.context import Record, RouteContext
from llava_mole.mole.information import Information as Information
from llava_mole.mole.information import mutual_information as mutual_information
from llava_mole.mole.losses import sums_by_sample
from llava_mole.mole.route import PairedRoute


@torch.no_grad()
def samples_by_expert(model: nn.Module, name: str | None = None) -> Tensor:
    """Share of each sample's tokens that used each expert in the last pass, all layers pooled.

    Returns:
        (S, E), rows sum to 1; samples in order of rows, then branches. A branch counts the prefix
        that it shares. Padding counts for nothing. E is that of the layer with most experts; a
        layer with fewer adds nothing to the others. Where nothing ever chooses (MultiLoRA), all
        are used alike. (0, 0) if nothing was recorded.
    """
    context, _ = mole_context(model, name)
    if not context.records:
        return torch.zeros(0, 0)
    experts = max(record.num_experts for record in context.records)
    by_tokens: dict[int, Tensor] = {}  # a tower may merge patches on the way
    for record in context.records:
        use = use_of(record, context)
        use = torch.nn.functional.pad(use, (0, experts - record.num_experts))
        by_tokens[len(use)] = by_tokens[len(use)] + use if len(use) in by_tokens else use
    shares = []
    for use in by_tokens.values():
        sums, counts = sums_by_sample(context, use)
        shares.append(sums / counts.unsqueeze(1))
    return torch.stack(shares).sum(0) / len(context.records)


def use_of(record: Record, context: RouteContext) -> Tensor:
    """(tokens, E), rows sum to 1."""
    if record.route.probs is not None:
        return record.chosen()
    segments = torch.zeros(1, 1) if context.segment_ids is None else context.segment_ids
    share = torch.full((1, record.num_experts), 1 / record.num_experts, device=segments.device)
    return share.expand(segments.numel(), -1)


@dataclass(frozen=True)
class SampleShares:
    """How one router spread each sample of the last pass over its experts.

    Attributes:
        name: of the linear or block that it decides for, below the root.
        shares: (S, E) means over the sample's tokens; rows sum to 1, or are 0 without a token.
        tokens: (S,) how many were counted.
    """

    name: str
    shares: Tensor
    tokens: Tensor


@torch.no_grad()
def shares_by_sample(
    model: nn.Module, where: Tensor | None = None, name: str | None = None
) -> list[SampleShares]:
    """One entry per router of the last pass; empty without records.

    Routers that never choose (MultiLoRA's) are left out.

    Args:
        where: (B, T) True at the tokens to count (a picture's, an answer's); None: all attended.
        name: of the adapter.

    Returns:
        Samples in the order of `samples_by_expert`.

    Raises:
        ConfigError: `where` is not of the pass's shape.
    """
    context, _ = mole_context(model, name)
    found = []
    for record in context.records:
        if record.route.probs is None:
            continue
        shares = record.shares()
        counted = shares.new_ones(len(shares), 1)
        if where is not None:
            rows = context.segment_ids
            shape = None if rows is None or rows.numel() != len(shares) else rows.shape
            if where.numel() != len(shares) or shape not in (None, where.shape):
                seen = f"{len(shares)}" if shape is None else " x ".join(map(str, shape))
                raise ConfigError(
                    f"where of shape {tuple(where.shape)} for the {seen} tokens that router "
                    f"{record.name!r} saw"
                )
            counted = where.reshape(-1, 1).to(shares)
        sums, _ = sums_by_sample(context, shares * counted)
        tokens, _ = sums_by_sample(context, counted)
        found.append(SampleShares(record.name, sums / tokens.clamp(min=1), tokens.squeeze(1)))
    return found


@dataclass(frozen=True)
class RouterUse:
    """What one router did with the attended tokens of the last pass.

    Attributes:
        name: of the linear or block that it decides for, below the root.
        load: (E,) share of the choices; sums to 1.
        importance: (E,) mean probability.
        entropy: of the load over log E: 1 where all experts are used alike, 0 where one is.
    """

    name: str
    load: Tensor
    importance: Tensor
    entropy: float


@torch.no_grad()
def route_statistics(model: nn.Module, name: str | None = None) -> list[RouterUse]:
    """One entry per router of the last pass, padding left out; empty without records.

    Routers that never choose (MultiLoRA's) are left out.
    """
    context = adapter_of(model, name).context
    uses = []
    for record in context.records:
        if record.route.probs is None:
            continue
        chosen = record.chosen()
        real = (context.segments_of(len(chosen), chosen.device) >= 0).reshape(-1)
        load = chosen[real].mean(0)
        probs = record.probs
        if isinstance(record.route, PairedRoute):  # one choice for all tokens of a sequence
            probs = probs[record.route.sequence]
        importance = probs[real].mean(0)
        entropy = -(load * load.clamp(min=1e-12).log()).sum()
        scale = torch.log(torch.tensor(float(record.num_experts)))
        share = float(entropy / scale) if record.num_experts > 1 else 0.0
        uses.append(RouterUse(record.name, load, importance, share))
    return uses
