"""MoleConfig: what a mixture of LoRA experts is made of. PEFT's names where PEFT has one.

`MoleConfig(method="mola", ...)` is the config of that method, with its published defaults: a class
in `methods/`, which adds the method's own options and builds its routers, banks and losses.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from llava_mole.errors import ConfigError

if TYPE_CHECKING:
    from llava_mole.mole.bank import ExpertBank
    from llava_mole.mole.context import RouteContext
    from llava_mole.mole.router import LinearRouter, Router

KERNELS = ("auto", "masked", "gathered", "tiled", "grouped", "reference")
ALSO_CALLED = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "experts": "num_experts",
}
MLP_LINEARS = "mlp-linears"
ALL_LINEARS = "all-linear"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PerLayer = int | tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """One linear or block that gets experts, its per-layer numbers resolved.

    Attributes:
        name: of the module, below the root.
        in_features, out_features: widths; for a block's router, those of its first linear.
        num_experts, r, top_k: here; top_k is None where the method has none or uses all experts.
        layer, layers: number of its layer, None outside of numbered ones, and how many there are.
        dtype, device: of new parameters.
        context: of the adapter.
    """

    name: str
    in_features: int
    out_features: int
    num_experts: int
    r: int
    top_k: int | None
    layer: int | None
    layers: int
    dtype: torch.dtype
    device: torch.device
    context: RouteContext

    def per_layer(self, value: PerLayer, key: str) -> int:
        """A number of a method's own that may be a list, here."""
        return at_layer(value, self.layer, self.layers, key)


