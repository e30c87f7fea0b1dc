"""Shared pictures: one row, one visual prefix, and independent questions as branches of a tree.

    segment 0      <bos> picture                      every branch sees it
    segment 1            question 1, answer 1         sees 0 and itself
    segment 2            question 2, answer 2         sees 0 and itself

Positions restart at each branch, as if it followed the prefix directly, so a branch computes what
it would compute alone. A row may hold several trees, one after the other (packing): `tree_ids` says
which token is of which; nothing is seen across trees, and positions restart.

Two traps: sliding windows must be measured in positions, not in indices, or a later branch loses
the picture; and every family of models takes its masks in its own way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedConfig

from llava_mole.attention import mask_problem
from llava_mole.errors import ConfigError

Mask = TypeVar("Mask", Tensor, BlockMask)

# How a family's decoder takes a ready-made mask: one 4-D tensor for all layers, or a dict by layer
# type. Handing the wrong one is silent (a dropped sliding window), so only families that a test
# holds against separate rows are listed.
ONE_MASK = frozenset({"llama", "mistral", "phi3", "granite"})
MASK_BY_LAYER_TYPE = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text"})


def check_supported(text_config: PreTrainedConfig, key: str = "share_prefix") -> None:
    """Raises ConfigError where masks of our own are not known to be right.

    Args:
        key: of the recipe, which asks for them: share_prefix or packing.
    """
    family = text_config.model_type
    if family not in ONE_MASK | MASK_BY_LAYER_TYPE:
        raise ConfigError(
            f"{key}: questions that share a picture, or a row, are verified for "
            f"{', '.join(sorted(ONE_MASK | MASK_BY_LAYER_TYPE))}, not for {family!r}; "
            f"set {key}: {'null' if key == 'packing' else 'false'}"
        )
    problem = mask_problem(text_config._attn_implementation, key)
    if problem is not None:
        raise ConfigError(problem)


def tree_positions(segment_ids: Tensor, tree_ids: Tensor | None = None) -> Tensor:
    """Position of each token in its own branch.

    Args:
        segment_ids: (B, T) -1 padding, 0 prefix, 1, 2, … branches; each segment contiguous.
        tree_ids: (B, T) 0, 1, … where a row holds several trees; -1 padding. None: one tree a row.

    Returns:
        (B, T) the prefix counts from 0, each branch goes on from the prefix's length. Padding: 0.
    """
    real = segment_ids >= 0
    trees = torch.zeros_like(segment_ids) if tree_ids is None else tree_ids.clamp(min=0)
    lengths = segment_ids.new_zeros(len(segment_ids), int(trees.max()) + 1)
    prefix = lengths.scatter_add(1, trees, (segment_ids == 0).long()).gather(1, trees)
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    changed = torch.ones_like(segment_ids, dtype=torch.bool)
    changed[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    changed[:, 1:] |= trees[:, 1:] != trees[:, :-1]
    start = torch.where(changed, index, torch.zeros_like(index)).cummax(dim=1).values
    positions = index - start + torch.where(segment_ids > 0, prefix, torch.zeros_like(prefix))
    return torch.where(real, positions, torch.zeros_like(positions))


def visibility(
    segment_ids: Tensor,
    positions: Tensor,
    window: int | None = None,
    tree_ids: Tensor | None = None,
) -> Tensor:
    """(B, T, T) True where query i may look at key j: same tree, same branch or prefix, not in the
    future, and closer than `window` positions where a window is given. Padding looks at itself
    only."""
    query, key = segment_ids.unsqueeze(2), segment_ids.unsqueeze(1)
    distance = positions.unsqueeze(2) - positions.unsqueeze(1)
    allowed = ((key == query) | (key == 0)) & (distance >= 0) & (query >= 0) & (key >= 0)
    if tree_ids is not None:
        allowed = allowed & (tree_ids.unsqueeze(2) == tree_ids.unsqueeze(1))
    if window is not None:
        allowed = allowed & (distance < window)
    itself = torch.eye(segment_ids.shape[1], dtype=torch.bool, device=segment_ids.device)
    return allowed | itself


def tree_masks(
    text_config: PreTrainedConfig,
    segment_ids: Tensor,
    positions: Tensor,
    dtype: torch.dtype,
    tree_ids: Tensor | None = None,
) -> Tensor | BlockMask | dict[str, Tensor] | dict[str, BlockMask]:
    """What to hand this family's decoder as `attention_mask`.

    Args:
        text_config: of the language model.
        segment_ids, positions, tree_ids: (B, T), see `tree_positions`.
        dtype: of the hidden states; masks are additive (a boolean 4-D mask is silently wrong under
            eager attention).

    Returns:
        (B, 1, T, T), or a dict of such by layer type. Under flex_attention a BlockMask of that
        shape, which holds no (T, T) tensor.

    Raises:
        ConfigError: see `check_supported`.
    """
    if text_config._attn_implementation == "flex_attention":
        return _by_layer(
            text_config, lambda window: block_mask(segment_ids, positions, window, tree_ids)
        )
    return _by_layer(
        text_config,
        lambda window: additive(visibility(segment_ids, positions, window, tree_ids), dtype),
    )


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, queries, keys) of what is visible -> (B, 1, queries, keys), 0 where it is.

    Additive, for a boolean 4-D mask is silently wrong under eager attention.
    """
    allowed = allowed.unsqueeze(1)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)


