"""Look at a model in training without leaving a trace: random state and modes are put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def random_state() -> dict[str, Tensor]:
    """Of torch on the CPU, and on this process's accelerator if there is one; as in safetensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients. After: every module's mode and all random state as before.

    Not `inference_mode`: what a module keeps from such a pass (a table of positions) could not be
    used by the next training step.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    before: tuple[Any, Any, dict[str, Tensor]] = (
        random.getstate(),
        np.random.get_state(),
        random_state(),
    )
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for name, module in model.named_modules():
            module.training = modes.get(name, module.training)
        random.setstate(before[0])
        np.random.set_state(before[1])
        set_random_state(before[2])
