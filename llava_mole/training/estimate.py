"""What a stage will need, before anything is loaded: memory of one device, part by part, and time.

Weights, gradients and optimizer state are counted from the recipe's own model without weights
(`structure.py`). Activations are not guessed by formula: the model's real layers are run on tensors
without memory (`probes.py`). Floating point operations are counted in the same pass.

What is assumed and not worked out: the share of a device's peak rate that is reached
(`UTILISATION`), what CUDA and its allocator take (`OVERHEAD_GIB`), rows without padding, layers
alike, attention by a kernel that keeps no T x T matrix (sdpa's; "eager" keeps them and is run as
such). Checked against measured peaks on a CPU (tests/training/test_estimate.py); for GPUs it is
worked out on paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from llava_mole.errors import ConfigError
from llava_mole.mole.inject import is_linear
from llava_mole.training.parts import part_of
from llava_mole.training.probes import Probes, Rows
from llava_mole.training.recipe import Recipe, StageRecipe

GIB = 2**30
UTILISATION = 0.4
"""Of a device's dense bfloat16 peak; well-run training of such models reaches 0.3 to 0.5."""
OVERHEAD_GIB = 1.0
"""CUDA's context, its libraries, and what the allocator cannot use."""
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp2")
BUCKET = 50_000_000
"""Elements of DeepSpeed's buckets, as configs/accelerate/zero2.json and zero3.json have them."""
FOUR_BITS = 0.5 + 4 / 64
"""Bytes of a packed weight: 4 bits, and a float32 per block of 64."""
FOUR_BITS_TWICE = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The same with bnb_4bit_use_double_quant: scales in 8 bits, a float32 for 256 of them."""
STATES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_bnb_8bit": 2.0, "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0, "paged_adamw_32bit": 8.0, "lion_32bit": 4.0, "lion_8bit": 1.0,
    "adafactor": 0.0, "sgd": 0.0,
}  # fmt: skip
"""Bytes of optimizer state for a float32 weight, by training.optim; per block scales left out."""


@dataclass(frozen=True)
class Device:
    """One accelerator, from its data sheet."""

    name: str
    gib: float
    tflops: float
    """Dense bfloat16 with float32 accumulation."""


DEVICES = {
    "a100-80g": Device("A100 80 GB", 80, 312),
    "h100": Device("H100 SXM", 80, 989),
    "rtx-4090": Device("RTX 4090", 24, 165),
}


@dataclass(frozen=True)
class Estimate:
    """Of one stage. Bytes are of one device at its peak, with rows as long as they may get."""

    stage: str
    memory: dict[str, float]
    """Component -> bytes; they add up to the peak."""
    flops: float
    """Of one micro-batch on one device, with rows of mean length."""
    longest: Rows
    mean: Rows
    processes: int
    accumulation: int
    host: dict[str, float] = field(default_factory=dict)
    """Bytes in the host's memory, of each process."""

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    def step_seconds(self, device: Device, utilisation: float = UTILISATION) -> float:
        """An optimizer step: all its micro-batches. Exchange between devices is not counted."""
        return self.accumulation * self.flops / (device.tflops * 1e12 * utilisation)

    def hours(self, device: Device, samples: int, utilisation: float = UTILISATION) -> float:
        """A pass over so many samples, one a row."""
        steps = math.ceil(samples / (self.mean.rows * self.processes * self.accumulation))
        return steps * self.step_seconds(device, utilisation) / 3600


