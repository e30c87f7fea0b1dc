"""What a stage will need, before anything is loaded: memory of one device, part by part, and time.

Weights, gradients and optimizer state are counted from the recipe's own model without weights
(`structure.py`). Activations are not guessed by formula: the model's real layers run forward and
backward on tensors without memory (torch's FakeTensorMode), with the recipe's adapters, precision
and activation checkpointing, and what is alive at once is summed up. Two and three layers are run;
the others are taken to be like the third. Floating point operations are counted in the same pass.

What is assumed and not worked out: the share of a device's peak rate that is reached
(`UTILISATION`), what CUDA and its allocator take (`OVERHEAD_GIB`), rows without padding, layers
alike, attention by a kernel that keeps no T x T matrix (sdpa's; "eager" keeps them and is run as
such). Checked against measured peaks on a CPU (tests/training/test_estimate.py); for GPUs it is
worked out on paper.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from llava_mole.errors import ConfigError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of, is_linear
from llava_mole.structure import model_without_weights, text_config_of, vision_of
from llava_mole.training.alive import AliveBytes
from llava_mole.training.parts import part_of, set_trainable
from llava_mole.training.recipe import Recipe, StageRecipe
from llava_mole.vision import build_structure

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
class Rows:
    """A micro-batch on one device."""

    rows: int
    tokens: int
    """Of a row, visual tokens included."""
    supervised: int
    """Of a row."""
    images: int = 1
    """Of a row."""
    question: int = 64
    """Tokens that steer an image, where Parrot is on."""


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


# ---------------------------------------------------------------------- what moves


@dataclass(frozen=True)
class Measured:
    """Of one pass, in bytes, and its operations."""

    kept: float
    """Alive when the forward pass of the decoder is over."""
    peak: float
    """The most there was, forward or backward."""
    flops: float

    def at(self, further: Measured, layers: int) -> Measured:
        """This one has a layer less than `further`: what the pass takes with so many layers."""
        return Measured(
            *(
                getattr(further, key) + layers * (getattr(further, key) - getattr(self, key))
                for key in ("kept", "peak", "flops")
            )
        )


class Probes:
    """Passes of a stage's model on tensors without memory. What was found is kept."""

    def __init__(self, recipe: Recipe, stage: StageRecipe) -> None:
        on = recipe.stages[: 1 + recipe.stages.index(stage)]
        parrot = recipe.model.parrot if any(one.parrot for one in on) else None
        self.model_recipe = dataclasses.replace(recipe.model, parrot=parrot)
        self.stage = stage
        self.text = text_config_of(recipe.model)
        self.vision = vision_of(recipe.model)
        self.autocast = bool({**recipe.training, **stage.training}.get("bf16"))
        with torch.device("meta"):
            self.tower = build_structure(self.vision)
        self._found: dict[tuple[object, ...], Measured] = {}

    @functools.cached_property
    def whole(self) -> LlavaMoleForConditionalGeneration:
        return self.build(None)

    def build(self, layers: int | None) -> LlavaMoleForConditionalGeneration:
        recipe = self.model_recipe
        if recipe.experts is not None:
            # Sorting needs to know how many tokens go to each expert. On a GPU it begins where
            # there are more rank units than recipes have (`kernels.WIDE_UNITS`).
            wide = dataclasses.replace(recipe.experts, kernel="masked")
            recipe = dataclasses.replace(recipe, experts=wide)
        model = model_without_weights(
            recipe,
            text_config=self.text,
            vision=self.vision,
            layers=layers,
            tower=self.tower,
        )
        set_trainable(model, self.stage.learning_rates)
        return model

    def depths(self) -> tuple[int, int] | None:
        """Numbers of layers to run; None: all, where layers differ by their number."""
        experts = self.model_recipe.experts
        lists = experts is not None and any(
            isinstance(value, tuple) for key, value in vars(experts).items()
            if key in ("num_experts", "r", "top_k", "layers_to_transform")
        )  # fmt: skip
        return None if lists or self.text.num_hidden_layers <= 3 else (2, 3)

    def measure(
        self, rows: Rows, checkpointing: bool, *, cast: bool = False, counting: bool = False
    ) -> Measured:
        """Bytes, or with `counting` operations, of all layers."""
        key = (rows, checkpointing, cast, counting)
        if key not in self._found:
            depths, layers = self.depths(), self.text.num_hidden_layers
            runs = [self.run(depth, *key) for depth in depths or (layers,)]
            last = runs[-1]
            self._found[key] = runs[0].at(last, layers - depths[1]) if depths else last
        return self._found[key]

    def activations(
        self, rows: Rows, checkpointing: bool, on_gpu: bool, *, cast: bool, tower: bool
    ) -> dict[str, float]:
        """What is alive at the peak, beside weights and gradients.

        Args:
            cast: weights are gathered in the dtype that is computed in; autocast copies nothing.
            tower: pictures go through the tower at every step.
        """
        measured = self.measure(rows, checkpointing, cast=cast)
        positions = rows.rows * rows.supervised
        width = torch.finfo(getattr(torch, self.model_recipe.dtype)).bits // 8
        width = 2 if self.autocast else width
        # Logits, their gradient, and the rows in float32 from which it is worked out (`heads.py`).
        head = positions * self.text.vocab_size * (2 * width + (4 if on_gpu else 0))
        at_head = measured.kept + head
        peak = max(at_head, measured.peak, self.tower_peak(rows) if tower else 0.0)
        kept = min(measured.kept, peak)
        if peak == at_head:
            return {"activations": kept, "logits at supervised positions": float(head)}
        return {"activations": kept, "while going backward": peak - kept}

    def flops(self, rows: Rows, checkpointing: bool, *, tower: bool) -> float:
        """Of a micro-batch; those of one row are counted."""
        one = dataclasses.replace(rows, rows=1)
        passes = 3 if "language_model" in self.stage.learning_rates else 2
        head = passes * 2.0 * one.supervised * self.text.vocab_size * self.text.hidden_size
        layers = self.measure(one, checkpointing, counting=True).flops
        return rows.rows * (layers + head + (self.tower_flops(one) if tower else 0.0))

    def run(
        self, layers: int, rows: Rows, checkpointing: bool, cast: bool, counting: bool
    ) -> Measured:
        """Forward to the decoder's last hidden state, and back from the supervised positions."""
        model = self.build(layers)
        with FakeTensorMode() as mode:
            own = {name: part for name, part in model.named_children() if name != "vision_tower"}
            for part in own.values():
                without_memory(part)
            parameters = [parameter for part in own.values() for parameter in part.parameters()]
            if cast:
                for parameter in parameters:
                    parameter.data = parameter.data.to(torch.bfloat16)
            model.train()
            if checkpointing:
                model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
            for parameter in parameters:
                if parameter.requires_grad:  # as in every micro-batch but the first
                    parameter.grad = torch.zeros_like(parameter)
            alive, counter = AliveBytes(), FlopCounterMode(display=False)
            features, inputs = self.inputs(model, rows)
            buffers = [buffer for part in own.values() for buffer in part.buffers()]
            alive.leave_out(*parameters, *buffers, features, *inputs.values())
            alive.leave_out(*(p.grad for p in parameters if p.grad is not None))
            wanted = rows.rows * rows.supervised
            # One at a time: the counter's own hooks hold on to tensors.
            watching = counter if counting else alive
            with watching, self.autocasting():
                embeds = model.get_input_embeddings()(inputs["input_ids"])
                visual = None
                if rows.images:
                    visual = model.visual_tokens(
                        features, inputs["question_ids"], inputs["question_mask"]
                    )
                    embeds = embeds.masked_scatter(
                        inputs["places"].unsqueeze(-1), visual.to(embeds.dtype)
                    )
                decoder = decoder_of(model.language_model)
                out = decoder(inputs_embeds=embeds, use_cache=False)
                hidden = out.last_hidden_state
                chosen = hidden.reshape(-1, hidden.shape[-1])[:wanted]
                del out, hidden, embeds, visual
                kept = alive.now
                # What routers believe goes into a loss too; what never goes back is never freed.
                routes = [] if model.mole is None else model.mole.records
                beliefs = [r.route.probs.float().sum() for r in routes if r.route.probs is not None]
                beliefs = [one for one in beliefs if one.requires_grad]
                torch.autograd.backward(
                    [chosen, *beliefs], [torch.ones_like(chosen), *map(torch.ones_like, beliefs)]
                )
            attention = attention_flops(self.text, layers, rows, checkpointing)
            found = Measured(kept, alive.peak, counting and counter.get_total_flops() + attention)
        del model, own, parameters, buffers, features, inputs, chosen, beliefs, routes, mode
        gc.collect()
        return found

    def inputs(
        self, model: LlavaMoleForConditionalGeneration, rows: Rows
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (N, 1 + P, D_v), and ids, all of the right shape and dtype."""
        images = rows.rows * max(rows.images, 1)
        vision = self.vision
        features = torch.zeros(
            images, 1 + vision.num_patches, vision.width, dtype=getattr(torch, vision.dtype)
        )
        shape = (rows.rows, rows.tokens)
        return features, {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "places": torch.zeros(shape, dtype=torch.bool),
            "question_ids": torch.zeros(images, rows.question, dtype=torch.long),
            "question_mask": torch.ones(images, rows.question, dtype=torch.bool),
        }

    def autocasting(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast:
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def tower_pass(self, rows: Rows, watching: AliveBytes | FlopCounterMode) -> None:
        """The tower over the pictures of a micro-batch."""
        if not rows.images:
            return
        assert self.vision.preprocess is not None
        size = self.vision.preprocess["size"]
        side = (size, size) if isinstance(size, int) else tuple(size)
        tower = copy.deepcopy(self.tower)
        with FakeTensorMode():
            without_memory(tower)
            pixels = torch.zeros(rows.rows * rows.images, 3, *side)
            pixels = pixels.to(getattr(torch, self.vision.dtype))
            if isinstance(watching, AliveBytes):
                watching.leave_out(*tower.parameters(), *tower.buffers(), pixels)
            with torch.set_grad_enabled("vision" in self.stage.learning_rates), watching:
                tower(pixels)

    def tower_peak(self, rows: Rows) -> float:
        alive = AliveBytes()
        self.tower_pass(rows, alive)
        return float(alive.peak)

    def tower_flops(self, rows: Rows) -> float:
        """Attention over patches is small beside the products and not counted."""
        counter = FlopCounterMode(display=False)
        self.tower_pass(rows, counter)
        return float(counter.get_total_flops()) * (
            3 if "vision" in self.stage.learning_rates else 1
        )


def without_memory(model: nn.Module) -> None:
    """Inside FakeTensorMode: parameters and buffers of the meta device become fake ones."""
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    memo[id(tensor)] = fake
                tensors[name] = memo[id(tensor)]  # type: ignore[assignment]


def attention_flops(text: object, layers: int, rows: Rows, checkpointing: bool) -> float:
    """Causal attention, which the counter does not know on a CPU: half of 4 T^2 D forward, two and
    a half times that backward, and the first once more where it is computed anew."""
    config = vars(text)
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    forward = 0.5 * 4.0 * rows.rows * rows.tokens**2 * width * layers
    return forward * (4.5 if checkpointing else 3.5)
