"""Hooks that put experts on a model without wrapping anything.

`layers.0.mlp.gate_proj` stays the linear it was, keeps its name, and gains a child `mole_bank`
(`Banks`, one per adapter); the scope of its router, `layers.0.mlp`, gains a child `mole_router`
(`Routers`). A hook before the scope decides the route, a hook after each linear adds what the bank
says. So checkpoints of the base and PEFT's name patterns keep working, and PEFT's LoRA may sit on
the same model.

Two things are done for speed, both invisible from outside:
- where the kernel wants sorted tokens, the block's hook sorts its input by expert and restores its
  output, once for all linears of the block (`Block.sorts`);
- where a linear is plain and frozen, its own product runs without a graph and its share of the
  input's gradient is computed by the bank's kernel, which saves a pass over the activations.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from llava_mole.errors import ConfigError
from llava_mole.mole import kernels
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.route import Layout, PairedRoute, Route
from llava_mole.mole.router import Router

ROUTER = "mole_router"
BANK = "mole_bank"
PLAIN_TENSORS = (Tensor, nn.Parameter)
ACTIVATIONS = (nn.GELU, *(cls if isinstance(cls, type) else cls[0] for cls in ACT2CLS.values()))


class Banks(nn.ModuleDict):
    """Child `mole_bank` of a linear: adapter name -> ExpertBank."""

    def __init__(self) -> None:
        super().__init__()
        # Not modules of the linear: the router of a block belongs to the block.
        self.routers: dict[str, list[Router]] = {}
        self.own_router: dict[str, bool] = {}
        self._input: Tensor | None = None
        self._fused = False

    def attach(self, linear: nn.Module) -> None:
        linear.add_module(BANK, self)
        linear.register_forward_pre_hook(self.before_linear)
        linear.register_forward_hook(self.after_linear, always_call=True)

    def put(self, name: str, bank: ExpertBank, router: Router, own_router: bool) -> None:
        self[name] = bank
        self.routers[name] = [router]
        self.own_router[name] = own_router

    def drop(self, name: str) -> None:
        del self[name], self.routers[name], self.own_router[name]

    def rename(self, name: str, new: str) -> None:
        bank, (router,), own = self[name], self.routers[name], self.own_router[name]
        self.drop(name)
        self.put(new, bank, router, own)  # type: ignore[arg-type]

    def active(self) -> list[tuple[ExpertBank, Router]]:
        return [
            (self[name], router)  # type: ignore[misc]
            for name, (router,) in self.routers.items()
            if router.context.enabled
        ]

    def before_linear(self, linear: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Decide the routes of this linear alone; cut the graph where a kernel will replace it."""
        x = args[0]
        for name, (router,) in self.routers.items():
            if self.own_router[name] and router.context.enabled:
                router.current = router.decide(x, self[name])  # type: ignore[arg-type]
        self._input, self._fused = x, False
        if not x.requires_grad or not torch.is_grad_enabled():
            return None
        active = self.active()
        if not active:
            return None
        bank, router = active[0]
        if router.current is None or not is_plain_and_frozen(linear, x):
            return None
        if not only_ours(linear):
            return None
        if not kernels.fuses(bank, x, router.current):
            return None
        self._fused = True
        return (x.detach(), *args[1:])

    def after_linear(
        self, linear: nn.Module, args: tuple[Any, ...], output: Tensor | None
    ) -> Tensor | None:
        """Add what the banks say; drop the linear's own routes, also where it did not finish (see
        `Routers.after_block`)."""
        x, self._input = self._input, None
        try:
            if output is None:
                return None
            assert x is not None
            return self.add(linear, x, output)
        finally:
            for name, (router,) in self.routers.items():
                if self.own_router[name]:
                    router.current = None

    def add(self, linear: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        weight = linear.weight if self._fused else None
        for name, (router,) in self.routers.items():
            route = router.current
            if route is None or not router.context.enabled:
                continue
            tokens = x.numel() // x.shape[-1]
            if route.tokens not in (None, tokens):
                raise ConfigError(
                    f"a linear of {router.name!r} reads {tokens} tokens where its block reads "
                    f"{route.tokens}: one decision cannot serve both. Leave that linear out "
                    "(exclude_modules), or choose a method with a router per linear, as mola"
                )
            output = self[name](x, route, output, weight)
            weight = None  # the linear's own gradient goes once
        return output


def only_ours(module: nn.Module) -> bool:
    """Whether nothing but this package looks at a module's inputs, outputs or gradients, or
    replaces its forward pass."""
    if "forward" in module.__dict__ or module._backward_hooks or module._backward_pre_hooks:
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return all(isinstance(getattr(hook, "__self__", None), OURS) for hook in hooks)


def is_plain_and_frozen(linear: nn.Module, x: Tensor) -> bool:
    """Whether y = W x (+ b) is all that the linear does, and W, b do not learn.

    Quantised linears derive from torch's, or keep its class and hold a tensor of their own kind.
    """
    if type(linear) is not nn.Linear or type(linear.weight) not in PLAIN_TENSORS:
        return False
    if linear.weight.requires_grad:
        return False
    if linear.bias is not None and linear.bias.requires_grad:
        return False
    if linear.weight.dtype != x.dtype or linear.weight.device != x.device:
        return False
    kind = x.device.type
    return not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) == x.dtype


@dataclass(frozen=True)
class Shape:
    """What the choice of a kernel needs to know about the banks of a block."""

    ranks: tuple[int, ...]
    kernel: str
    aligned: bool
    """Whether widths are multiples of 8, as `grouped` needs."""


