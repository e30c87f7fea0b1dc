"""Training on many devices: which engine holds the model, and how it is cut up for it.

- DDP: every process has the whole model. torchrun, `accelerate launch` or `workers:` start it.
- FSDP2: every parameter is cut along its first axis, a piece a process, by torch's `fully_shard`.
  Asked for by an `accelerate launch` config (`configs/accelerate/fsdp2.yaml`) or by
  `training.fsdp=true` in a recipe. The units are set here, not by class names: accelerate would
  find the language model's layers only, and leave all else to one unit that is never cut finer.
- DeepSpeed's ZeRO: by the Trainer's own integration (`configs/accelerate/zero2.yaml`).

What cuts a model up works on a copy that lasts one stage (`Placed`): the model itself stays whole,
on the CPU, with frozen weights that both share. What the stage has trained is gathered into it.

A parameter in pieces is gathered in the pass of its unit, by all processes together. So all must
run the same units in the same order whatever their rows hold: see `idle_visual` in `modeling.py`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from transformers import TrainingArguments

from llava_mole import ranks, sharding
from llava_mole.errors import ConfigError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.hooks import BANK
from llava_mole.mole.inject import decoder_of

BY_LAUNCHER = "ACCELERATE_USE_FSDP"


# ---------------------------------------------------------------------- what is asked for


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 cuts a model up.

    Attributes:
        reshard_after_forward: free a unit's gathered parameters after its forward pass and gather
            them again for the backward one. Less memory, more traffic.
        cpu_offload: keep pieces, gradients and optimizer state on the CPU.
        param_dtype: of gathered parameters, where it is not their own. Gradients are added up in
            float32 in any case.
    """

    reshard_after_forward: bool = True
    cpu_offload: bool = False
    param_dtype: torch.dtype | None = None


def sharding_asked(arguments: TrainingArguments) -> Sharding | None:
    """What the launcher's config, or the recipe's `training.fsdp`, says; None: nothing.

    Raises:
        ConfigError: FSDP of version 1, or an option that would not be followed.
    """
    by_launcher = os.environ.get(BY_LAUNCHER, "false").lower() == "true"
    if not by_launcher and arguments.fsdp_plugin_args is None:
        return None
    options = arguments.fsdp_plugin_args or {}
    where = "training.fsdp_config" if options else "fsdp_config of accelerate's config"
    version = int(options.get("fsdp_version", os.environ.get("FSDP_VERSION", "1")))
    if version != 2:
        raise ConfigError(f"{where}: fsdp_version={version}; only 2 is supported")
    plugin = FullyShardedDataParallelPlugin(**options)
    if plugin.activation_checkpointing:
        raise ConfigError(
            f"{where}: activation_checkpointing=true; say gradient_checkpointing: true under "
            "training: in the recipe"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            f"{where}: cpu_ram_efficient_loading=true leaves all processes but one without the "
            "weights that experts and projector are fitted to; set it to false"
        )
    if arguments.mixed_precision == "fp16":
        raise ConfigError("FSDP2 with float16 is not supported; choose model.dtype=bfloat16")
    return Sharding(
        reshard_after_forward=bool(plugin.reshard_after_forward),
        cpu_offload=isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        param_dtype=torch.bfloat16 if arguments.mixed_precision == "bf16" else None,
    )


def check_engine(arguments: TrainingArguments) -> None:
    """Raises ConfigError for an engine's options that are refused; see below and above."""
    sharding_asked(arguments)
    if arguments.deepspeed_plugin is not None:
        check_deepspeed(arguments)


def check_deepspeed(arguments: TrainingArguments) -> None:
    """Raises ConfigError for what DeepSpeed's config would take out of the recipe's hands, or what
    cuts weights up before they are read."""
    plugin: Any = arguments.deepspeed_plugin
    config = plugin.hf_ds_config.config
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ConfigError(
                f"DeepSpeed's config has a section {section!r}, which knows nothing of the "
                "learning rates per part: leave it out; `optim` and `lr_scheduler_type` under "
                "training: say what is used"
            )
    if plugin.zero3_init_flag and plugin.hf_ds_config.is_zero3():
        raise ConfigError(
            "DeepSpeed's zero3_init_flag=true cuts weights up while they are read, before experts "
            "and projector are fitted to them: set it to false"
        )


# ---------------------------------------------------------------------- FSDP2


