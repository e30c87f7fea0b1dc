"""AliveBytes: how much memory the tensors of a computation hold at once, on any device, also fake.

torch's own tracker (`torch.distributed._tools.mem_tracker`) cannot follow a model with frozen
weights, and this needs no more than a sum.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class AliveBytes(TorchDispatchMode):
    """Context: counts the storages that operators make inside it, until they are freed.

    Attributes:
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def leave_out(self, *tensors: Tensor) -> None:
        """Do not count these, when operators return them (in-place ones do)."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = 0

    def _drop(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            if storage not in self._seen:
                size = storage.nbytes()
                self._seen[storage] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, size)
        return out
