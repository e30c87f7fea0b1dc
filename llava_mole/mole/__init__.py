"""Mixtures of LoRA experts for any Hugging Face model. Knows nothing of vision.

    config = MoleConfig(num_experts=4, r=16)
    add_experts(model, config)                 # in place; module names of the base do not change
    out = model(**batch)
    loss = out.loss + sum(auxiliary_losses(model).values())
    save_experts(model, "adapters/experts")

Four ideas, four files: a *bank* (`bank.py`) stacks the rank units of all experts of one linear; a
*route* (`route.py`) says per token which experts are on and how strongly; a *router* (`router.py`)
makes routes; a *kernel* (`kernels.py`) computes what bank and route mean. `inject.py` puts them on
a model with hooks, `losses.py` and `statistics.py` read what a forward pass recorded, `io.py`
saves.
"""

from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.inject import (
    add_experts,
    disabled_experts,
    expert_parameters,
    merge_experts,
    mole_context,
    router_parameters,
)
from llava_mole.mole.io import load_experts, save_experts
from llava_mole.mole.losses import auxiliary_losses, balance_loss
from llava_mole.mole.route import Route, RouteContext
from llava_mole.mole.router import LinearRouter
from llava_mole.mole.statistics import samples_by_expert

__all__ = [
    "ExpertBank",
    "LinearRouter",
    "MoleConfig",
    "Route",
    "RouteContext",
    "add_experts",
    "auxiliary_losses",
    "balance_loss",
    "disabled_experts",
    "expert_parameters",
    "load_experts",
    "merge_experts",
    "mole_context",
    "router_parameters",
    "samples_by_expert",
    "save_experts",
]
