"""Hooks around a whole pass: where it begins and ends, what its tokens are, whether it goes on.

The root's hooks open and close the adapters' contexts (`Passes`). They find out what is padding,
from the mask that the model or the models around it were given; which samples are packed in a row;
and whether a KV cache is continued, with which prompts' routes travel.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from llava_mole.mole.context import RouteContext

KEPT = "mole_routes"
"""On a KV cache: what prompts decided, adapter name -> router name -> route."""


CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Arguments that a cache comes in: transformers' own since 5.24, and those of old."""


def packed_segments(positions: Any, batch: int, length: int) -> Tensor | None:
    """(B, T) segment ids 1, 2, … of rows that hold several samples, or None.

    As transformers' attention masks, without a mask: a sample ends where positions do not go on.
    """
    if not isinstance(positions, Tensor) or positions.shape != (batch, length):
        return None
    goes_on = positions[:, 1:] == positions[:, :-1] + 1
    return 1 + nn.functional.pad((~goes_on).long().cumsum(1), (1, 0))


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by their names."""
    if not args:
        return kwargs
    names = inspect.signature(module.forward).parameters
    return dict(zip(names, args, strict=False)) | kwargs


def cache_of(kwargs: dict[str, Any], output: Any = None) -> Any:
    """The cache that a pass was given or made, of attention or of a state-space model; or None."""
    given = (kwargs.get(key) for key in CACHE_NAMES)
    found = next((cache for cache in given if cache is not None), None)
    return getattr(output, "cache", None) if found is None else found


def continues(cache: Any) -> bool:
    """Whether a cache, or the state of a state-space model, holds an earlier pass."""
    if cache is None:
        return False
    linear = getattr(cache, "is_linear", None)
    if hasattr(cache, "get_seq_length") and not (linear and all(linear)):
        return bool(cache.get_seq_length() > 0)
    found = getattr(cache, "has_previous_state", False)
    return bool(found() if callable(found) else found)


def padding_of(mask: Any, length: int) -> Tensor | None:
    """(B, T) 1 at tokens, of the masks that generation makes for attention: (B, 1, T, keys), or one
    per type of layer. The last token sees all that is no padding, unless a window ends before: then
    no row sees its first token, and None is returned."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[2] != length:
        return None
    seen = mask if mask.dtype == torch.bool else mask >= 0
    row = seen[:, 0, -1, :length]
    return row.long() if bool(row[:, 0].any()) else None


class Passes:
    """Hooks of the root: a pass of the decoder opens and closes the adapters' contexts."""

    def __init__(self, decoder: bool) -> None:
        self.decoder = decoder
        self.contexts: dict[str, RouteContext] = {}
        self.mask: Tensor | None = None
        """(B, T) attention mask of the models around the decoder: some (Gemma 3) hand it masks
        that are made for attention, which do not tell padding."""

    def attach(self, root: nn.Module) -> None:
        # First, because the root may be a router's scope itself.
        root.register_forward_pre_hook(self.before_root, with_kwargs=True, prepend=True)
        root.register_forward_hook(self.after_root, with_kwargs=True)

    def before_caller(self, caller: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        key = "attention_mask"
        if getattr(getattr(caller, "config", None), "is_encoder_decoder", False):
            key = "decoder_attention_mask"  # the other is the encoder's
        mask = kwargs.get(key)
        if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
            self.mask = mask

    def before_root(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = by_name(root, args, kwargs)
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs.get("input_ids")
        if not self.decoder or not isinstance(tokens, Tensor) or tokens.dim() < 2:
            for context in self.contexts.values():
                if context.enabled:
                    context.begin_plain()
            return
        batch, length = tokens.shape[:2]
        given = kwargs.get("attention_mask")
        decoding = continues(cache_of(kwargs))
        mask = given if isinstance(given, Tensor) and given.dim() == 2 else self.mask
        if mask is not None and (len(mask) != batch or mask.shape[1] < length):
            mask = None
        if mask is None and given is not None and not decoding:
            mask = padding_of(given, length)
        packed = None
        if given is None and mask is None and not decoding:
            packed = packed_segments(kwargs.get("position_ids"), batch, length)
        kept = getattr(cache_of(kwargs), KEPT, {})
        for name, context in self.contexts.items():
            if not context.enabled:  # a pass of the base: what was recorded and provided stays
                continue
            context.padding_known = given is None or mask is not None
            context.begin(batch, length, mask, tokens.device, decoding=decoding, packed=packed)
            context.kept = dict(kept.get(name, {})) if decoding else {}

    def after_root(self, root: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.mask = None
        kept = {name: context.kept for name, context in self.contexts.items() if context.kept}
        if kept:
            cache = cache_of(by_name(root, args, kwargs), output)
            if cache is not None:
                setattr(cache, KEPT, getattr(cache, KEPT, {}) | kept)
        for context in self.contexts.values():
            context.kept = {}
            if context.enabled:
                context.end()


class Prompts:
    """Hook of the whole model: labels say where the prompt ends, for routers that pool it."""

    def __init__(self, context: RouteContext) -> None:
        self.context = context

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        labels = by_name(model, args, kwargs).get("labels")
        if isinstance(labels, Tensor) and labels.dim() == 2:
            self.context.provide(answers=labels != -100)