@dataclass(frozen=True)
class MoleConfig:
    """What all methods share. Called by this name it builds the class of `method`."""

    method: str = "llava_mole"
    """Which published method mixes the experts; see docs/mole.md."""
    num_experts: PerLayer = 4
    """Per linear. A list gives one number per layer, or per group of layers, from the bottom."""
    r: PerLayer = 16
    """Rank of one expert; a list as above."""
    expert_ranks: tuple[int, ...] | None = None
    """Rank of each expert where they differ: imported LoRAs may. The scaling stays
    lora_alpha / r."""
    lora_alpha: float = 32.0
    """The experts' output is scaled by lora_alpha / r."""
    lora_dropout: float = 0.0
    """Dropout on the input of A."""
    target_modules: str | tuple[str, ...] = MLP_LINEARS
    """As PEFT: names that a module's name ends with, or one regular expression for the whole name;
    "all-linear"; or "mlp-linears": every linear that is a direct child of a module named `mlp`."""
    exclude_modules: str | tuple[str, ...] = ()
    """As PEFT: what to leave out of the targets."""
    layers_to_transform: tuple[int, ...] | None = None
    """As PEFT: numbers of the layers that get experts; all by default."""
    root: str | None = None
    """Dotted name of the module to look in. By default the language model's decoder, so that a
    vision-language model's tower keeps its weights."""
    adapter_dtype: str = "float32"
    """Of the new parameters. float32 as in PEFT, whatever the base's; or bfloat16, float16."""
    kernel: str = "auto"
    """How the experts are computed; see `kernels.py`."""

    # What a method's class says about itself.
    scope: ClassVar[str] = "block"
    """Where its router sits: "block" (one for the linears of an MLP) or "linear"."""
    rule: ClassVar[str] = ""
    """Its formula in a line, for tables."""
    prefix_depends_on_question: ClassVar[bool] = False
    """Whether a token's experts depend on text that comes after it."""

    def __new__(cls, *args: Any, **values: Any) -> MoleConfig:
        if cls is MoleConfig:
            from llava_mole.mole.methods import method_class  # its classes derive from this one

            cls = method_class(args[0] if args else values.get("method", "llava_mole"))
        check_keys(cls, values)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, set | frozenset):  # PEFT keeps its targets so
                value = sorted(value)
            if field.name == "layers_to_transform" and type(value) is int:
                value = [value]
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        problems = self.problems()
        if problems:
            raise ConfigError(f"MoleConfig(method={self.method!r}): " + "; ".join(problems))

    def problems(self) -> list[str]:
        """Everything that is wrong, one line each; methods add to it."""
        problems = []
        own = type(self).method
        if self.method != own:
            problems.append(f"method={self.method!r}: {type(self).__name__} is method {own!r}")
        problems += self.not_among("kernel", KERNELS)
        problems += self.not_among("adapter_dtype", tuple(DTYPES))
        for key in ("num_experts", "r"):
            problems += self.not_whole(key)
        if self.expert_ranks is not None:
            problems += self.not_whole("expert_ranks")
            if not isinstance(self.expert_ranks, tuple) or self.num_experts != len(
                self.expert_ranks
            ):
                problems.append(
                    f"expert_ranks={self.expert_ranks!r}: a list of num_experts="
                    f"{self.num_experts!r} ranks"
                )
        problems += self.not_number("lora_alpha", lambda v: 0 < v < math.inf, "above 0")
        problems += self.not_number("lora_dropout", lambda v: 0 <= v < 1, "in [0, 1)")
        problems += self.not_named()
        if not self.target_modules:
            problems.append("target_modules is empty: name at least one linear")
        return problems

    def not_among(self, key: str, allowed: tuple[str, ...]) -> list[str]:
        value = getattr(self, key)
        return [] if value in allowed else [f"{key}={value!r}: allowed are {', '.join(allowed)}"]

    def not_whole(self, key: str) -> list[str]:
        value = getattr(self, key)
        values = value if isinstance(value, tuple) else (value,)
        if values and all(type(v) is int and v >= 1 for v in values):
            return []
        what = "a whole number of at least 1, or a list of them"
        return [f"{key}={value!r}: must be {what}"]

    def not_count(self, key: str) -> list[str]:
        value = getattr(self, key)
        whole = type(value) is int and value >= 0
        return [] if whole else [f"{key}={value!r}: must be a whole number, 0 or more"]

    def not_number(self, key: str, fits: Callable[[float], bool], where: str) -> list[str]:
        value = getattr(self, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return [] if number and fits(value) else [f"{key}={value!r}: must be a number {where}"]

    def not_named(self) -> list[str]:
        """Problems of what says where experts go."""
        problems = []
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if not (isinstance(value, str) or all_of(value, str)):
                problems.append(f"{key}={value!r}: must be a string or a list of strings")
        layers = self.layers_to_transform
        if layers is not None and (not layers or not all_of(layers, int)):
            problems.append(f"layers_to_transform={layers!r}: must be a list of whole numbers")
        if not isinstance(self.root, str | None):
            problems.append(f"root={self.root!r}: must be the dotted name of a module")
        return problems

    def not_above(self, key: str, limit: str) -> list[str]:
        """A problem where one number for all layers exceeds another."""
        value, most = getattr(self, key), getattr(self, limit)
        if isinstance(value, int) and isinstance(most, int) and value > most:
            return [f"{key}={value}: more than {limit}={most}"]
        return []

    def one_rank(self, why: str) -> list[str]:
        """A problem if ranks differ; `why` they cannot."""
        if self.expert_ranks is None:
            return []
        return [f"expert_ranks={list(self.expert_ranks)}: {why}; give one r"]

    def below(self, *keys: str) -> list[str]:
        """Problems of coefficients that must not be negative."""
        return [
            problem
            for key in keys
            for problem in self.not_number(key, lambda v: 0 <= v < math.inf, "of at least 0")
        ]

    # ------------------------------------------------------------------ what a method builds

    def top_k_at(self, layer: int | None, layers: int) -> int | None:
        """Experts per token in a layer, or None: all, or no such notion."""
        return None

    def build_router(self, place: Place) -> Router:
        raise NotImplementedError

    def build_bank(self, place: Place) -> ExpertBank:
        """Each expert its own A and B."""
        return self.new_bank(place)

    def new_bank(
        self, place: Place, kind: type[ExpertBank] | None = None, **variation: Any
    ) -> ExpertBank:
        """A bank for a place.

        Args:
            kind: a class derived from ExpertBank.
            variation: ExpertBank's `down_features`, `identity_A`, `frozen` or `shared_rank`.
        """
        from llava_mole.mole.bank import ExpertBank

        return (kind or ExpertBank)(
            place.in_features,
            place.out_features,
            self.expert_ranks or [place.r] * place.num_experts,
            scaling=self.scaling_at(place),
            dropout=self.lora_dropout,
            kernel=self.kernel,
            dtype=place.dtype,
            device=place.device,
            **variation,
        )

    def new_linear_router(self, place: Place, gate: str, *, bias: bool = False) -> LinearRouter:
        """softmax(W x) over the place's experts, its best `top_k` or all; see `LinearRouter`."""
        from llava_mole.mole.router import LinearRouter

        return LinearRouter(
            place.in_features,
            place.num_experts,
            top_k=place.top_k,
            gate=gate,
            bias=bias,
            context=place.context,
            device=place.device,
        )

    def scaling_at(self, place: Place) -> float:
        return self.lora_alpha / place.r

    def losses(self, context: RouteContext, num_samples: Tensor | int | None) -> dict[str, Tensor]:
        """Weighted auxiliary losses of the last pass, by name."""
        return {}

    def routers_learn(self) -> bool:
        """Whether a loss reaches the routers: the task's or an auxiliary one."""
        return True

    def refuses_merge(self) -> str | None:
        """Why the experts cannot become part of dense weights, or None if they can."""
        return None if largest(self.num_experts) == 1 else "each token uses its own expert"

    # ------------------------------------------------------------------ as a mapping

    def to_dict(self) -> dict[str, Any]:
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoleConfig:
        """Raises ConfigError on a key or a method that this version does not know."""
        return MoleConfig(**values)


def all_of(value: Any, kind: type) -> bool:
    """Whether it is a sequence of that kind."""
    return isinstance(value, tuple) and all(type(one) is kind for one in value)


def largest(value: PerLayer) -> int:
    """The largest of a per-layer number."""
    return value if isinstance(value, int) else max(value)


def check_keys(cls: type[MoleConfig], values: dict[str, Any]) -> None:
    known = [field.name for field in fields(cls)]
    unknown = [key for key in values if key not in known]
    if unknown:
        near = difflib.get_close_matches(ALSO_CALLED.get(unknown[0], unknown[0]), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"MoleConfig(method={cls.method!r}): unknown keys {unknown}{hint} (known: "
            f"{', '.join(known)})"
        )


def at_layer(value: PerLayer, layer: int | None, layers: int, key: str) -> int:
    """A per-layer number.

    Args:
        value: one for all, or a list: one per layer or per group of layers from the bottom, the
            groups as equal as they divide.
        layer: number of the layer, or None outside of numbered layers.
        layers: how many there are.
        key: its name, for errors.

    Raises:
        ConfigError: a list longer than the layers, or used outside of them.
    """
    if isinstance(value, int):
        return value
    if layer is None:
        raise ConfigError(f"{key}={list(value)}: a list needs numbered layers, found none here")
    if len(value) > layers:
        raise ConfigError(
            f"{key}={list(value)}: {len(value)} values for {layers} layers (a default of the "
            "method, if you gave none); give one number, one per layer, or fewer for groups of "
            "layers"
        )
    return value[layer * len(value) // layers]
