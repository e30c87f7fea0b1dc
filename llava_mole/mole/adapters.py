"""Named adapters: which there are, which are on, and their parameters by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from llava_mole.errors import ConfigError
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.context import RouteContext
from llava_mole.mole.hooks import BANK, ROUTER, Banks, Routers
from llava_mole.mole.passes import Passes
from llava_mole.mole.router import Router

DEFAULT = "default"
STATE = "mole_adapters"


@dataclass
class Adapter:
    """One set of experts on a model.

    Attributes:
        root: the module whose names the adapter's are relative to.
        size: how many linears got experts.
    """

    name: str
    config: MoleConfig
    context: RouteContext
    root: nn.Module
    size: int

    @property
    def banks(self) -> dict[str, ExpertBank]:
        """Linear's name below the root -> bank."""
        return {
            name.removesuffix(f".{BANK}"): module[self.name]  # type: ignore[misc]
            for name, module in self.root.named_modules()
            if isinstance(module, Banks) and self.name in module
        }

    @property
    def routers(self) -> list[Router]:
        return [
            module[self.name]  # type: ignore[misc]
            for module in self.root.modules()
            if isinstance(module, Routers) and self.name in module
        ]


@dataclass
class RootState:
    """What `add_experts` leaves on a root, as attribute `mole_adapters`."""

    passes: Passes
    adapters: dict[str, Adapter] = field(default_factory=dict)


def root_states(model: nn.Module) -> list[RootState]:
    return [m.__dict__[STATE] for m in model.modules() if STATE in m.__dict__]


def adapters_of(model: nn.Module) -> list[Adapter]:
    """Raises ConfigError if the model has no experts."""
    found = [adapter for state in root_states(model) for adapter in state.adapters.values()]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no experts: call add_experts first")
    return found


def adapter_of(model: nn.Module, name: str | None = None) -> Adapter:
    """The adapter by name; without one, the only one there is, or the only one that is on.

    Raises:
        ConfigError: no such adapter, or several and no name.
    """
    found = adapters_of(model)
    names = [adapter.name for adapter in found]
    if name is not None:
        for adapter in found:
            if adapter.name == name:
                return adapter
        raise ConfigError(f"no experts named {name!r}; there are {names}")
    on = found if len(found) == 1 else [adapter for adapter in found if adapter.context.enabled]
    if len(on) != 1:
        raise ConfigError(f"several sets of experts, {names}: say which by name")
    return on[0]


def enable_adapter(model: nn.Module, name: str | None = None) -> None:
    """Switch one adapter on, or all; several that are on add up."""
    for adapter in adapters_of(model) if name is None else [adapter_of(model, name)]:
        adapter.context.enabled = True


def disable_adapter(model: nn.Module, name: str | None = None) -> None:
    """Switch one adapter off, or all: then the base model answers."""
    for adapter in adapters_of(model) if name is None else [adapter_of(model, name)]:
        adapter.context.enabled = False


def set_adapter(model: nn.Module, name: str | Sequence[str]) -> None:
    """Switch this adapter, or these, on and all others off."""
    chosen = [adapter_of(model, one) for one in ([name] if isinstance(name, str) else name)]
    for adapter in adapters_of(model):
        adapter.context.enabled = adapter in chosen


def adapter_names(model: nn.Module) -> list[str]:
    """All adapters, whether or not they are on."""
    return [adapter.name for adapter in adapters_of(model)]


def active_adapters(model: nn.Module) -> list[str]:
    return [adapter.name for adapter in adapters_of(model) if adapter.context.enabled]


@contextmanager
def disabled_experts(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers as its base does."""
    before = [(adapter.context, adapter.context.enabled) for adapter in adapters_of(model)]
    disable_adapter(model)
    try:
        yield
    finally:
        for context, enabled in before:
            context.enabled = enabled


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove an adapter and its parameters. No other is switched on in its place."""
    adapter = adapter_of(model, name)
    for module in adapter.root.modules():
        if isinstance(module, Banks | Routers) and name in module:
            module.drop(name)
    for state in root_states(model):
        if state.adapters.get(name) is adapter:
            del state.adapters[name]
            del state.passes.contexts[name]


def rename_adapter(model: nn.Module, adapter: Adapter, name: str) -> None:
    """Give an adapter a name that is free."""
    for module in adapter.root.modules():
        if isinstance(module, Banks | Routers) and adapter.name in module:
            module.rename(adapter.name, name)
    for state in root_states(model):
        if state.adapters.get(adapter.name) is adapter:
            state.adapters[name] = state.adapters.pop(adapter.name)
            state.passes.contexts[name] = state.passes.contexts.pop(adapter.name)
    adapter.name = name


def mole_context(model: nn.Module, name: str | None = None) -> tuple[RouteContext, MoleConfig]:
    """Context and config of an adapter. Raises ConfigError if the model has no experts."""
    adapter = adapter_of(model, name)
    return adapter.context, adapter.config


def _parameters(model: nn.Module, mark: str, name: str | None) -> dict[str, nn.Parameter]:
    mark = f".{mark}." if name is None else f".{mark}.{name}."
    return {key: value for key, value in model.named_parameters() if mark in f".{key}"}


def expert_parameters(model: nn.Module, name: str | None = None) -> dict[str, nn.Parameter]:
    """Every A and B, by name; of one adapter or of all."""
    return _parameters(model, BANK, name)


def router_parameters(model: nn.Module, name: str | None = None) -> dict[str, nn.Parameter]:
    """Every router parameter, by name; of one adapter or of all."""
    return _parameters(model, ROUTER, name)


def mark_trainable(model: nn.Module, name: str | Sequence[str] | None = None) -> None:
    """Train experts and routers (frozen experts excepted) and nothing else: PEFT's LoRA neither.

    Args:
        name: of the adapter or adapters to train; by default all that are on.

    Raises:
        ConfigError: no such adapter, or none is on.
    """
    names = [name] if isinstance(name, str) else list(name or active_adapters(model))
    if not names:
        raise ConfigError(
            f"no experts are on; there are {adapter_names(model)}: enable_adapter first, or say "
            "which to train"
        )
    chosen = [adapter_of(model, one) for one in names]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for adapter in chosen:
        for group in (expert_parameters, router_parameters):
            for key, parameter in group(model, adapter.name).items():
                parameter.requires_grad_(not key.rpartition(".")[2].startswith("frozen_"))


def router_step(model: nn.Module) -> None:
    """Call once after each optimizer step: routers update what they learn without a gradient.

    SMoRA's selection bias is such a thing; for other methods this does nothing. Under
    torch.distributed all ranks must call it: counts are summed over them.
    """
    for adapter in adapters_of(model):
        for router in adapter.routers:
            router.after_optimizer_step()
