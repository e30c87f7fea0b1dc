"""Balance losses, computed from what the last forward pass recorded, and how to ask for them.

Per sample: LLaVA-MoLE's released code averages, per sample, over its attended tokens and pools all
layers: sum_e mean(onehot_e) * mean(p_e); then it averages over samples. The paper's Eq. 7 writes
raw counts, which would grow with the square of the length; means do not. No factor E: perfect
balance gives 1/E. Other methods balance routers singly, by layer or all together and multiply by
E (`balance_per_router`). Both add up under accumulation, packing and several processes if divided
by the number of samples of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from llava_mole.errors import ConfigError
from llava_mole.mole.context import Record, RouteContext
from llava_mole.mole.inject import layer_number
from llava_mole.mole.route import Route


def sums_by_slot(
    values: Tensor,
    segment_ids: Tensor,
    tree_ids: Tensor | None = None,
    rows_are_samples: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum token values over each sample, a shared prefix counting for each of its branches.

    Args:
        values: (B*T, C).
        segment_ids, tree_ids: see `RouteContext`.
        rows_are_samples: no row has branches or trees. Then nothing is read on the host; else how
            many a row has at most.

    Returns:
        (S, C) sums, (S,) token counts and (S,) whether there is such a sample, for every sample
        that there could be: in order of rows, then a row's trees, then the prefix without branches,
        then branches.
    """
    rows, length = segment_ids.shape
    keep = (segment_ids >= 0).to(values.dtype)
    kept = values * keep.reshape(-1, 1)
    if rows_are_samples:
        counts = keep.sum(1)
        return kept.view(rows, length, -1).sum(1), counts, counts > 0
    segments = int(segment_ids.max().clamp(min=0)) + 1
    device = values.device
    row = torch.arange(rows, device=device).unsqueeze(1)
    if tree_ids is not None:  # each tree as if it had a row of its own
        trees = int(tree_ids.max().clamp(min=0)) + 1
        row = row * trees + tree_ids.clamp(min=0)
        rows *= trees
    slots = (segment_ids.clamp(min=0) + segments * row).reshape(-1)
    sums = values.new_zeros(rows * segments, values.shape[1])
    sums = sums.index_add(0, slots, kept).view(rows, segments, -1)
    counts = values.new_zeros(rows * segments)
    counts = counts.index_add(0, slots, keep.reshape(-1)).view(rows, segments)
    branch = counts[:, 1:] > 0
    alone = ~branch.any(dim=1) & (counts[:, 0] > 0)  # a row of prefix only is one sample
    real = torch.cat([alone.unsqueeze(1), branch], dim=1)
    sums = torch.cat([sums[:, :1], sums[:, 1:] + sums[:, :1]], dim=1)
    counts = torch.cat([counts[:, :1], counts[:, 1:] + counts[:, :1]], dim=1)
    return sums.flatten(0, 1), counts.flatten(), real.flatten()


def sum_by_sample(
    values: Tensor, segment_ids: Tensor, tree_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B*T, C) -> (S, C) sums and (S,) token counts of the samples that there are.

    Rows that are all padding are not samples. Arguments and order as `sums_by_slot`; how many there
    are is read on the host.
    """
    sums, counts, real = sums_by_slot(values, segment_ids, tree_ids)
    return sums[real], counts[real]


def sums_by_sample(context: RouteContext, values: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_by_sample` of the pass that a context describes, (tokens, C) -> (S, C), (S,)."""
    segments = context.segments_of(len(values), values.device)
    trees = context.tree_ids if segments is context.segment_ids else None
    return sum_by_sample(values, segments, trees)


def means_by_sample(context: RouteContext, values: Tensor) -> Tensor:
    """(tokens, C) -> (S, C) means over each sample's tokens."""
    sums, counts = sums_by_sample(context, values)
    return sums / counts.unsqueeze(1)