def block_mask(
    segment_ids: Tensor,
    positions: Tensor,
    window: int | None = None,
    tree_ids: Tensor | None = None,
) -> BlockMask:
    """`visibility` as flex_attention takes it: a function of two places of a row, from which
    blocks that nobody sees are left out. `visibility` is its readable twin."""
    trees = torch.zeros_like(segment_ids) if tree_ids is None else tree_ids
    far = segment_ids.shape[1] if window is None else window

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = segment_ids[row, query], segment_ids[row, key]
        distance = positions[row, query] - positions[row, key]
        allowed = ((own == other) | (other == 0)) & (own >= 0) & (other >= 0)
        allowed = allowed & (distance >= 0) & (distance < far)
        return (allowed & (trees[row, query] == trees[row, key])) | (query == key)

    rows, length = segment_ids.shape
    # Compiled, the (T, T) tensor that the blocks are counted from is never made.
    make = compiled_block_mask() if segment_ids.is_cuda else create_block_mask
    return make(visible, rows, None, length, length, segment_ids.device)


@cache
def compiled_block_mask() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)


def step_masks(
    text_config: PreTrainedConfig,
    segment_ids: Tensor,
    positions: Tensor,
    key_segments: Tensor,
    key_positions: Tensor,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """As `tree_masks`, for tokens that continue branches whose past is in a cache.

    Args:
        segment_ids, positions: (B, K) of the new tokens; -1 for one that belongs to no branch.
        key_segments, key_positions: (B, C) of all that the cache will hold, the new ones last.

    Raises:
        ConfigError: see `check_supported`.
    """
    keys, queries = key_segments.shape[1], segment_ids.shape[1]
    itself = torch.eye(keys, dtype=torch.bool, device=key_segments.device)[keys - queries :]

    def visible(window: int | None) -> Tensor:
        query, key = segment_ids.unsqueeze(2), key_segments.unsqueeze(1)
        distance = positions.unsqueeze(2) - key_positions.unsqueeze(1)
        allowed = ((key == query) | (key == 0)) & (distance >= 0) & (query >= 0) & (key >= 0)
        if window is not None:
            allowed = allowed & (distance < window)
        return allowed | itself

    # flex_attention adds such a mask to its scores.
    return _by_layer(text_config, lambda window: additive(visible(window), dtype))


def _by_layer(
    text_config: PreTrainedConfig, masked: Callable[[int | None], Mask]
) -> Mask | dict[str, Mask]:
    """Masks of what is visible under a window, in the family's way: one, or by layer type."""
    check_supported(text_config)
    # Foreign configs: a family without windows does not have the key at all.
    window = text_config.sliding_window if hasattr(text_config, "sliding_window") else None
    if text_config.model_type in ONE_MASK:
        return masked(window)
    kinds = {"full_attention": None, "sliding_attention": window}
    unknown = sorted(set(text_config.layer_types) - set(kinds))
    if unknown:
        raise ConfigError(f"share_prefix: layer types {unknown} are not known; set it to false")
    return {kind: masked(kinds[kind]) for kind in sorted(set(text_config.layer_types))}
