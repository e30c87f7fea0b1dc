"""Fold experts into the base's weights, where their route is constant."""

from __future__ import annotations

from collections import Counter

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from llava_mole.errors import ConfigError
from llava_mole.mole.adapters import adapter_of, delete_adapter
from llava_mole.mole.hooks import PLAIN_TENSORS
from llava_mole.mole.inject import base_weight


def is_plain_lora(module: nn.Module) -> bool:
    """Whether PEFT's wrapper only adds B A x to the linear's output."""
    variants = getattr(module, "lora_variant", {})
    return isinstance(module, LoraLayer) and not any(variants.values())


@torch.no_grad()
def merge(model: nn.Module, name: str | None = None) -> None:
    """Add the experts to the weights of their linears and remove the adapter.

    Raises:
        ConfigError: the route depends on the input, so that no single dense weight gives the same
            output; or a weight is quantised. Nothing is changed then.
    """
    adapter = adapter_of(model, name)
    reason = adapter.config.refuses_merge()
    if reason is not None:
        raise ConfigError(
            f"cannot merge {adapter.config.num_experts} experts of {adapter.config.method}: "
            f"{reason}, so no single dense weight gives the same output. Keep the adapter folder "
            "beside the base."
        )
    banks = adapter.banks
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for linear, bank in banks.items():
        module = adapter.root.get_submodule(linear)
        weight = base_weight(module)
        if hasattr(module, "base_layer") and not is_plain_lora(module):
            raise ConfigError(
                f"cannot merge into {linear}: PEFT's {type(module).__name__} there does more than "
                "add to its output, and would change what is merged; merge or remove it first"
            )
        if uses[id(weight)] > 1:
            raise ConfigError(
                f"cannot merge into {linear}: another module shares its weight and would be changed"
            )
        plain = type(weight) in PLAIN_TENSORS and weight.is_floating_point()
        if not plain or weight.shape != (bank.out_features, bank.in_features):
            raise ConfigError(
                f"cannot merge into {linear}: its weight is a {type(weight).__name__} of "
                f"{weight.dtype} and shape {tuple(weight.shape)}, quantised; load the base in a "
                "floating-point dtype"
            )
    for linear, bank in banks.items():
        weight = base_weight(adapter.root.get_submodule(linear))
        wide = torch.promote_types(weight.dtype, torch.float32)
        weight.copy_((weight.to(wide) + bank.delta_weight()).to(weight.dtype))
    delete_adapter(model, adapter.name)
