"""add_experts: find the linears, build what the method says, attach it in place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from llava_mole.errors import ConfigError
from llava_mole.mole.adapters import DEFAULT, STATE, Adapter, RootState, root_states
from llava_mole.mole.config import ALL_LINEARS, DTYPES, MLP_LINEARS, MoleConfig, Place, at_layer
from llava_mole.mole.context import RouteContext
from llava_mole.mole.hooks import BANK, ROUTER, Banks, Routers, Shape
from llava_mole.mole.kernels import SORTED, check_sparse
from llava_mole.mole.passes import Passes, Prompts

LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def decoder_of(model: Any) -> nn.Module:
    """The stack of layers that experts go into: a vision-language model's language part."""
    while hasattr(model, "get_decoder") and model.get_decoder() is not model:
        model = model.get_decoder()
    return model


def root_of(model: nn.Module, config: MoleConfig) -> nn.Module:
    """Where to look for linears. Raises ConfigError if `config.root` names no module, or a list."""
    if config.root is None:
        return decoder_of(model)
    if isinstance(model, PeftModel):  # names are those of the model that PEFT wrapped
        model = model.get_base_model()
    try:
        root = model.get_submodule(config.root)
    except AttributeError as error:
        names = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(config.root, names, 3)
        raise ConfigError(
            f"root={config.root!r} names no module of {type(model).__name__}; "
            f"{'nearest' if near else 'it has'}: {near or [n for n, _ in model.named_children()]}"
        ) from error
    if type(root).forward is nn.Module.forward:
        raise ConfigError(
            f"root={config.root!r} is a {type(root).__name__}, which is never called itself: name "
            "the module that holds it"
        )
    return root


