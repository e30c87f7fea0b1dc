"""Put experts on a model, in place, with hooks.

Nothing is wrapped: `layers.0.mlp.gate_proj` stays the linear it was and keeps its name, and gains
a child `mole_bank`; its block `layers.0.mlp` gains a child `mole_router`. A hook before the block
decides the route, a hook after each linear adds what the bank says, so checkpoints of the base and
PEFT's name patterns keep working, and PEFT's LoRA may sit on the same model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_mole.errors import ConfigError
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MLP_LINEARS, MoleConfig
from llava_mole.mole.route import RouteContext
from llava_mole.mole.router import LinearRouter

ROUTER = "mole_router"
BANK = "mole_bank"


@dataclass
class MoleState:
    """What `add_experts` leaves on the decoder, as attribute `mole_state`."""

    config: MoleConfig
    context: RouteContext

    def before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        tokens = kwargs.get("inputs_embeds")
        if tokens is None:
            tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) else None
        self.context.begin(tokens.shape[0], tokens.shape[1], mask, tokens.device)

    def after_decoder(self, decoder: nn.Module, args: Any, output: Any) -> None:
        self.context.end()


def decoder_of(model: Any) -> nn.Module:
    """The stack of layers that experts go into: a vision-language model's language part."""
    while hasattr(model, "get_decoder") and model.get_decoder() is not model:
        model = model.get_decoder()
    return model


def is_linear(module: nn.Module) -> bool:
    """A torch linear, or one that PEFT wrapped."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)


def find_blocks(
    decoder: nn.Module, targets: str | tuple[str, ...]
) -> dict[str, tuple[nn.Module, dict[str, nn.Module]]]:
    """Block name -> (block, {linear name: linear}) for every block that holds a target.

    Raises:
        ConfigError: no module matches; the nearest names are listed.
    """
    blocks: dict[str, tuple[nn.Module, dict[str, nn.Module]]] = {}
    for name, module in decoder.named_modules():
        linears = {key: child for key, child in module.named_children() if is_linear(child)}
        if targets == MLP_LINEARS:
            wanted = linears if name.rsplit(".", 1)[-1] == "mlp" else {}
        else:
            names = (targets,) if isinstance(targets, str) else targets
            wanted = {key: child for key, child in linears.items() if key in names}
        if wanted:
            blocks[name] = (module, wanted)
    found = {key for _, linears in blocks.values() for key in linears}
    asked = () if targets == MLP_LINEARS else (targets,) if isinstance(targets, str) else targets
    missing = [name for name in asked if name not in found]
    if missing or not blocks:
        linears_here = {
            name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if is_linear(module)
        }
        near = {name: difflib.get_close_matches(name, linears_here, 3) for name in missing}
        raise ConfigError(
            f"target_modules={targets!r} matches no linear for {missing or 'any mlp'} in "
            f"{type(decoder).__name__}; its linears are {sorted(linears_here)}"
            + (f", nearest: {near}" if any(near.values()) else "")
            + ". Experts need MLPs made of linears (fused expert tensors are not)."
        )
    return blocks


def add_experts(model: nn.Module, config: MoleConfig) -> RouteContext:
    """Add experts to `model` in place; at once afterwards it computes what it did before.

    Args:
        model: any Hugging Face model. Experts land in its decoder, so a vision-language model
            gets them in its language model only.
        config: what to add.

    Returns:
        The context that routers, losses and statistics share.

    Raises:
        ConfigError: experts are there already, or `target_modules` matches nothing.
    """
    decoder = decoder_of(model)
    if hasattr(decoder, "mole_state"):
        raise ConfigError("this model has experts already; load a fresh base model first")
    blocks = find_blocks(decoder, config.target_modules)
    context = RouteContext()
    for block, linears in blocks.values():
        first = next(child for child in block.children() if is_linear(child))
        weight: Any = getattr(first, "base_layer", first).weight
        router = LinearRouter(
            first.in_features,  # type: ignore[arg-type]
            config.num_experts,
            routing=config.routing,
            gate=config.gate,
            context=context,
            device=weight.device,
        )
        block.add_module(ROUTER, router)
        block.register_forward_pre_hook(router.before_block, with_kwargs=True)
        block.register_forward_hook(router.after_block)
        for linear in linears.values():
            bank = ExpertBank(
                linear.in_features,  # type: ignore[arg-type]
                linear.out_features,  # type: ignore[arg-type]
                [config.r] * config.num_experts,
                scaling=config.scaling,
                dropout=config.lora_dropout,
                kernel=config.kernel,
                device=weight.device,
            )
            linear.add_module(BANK, bank)
            linear.register_forward_hook(_Adder(router, bank))
    state = MoleState(config, context)
    decoder.mole_state = state  # type: ignore[assignment]
    decoder.register_forward_pre_hook(state.before_decoder, with_kwargs=True)
    decoder.register_forward_hook(state.after_decoder)
    return context


@dataclass
class _Adder:
    """Forward hook of a linear: base output plus what its bank adds for the block's route."""

    router: LinearRouter
    bank: ExpertBank

    def __call__(self, linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        route = self.router.current
        if route is None:
            return output
        return output + self.bank(args[0], route).to(output.dtype)


def mole_context(model: nn.Module) -> tuple[RouteContext, MoleConfig]:
    """Raises ConfigError if the model has no experts."""
    for module in model.modules():
        state = module.__dict__.get("mole_state")
        if state is not None:
            return state.context, state.config
    raise ConfigError(f"{type(model).__name__} has no experts: call add_experts first")


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every A and B, by name."""
    return {
        name: parameter for name, parameter in model.named_parameters() if f".{BANK}." in f".{name}"
    }


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every router weight and bias, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if f".{ROUTER}." in f".{name}"
    }


@contextmanager
def disabled_experts(model: nn.Module) -> Iterator[None]:
    """Inside, the model answers as its base does."""
    context, _ = mole_context(model)
    before, context.enabled = context.enabled, False
    try:
        yield
    finally:
        context.enabled = before


@torch.no_grad()
def merge_experts(model: nn.Module) -> None:
    """Fold a constant route (one expert) into the base weights and switch the experts off.

    Raises:
        ConfigError: with several experts the update depends on the token, and no single dense
            weight computes it.
    """
    context, config = mole_context(model)
    if config.num_experts != 1:
        raise ConfigError(
            f"cannot merge {config.num_experts} experts: each token uses its own expert, so no "
            "single dense weight gives the same output. Keep the adapter folder beside the base."
        )
    for module in model.modules():
        bank = module._modules.get(BANK)
        if isinstance(bank, ExpertBank):
            weight: Any = getattr(module, "base_layer", module).weight
            weight += (config.scaling * bank.lora_B @ bank.lora_A).to(weight.dtype)
            nn.init.zeros_(bank.lora_B)
    context.enabled = False
