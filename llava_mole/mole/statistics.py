"""Route statistics: who uses which expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_mole.mole.inject import mole_context
from llava_mole.mole.losses import sum_by_sample


@torch.no_grad()
def samples_by_expert(model: nn.Module) -> Tensor:
    """Share of each sample's tokens that used each expert in the last pass, all layers pooled.

    Returns:
        (S, E), rows sum to 1; samples in order of rows, then branches. A branch counts the prefix
        that it shares. Padding counts for nothing. (0, 0) if nothing was recorded.
    """
    context, _ = mole_context(model)
    if not context.records:
        return torch.zeros(0, 0)
    assert context.segment_ids is not None
    experts = context.records[0].probs.shape[1]
    chosen = torch.stack([record.chosen(experts) for record in context.records]).mean(0)
    sums, counts = sum_by_sample(chosen, context.segment_ids)
    return sums / counts.unsqueeze(1)
