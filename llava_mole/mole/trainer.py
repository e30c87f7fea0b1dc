"""Train experts with transformers' Trainer, or with one derived from it, such as TRL's.

    class MoleSFTTrainer(AuxiliaryLossMixin, SFTTrainer):
        pass

    add_experts(model, MoleConfig(num_experts=4))
    mark_trainable(model)
    MoleSFTTrainer(model=model, args=args, train_dataset=rows).train()

What the mixin adds to a trainer:

- auxiliary losses, divided by the samples of the whole optimizer step (all micro-batches, all
  ranks), so that neither accumulation nor the number of processes changes the gradient; each by its
  name in the log;
- `router_step` after each optimizer step (`MoleCallback`);
- saving: `FOLDER/adapters/NAME` holds experts, routers and buffers of each adapter, in PEFT's
  shape (`io.py`). What else is trained is saved as the trainer does it, without the experts; a
  base that is frozen is not saved. Resuming restores all of it.

With PEFT's LoRA beside the experts, give `peft_config` to the trainer, or call `get_peft_model`
first, then `add_experts`, and leave `mark_trainable` out, which freezes LoRA.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from llava_mole.errors import ConfigError
from llava_mole.mole.adapters import (
    adapters_of,
    expert_parameters,
    router_parameters,
    router_step,
)
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.mole.io import put_experts, read_config, save
from llava_mole.mole.losses import auxiliary_losses
from llava_mole.mole.passes import packed_segments

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # a mixin: the trainer itself stands beside it

ADAPTERS = "adapters"
"""In a checkpoint or a saved folder: one folder of experts per adapter."""


class MoleCallback(TrainerCallback):
    """Routers learn without a gradient too, once per optimizer step; see `router_step`."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        router_step(model)


