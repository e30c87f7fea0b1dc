"""MoleConfig: what a mixture of LoRA experts is made of. PEFT's names where PEFT has one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from llava_mole.errors import ConfigError

METHODS = ("llava_mole",)
ROUTINGS = ("top1", "dense")
GATES = ("none", "straight_through", "scaled")
KERNELS = ("auto", "masked", "reference")
MLP_LINEARS = "mlp-linears"


@dataclass(frozen=True)
class MoleConfig:
    """LLaVA-MoLE (arXiv 2401.16160): every MLP gets E low-rank experts, each token uses one."""

    method: str = "llava_mole"
    num_experts: int = 4
    r: int = 16
    """Rank of one expert; a bank holds R = num_experts * r rank units."""
    lora_alpha: float = 32.0
    """The experts' output is scaled by lora_alpha / r."""
    lora_dropout: float = 0.0
    """Dropout on the input of A. The published code uses 0.05."""
    target_modules: str | tuple[str, ...] = MLP_LINEARS
    """Names of linears inside one block, e.g. ("gate_proj", "up_proj", "down_proj"), or
    "mlp-linears": every linear that is a direct child of a module named `mlp`."""
    routing: str = "top1"
    """"top1": as the paper. "dense": every expert weighted by its probability, which is what the
    released inference script switches on."""
    gate: str = "none"
    """What multiplies the chosen expert. "none" (paper and code): nothing, so only the balance
    loss trains the router. "straight_through": 1 forward, the probability's gradient backward.
    "scaled": the probability itself. Ignored by "dense" routing, which always weights."""
    balance_coef: float = 0.01
    """Weight of the balance loss."""
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        problems = []
        for key, allowed in (
            ("method", METHODS),
            ("routing", ROUTINGS),
            ("gate", GATES),
            ("kernel", KERNELS),
        ):
            if getattr(self, key) not in allowed:
                problems.append(f"{key}={getattr(self, key)!r}: allowed are {', '.join(allowed)}")
        for key in ("num_experts", "r"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                problems.append(f"{key}={value!r}: must be a whole number of at least 1")
        if not self.lora_alpha > 0:
            problems.append(f"lora_alpha={self.lora_alpha!r}: must be above 0")
        if not 0 <= self.lora_dropout < 1:
            problems.append(f"lora_dropout={self.lora_dropout!r}: must be in [0, 1)")
        if not self.balance_coef >= 0:
            problems.append(f"balance_coef={self.balance_coef!r}: must not be negative")
        if not self.target_modules:
            problems.append("target_modules is empty: name at least one linear")
        if problems:
            raise ConfigError("MoleConfig: " + "; ".join(problems))

    @property
    def scaling(self) -> float:
        return self.lora_alpha / self.r

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if isinstance(self.target_modules, tuple):
            values["target_modules"] = list(self.target_modules)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoleConfig:
        """Raises ConfigError on a key this version does not know."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"MoleConfig: unknown keys {unknown}; known are {sorted(known)}")
        return cls(**values)
