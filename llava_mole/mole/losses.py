"""Auxiliary losses, computed from what the last forward pass recorded.

The balance loss follows LLaVA-MoLE's released code: per sample, over its attended tokens and
pooled over all layers, sum_e mean(onehot_e) * mean(p_e); then averaged over samples. The paper's
Eq. 7 writes raw counts, which would grow with the square of the length; means do not. No factor E:
perfect balance gives 1/E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_mole.mole.inject import mole_context
from llava_mole.mole.route import RouteContext


def sum_by_sample(values: Tensor, segment_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sum token values over each sample, a shared prefix counting for each of its branches.

    Args:
        values: (B*T, C).
        segment_ids: (B, T), see `RouteContext`.

    Returns:
        (S, C) sums and (S,) token counts, in order of rows, then branches. Rows that are all
        padding are not samples.
    """
    rows = segment_ids.shape[0]
    segments = int(segment_ids.max().clamp(min=0)) + 1
    device = values.device
    slots = segment_ids.clamp(min=0) + segments * torch.arange(rows, device=device).unsqueeze(1)
    keep = (segment_ids >= 0).reshape(-1, 1).to(values.dtype)
    sums = values.new_zeros(rows * segments, values.shape[1])
    sums = sums.index_add(0, slots.reshape(-1), values * keep).view(rows, segments, -1)
    counts = values.new_zeros(rows * segments)
    counts = counts.index_add(0, slots.reshape(-1), keep.squeeze(1)).view(rows, segments)
    if segments == 1:
        real = counts[:, 0] > 0
        return sums[real, 0], counts[real, 0]
    branch = counts[:, 1:] > 0
    alone = ~branch.any(dim=1) & (counts[:, 0] > 0)  # a row of prefix only is one sample
    is_sample = torch.cat([alone.unsqueeze(1), branch], dim=1)
    with_prefix = torch.cat([sums[:, :1], sums[:, 1:] + sums[:, :1]], dim=1)
    count_with_prefix = torch.cat([counts[:, :1], counts[:, 1:] + counts[:, :1]], dim=1)
    return with_prefix[is_sample], count_with_prefix[is_sample]


def balance_loss(context: RouteContext, num_samples: Tensor | int | None = None) -> Tensor | None:
    """LLaVA-MoLE's balance loss of the last pass, or None with a single expert.

    Args:
        context: of the model.
        num_samples: divide by this many samples; the batch's own count if None. Pass the number
            of samples of the whole optimizer step (all micro-batches, all ranks) and the
            micro-batch losses add up to the loss of the whole.
    """
    if not context.records or context.records[0].probs.shape[1] == 1:
        return None
    assert context.segment_ids is not None
    experts = context.records[0].probs.shape[1]
    probs = torch.stack([record.probs for record in context.records]).mean(0)
    chosen = torch.stack([record.chosen(experts) for record in context.records]).mean(0)
    both, counts = sum_by_sample(torch.cat([probs, chosen], dim=1), context.segment_ids)
    mean_probs, mean_chosen = (both / counts.unsqueeze(1)).chunk(2, dim=1)
    per_sample = (mean_probs * mean_chosen).sum(dim=1)
    return per_sample.sum() / (len(per_sample) if num_samples is None else num_samples)


def auxiliary_losses(
    model: nn.Module, num_samples: Tensor | int | None = None
) -> dict[str, Tensor]:
    """Weighted auxiliary losses of the last forward pass, by name; empty if there are none.

    Raises:
        ConfigError: the model has no experts.
    """
    context, config = mole_context(model)
    if config.balance_coef == 0 or not context.enabled:
        return {}
    loss = balance_loss(context, num_samples)
    return {} if loss is None else {"balance": config.balance_coef * loss}