class AuxiliaryLossMixin(Trainer):
    """Stands before a Trainer class; its constructor takes what that class takes.

    In evaluation the loss stays the task's, so that runs compare; `eval_loss_balance` and the like
    are logged beside it.

    Raises:
        ConfigError: the model has no experts, or the run cuts samples or parameters into pieces
            (FSDP, context parallelism, DataParallel).
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        before = cls.__mro__[: cls.__mro__.index(AuxiliaryLossMixin)]
        trainers = [c for c in before if not issubclass(c, AuxiliaryLossMixin)]
        if any("get_batch_samples" in vars(c) or "compute_loss" in vars(c) for c in trainers):
            raise ConfigError(
                f"{cls.__name__}: name AuxiliaryLossMixin first, before the trainer: "
                f"class {cls.__name__}(AuxiliaryLossMixin, SFTTrainer)"
            )

    def __init__(self, model: Any = None, *args: Any, **options: Any) -> None:
        learning = [p for p in learnt(model).values() if p.requires_grad]
        with quantised_base_allowed(model):
            super().__init__(model, *args, **options)
        adapters_of(self.model)
        self._refuse_pieces()
        if learning:
            self._refuse_moving_reference()
        # A trainer that wraps the model for PEFT freezes all that is not PEFT's.
        for parameter in learning:
            parameter.requires_grad_(True)
        if not any(isinstance(c, MoleCallback) for c in self.callback_handler.callbacks):
            self.add_callback(MoleCallback())
        self.samples_in_step: Tensor | None = None
        """Of all micro-batches and ranks of the optimizer step at hand."""
        self._tied: nn.Module | None = None
        self._shares: tuple[Any, Any] | None = None
        self._of_pass: dict[str, Tensor] | None = None
        self._steps = 0
        self._trained: dict[str, Tensor] = {}
        self._evaluated: dict[str, Tensor] = {}

    def _refuse_pieces(self) -> None:
        if self.args.n_gpu > 1:
            raise ConfigError(
                "several GPUs in one process: transformers would use DataParallel, whose copies "
                "of the model share one route context. Launch one process per GPU (torchrun), or "
                "set CUDA_VISIBLE_DEVICES"
            )
        if self.is_fsdp_enabled:
            raise ConfigError(
                "FSDP keeps parameters in pieces, and experts are saved whole: use DDP"
            )
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise ConfigError(
                "context parallelism gives each process pieces of a sample, and auxiliary losses "
                "are per sample"
            )

    def _refuse_moving_reference(self) -> None:
        """DPO and its like take the model without PEFT's adapter for a reference; GRPO and RLOO
        need none where beta is 0."""
        if getattr(self, "beta", None) == 0:
            return
        if isinstance(self.model, PeftModel) and getattr(self, "ref_model", self) is None:
            raise ConfigError(
                "the reference model would be this one with PEFT's LoRA switched off, and its "
                "experts on, learning: give a ref_model of its "
                "own, or leave peft_config out"
            )

    def train(self, *args: Any, **options: Any) -> Any:
        if not any(parameter.requires_grad for parameter in learnt(self.model).values()):
            warnings.warn(
                "no expert or router learns: something froze them since add_experts, as "
                "get_peft_model does. Call get_peft_model first, then add_experts",
                stacklevel=2,
            )
        return super().train(*args, **options)

    def predict(self, *args: Any, **options: Any) -> Any:
        try:
            return super().predict(*args, **options)
        finally:
            self._evaluated = {}  # of these rows, not of the next evaluation's

    # ------------------------------------------------------------------ the loss

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """Also counts samples, for the auxiliary losses."""
        batches, items = super().get_batch_samples(*args, **options)
        device = self.args.device
        counts = [count_samples(batch).to(device) for batch in batches]
        count = torch.stack(counts).sum() if counts else torch.zeros((), device=device)
        # Ranks of a tensor-parallel group read the same rows.
        self.samples_in_step = self.accelerator.gather(count.float()).sum() / self.get_tp_size()
        self._steps += bool(batches)  # an iterable may have ended
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        samples = count_samples(inputs)
        training = self.model.training
        if self._tied is not self.model:  # a new one, where `model_init` made it
            self._tied = self.model
            self.model.register_forward_hook(self._after_pass)
        self._of_pass, self._shares = None, (self.samples_in_step, samples) if training else None
        say_answers(self.model, inputs.get("labels"))
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if not training:
            add_up(self._evaluated, auxiliary_losses(self.model), samples)
            return result
        loss, outputs = result if return_outputs else (result, None)
        losses = self._of_pass
        if losses is None:
            losses = auxiliary_losses(self.model, self.samples_in_step, samples)
        self._of_pass = self._shares = None  # no graph outlives its step
        add_up(self._trained, losses)
        # Ranks average their gradients, and the trainer may divide by its steps; these losses are
        # shares of the step's, to be summed.
        scale = self.accelerator.num_processes // self.get_tp_size()
        if self.samples_in_step is None:
            scale = 1
        elif self._will_divide(num_items_in_batch):
            scale *= self.current_gradient_accumulation_steps
        for value in losses.values():
            loss = loss + scale * value.to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def _after_pass(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: keep the losses of the pass that trains. Another without a graph may follow
        within `compute_loss`, as TRL's for its metrics, and they are those of the last pass."""
        if self._shares is None or not torch.is_grad_enabled():
            return None
        self._of_pass = auxiliary_losses(model, *self._shares)
        return tie_routers(self._of_pass, output)

    def _will_divide(self, num_items_in_batch: Any) -> bool:
        """Whether `training_step` divides the loss by the number of micro-batches."""
        # transformers has the attribute since 5.19.
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or self.compute_loss_func is not None
        return not scaled

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs and self._trained:
            for name, value in self._over_ranks(self._trained).items():
                logs[f"loss_{name}"] = value / self._steps / self.get_tp_size()
            self._trained, self._steps = {}, 0
        evaluated = [key for key in logs if key.endswith("_loss") and key != "train_loss"]
        if evaluated and self._evaluated:
            sums = self._over_ranks(self._evaluated)
            count = sums.pop(SAMPLES)
            for name, value in sums.items():
                logs[f"{evaluated[0]}_{name}"] = value / count
            self._evaluated = {}
        super().log(logs, *args, **options)

    def _over_ranks(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        names = sorted(sums)
        total = self.accelerator.reduce(torch.stack([sums[name] for name in names]), "sum")
        return dict(zip(names, total.tolist(), strict=True))

    # ------------------------------------------------------------------ folders

    def _trains_more(self) -> bool:
        """Whether anything but experts and routers learns."""
        own = {id(parameter) for parameter in learnt(self.model).values()}
        return any(p.requires_grad and id(p) not in own for p in self.model.parameters())

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if self._trains_more():
            state = self.model.state_dict() if state_dict is None else state_dict
            rest = {name: value for name, value in state.items() if not is_expert(name)}
            super()._save(str(folder), state_dict=rest)
        if not self.args.should_save:
            return
        base = self.model.name_or_path if isinstance(self.model, PreTrainedModel) else None
        for adapter in adapters_of(self.model):
            save(self.model, folder / ADAPTERS / adapter.name, base or None, adapter.name)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self._restore(Path(resume_from_checkpoint))
        if self._trains_more():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._restore(Path(self.state.best_model_checkpoint))
        if self._trains_more():
            super()._load_best_model()

    def _restore(self, folder: Path) -> None:
        """Raises CheckpointError if a folder is missing or belongs to other experts."""
        for adapter in adapters_of(self.model):
            path = folder / ADAPTERS / adapter.name
            then, now = read_config(path).to_dict(), adapter.config.to_dict()
            changed = {
                key: (then.get(key), now.get(key))
                for key in {**then, **now}
                if then.get(key) != now.get(key)
            }
            if changed:
                warnings.warn(
                    f"{path} was saved with another config; (saved, now): {changed}", stacklevel=2
                )
            put_experts(self.model, path, adapter.name)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        missing = [name for name in load_result.missing_keys if not is_expert(name)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


SAMPLES = "samples"


def say_answers(model: nn.Module, labels: Any) -> None:
    """Where prompts end, for routers that pool them: a trainer may keep labels from the model."""
    if isinstance(labels, Tensor) and labels.dim() == 2:
        for adapter in adapters_of(model):
            if adapter.config.prefix_depends_on_question:
                adapter.context.provide(answers=labels != -100)


def tie_routers(losses: Mapping[str, Tensor], output: Any) -> Any:
    """Make the model's output depend on its routers, by nothing.

    DistributedDataParallel looks in the output for parameters that took part. Without this it
    takes routers that only auxiliary losses train for unused, and fails at their gradient.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed:
        return None
    nothing = 0 * sum(losses.values())
    items = dict(output) if isinstance(output, Mapping) else dict(enumerate(output))
    learning = {k: v for k, v in items.items() if isinstance(v, Tensor) and v.requires_grad}
    if not learning or not isinstance(nothing, Tensor):
        return None
    smallest = min(learning, key=lambda key: learning[key].numel())
    changed = learning[smallest] + nothing.to(learning[smallest])
    if isinstance(output, Mapping):
        output[smallest] = changed  # type: ignore[index]
        return output
    return tuple(changed if key == smallest else value for key, value in items.items())


def add_up(
    sums: dict[str, Tensor], losses: Mapping[str, Tensor], samples: Tensor | None = None
) -> None:
    """Add losses to their sums; means over `samples`, where given, by their weight."""
    weight = 1.0 if samples is None else samples
    for name, value in losses.items():
        share = value.detach().float() * weight
        sums[name] = sums[name] + share if name in sums else share
    if samples is not None and losses:
        device = next(iter(losses.values())).device
        sums[SAMPLES] = sums.get(SAMPLES, torch.zeros((), device=device)) + samples.to(device)


def learnt(model: Any) -> dict[str, nn.Parameter]:
    """Parameters of experts and routers, by name; empty for what is no model yet."""
    if not isinstance(model, nn.Module):
        return {}
    return {**expert_parameters(model), **router_parameters(model)}


def is_expert(name: str) -> bool:
    """Whether a name in a state dict is an expert's or a router's."""
    return f".{BANK}." in f".{name}" or f".{ROUTER}." in f".{name}"


def count_samples(batch: Mapping[str, Any]) -> Tensor:
    """() samples in a batch as the losses count them: rows with a token that is no padding, or,
    where rows are packed, what begins in them."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return (mask > 0).any(dim=1).sum()
    tokens = next(value for value in batch.values() if isinstance(value, Tensor))
    for key in ("inputs_embeds", "input_ids"):
        tokens = tokens if batch.get(key) is None else batch[key]
    packed = None
    if mask is None and tokens.dim() > 1:
        packed = packed_segments(batch.get("position_ids"), *tokens.shape[:2])
    return torch.tensor(len(tokens)) if packed is None else packed[:, -1].sum()


@contextmanager
def quantised_base_allowed(model: Any) -> Iterator[None]:
    """transformers trains a quantised model only where PEFT says that it has adapters. Experts are
    adapters too."""
    if not isinstance(model, PreTrainedModel) or not getattr(model, "is_quantized", False):
        yield
        return
    before = model._hf_peft_config_loaded
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = before
