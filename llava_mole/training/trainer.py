"""StageTrainer: transformers' Trainer, told what this model needs.

- each part its own learning rate;
- the language loss divided by the supervised tokens, auxiliary losses by the samples, of the whole
  optimizer step (all micro-batches, all ranks), so that accumulation changes neither;
- rows in the planner's order;
- every loss by name and expert use by language, in the log;
- checkpoints that are whole, and resumed runs that end as unbroken ones (`checkpointing.py`);
- held-out samples scored while it trains (`held_out.py`), the best checkpoint kept;
- stopped before a step whose loss or gradient is no number (`nonfinite.py`).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llava_mole import ranks, sharding
from llava_mole.data.collator import count_batch
from llava_mole.errors import TrainingError
from llava_mole.mole import MoleCallback, samples_by_expert
from llava_mole.training import nonfinite
from llava_mole.training.checkpointing import CheckpointingTrainer
from llava_mole.training.ending import Ending
from llava_mole.training.held_out import HeldOut
from llava_mole.training.parts import parameters_by_part
from llava_mole.training.resume import latest_checkpoint


class StageTrainer(CheckpointingTrainer):
    """One stage.

    Args:
        rates: part -> learning rate.
        time_budget: seconds of training after which the schedule has run out, or None. The rate
            follows whichever is further, steps or time, so it always reaches its end.
        stage: its name.
        held_out: what `training.eval_strategy` scores.
        kept: folder for what a step that is no number leaves; None: beside the checkpoints.
        ending: tells when the process was asked to end.
        options: Trainer's own.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        rates: dict[str, float],
        time_budget: float | None = None,
        stage: str = "stage",
        held_out: HeldOut | None = None,
        kept: Path | None = None,
        ending: Ending | None = None,
        **options: Any,
    ) -> None:
        super().__init__(eval_dataset=held_out, **options)
        # A model that lies in pieces already is taken as it is: no wrapper around it.
        self.is_distributed_loading_by_transformers = sharding.in_pieces(self.model)
        # `progress.py` has a bar that says which stage, and all that is logged is in the log.
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True
        self.rates = rates
        self.time_budget = time_budget
        self.stage = stage
        self.held_out = held_out
        self.kept = kept or Path(self.args.output_dir) / "nonfinite"
        self.ending = ending
        self.ends_here = False
        """Some rank was asked to end: the step at hand is the last, and a checkpoint follows it."""
        self.started = time.monotonic()
        self.elapsed = 0.0
        """Seconds, those of a stopped run included, as the main rank's clock says: all ranks must
        agree on rate and end."""
        self.samples_in_step: Tensor | int | None = None
        self._positions = [0, 0]
        self._sums: dict[str, float] = defaultdict(float)
        self._use: dict[str, list[Tensor]] = defaultdict(list)
        self._logged_at: int | None = None
        self._earlier: dict[str, Any] | None = None
        """What a stopped run had added up, at the checkpoint that this one goes on from."""
        self._step = nonfinite.StepRecord()
        self._writing: str | None = None
        self.add_callback(StageCallback(self))
        if self.model.mole is not None:
            self.add_callback(MoleCallback())

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not sharding.in_pieces(model):  # pieces are where they belong
            super()._move_model_to_device(model, device)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Gradients of pieces are summed over the ranks with the last micro-batch only."""
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    # ------------------------------------------------------------------ optimizer and schedule

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:  # type: ignore[has-type]
            plain = self.model if model is None else model
            plain = self.accelerator.unwrap_model(plain)
            groups = []
            for part, parameters in parameters_by_part(plain).items():
                trained = [p for p in parameters.values() if p.requires_grad]
                for decay in (True, False):
                    params = [p for p in trained if (p.dim() > 1) == decay]
                    if params:
                        groups.append(
                            {
                                "params": params,
                                "lr": self.rates[part],
                                "weight_decay": self.args.weight_decay if decay else 0.0,
                                "name": part,
                            }
                        )
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, plain)
            self.optimizer = kind(groups, **kwargs)
        return self.optimizer

    def progress(self, step: int, total: int) -> float:
        """How far the stage is, 0 to 1, by steps or by time."""
        by_steps = step / max(total, 1)
        if self.time_budget is None:
            return by_steps
        return max(by_steps, self.elapsed / self.time_budget)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        if self.time_budget is None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = max(1, self.args.get_warmup_steps(num_training_steps))

        def factor(step: int) -> float:
            left = max(0.0, 1 - self.progress(step, num_training_steps))
            return min((step + 1) / warmup, 1.0) * left

        chosen = optimizer if optimizer is not None else self.optimizer
        assert chosen is not None
        self.lr_scheduler = LambdaLR(chosen, factor)
        return self.lr_scheduler

    # ------------------------------------------------------------------ the loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Also counts samples, for the auxiliary losses."""
        if not batch_samples:
            self._step.begin([], None, None)
            return None
        counts = [count_batch(batch) for batch in batch_samples]
        both = torch.tensor(
            [sum(int(c[0]) for c in counts), sum(c[1] for c in counts)], device=device
        )
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            both = self.accelerator.gather(both.unsqueeze(0)).sum(0)
        self.samples_in_step = both[1]
        self._step.begin(batch_samples, both[0], both[1])
        return both[0]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        inputs = dict(inputs)
        languages = inputs.pop("languages")
        inputs.pop("sources", None)
        self._step.before_pass()
        # Of all positions that are computed, how many are tokens.
        tokens = inputs["segment_ids"] >= 0 if "segment_ids" in inputs else inputs["attention_mask"]
        self._positions[0] += int(tokens.sum())
        self._positions[1] += tokens.numel()
        if self._logged_at is None:  # a resumed run does not start at step 0
            self._logged_at = self.state.global_step
        out = model(
            **inputs,
            num_items_in_batch=num_items_in_batch,
            num_samples_in_batch=self.samples_in_step if num_items_in_batch is not None else None,
        )
        losses = {name: float(value) for name, value in out.losses.items()}
        self._step.after_pass(losses)
        for name, value in losses.items():
            self._sums[f"loss_{name}"] += value
        plain = self.accelerator.unwrap_model(model)
        if plain.mole is not None:
            for language, use in zip(languages, samples_by_expert(plain), strict=True):
                self._use[language].append(use.float().cpu())
        # Ranks average their gradients; what was divided by the global count must be summed.
        loss = out.loss
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs and self._logged_at is not None:
            steps = max(1, self.state.global_step - self._logged_at)
            self._logged_at = self.state.global_step
            # Every rank logs; its losses are shares of the whole step's, and add up.
            ranks = gather_object([(dict(self._sums), dict(self._use))])
            positions = gather_object([tuple(self._positions)])
            real, computed = (sum(numbers) for numbers in zip(*positions, strict=True))
            logs["real_tokens"] = round(real / max(1, computed), 4)
            self._positions = [0, 0]
            for name in self._sums:
                logs[name] = sum(sums[name] for sums, _ in ranks) / steps
            for language in sorted({name for _, use in ranks for name in use}):
                uses = [one for _, use in ranks for one in use.get(language, [])]
                # One number each: what draws curves takes no lists.
                for number, share in enumerate(torch.stack(uses).mean(0)):
                    logs[f"experts_{language}/{number}"] = round(float(share), 4)
            self._sums.clear()
            self._use.clear()
        if "train_loss" in logs and self._earlier is not None:
            # Trainer's mean is over the steps of this process.
            own = self.state.global_step - self._initial_global_step
            total = self._earlier["total_loss"] + logs["train_loss"] * max(own, 0.001)
            logs["train_loss"] = total / max(1, self.state.global_step)
        if "train_loss" in logs:
            logs["seconds"] = round(self.elapsed, 1)
        super().log(logs, start_time)

    def take_up(self, sums: dict[str, Any]) -> None:
        """Go on adding up where a stopped run was; called once Trainer has set its own to zero."""
        self._tr_loss += sums["loss"]
        self._globalstep_last_logged = sums["logged"]
        # Trainer adds what it logs to its total, and these steps are in the stopped run's.
        self._total_loss_scalar = -sums["loss"]
        self._logged_at = sums["losses_logged"]
        self._positions = list(sums["positions"])
        self._sums.update(sums["sums"])
        for language, uses in sums["use"].items():
            self._use[language] += [torch.tensor(one) for one in uses]

    # ------------------------------------------------------------------ what is no number

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer asks for it between clipping and the optimizer step: the last moment to stop."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.stop_if_no_number(norm)
        return norm

    def stop_if_no_number(self, norm: torch.Tensor | float | None) -> None:
        """Raises TrainingError, on all ranks, if a loss or the gradient's norm on any is none.

        DeepSpeed steps while it goes backward, so there it is noticed after the step: the message
        says so, and no checkpoint is written of it.
        """
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        value = None if norm is None else float(norm)
        wrong = bool(self._step.wrong())
        if value is not None and not math.isfinite(value):
            wrong = wrong or not nonfinite.scaled_down(self.accelerator.scaler)
        ending = self.ending is not None and self.ending.asked is not None
        if self.args.world_size > 1:
            flags = torch.tensor([float(wrong), float(ending)], device=self.args.device)
            any_wrong, any_ending = self.accelerator.reduce(flags, "sum").tolist()
            wrong, ending = any_wrong > 0, any_ending > 0
        self.ends_here = ending
        if not wrong:
            self._step.begin([], None, None)  # holds no batch while others are computed
            return
        step = self.state.global_step + 1
        folder = self.kept / f"{self.stage}-step-{step}"
        plain = self.accelerator.unwrap_model(self.model)
        parts: dict[str, list[str]] = {}
        before_step = not self.is_deepspeed_enabled
        if before_step:
            record = self._step
            assert record.random is not None
            _, parts = nonfinite.retrace(
                plain, record.batches, record.random, record.items, record.samples
            )
            plain.save_pretrained(
                folder / "model",
                processor=self.processing_class,
                is_main_process=ranks.is_main(),
            )
        about = {
            "stage": self.stage,
            "step": step,
            "grad_norm": value,
            "gradients": parts,
            "learning_rates": self.rates,
            "rates_at_step": self.lr_scheduler.get_last_lr(),
            "fp16": self.args.fp16,
            "attn_implementation": plain.language_model.config._attn_implementation,
        }
        nonfinite.write_record(folder, ranks.rank(), self._step, about)
        lost = dict.fromkeys(name for names in ranks.gather(self.lost_weights()) for name in names)
        raise TrainingError(
            nonfinite.in_words(
                stage=self.stage, step=step, record=self._step, norm=value, parts=parts,
                lost=list(lost), before_step=before_step,
                folder=folder, checkpoint=latest_checkpoint(Path(self.args.output_dir)),
                rates=self.rates, options=self.args,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------ held-out samples

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score what is held out; training goes on as if nobody had looked."""
        if self.held_out is None:
            raise TrainingError("nothing to evaluate on: name sources under data.held_out")
        found = self.held_out.evaluate(
            self.model,
            self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm and ranks.is_main(),
        )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            metrics,
        )
        self.control = control
        return metrics


class StageCallback(TrainerCallback):
    """What a stage does between Trainer's steps: keep its time, and take up a stopped run's sums.

    Where there is a budget of time, stop when it is up; the rate has reached zero by then.
    """

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        trainer.started = time.monotonic() - trainer.elapsed
        # Ranks start from one seed; their dropout masks must differ. A resumed run reads its own.
        torch.manual_seed(args.seed + ranks.rank())
        if trainer._earlier is not None:
            trainer.take_up(trainer._earlier)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the schedule moves on, which reads the clock."""
        elapsed = time.monotonic() - self.trainer.started
        if self.trainer.time_budget is not None:
            elapsed = ranks.from_main(elapsed)
        self.trainer.elapsed = elapsed

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        budget = self.trainer.time_budget
        if budget is not None and self.trainer.elapsed >= budget:
            control.should_training_stop = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy == "steps"
            control.should_save = control.should_save or args.load_best_model_at_end
        elif self.trainer.ends_here and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = True
        return control
