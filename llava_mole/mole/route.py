"""Route: which experts are on for each token. RouteContext: what a forward pass knows about tokens.

A route is made once per block by its router and used by every linear of the block. The context is
shared by all routers of a model: it carries the padding mask and the segments of a row in, and the
records that losses and statistics need out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

SHARED_PREFIX = 0
PADDING = -1


@dataclass(frozen=True)
class Route:
    """The routing decision of one block for `tokens` flattened tokens.

    Attributes:
        indices: (tokens, k) experts that are on.
        weights: (tokens, k) what multiplies each; carries the task's gradient if its gate does.
        probs: (tokens, E) the router's softmax, for auxiliary losses and statistics.
    """

    indices: Tensor
    weights: Tensor
    probs: Tensor

    def gates(self, num_experts: int) -> Tensor:
        """Dense form, (tokens, E): zero where an expert is off."""
        if self.indices.shape[1] == num_experts:
            return self.weights
        empty = self.weights.new_zeros(self.weights.shape[0], num_experts)
        return empty.scatter(1, self.indices, self.weights)

    def rows_of(self, expert: int) -> Tensor:
        """(rows,) the tokens for which `expert` is on."""
        return (self.indices == expert).any(dim=1).nonzero().squeeze(1)


@dataclass(frozen=True)
class Record:
    """What one router decided in the current forward pass; (B*T, E) and (B*T, k)."""

    probs: Tensor
    indices: Tensor

    def chosen(self, num_experts: int) -> Tensor:
        """(tokens, E) 1 / k where an expert is on; rows sum to 1."""
        return F.one_hot(self.indices, num_experts).sum(1).float() / self.indices.shape[1]


@dataclass
class RouteContext:
    """Shared by the routers of one model; lives as long as the model.

    Attributes:
        segment_ids: (B, T) of the pass in flight. -1 padding, 0 the prefix that all branches of
            the row see, 1, 2, … the branches. A row without branches is all zeros.
        records: one per router, of the last recorded pass.
        enabled: False makes every hook a no-op: the base model answers.
    """

    enabled: bool = True
    segment_ids: Tensor | None = None
    records: list[Record] = field(default_factory=list)
    recording: bool = False
    _provided: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> RouteContext:
        """A copied model starts with an empty context: records hold the original's graph."""
        memo[id(self)] = copied = RouteContext(enabled=self.enabled)
        return copied

    def provide(self, segment_ids: Tensor) -> None:
        """Say which tokens of the *next* pass are padding, prefix or branch; (B, T)."""
        self._provided = segment_ids

    def begin(self, batch: int, length: int, attention_mask: Tensor | None, device: object) -> None:
        """Open a pass. Without provided segments, a 2-D attention mask tells the padding."""
        self.records = []
        self.recording = True
        if self._provided is not None:
            self.segment_ids, self._provided = self._provided, None
        elif attention_mask is not None and attention_mask.dim() == 2:
            # With a KV cache the mask also covers the past; the tokens of this pass are the last.
            self.segment_ids = attention_mask[:, -length:].long() - 1
        else:
            self.segment_ids = torch.zeros(batch, length, dtype=torch.long, device=str(device))

    def end(self) -> None:
        """Close it. Activation checkpointing runs routers again in backward: not recorded twice."""
        self.recording = False

    def record(self, route: Route) -> None:
        if self.recording:
            self.records.append(Record(route.probs, route.indices))