class Routers(nn.ModuleDict):
    """Child `mole_router` of a scope: adapter name -> Router."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, Shape | None] = {}
        """Per adapter: its banks' shape if all agree, so that tokens may be sorted for them."""
        self.block_scope: dict[str, bool] = {}
        self._layout: Layout | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: a scope that is a Sequential calls all its children in turn."""
        return x

    def attach(self, scope: nn.Module) -> None:
        scope.add_module(ROUTER, self)
        scope.register_forward_pre_hook(self.before_block, with_kwargs=True)
        scope.register_forward_hook(self.after_block, always_call=True)

    def put(self, name: str, router: Router, shape: Shape | None, block_scope: bool) -> None:
        self[name] = router
        self.shapes[name] = shape
        self.block_scope[name] = block_scope

    def drop(self, name: str) -> None:
        del self[name], self.shapes[name], self.block_scope[name]

    def rename(self, name: str, new: str) -> None:
        router, shape, block_scope = self[name], self.shapes[name], self.block_scope[name]
        self.drop(name)
        self.put(new, router, shape, block_scope)  # type: ignore[arg-type]

    def active(self) -> list[str]:
        return [
            name
            for name, router in self.items()
            if self.block_scope[name] and router.context.enabled  # type: ignore[union-attr]
        ]

    def before_block(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        """Decide the block's routes; sort its tokens where that pays."""
        self._layout = None
        active = self.active()
        if not active:
            return None
        x = first_argument(block, args, kwargs)
        for name in active:
            router: Any = self[name]
            router.current = router.decide(x)
        if len(active) != 1 or len(args) != 1 or kwargs:
            return None
        router = self[active[0]]
        layout = self.layout_for(block, x, router.current, self.shapes[active[0]])
        if layout is None:
            return None
        route = router.current
        weights = None if route.weights is None else route.weights[layout.rows]
        router.current = replace(
            route,
            indices=layout.experts.unsqueeze(1),
            weights=weights,
            layout=layout,
            _units={},
            kernels={},
            _host=[],
        )
        self._layout = layout
        return (layout.sort(x),), kwargs

    def layout_for(
        self, block: nn.Module, x: Tensor, route: Route | PairedRoute, shape: Shape | None
    ) -> Layout | None:
        if shape is None or not isinstance(route, Route) or route.top_k != 1:
            return None
        kernel = shape.kernel
        if kernel == "auto":
            kernel = kernels.choose(
                tokens=x.numel() // x.shape[-1],
                top_k=1,
                ranks=shape.ranks,
                device=x.device,
                dtype=x.dtype,
                sortable=True,
                aligned=shape.aligned,
            )
        elif kernel in kernels.SORTED:
            kernels.check_sparse(kernel, shape.ranks, route.top_k)
        if kernel not in kernels.SORTED or not is_token_wise(block) or decides_inside(block):
            return None
        if not all(only_ours(module) for module in block.modules()):
            return None
        assert route.indices is not None
        return Layout(route.indices, len(shape.ranks), kernel)

    def after_block(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Restore the order of the tokens; drop the routes, so that nothing outlives its pass.

        Also called, with output None, where the block did not finish: activation checkpointing
        computes a block anew up to the last tensor it needs and leaves it there. A route that
        stayed would keep the whole block's activations until the next step.
        """
        for name in self.block_scope:
            if self.block_scope[name]:
                self[name].current = None  # type: ignore[assignment]
        layout, self._layout = self._layout, None
        if layout is None or output is None:
            return None
        if not isinstance(output, Tensor) or output.numel() // output.shape[-1] != len(layout.rows):
            raise ConfigError(
                f"{type(block).__name__} does not give one output per token: its tokens cannot be "
                "sorted; choose kernel='masked'"
            )
        return layout.restore(output)


def first_argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a module's forward takes first, however it is called."""
    if args:
        return args[0]
    first = next(iter(inspect.signature(module.forward).parameters))
    found = kwargs.get(first, next(iter(kwargs.values()), None))
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{type(module).__name__} was called without {first!r}, which routes read"
        )
    return found


OURS = (Banks, Routers)
"""Whose methods are this package's hooks."""


def is_token_wise(block: nn.Module) -> bool:
    """Whether a block treats tokens one by one, as far as its parts tell: an activation, linears
    of its own, norms, what PEFT and this package add to them, and nothing else with parameters.

    Attention may be made of linears alone, and be called with nothing but its input: the activation
    tells an MLP from it. What else a forward pass does cannot be seen, so only transformers' own
    blocks are trusted.
    """
    if not type(block).__module__.startswith("transformers."):
        return False
    if not any(isinstance(child, ACTIVATIONS) for child in block.children()):
        return False
    for name, module in block.named_modules():
        own = [p for _, p in module.named_parameters(recurse=False)]
        if not own or isinstance(module, ExpertBank | Router):
            continue
        if isinstance(module, nn.Linear):
            if "." in name and not hasattr(block.get_submodule(name.split(".")[0]), "base_layer"):
                return False
        elif not (all(p.dim() == 1 for p in own) and "norm" in type(module).__name__.lower()):
            return False
    return True


def decides_inside(block: nn.Module) -> bool:
    """Whether linears of the block route by themselves: their records must be in the tokens' own
    order, which padding and samples are known in."""
    return any(
        module.own_router[name] and router.context.enabled
        for module in block.modules()
        if isinstance(module, Banks)
        for name, (router,) in module.routers.items()
    )