def means_by_slot(context: RouteContext, values: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens, C) -> (S, C) means over each sample's tokens, (S,) whether there is such a sample;
    see `sums_by_slot`."""
    segments = context.segments_of(len(values), values.device)
    known = segments is context.segment_ids
    sums, counts, real = sums_by_slot(
        values,
        segments,
        context.tree_ids if known else None,
        context.rows_are_samples(segments) if known else True,
    )
    return sums / counts.clamp(min=1).unsqueeze(1), real


def over_samples(
    context: RouteContext,
    per_slot: Tensor,
    real: Tensor,
    tokens: int,
    num_samples: Tensor | int | None,
) -> Tensor:
    """(S,) -> mean, or sum over `num_samples` where the caller counts the whole step's.

    Where a router saw other tokens than the decoder's, a pass counts as one sample here (S = 1),
    and by as many as it had. A batch of nothing but padding has no samples: 0.

    Args:
        real: (S,), of `means_by_slot`.
        tokens: of the records.
    """
    total = torch.where(real, per_slot, 0).sum()
    if num_samples is None:
        return total / real.sum().clamp(min=1)
    return total * context.samples_where(tokens) / num_samples


def mean_chosen(records: Sequence[Record]) -> Tensor:
    """(tokens, E) `Record.chosen`, averaged over routers with as many experts."""
    choices = [r.route.indices if isinstance(r.route, Route) else None for r in records]
    sparse = [indices for indices in choices if indices is not None]
    if len(sparse) < len(records) or len({indices.shape[1] for indices in sparse}) > 1:
        return torch.stack([record.chosen() for record in records]).mean(0)
    # All routers' at once: one launch instead of several for each.
    every = torch.cat(sparse, dim=1)
    share = torch.full((1, 1), 1 / every.shape[1], device=every.device).expand_as(every)
    empty = torch.zeros(len(every), records[0].num_experts, device=every.device)
    return empty.scatter_add_(1, every, share)


def mean_of_records(
    context: RouteContext, values: Sequence[Tensor], num_samples: Tensor | int | None
) -> Tensor:
    """A value per token and router, averaged over routers, each sample's tokens, then samples.

    Args:
        context, num_samples: as `balance_loss`.
        values: (tokens,) per router. Their numbers of tokens may differ, as where a tower merges
            patches.
    """
    by_tokens: dict[int, list[Tensor]] = {}
    for value in values:
        by_tokens.setdefault(len(value), []).append(value)
    total = values[0].new_zeros(())
    for group in by_tokens.values():
        means, real = means_by_slot(context, torch.stack(group).mean(0).unsqueeze(1))
        mean = over_samples(context, means.squeeze(1), real, len(group[0]), num_samples)
        total = total + mean * (len(group) / len(values))
    return total


def balance_loss(context: RouteContext, num_samples: Tensor | int | None = None) -> Tensor | None:
    """LLaVA-MoLE's: per sample, layers pooled; None with a single expert.

    Args:
        context: of the adapter.
        num_samples: divide by this many samples; the batch's own count if None. Pass the number
            of samples of the whole optimizer step (all micro-batches, all ranks) and the
            micro-batch losses add up to the loss of the whole.
    """
    records = [record for record in context.records if record.num_experts > 1]
    if not records:
        return None
    kinds: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        kinds.setdefault((record.num_experts, len(record.probs)), []).append(record)
    # Layers with different numbers of experts, or of tokens as where a tower merges patches,
    # cannot be pooled; each kind counts by its layers.
    total = records[0].probs.new_zeros(())
    for (width, tokens), group in kinds.items():
        probs = torch.stack([record.probs for record in group]).mean(0)
        both, real = means_by_slot(context, torch.cat([probs, mean_chosen(group)], dim=1))
        per_slot = (both[:, :width] * both[:, width:]).sum(dim=1)
        mean = over_samples(context, per_slot, real, tokens, num_samples)
        total = total + mean * (len(group) / len(records))
    return total


def balance_per_router(
    context: RouteContext,
    num_samples: Tensor | int | None = None,
    *,
    of_weights: bool = False,
    pool: str = "router",
    reduction: str = "mean",
) -> Tensor | None:
    """E * sum_e f_e P_e, per sample; 1 at perfect balance.

    Args:
        context, num_samples: as `balance_loss`.
        of_weights: f_e is the mean weight of the expert in place of its share of the choices.
        pool: which routers' tokens f and P are taken over: of each "router" by itself, of all in a
            "layer", or of "all" there are; never of routers that differ in E.
        reduction: "mean" over routers, or "sum" over pools.
    """
    records = [record for record in context.records if record.num_experts > 1]
    if not records:
        return None
    pools: dict[Any, list[Record]] = {}
    for record in records:
        place = {"router": record.name, "layer": layer_number(record.name), "all": None}[pool]
        pools.setdefault((place, record.num_experts, len(record.probs)), []).append(record)
    total = records[0].probs.new_zeros(())
    for (_, experts, tokens), group in pools.items():
        probs = torch.stack([record.probs for record in group]).mean(0)
        if of_weights:
            first = torch.stack([weights_of(record) for record in group]).mean(0)
        else:
            first = mean_chosen(group)
        both, real = means_by_slot(context, torch.cat([probs, first], dim=1))
        per_slot = experts * (both[:, :experts] * both[:, experts:]).sum(dim=1)
        share = 1.0 if reduction == "sum" else len(group) / len(records)
        total = total + over_samples(context, per_slot, real, tokens, num_samples) * share
    return total


def weights_of(record: Record) -> Tensor:
    """(tokens, E) of a dense route."""
    assert record.route.weights is not None
    return record.route.weights


def auxiliary_losses(
    model: nn.Module,
    num_samples: Tensor | int | None = None,
    batch_samples: Tensor | int = 1,
) -> dict[str, Tensor]:
    """Weighted auxiliary losses of the last forward pass, by name; empty if there are none.

    Args:
        model: with experts; several active adapters' losses of one name add up.
        num_samples: of the whole optimizer step, if the caller accumulates; see `balance_loss`.
        batch_samples: of this pass. Experts outside of a decoder, as in a vision tower, see no
            samples: their loss is a pass's, and counts by its share of the step.

    Raises:
        ConfigError: the model has no experts, the pass left no graph to train the routers, or
            `num_samples` is no number of samples.
    """
    if not (num_samples is None or isinstance(num_samples, Tensor)) and (
        not isinstance(num_samples, Real) or num_samples <= 0
    ):
        raise ConfigError(
            f"num_samples={num_samples!r}: expected how many samples the optimizer step has, at "
            "least 1; or None, for those of this pass. One call is about all adapters that are on"
        )
    from llava_mole.mole.adapters import adapters_of

    total: dict[str, Tensor] = {}
    for adapter in adapters_of(model):
        if not adapter.context.enabled or not adapter.context.records:
            continue
        adapter.context.batch_samples = batch_samples
        losses = adapter.config.losses(adapter.context, num_samples)
        check_graph(adapter.routers, list(losses.values()))
        for name, loss in losses.items():
            total[name] = total[name] + loss if name in total else loss
    return total


def check_graph(routers: Sequence[nn.Module], losses: list[Tensor]) -> None:
    """Reentrant checkpointing runs the forward pass without a graph: routers would not learn."""
    if not torch.is_grad_enabled() or not losses or any(loss.requires_grad for loss in losses):
        return
    trained = any(p.requires_grad for router in routers for p in router.parameters())
    if trained and any(router.training for router in routers):
        raise ConfigError(
            "the auxiliary losses have no gradient: the last forward pass ran without one, under "
            "torch.no_grad (then call model.eval(), or ask under torch.no_grad too), or with "
            "reentrant activation checkpointing (then say gradient_checkpointing_kwargs="
            "{'use_reentrant': False})"
        )