def is_linear(module: nn.Module) -> bool:
    """A torch linear (quantised ones derive from it), or one that PEFT wrapped."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)


def base_weight(linear: nn.Module) -> Any:
    return getattr(linear, "base_layer", linear).weight


def matcher(targets: str | tuple[str, ...]) -> Callable[[str, str], bool]:
    """(short name, whole name) -> whether a module is meant; short is below the root."""
    if targets == ALL_LINEARS:
        return lambda short, whole: True
    if targets == MLP_LINEARS:
        return lambda short, whole: short.split(".")[-2:-1] == ["mlp"]
    if isinstance(targets, str) and not targets.isidentifier():
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ConfigError(f"target_modules={targets!r}: no regular expression: {error}") from (
                error
            )
        return lambda short, whole: bool(pattern.fullmatch(short) or pattern.fullmatch(whole))
    names = (targets,) if isinstance(targets, str) else targets
    return lambda short, whole: any(f".{whole}".endswith(f".{name}") for name in names)


def find_linears(model: nn.Module, root: nn.Module, config: MoleConfig) -> dict[str, nn.Module]:
    """Name below the root -> linear, for every target.

    Raises:
        ConfigError: a target matches nothing (the nearest names are listed), or what it matches
            cannot have experts.
    """
    prefix = next((name for name, module in model.named_modules() if module is root), "")
    prefix = f"{prefix}." if prefix else ""
    modules = {
        name: module
        for name, module in root.named_modules()
        if name and f".{BANK}" not in f".{name}" and f".{ROUTER}" not in f".{name}"
        and ".base_layer" not in name and ".lora_" not in name
    }  # fmt: skip
    head = getattr(model, "get_output_embeddings", lambda: None)()
    wanted = matcher(config.target_modules)
    spared = spare(model, config)
    meant = {
        name: module
        for name, module in modules.items()
        if wanted(name, prefix + name) and not spared(name, prefix + name) and module is not head
    }
    meant = in_layers(meant, config)
    if config.target_modules == MLP_LINEARS:
        refuse_fused(in_layers(modules, config), prefix)
    for name, module in meant.items():
        refuse_unfit(prefix + name, module, config)
    found = {name: module for name, module in meant.items() if is_linear(module)}
    explain_missing(config, root, modules, found, prefix)
    return found


def spare(model: nn.Module, config: MoleConfig) -> Callable[[str, str], bool]:
    """Matcher of `exclude_modules`. Raises ConfigError if one of them excludes nothing."""
    excluded = config.exclude_modules
    if not excluded:
        return lambda short, whole: False
    names = [name for name, _ in model.named_modules() if name]
    for one in excluded if isinstance(excluded, tuple) else (excluded,):
        spares = matcher((one,) if isinstance(excluded, tuple) else one)
        # A regular expression may be written for names below the root.
        if not any(spares(name[i:], name) for name in names for i in starts(name)):
            near = difflib.get_close_matches(one, sorted({n.rpartition(".")[2] for n in names}), 3)
            raise ConfigError(f"exclude_modules: {one!r} matches no module; nearest: {near}")
    return matcher(excluded)


def starts(name: str) -> list[int]:
    """Where the parts of a dotted name begin."""
    return [0, *(match.end() for match in re.finditer(r"\.", name))]


def in_layers(found: dict[str, nn.Module], config: MoleConfig) -> dict[str, nn.Module]:
    """Those in `layers_to_transform`. Raises ConfigError for a layer that has none."""
    if config.layers_to_transform is None:
        return found
    chosen = set(config.layers_to_transform)
    numbers = {n for name in found if (n := layer_number(name)) is not None}
    missing = sorted(chosen - numbers)
    if missing and found:
        raise ConfigError(
            f"layers_to_transform={list(config.layers_to_transform)}: no targets in layers "
            f"{missing}; they are in {sorted(numbers)}"
        )
    return {name: module for name, module in found.items() if layer_number(name) in chosen}


def refuse_fused(modules: dict[str, nn.Module], prefix: str) -> None:
    """Raises ConfigError where an MLP holds a mixture of its own, all experts in one tensor."""
    mlps = [name for name in modules if name.rpartition(".")[2] == "mlp"]
    for mlp in mlps:
        for name, module in modules.items():
            if not f"{name}.".startswith(f"{mlp}.") or isinstance(module, _ConvNd):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    raise ConfigError(
                        f"{prefix}{mlp} is a mixture of experts already: {key} of "
                        f"{type(module).__name__} is one tensor {tuple(parameter.shape)} for all "
                        "of them, and no linear. Name linears instead, such as "
                        "target_modules=['q_proj', 'v_proj'], or say with layers_to_transform "
                        "which layers are dense"
                    )


def refuse_unfit(whole: str, module: nn.Module, config: MoleConfig) -> None:
    """Raises ConfigError for what projects and yet cannot have experts."""
    kind = type(module)
    said = f"target_modules={config.target_modules!r}: {whole} is a {kind.__module__}."
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise ConfigError(
            f"{said}{kind.__qualname__}: torch's attention reads its weight without calling it, so "
            "that experts would never run; leave it out with exclude_modules"
        )
    if not is_linear(module) and (isinstance(module, Conv1D) or hasattr(module, "in_features")):
        raise ConfigError(
            f"{said}{kind.__qualname__}, not a torch.nn.Linear (or a quantised one derived from "
            "it); experts need linears: leave it out with exclude_modules"
        )


def explain_missing(
    config: MoleConfig,
    root: nn.Module,
    modules: dict[str, nn.Module],
    found: dict[str, nn.Module],
    prefix: str,
) -> None:
    """Raises ConfigError for a target that matches no linear."""
    targets = config.target_modules
    listed = targets if isinstance(targets, tuple) else ()
    if isinstance(targets, str) and targets.isidentifier():
        listed = (targets,)
    missing = [n for n in listed if not any(matcher((n,))(f, prefix + f) for f in found)]
    if found and not missing:
        return
    said = f"target_modules={targets!r} matches no linear for {missing or 'any module'} in "
    said += type(root).__name__
    for name, parameter in root.named_parameters():
        if any(f".{name}".endswith(f".{target}") for target in missing):
            raise ConfigError(
                f"{said}: {prefix}{name} is a bare parameter {tuple(parameter.shape)}; experts "
                "need linears"
            )
    ends = sorted({name.rpartition(".")[2] for name, m in modules.items() if is_linear(m)})
    near = {name: difflib.get_close_matches(name.rpartition(".")[2], ends, 3) for name in missing}
    raise ConfigError(
        f"{said}; its linears are {ends}"
        + (f", nearest: {near}" if any(near.values()) else "")
        + (f"; excluded were {config.exclude_modules!r}" if config.exclude_modules else "")
        + (". MLPs are modules named `mlp`: name linears instead" if targets == MLP_LINEARS else "")
    )


def layer_number(name: str) -> int | None:
    """The first number in a module's name: its layer."""
    match = LAYER_NUMBER.search(name)
    return int(match[1]) if match else None


def check_name(name: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"adapter name {name!r}: must be a string")
    taken = name in (BANK, ROUTER) or hasattr(Banks(), name) or hasattr(Routers(), name)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or taken:
        raise ConfigError(
            f"adapter name {name!r}: use letters, digits, '-' and '_', and no name that the "
            "modules holding adapters have themselves"
        )


def add_experts(
    model: nn.Module,
    config: MoleConfig,
    adapter_name: str = DEFAULT,
    context: RouteContext | None = None,
) -> RouteContext:
    """Add experts to `model` in place; at once afterwards it computes what it did before.

    Nothing is frozen here: `mark_trainable` trains experts and routers alone. A second adapter
    under another name adds its output to the first's; `set_adapter` switches.

    Args:
        model: any Hugging Face model. Experts land in its decoder, so a vision-language model
            gets them in its language model only, unless `config.root` says otherwise.
        config: what to add.
        adapter_name: to switch, save and delete it by.
        context: of an adapter that is built anew, for those who hold it; a new one by default.

    Returns:
        The context that routers, losses and statistics share.

    Raises:
        ConfigError: the name is taken, `target_modules` matches nothing, or a number of experts, a
            rank or a kernel is impossible there. The model is left as it was.
    """
    check_name(adapter_name)
    if not isinstance(config, MoleConfig):
        raise ConfigError(
            f"config is a {type(config).__name__}, expected a MoleConfig: of a mapping "
            "MoleConfig(**mapping)"
        )
    taken = [name for state in root_states(model) for name in state.adapters]
    if adapter_name in taken:
        raise ConfigError(
            f"this model has experts already, named {adapter_name!r}: give another adapter_name, "
            "or delete_adapter first"
        )
    root = root_of(model, config)
    context = RouteContext() if context is None else context
    put_experts_into(model, root, config, adapter_name, context)
    return context