def estimate_stage(
    recipe: Recipe,
    stage: StageRecipe,
    *,
    longest: Rows,
    mean: Rows | None = None,
    processes: int = 1,
    sharding: str = "ddp",
    features_kept: int = 0,
    on_gpu: bool = True,
    probes: Probes | None = None,
) -> Estimate:
    """Memory and operations of a language stage.

    Args:
        recipe, stage: validated; `stage.parrot` of it or of an earlier stage switches Parrot on.
        longest: a micro-batch on one device, for the memory.
        mean: the same, for the time; `longest` if absent.
        processes: devices that share a step.
        sharding: one of SHARDINGS.
        features_kept: pictures whose features are held (`FeatureStore`): the tower then stays idle.
        on_gpu: False: the float32 rows of the loss are few, as on a CPU, and there is no overhead.
        probes: of the same recipe and stage, from an earlier estimate, to use what they found.

    Raises:
        ConfigError: a sharding or optimizer that is not known.
    """
    if sharding not in SHARDINGS:
        raise ConfigError(f"sharding={sharding!r}: known are {', '.join(SHARDINGS)}")
    if stage.kind != "language":
        raise ConfigError(f"stage {stage.name}: estimates are of stages of kind language")
    options = {**recipe.training, **stage.training}
    optim = str(options.get("optim", "adamw_torch_fused"))
    if optim not in STATES:
        raise ConfigError(f"training.optim={optim!r}: estimates know {', '.join(STATES)}")
    probes = probes or Probes(recipe, stage)
    cast = bool(options.get("bf16")) and sharding in ("zero3", "fsdp2")
    tower = features_kept == 0
    memory = static_memory(
        probes.whole, sharding, processes, STATES[optim], recipe.model.quantization,
        autocast=bool(options.get("bf16")),
    )  # fmt: skip
    checkpointing = bool(  # the second is the first's old name
        options.get("activation_checkpointing") or options.get("gradient_checkpointing")
    )
    memory |= probes.activations(longest, checkpointing, on_gpu, cast=cast, tower=tower)
    if on_gpu:
        memory["CUDA and its allocator, assumed"] = OVERHEAD_GIB * GIB
    vision = probes.vision
    row = (1 + vision.num_patches) * vision.width * 2
    return Estimate(
        stage.name,
        {name: size for name, size in memory.items() if size},
        probes.flops(mean or longest, checkpointing, tower=tower),
        longest,
        mean or longest,
        processes,
        int(options.get("gradient_accumulation_steps", 1)),
        {"feature store": float(features_kept * row)} if features_kept else {},
    )


# ---------------------------------------------------------------------- what stands still


def static_memory(
    model: nn.Module,
    sharding: str,
    processes: int,
    states: float,
    quantization: dict[str, object] | None,
    *,
    autocast: bool,
) -> dict[str, float]:
    """Weights, gradients, optimizer state and what exchanging them takes.

    - ddp: all whole; with several processes a second copy of the gradients, in buckets.
    - zero2 (DeepSpeed): gradients and states in pieces.
    - zero3, fsdp2: weights too; two decoder layers, or the embeddings, are whole at a time.
    """
    packed = packed_names(model) if quantization is not None else set()
    share = 1 / processes
    cut_weights = share if sharding in ("zero3", "fsdp2") else 1.0
    cut_rest = share if sharding != "ddp" else 1.0
    frozen = trained = gradients = 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * bytes_of(name, parameter, packed, quantization)
        if parameter.requires_grad:
            trained += size
            gradients += size
        else:
            frozen += size
    buffers = float(sum(buffer.nbytes for buffer in model.buffers()))
    found = {
        "weights, frozen": frozen * cut_weights + buffers,
        "weights, trained": trained * cut_weights,
        "gradients": gradients * cut_rest,
        "optimizer state": trained / 4 * states * cut_rest,
    }
    if processes > 1 and sharding == "ddp":
        found["gradient buckets"] = gradients
    if processes > 1 and sharding.startswith("zero"):
        found["gradient buckets"] = 2.0 * 4 * min(BUCKET, gradients / 4)
    if processes > 1 and cut_weights < 1:
        found["weights, gathered"] = gathered(model, packed, quantization, autocast)
    return found


def gathered(
    model: nn.Module, packed: set[str], quantization: dict[str, object] | None, autocast: bool
) -> float:
    """The largest two units that are whole at once: decoder layers, the tower, the embeddings."""
    units: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        unit = ".".join(parts[: parts.index("layers") + 2]) if "layers" in parts else parts[0]
        size = parameter.numel() * bytes_of(name, parameter, packed, quantization)
        units[unit] = units.get(unit, 0.0) + (size / 2 if autocast and size else size)
    return sum(sorted(units.values())[-2:])


def packed_names(model: nn.Module) -> set[str]:
    """Linears of the language model but its head: what `model.quantization` packs."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("language_model.") and "lm_head" not in name and is_linear(module)
        and part_of(f"{name}.weight") == "language_model"
    }  # fmt: skip


def bytes_of(
    name: str, parameter: nn.Parameter, packed: set[str], quantization: dict[str, object] | None
) -> float:
    """Bytes of one number of a parameter."""
    if quantization is None or name not in packed:
        return float(parameter.element_size())
    if quantization.get("load_in_8bit"):
        return 1.0
    return FOUR_BITS_TWICE if quantization.get("bnb_4bit_use_double_quant") else FOUR_BITS
