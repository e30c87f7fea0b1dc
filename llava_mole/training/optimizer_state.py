"""The optimizer's state in a checkpoint: one form, whether its parameters are whole or in pieces.

What is written is what one process would write: whole tensors, by the parameter's number in the
groups. So a run that began on one process goes on in pieces on eight, and the other way round.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from llava_mole import ranks


def gathered(optimizer: Optimizer) -> dict[str, Any]:
    """`state_dict` with whole tensors, on the CPU where they were in pieces; on other processes
    than the main one those are missing. A collective."""
    state = optimizer.state_dict()
    whole: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        whole[number] = {}
        for key, value in values.items():
            if isinstance(value, DTensor):
                full = value.full_tensor()  # together with all others, before anything is skipped
                if not ranks.is_main():
                    continue
                value = full.cpu()
            whole[number][key] = value
    return {**state, "state": whole}


def scattered(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A `state_dict` with whole tensors, for an optimizer whose parameters may be in pieces: every
    process keeps its own. All have the whole, so none is asked."""
    # Numbered as in `Optimizer.state_dict`: through the groups, in order.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        data = parameters[number].data
        cut[number] = {
            key: distribute_tensor(
                value.to(data.device), data.device_mesh, data.placements, src_data_rank=None
            )
            if isinstance(data, DTensor) and isinstance(value, Tensor) and value.shape == data.shape
            else value
            for key, value in values.items()
        }
    return {**state, "state": cut}