def shard(
    model: LlavaMoleForConditionalGeneration,
    mesh: DeviceMesh | None = None,
    options: Sharding | None = None,
    *,
    tower: bool = True,
) -> LlavaMoleForConditionalGeneration:
    """Cut a model up in place with `fully_shard`. A collective.

    Units, each gathered for its own pass: every decoder layer (with its experts, routers and LoRA,
    whose hooks run inside of that pass), every block of the tower, the tower's rest, projector,
    Parrot's module, input embeddings and output head where they are not tied. What is left, tied
    embeddings and the last norm, belongs to the whole model's unit, gathered once a pass. Frozen
    parameters are cut up like trained ones; packed ones (4 bits) stay whole on every process. LoRA
    of less than float32 becomes float32 beside experts that are.

    Args:
        model: with `requires_grad` set (`set_trainable`): a unit's gradients travel together.
        mesh: of one axis; None: of all processes.
        options: see `Sharding`.
        tower: whether the tower is cut up too. Then every training pass must run it, on rows of
            text as well; leave it whole where its features are kept and it never runs.

    Returns:
        `model`.

    Raises:
        ConfigError: a unit's trained parameters are of several dtypes.
    """
    options = options or Sharding()
    if mesh is None:
        device = torch.accelerator.current_accelerator(check_available=True)
        mesh = init_device_mesh("cpu" if device is None else device.type, (ranks.size(),))
    whole = {p for p in model.parameters() if not p.is_floating_point()}
    if not tower:
        whole |= set(model.vision_tower.parameters())
        model.vision_tower.to(mesh.device_type)
    policy: dict[str, Any] = {
        "mesh": mesh,
        "ignored_params": whole,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=options.param_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=options.param_dtype is not None,
        ),
    }
    if options.cpu_offload:
        policy["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    for name, unit in units(model, tower=tower):
        even_dtypes(name, unit)
        fully_shard(unit, reshard_after_forward=options.reshard_after_forward, **policy)
    even_dtypes("the model's own unit", model, but=[unit for _, unit in units(model, tower=tower)])
    fully_shard(model, **policy)
    return model


def units(
    model: LlavaMoleForConditionalGeneration, *, tower: bool = True
) -> list[tuple[str, nn.Module]]:
    """What is gathered by itself, inner modules before those around them; without the model."""
    names = {module: name for name, module in model.named_modules()}
    found = list(blocks_of(decoder_of(model.language_model)))
    if tower:
        found += [*blocks_of(model.vision_tower), model.vision_tower]
    found += [model.projector, *([] if model.parrot is None else [model.parrot])]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and embeddings.weight is not head.weight:
        found += [embeddings, head]
    return [(names[module], module) for module in found]


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: decoder layers, a tower's blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and alike(child):
            yield from child
        else:
            yield from blocks_of(child)


def alike(children: nn.ModuleList | nn.Sequential) -> bool:
    """Whether a list is of layers: two or more, each with several parameters of its own."""
    return len(children) > 1 and all(len(list(c.parameters())) > 2 for c in children)


def even_dtypes(name: str, unit: nn.Module, but: list[nn.Module] | None = None) -> None:
    """A unit's gradients travel in one tensor. PEFT's LoRA takes inputs of any dtype, so it may
    change its own; other parameters may not.

    Raises:
        ConfigError: trained parameters of several dtypes.
    """
    apart = {parameter for module in but or [] for parameter in module.parameters()}
    trained = {n: p for n, p in unit.named_parameters() if p.requires_grad and p not in apart}
    if any(parameter.dtype == torch.float32 for parameter in trained.values()):
        for key, parameter in trained.items():
            if ".lora_" in f".{key}" and f".{BANK}." not in f".{key}":
                parameter.data = parameter.data.float()
    dtypes = {parameter.dtype: key for key, parameter in trained.items()}
    if len(dtypes) > 1:
        told = ", ".join(f"{parameter} in {dtype}" for dtype, parameter in dtypes.items())
        raise ConfigError(
            f"FSDP2 sums the gradients of {name} together, and its trained parameters are of "
            f"several dtypes ({told}): choose model.dtype=float32 and training.bf16=true, or train "
            "one of the parts"
        )


# ---------------------------------------------------------------------- a stage's copy


class Placed:
    """A model as a stage trains it: itself, or a copy that an engine may cut up.

    Args:
        model: whole, trained parts marked (`set_trainable`).
        arguments: of the stage; what they and the launcher say of FSDP is taken from them here, so
            that the Trainer takes the model as it is.
        tower: whether the tower runs in training, see `shard`.

    Raises:
        ConfigError: see `sharding_asked`, `check_deepspeed`, `shard`.
    """

    def __init__(
        self,
        model: LlavaMoleForConditionalGeneration,
        arguments: TrainingArguments,
        *,
        tower: bool = True,
    ) -> None:
        self.home = model
        self.model = model
        self._before = os.environ.get(BY_LAUNCHER)
        asked = sharding_asked(arguments)
        if asked is not None and ranks.size() > 1:
            agree(model)
            self.model = shard(working_copy(model), options=asked, tower=tower)
        elif arguments.deepspeed_plugin is not None:
            check_deepspeed(arguments)
            self.model = working_copy(model)
        if asked is not None:
            os.environ[BY_LAUNCHER] = "false"
            arguments.fsdp_plugin_args, arguments.fsdp = None, None

    def bring_home(self) -> None:
        """Gather what was trained into the whole model, on every process. A collective."""
        if self._before is not None:
            os.environ[BY_LAUNCHER] = self._before
        if self.model is self.home:
            return
        trained = {name for name, p in self.home.named_parameters() if p.requires_grad}
        own = dict(self.home.named_parameters())
        with torch.no_grad(), sharding.whole(self.model, trained.__contains__, write=True):
            found = dict(self.model.named_parameters())
            for name in trained:
                own[name].copy_(found[name])
        buffers = dict(self.model.named_buffers())
        for name, buffer in self.home.named_buffers():
            if ranks.size() > 1 and buffers[name].numel():
                distributed.broadcast(buffers[name], src=0)
            buffer.copy_(buffers[name])
        self.model = self.home


@torch.no_grad()
def agree(model: nn.Module) -> None:
    """Give trained parameters the main process's values where others have drawn their own, as DDP
    does: pieces of two models would be neither. A collective."""
    trained = [p for p in model.parameters() if p.requires_grad]
    sums = ranks.gather(
        [(float(p.double().sum()), float(p.double().square().sum())) for p in trained]
    )
    for number, parameter in enumerate(trained):
        if any(of_one[number] != sums[0][number] for of_one in sums):
            value = ranks.from_main(parameter.cpu() if ranks.is_main() else None)
            parameter.copy_(value)


def working_copy(model: LlavaMoleForConditionalGeneration) -> LlavaMoleForConditionalGeneration:
    """A copy with trained weights of its own; frozen ones share the original's memory until they
    are moved or cut up."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.data, requires_grad=False)
        for parameter in model.parameters()
        if not parameter.requires_grad and type(parameter) is nn.Parameter
    }
    copied = copy.deepcopy(model, memo)
    return copied.train(model.training)
