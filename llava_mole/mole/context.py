"""RouteContext: what the routers of one adapter know about the pass in flight, and leave behind.

Goes in: which tokens are padding, a shared prefix or a branch; where a prompt ends; whether this
pass continues a KV cache. Comes out: one record per router, for losses and statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_mole.errors import ConfigError
from llava_mole.mole.route import PairedRoute, Route

SHARED_PREFIX = 0
PADDING = -1


@dataclass(frozen=True)
class Record:
    """What one router decided in the current forward pass."""

    name: str
    route: Route | PairedRoute
    num_experts: int

    @property
    def probs(self) -> Tensor:
        """(tokens, E)."""
        if self.route.probs is None:
            raise ConfigError(f"router {self.name!r} has no probabilities")
        return self.route.probs

    def chosen(self) -> Tensor:
        """(tokens, E); rows sum to 1."""
        return self.route.chosen(self.num_experts)

    def shares(self) -> Tensor:
        """(tokens, E) by gate, where `chosen` counts what is on; rows sum to 1."""
        return self.route.shares(self.num_experts, self.probs)


@dataclass
class RouteContext:
    """Shared by the routers of one adapter; lives as long as the adapter.

    Attributes:
        segment_ids: (B, T) of the pass in flight. -1 padding, 0 the prefix that all branches of
            the row see, 1, 2, … the branches. A row without branches is all zeros. None where the
            experts do not sit in a decoder: then all tokens are one sample.
        tree_ids: (B, T) which of a row's trees a token is of, where several are packed into it; -1
            padding. None: one a row.
        plain_rows: these segment_ids, where it is known without reading them from the device that
            no row has branches.
        prompt_mask: (B, T) True at tokens that sequence-level routers may pool; None: all attended.
        sample_types: (B,) kind of each sample, for losses that know kinds; or None.
        decoding: this pass continues a KV cache.
        batch_samples: of the pass, where `auxiliary_losses` was told and its tokens do not say.
        padding_known: whether a mask, if one was given, or who provides segments told the padding.
        kept: router's name -> what it decided from the prompt; goes with the KV cache.
        records: one per router, of the last recorded pass.
        enabled: False makes every hook a no-op: the base model answers.
    """

    enabled: bool = True
    segment_ids: Tensor | None = field(default=None, repr=False)
    tree_ids: Tensor | None = field(default=None, repr=False)
    plain_rows: Tensor | None = field(default=None, repr=False)
    prompt_mask: Tensor | None = field(default=None, repr=False)
    sample_types: Tensor | None = field(default=None, repr=False)
    decoding: bool = False
    padding_known: bool = True
    batch_samples: Tensor | int = field(default=1, repr=False)
    kept: dict[str, PairedRoute] = field(default_factory=dict, repr=False)
    records: list[Record] = field(default_factory=list, repr=False)
    recording: bool = False
    _provided: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __deepcopy__(self, memo: dict[int, object]) -> RouteContext:
        """A copied model starts with an empty context: records hold the original's graph."""
        memo[id(self)] = copied = RouteContext(enabled=self.enabled)
        return copied

    def provide(
        self,
        segment_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        sample_types: Tensor | None = None,
        answers: Tensor | None = None,
        tree_ids: Tensor | None = None,
    ) -> None:
        """Say what the tokens of the *next* pass are, and its samples.

        Args:
            segment_ids: (B, T) -1 at padding; 0 at a prefix that the row's branches share; 1, 2, …
                at branches, or at samples packed in the row. All 0: the row is one sample.
            prompt_mask: (B, T) True where sequence-level routers may look.
            sample_types: (B,) kinds of the samples, for losses that know kinds.
            answers: (B, T) True at supervised tokens: without a `prompt_mask`, prompts end before
                them.
            tree_ids: (B, T) 0, 1, … where a row holds several prefixes with their branches, -1 at
                padding; goes with `segment_ids`.
        """
        given = {
            "segment_ids": segment_ids,
            "tree_ids": tree_ids,
            "prompt_mask": prompt_mask,
            "sample_types": sample_types,
            "answers": answers,
        }
        self._provided |= {name: value for name, value in given.items() if value is not None}

    def begin(
        self,
        batch: int,
        length: int,
        attention_mask: Tensor | None,
        device: Any,
        *,
        decoding: bool = False,
        packed: Tensor | None = None,
    ) -> None:
        """Open a pass. Without provided segments, a 2-D attention mask tells the padding, and
        `packed`, (B, T) segment ids, where a row's samples begin."""
        self.records = []
        self.recording = True
        self.decoding, self.plain_rows = decoding, None
        provided, self._provided = self._provided, {}
        if "segment_ids" in provided:
            self.segment_ids = provided["segment_ids"]
            self.padding_known = True
            if self.segment_ids.shape != (batch, length):
                raise ConfigError(
                    f"segment_ids of shape {tuple(self.segment_ids.shape)} for tokens of shape "
                    f"{(batch, length)}"
                )
        elif attention_mask is not None and attention_mask.dim() == 2:
            # With a KV cache the mask also covers the past; the tokens of this pass are the last.
            self.segment_ids = attention_mask[:, -length:].long().clamp(max=1) - 1
            self.plain_rows = self.segment_ids
        elif packed is not None:
            self.segment_ids = packed
        else:
            self.segment_ids = torch.zeros(batch, length, dtype=torch.long, device=device)
            self.plain_rows = self.segment_ids
        for key in ("prompt_mask", "answers", "tree_ids"):
            if key in provided and provided[key].shape != self.segment_ids.shape:
                raise ConfigError(
                    f"{key} of shape {tuple(provided[key].shape)} for tokens of shape "
                    f"{tuple(self.segment_ids.shape)}"
                )
        self.tree_ids = provided.get("tree_ids")
        self.prompt_mask = provided.get("prompt_mask")
        if self.prompt_mask is None and "answers" in provided:
            self.prompt_mask = before_answers(provided["answers"], self.segment_ids, self.tree_ids)
        self.sample_types = provided.get("sample_types")

    def begin_plain(self) -> None:
        """Open a pass of a module that is no decoder."""
        self.records, self.recording, self.decoding = [], True, False
        self.padding_known, self.kept, self.plain_rows = True, {}, None
        self.segment_ids = self.tree_ids = self.prompt_mask = self.sample_types = None
        self._provided = {}

    def end(self) -> None:
        """Close it. Activation checkpointing runs routers again in backward: not recorded twice."""
        self.recording = False

    def record(self, name: str, route: Route | PairedRoute, num_experts: int) -> None:
        if self.recording:
            self.records.append(Record(name, route, num_experts))

    def samples_where(self, tokens: int) -> Tensor | int:
        """How many samples a record of `tokens` tokens is of, where `segments_of` takes it for
        one: that of the pass, as told or as its tokens have it."""
        if self.segment_ids is None:
            return self.batch_samples
        if self.segment_ids.numel() == tokens:
            return 1
        return (self.segment_ids >= 0).any(1).sum().clamp(min=1)

    def rows_are_samples(self, segment_ids: Tensor) -> bool:
        """Whether no row of these has branches, as far as it is known without reading them."""
        return segment_ids is self.plain_rows and self.tree_ids is None

    def segments_of(self, tokens: int, device: torch.device) -> Tensor:
        """(B, T) for records of `tokens` tokens; one row of one sample where nothing is known."""
        if self.segment_ids is None or self.segment_ids.numel() != tokens:
            return torch.zeros(1, tokens, dtype=torch.long, device=device)
        return self.segment_ids


