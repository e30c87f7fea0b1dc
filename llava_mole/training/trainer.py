"""StageTrainer: transformers' Trainer, told what this model needs.

- each part its own learning rate;
- the language loss divided by the supervised tokens, auxiliary losses by the samples, of the whole
  optimizer step (all micro-batches, all ranks), so that accumulation changes neither;
- rows in the planner's order;
- checkpoints written beside their place and renamed; half-written ones are never resumed from;
- every loss by name and expert use by language, in the log.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava_mole import checkpoint, ranks, sharding
from llava_mole.data.collator import count_batch
from llava_mole.errors import CheckpointError
from llava_mole.mole import samples_by_expert
from llava_mole.training import optimizer_state
from llava_mole.training.parts import parameters_by_part

ELAPSED = "elapsed.json"
"""In a checkpoint: seconds that the stage had taken."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; being renamed into place is what makes one complete."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := CHECKPOINT.search(path.name)) and (path / "trainer_state.json").is_file()
    ]
    return max(found)[1] if found else None


class StageTrainer(Trainer):
    """One stage.

    Args:
        rates: part -> learning rate.
        time_budget: seconds of training after which the schedule has run out, or None. The rate
            follows whichever is further, steps or time, so it always reaches its end.
        options: Trainer's own.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, rates: dict[str, float], time_budget: float | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        # A model that lies in pieces already is taken as it is: no wrapper around it.
        self.is_distributed_loading_by_transformers = sharding.in_pieces(self.model)
        self.model_accepts_loss_kwargs = True
        self.rates = rates
        self.time_budget = time_budget
        self.started = time.monotonic()
        self.elapsed = 0.0
        """Seconds, those of a stopped run included, as the main rank's clock says: all ranks must
        agree on rate and end."""
        self.samples_in_step: Tensor | int | None = None
        self._positions = [0, 0]
        self._sums: dict[str, float] = defaultdict(float)
        self._use: dict[str, list[Tensor]] = defaultdict(list)
        self._logged_at: int | None = None
        self._writing: str | None = None

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
            return None
        counts = [count_batch(batch) for batch in batch_samples]
        both = torch.tensor(
            [sum(int(c[0]) for c in counts), sum(c[1] for c in counts)], device=device
        )
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            both = self.accelerator.gather(both.unsqueeze(0)).sum(0)
        self.samples_in_step = both[1]
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
        for name, value in out.losses.items():
            self._sums[f"loss_{name}"] += float(value)
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
                share = torch.stack(uses).mean(0)
                logs[f"experts_{language}"] = [round(float(x), 4) for x in share]
            self._sums.clear()
            self._use.clear()
        super().log(logs, start_time)

    # ------------------------------------------------------------------ checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """One folder, whatever holds the model: all ranks gather, the main one writes."""
        self.model.save_pretrained(
            output_dir or self.args.output_dir,
            processor=self.processing_class,
            is_main_process=self.args.should_save,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The same file with one process, DDP and FSDP2; DeepSpeed writes its own."""
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = optimizer_state.gathered(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}: DeepSpeed keeps its optimizer in files of its own. "
                    "Go on with the engine that began, or start the stage anew (--no-resume)"
                )
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(optimizer_state.scattered(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer writes in place, and the highest number wins at resume: so write elsewhere."""
        run = Path(self.args.output_dir)
        writing = run / ".writing"
        if self.args.should_save:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._writing = str(writing)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = None
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            (writing / name / ELAPSED).write_text(json.dumps({"seconds": self.elapsed}))
            checkpoint.publish(writing / name, run / name)
            shutil.rmtree(writing, ignore_errors=True)
            kept = sorted(
                (path for path in run.glob("checkpoint-*") if CHECKPOINT.search(path.name)),
                key=lambda path: int(path.name.rsplit("-", 1)[1]),
            )
            for old in kept[: -(limit or len(kept))] if limit else []:
                shutil.rmtree(old)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        checkpoint.restore(model or self.model, Path(resume_from_checkpoint))
        spent = Path(resume_from_checkpoint) / ELAPSED
        if spent.is_file():
            self.elapsed = float(json.loads(spent.read_text())["seconds"])


class TimeBudget(TrainerCallback):
    """Stop when the time is up; the rate has reached zero by then."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.started = time.monotonic() - self.trainer.elapsed
        # Ranks start from one seed; their dropout masks must differ. A resumed run reads its own.
        torch.manual_seed(args.seed + ranks.rank())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the schedule moves on, which reads the clock."""
        if self.trainer.time_budget is not None:
            elapsed = time.monotonic() - self.trainer.started
            self.trainer.elapsed = ranks.from_main(elapsed)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        budget = self.trainer.time_budget
        if budget is not None and self.trainer.elapsed >= budget:
            control.should_training_stop = True
        return control