def put_experts_into(
    model: nn.Module, root: nn.Module, config: MoleConfig, adapter_name: str, context: RouteContext
) -> Adapter:
    """`add_experts` once the root is known and the name is free."""
    linears = find_linears(model, root, config)
    layers = 1 + max((layer_number(name) or 0 for name, _ in root.named_modules()), default=0)
    built = []
    for name, linear in linears.items():
        weight = base_weight(linear)
        place = place_of(name, name, linear, config, layers, context, weight.device)
        bank = config.build_bank(place)
        if bank.kernel in (*SORTED, "gathered"):
            check_sparse(bank.kernel, bank.ranks, place.top_k)
        built.append((name, linear, bank))
    scopes: dict[str, list[tuple[str, nn.Module, Any]]] = {}
    for entry in built:
        scope = entry[0] if config.scope == "linear" else entry[0].rpartition(".")[0]
        scopes.setdefault(scope, []).append(entry)
    routers = {}
    for scope, entries in scopes.items():
        name, linear, bank = entries[0]
        module = root.get_submodule(scope)
        first = linear
        if type(module).forward is nn.Module.forward:
            raise ConfigError(
                f"{scope} is a {type(module).__name__}, which is never called itself: nothing can "
                f"decide there for its linears; leave it out with exclude_modules, or choose a "
                "method with a router per linear, such as mola"
            )
        if config.scope != "linear":
            first = next(child for child in module.children() if is_linear(child))
        router = config.build_router(
            place_of(scope, name, first, config, layers, context, base_weight(linear).device)
        )
        router.name = scope
        widths = [width for *_, bank in entries for width in (bank.in_features, bank.out_features)]
        aligned = all(width % 8 == 0 for width in widths)
        shapes = {
            Shape(bank.ranks, bank.kernel, aligned) for *_, bank in entries if bank.reads_input()
        }
        one = len(shapes) == 1 and all(bank.reads_input() for _, _, bank in entries)
        routers[scope] = (router, shapes.pop() if one else None)
    # Everything could be built; from here on the model changes.
    for scope, (router, shape) in routers.items():
        module = root.get_submodule(scope)
        holder = module._modules.get(ROUTER)
        if not isinstance(holder, Routers):
            holder = Routers()
            holder.attach(module)
        router.train(module.training)
        holder.put(adapter_name, router, shape, block_scope=config.scope != "linear")
        for _, linear, bank in scopes[scope]:
            banks = linear._modules.get(BANK)
            if not isinstance(banks, Banks):
                banks = Banks()
                banks.attach(linear)
            bank.train(linear.training)
            banks.put(adapter_name, bank, router, own_router=config.scope == "linear")
    adapter = Adapter(adapter_name, config, context, root, len(built))
    register(model, root, adapter)
    return adapter


def place_of(
    name: str,
    linear_name: str,
    linear: nn.Module,
    config: MoleConfig,
    layers: int,
    context: RouteContext,
    device: torch.device,
) -> Place:
    layer = layer_number(linear_name)
    place = Place(
        name=name,
        in_features=linear.in_features,  # type: ignore[arg-type]
        out_features=linear.out_features,  # type: ignore[arg-type]
        num_experts=at_layer(config.num_experts, layer, layers, "num_experts"),
        r=at_layer(config.r, layer, layers, "r"),
        top_k=config.top_k_at(layer, layers),
        layer=layer,
        layers=layers,
        dtype=DTYPES[config.adapter_dtype],
        device=device,
        context=context,
    )
    if place.top_k is not None and place.top_k > place.num_experts:
        raise ConfigError(
            f"top_k={place.top_k} of num_experts={place.num_experts} at {name}: a token cannot use "
            "more experts than there are"
        )
    return place


def callers(model: nn.Module, root: nn.Module) -> list[nn.Module]:
    """What `root` lies in, from `model` inwards."""
    path = next((name for name, module in model.named_modules() if module is root), "")
    parts = path.split(".") if path else []
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]


def register(model: nn.Module, root: nn.Module, adapter: Adapter) -> None:
    state = root.__dict__.get(STATE)
    if state is None:
        # Samples and padding are the decoder's, also for a root inside it.
        decoder = decoder_of(model)
        inside = root is decoder or (
            hasattr(model, "get_decoder") and any(m is root for m in decoder.modules())
        )
        state = RootState(Passes(decoder=inside))
        state.passes.attach(decoder if inside else root)
        for caller in callers(model, decoder if inside else root):
            caller.register_forward_pre_hook(state.passes.before_caller, with_kwargs=True)
        root.__dict__[STATE] = state
    state.adapters[adapter.name] = adapter
    state.passes.contexts[adapter.name] = adapter.context
    if adapter.config.prefix_depends_on_question and model is not root:
        model.register_forward_pre_hook(Prompts(adapter.context).before_model, with_kwargs=True)
