"""Checkpoints of a stage: written beside their place, synced, renamed; resumed to the bit.

The same files whether one process holds the model, or many hold it in pieces (but for DeepSpeed's).
Beside what transformers' Trainer keeps (optimizer, schedule, random state of each rank, its own
counters) a checkpoint is a model folder, and holds what was added up for the next line of the log,
the time that was spent, and `stage.json` (`resume.py`). Half-written ones are never resumed from,
half-removed ones neither.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from llava_mole import checkpoint, ranks, sharding
from llava_mole.errors import CheckpointError, TrainingError
from llava_mole.folders import publish, remove_folder
from llava_mole.training import optimizer_state
from llava_mole.training.resume import (
    WRITING,
    checkpoints,
    latest_checkpoint,
    mark_checkpoint,
    read_mark,
)

logger = logging.getLogger(__name__)

SUMS = "log_sums_{rank}.json"
"""In a checkpoint, of each rank: what was added up since the last line of the log."""


class CheckpointingTrainer(Trainer):
    """What saves and resumes; `StageTrainer` trains.

    Attributes:
        stage: its name.
        elapsed: seconds it took so far, those of stopped runs included.
        scored_by: stands for all that makes two scores comparable (`held_out.scored_by`).
    """

    stage: str
    elapsed: float
    scored_by: str | None = None
    _positions: list[int]
    _sums: dict[str, float]
    _use: dict[str, list[Tensor]]
    _logged_at: int | None
    _earlier: dict[str, Any] | None
    _writing: str | None
    _scored_by_others: bool = False

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer writes in place, and the highest number wins at resume: so write elsewhere."""
        self._refuse_lost_weights()
        run = Path(self.args.output_dir)
        writing, name = run / WRITING, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            remove_folder(writing)
            (writing / name).mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._writing = str(writing)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = None
            self.args.save_total_limit = limit
        self._find_best(run, also=name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.state.save_to_json(str(writing / name / "trainer_state.json"))
            mark_checkpoint(
                writing / name,
                {
                    "stage": self.stage,
                    "step": self.state.global_step,
                    "seconds": self.elapsed,
                    "ranks": self.args.world_size,
                    "resumable": not self.args.save_only_model,
                    "parts": self._parts(),
                    "scored_by": self.scored_by,
                },
            )
            publish(writing / name, run / name)
            remove_folder(writing)
            for old in self._surplus(run):
                remove_folder(old)

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
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = optimizer_state.gathered(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _refuse_lost_weights(self) -> None:
        """A checkpoint to go on from holds numbers."""
        lost = [name for names in ranks.gather(self.lost_weights()) for name in names]
        if lost:
            raise TrainingError(
                f"stage {self.stage}, step {self.state.global_step}: {len(set(lost))} trained "
                f"weights hold values that are no numbers (first {lost[0]}); no checkpoint was "
                "written. Lower learning_rates, and go on from the one before: "
                f"{latest_checkpoint(Path(self.args.output_dir))}"
            )

    def lost_weights(self) -> list[str]:
        """Names of the trained weights that hold a value that is no number, in what this rank has
        of them."""
        return [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
            and not bool(torch.isfinite(sharding.own_piece(parameter)).all())
        ]

    def _parts(self) -> list[dict[str, Any]]:
        """The optimizer's groups: what a checkpoint's state belongs to."""
        assert self.optimizer is not None
        return [
            {"part": group["name"], "tensors": len(group["params"])}
            for group in self.optimizer.param_groups
        ]

    def _find_best(self, run: Path, also: str = "") -> None:
        """The best checkpoint by where it is now: Trainer notes where it was written."""
        name = f"checkpoint-{self.state.best_global_step}"
        there = self.state.best_global_step and (name == also or (run / name).is_dir())
        self.state.best_model_checkpoint = str(run / name) if there else None

    def _surplus(self, run: Path) -> list[Path]:
        """Checkpoints beyond `save_total_limit`: the best stays, and so does the newest."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return []
        found = [path for _, path in checkpoints(run)]
        best = self.state.best_model_checkpoint
        kept = found[-limit:]
        if best is not None and Path(best) in found and Path(best) not in kept:
            kept = [Path(best), *found[-max(1, limit - 1) :]]
        return [path for path in found if path not in kept]

    def _save_rng_state(self, output_dir: str) -> None:
        """Every rank's; with it what this rank has added up for the log."""
        super()._save_rng_state(output_dir)
        since = self.state.global_step - self._globalstep_last_logged
        sums = {
            "loss": self._tr_loss.item() if since else 0.0,
            "logged": self._globalstep_last_logged,
            "losses_logged": self._logged_at,
            "total_loss": self._total_loss_scalar + self._tr_loss.item(),
            "positions": self._positions,
            "sums": dict(self._sums),
            "use": {k: [one.tolist() for one in v] for k, v in self._use.items()},
        }
        if self._earlier is not None:
            sums["total_loss"] += self._earlier["total_loss"]
        path = Path(output_dir) / SUMS.format(rank=ranks.rank())
        path.write_text(json.dumps(sums), encoding="utf-8")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        mark = read_mark(folder)
        checkpoint.restore(model or self.model, folder)
        self.elapsed = float(mark["seconds"])
        self._scored_by_others = mark.get("scored_by") != self.scored_by
        same = mark["ranks"] == self.args.world_size
        sums = folder / SUMS.format(rank=ranks.rank() if same else 0)
        self._earlier = json.loads(sums.read_text(encoding="utf-8"))
        if not same:
            logger.warning(
                "%s was written by %d processes, this run has %d: dropout masks, and the rows of a "
                "step where each process has its own, are not those of a run that went on",
                folder, mark["ranks"], self.args.world_size,
            )  # fmt: skip
            step = mark["step"]
            self._earlier |= {"loss": 0.0, "logged": step, "losses_logged": step}
            self._earlier |= {"positions": [0, 0], "sums": {}, "use": {}}

    def _init_training_state(self, max_steps: int, *args: Any, **options: Any) -> Any:
        found = super()._init_training_state(max_steps, *args, **options)
        # Trainer takes the checkpoint's: what the recipe says of them now would have no effect.
        self.state.compute_steps(self.args, max_steps)
        if self._scored_by_others and self.state.best_metric is not None:
            logger.warning(
                "the best score so far, %.4g at step %s, is of other held-out samples, another "
                "metric or another model: it is forgotten, only scores from here on count",
                self.state.best_metric, self.state.best_global_step,
            )  # fmt: skip
            self.state.best_metric = None
            self.state.best_global_step = 0
        self._find_best(Path(self.args.output_dir))
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """State from the checkpoint, rates and decay from the recipe.

        Raises:
            CheckpointError: the checkpoint's stage trained other parts, or another engine wrote it.
        """
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
            if not self.is_deepspeed_enabled and not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}: DeepSpeed keeps its optimizer in files of its own. "
                    "Go on with the engine that began, or start anew (--resume none)"
                )
        then, now = read_mark(folder)["parts"], self._parts()
        if then != now:
            raise CheckpointError(
                f"{checkpoint} holds the optimizer of {in_words(then)}; this recipe trains "
                f"{in_words(now)}. Leave stages.{self.stage}.learning_rates and the parts' sizes "
                "as they were, or start the stage anew"
            )
        assert self.optimizer is not None
        wanted = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        assert self.lr_scheduler is not None
        if self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(optimizer_state.scattered(state, self.optimizer))
            schedule = torch.load(folder / SCHEDULER_NAME, map_location="cpu", weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)
        for number, group in enumerate(self.optimizer.param_groups):
            group.update(wanted[number])
            if isinstance(self.lr_scheduler, LambdaLR):  # as it works a rate out itself
                own, first = self.lr_scheduler, group["initial_lr"]
                group["lr"] = first * own.lr_lambdas[number](own.last_epoch)
                own.base_lrs[number], own._last_lr[number] = first, group["lr"]

    def _load_best_model(self) -> None:
        checkpoint.restore(self.model, Path(self.state.best_model_checkpoint))

    def _finalize_training(self, *args: Any, **options: Any) -> Any:
        """Trainer deletes all but the best where one may stay; a run goes on from the last."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **options)
        finally:
            self.args.save_total_limit = limit


def in_words(parts: list[dict[str, Any]]) -> str:
    return ", ".join(f"{group['part']} ({group['tensors']} tensors)" for group in parts)
