"""Mixtures of LoRA experts for any Hugging Face model. Knows nothing of vision.

    config = MoleConfig(method="llava_mole", num_experts=4, r=16)
    add_experts(model, config)                 # in place; module names of the base do not change
    mark_trainable(model)
    out = model(**batch)
    loss = out.loss + sum(auxiliary_losses(model).values())
    save(model, "adapters/experts")

Four ideas, four files: a *bank* (`bank.py`) stacks the rank units of all experts of one linear; a
*route* (`route.py`) says per token which experts are on and how strongly; a *router* (`router.py`)
makes routes; a *kernel* (`kernels.py`) computes what bank and route mean. A published *method*
(`methods/`) is a choice of these and a loss. `inject.py`, `hooks.py` and `passes.py` put them on a
model, `adapters.py` switches them, `losses.py` and `statistics.py` read what a forward pass
recorded, `information.py` says what the use of experts tells of a sample's kind, `io.py` and
`importing.py` are about folders.
"""

from llava_mole.mole.adapters import (
    active_adapters,
    adapter_names,
    adapter_of,
    delete_adapter,
    disable_adapter,
    disabled_experts,
    enable_adapter,
    expert_parameters,
    mark_trainable,
    mole_context,
    router_parameters,
    router_step,
    set_adapter,
)
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.context import RouteContext
from llava_mole.mole.importing import import_loras
from llava_mole.mole.information import Information, mutual_information
from llava_mole.mole.inject import add_experts
from llava_mole.mole.io import load, save
from llava_mole.mole.losses import auxiliary_losses, balance_loss
from llava_mole.mole.merge import merge
from llava_mole.mole.methods import METHODS
from llava_mole.mole.methods.amlora import append_task
from llava_mole.mole.route import PairedRoute, Route
from llava_mole.mole.router import LinearRouter
from llava_mole.mole.statistics import route_statistics, samples_by_expert, shares_by_sample
from llava_mole.mole.trainer import AuxiliaryLossMixin, MoleCallback

__all__ = [
    "METHODS",
    "AuxiliaryLossMixin",
    "ExpertBank",
    "Information",
    "LinearRouter",
    "MoleCallback",
    "MoleConfig",
    "PairedRoute",
    "Route",
    "RouteContext",
    "active_adapters",
    "adapter_names",
    "adapter_of",
    "add_experts",
    "append_task",
    "auxiliary_losses",
    "balance_loss",
    "delete_adapter",
    "disable_adapter",
    "disabled_experts",
    "enable_adapter",
    "expert_parameters",
    "import_loras",
    "load",
    "mark_trainable",
    "merge",
    "mole_context",
    "mutual_information",
    "route_statistics",
    "router_parameters",
    "router_step",
    "samples_by_expert",
    "save",
    "set_adapter",
    "shares_by_sample",
]