def before_answers(answers: Tensor, segment_ids: Tensor, tree_ids: Tensor | None = None) -> Tensor:
    """(B, T) True at each sample's tokens before its first answer.

    A sample without an answer, or with one from its start, is all prompt.

    Args:
        answers: (B, T) True at supervised tokens.
        segment_ids, tree_ids: (B, T), see `RouteContext`.
    """
    if tree_ids is not None:
        prompts = [
            before_answers(answers, segment_ids.masked_fill(tree_ids != tree, PADDING))
            for tree in range(int(tree_ids.max()) + 1)
        ]
        return torch.stack(prompts).any(0)
    prompt = torch.zeros_like(segment_ids, dtype=torch.bool)
    alone = ~(segment_ids > SHARED_PREFIX).any(1, keepdim=True)
    for branch in range(int(segment_ids.max().clamp(min=0)) + 1):
        here = (segment_ids == branch).any(1, keepdim=True) if branch else alone
        own = here & ((segment_ids == branch) | (segment_ids == SHARED_PREFIX))
        answered = own & answers.to(own.device)
        first = own & (own.long().cumsum(1) == 1)
        whole = ~answered.any(1, keepdim=True) | (answered & first).any(1, keepdim=True)
        prompt |= own & ((answered.long().cumsum(1) == 0) | whole)
    return prompt
