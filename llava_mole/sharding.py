"""Models whose parameters lie in pieces, one a process: which they are, and whole for a moment.

FSDP2 keeps a DTensor in place of every parameter, DeepSpeed's ZeRO-3 an empty tensor. Names are the
same as ever, so what reads or writes a model folder needs no second way: it works inside `whole`.
`training/parallel.py` cuts a model up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from llava_mole import ranks


def by_zero(module: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 holds the parameters: it gives each an id of its own."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def in_pieces(module: nn.Module) -> bool:
    """Whether a pass of this module gathers parameters from other processes, so that all of them
    must call it together."""
    return any(isinstance(child, FSDPModule) for child in module.modules()) or by_zero(module)


def own_piece(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter or its gradient: all of it, unless it is in pieces."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor.ds_tensor if hasattr(tensor, "ds_tensor") else tensor


@contextmanager
def whole(
    model: nn.Module, wanted: Callable[[str], bool] = lambda name: True, *, write: bool = False
) -> Iterator[None]:
    """Inside, the wanted parameters are ordinary tensors with all of their values: on the main
    process, and on all with `write`. A collective where the model is in pieces, else nothing.

    Args:
        model: any.
        wanted: which parameters, by name.
        write: keep what is changed inside. All processes must make the same change.
    """
    if not in_pieces(model):
        yield
    elif by_zero(model):
        import deepspeed

        chosen = [p for name, p in model.named_parameters() if wanted(name)]
        with deepspeed.zero.GatheredParameters(chosen, modifier_rank=0 if write else None):
            yield
    else:
        with gathered(model, wanted, write):
            yield


@contextmanager
def gathered(model: nn.Module, wanted: Callable[[str], bool], write: bool) -> Iterator[None]:
    """`whole`, of FSDP2."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    keep = write or ranks.is_main()
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    full: dict[int, nn.Parameter] = {}
    """By the sharded parameter's id: tied ones stay tied."""
    for prefix, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            data = parameter.data
            if not isinstance(data, DTensor) or not wanted(f"{prefix}.{key}" if prefix else key):
                continue
            if id(parameter) not in full:
                values = data.full_tensor()
                if keep:
                    full[id(parameter)] = nn.Parameter(
                        values.cpu(), requires_grad=parameter.requires_grad
                    )
            if keep:
                places.append((module, key, parameter))
    for module, key, parameter in places:
        module.register_parameter(key, full[id(parameter)])
    try:
        yield
    finally:
        for module, key, parameter in places:
            module.register_parameter(key, parameter)
    if write:
        with torch.no_grad():
            for parameter in {id(p): p for _, _, p in places}.values():
                pieces = parameter.data
                assert isinstance(pieces, DTensor)
                values = full[id(parameter)].data.to(pieces.device, pieces.dtype)
                # Every process has the values: none is asked for them.
                pieces.copy_(
                    distribute_tensor(
                        values, pieces.device_mesh, pieces.placements, src_data_rank=None
                    )
                )
