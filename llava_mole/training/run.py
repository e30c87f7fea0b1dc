"""Run a recipe: build the model, then its stages in order, each resumable.

OUT/recipe.json                  the resolved recipe
OUT/log.jsonl                    every logged step of every stage
OUT/stages/1-warm_start/model/   what a finished stage leaves; its presence means "done"
OUT/stages/3-instruct/checkpoint-50/
OUT/model/                       the result
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy, set_seed

from llava_mole import ranks
from llava_mole.building import build_model
from llava_mole.data.collator import Collator
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_key import about, feature_key
from llava_mole.features import FeatureStore
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.parrot import LanguageConditionedMoE
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.projector import Projector
from llava_mole.starter import default_cache
from llava_mole.training.data import TrainingData, read_data, stage_rows
from llava_mole.training.parallel import Placed, check_engine
from llava_mole.training.parts import mark_trained, set_trainable
from llava_mole.training.recipe import Recipe, StageRecipe
from llava_mole.training.ridge import ridge_start
from llava_mole.training.trainer import StageTrainer, TimeBudget, latest_checkpoint
from llava_mole.training.warm_start import match_embeddings, names_of_pictures, warm_start
from llava_mole.tree import check_supported

logger = logging.getLogger(__name__)

LONG = 500
"""Steps after which a stage writes a checkpoint, where the recipe says nothing about them."""
FILL_AHEAD = 50_000
"""Pictures up to which the features of all are computed before a stage, shared among the ranks."""


@dataclasses.dataclass
class RunResult:
    """What a run leaves."""

    model: LlavaMoleForConditionalGeneration
    processor: LlavaMoleProcessor
    features: FeatureStore
    seconds: dict[str, float]


class JsonLog(TrainerCallback):
    """Appends what is logged; at resume, drops what comes after the checkpoint."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def __call__(self, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **values}, ensure_ascii=False) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self({"step": state.global_step, **logs})

    def truncate_after(self, step: int) -> int:
        """Keep other stages' lines, and this stage's up to `step`; the last step that is dropped,
        or 0."""
        if not self.path.is_file():
            return 0
        kept, last = [], 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run
            if values.get("stage") != self.stage or values.get("step", 0) <= step:
                kept.append(line)
            else:
                last = max(last, int(values.get("step", 0)))
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(beside, self.path)
        return last


def add_parrot(model: LlavaMoleForConditionalGeneration, processor: Any, recipe: Recipe) -> None:
    """Switch the language-conditioned MoE on, from this stage."""
    part = recipe.model.parrot
    assert part is not None
    width = model.config.text_config.hidden_size
    model.parrot = LanguageConditionedMoE(width, part).to(model.device)
    model.config.parrot = part.to_dict()
    processor.condition_on = part.condition_on


def training_arguments(recipe: Recipe, stage: StageRecipe, folder: Path) -> TrainingArguments:
    cpu = not torch.accelerator.is_available()
    options: dict[str, Any] = {
        # No bf16 autocast: the base is bf16 already, and float32 master weights of what is trained
        # are cast where they are used, without autocast's copies.
        "fp16": recipe.model.dtype == "float16",
        "use_cpu": cpu and not ranks.by_deepspeed(),
        "ddp_backend": "gloo" if cpu and ranks.size() > 1 else None,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
        "adam_beta2": 0.98,
        "ddp_find_unused_parameters": leaves_some_idle(recipe, stage),
        # Only a trained tower's buffers move; each step would send the projector's centres.
        "ddp_broadcast_buffers": "vision" in stage.learning_rates,
        # On CPUs an exchange beside the backward pass takes its cores: one, when it is over.
        "ddp_bucket_cap_mb": None if torch.accelerator.is_available() else 4096,
        "disable_tqdm": False,
        **recipe.training,
        **stage.training,
    }
    if "save_steps" in {**recipe.training, **stage.training} and options["save_strategy"] == "no":
        options["save_strategy"] = "steps"
    try:
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=rows_per_process(recipe, stage),
            seed=recipe.seed,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"training (stage {stage.name}): {error}") from error


def leaves_some_idle(recipe: Recipe, stage: StageRecipe) -> bool:
    """Whether a trained weight may be without a gradient: routers that no loss reaches."""
    experts = recipe.model.experts
    steered = experts is not None and experts.routers_learn()
    return "routers" in stage.learning_rates and not steered


def check_warm_start(recipe: Recipe, data: TrainingData) -> None:
    """Raises DataError if a warm start asks for a kind of sample that the data lack."""
    for stage in recipe.stages:
        if stage.kind == "warm_start":
            names_of_pictures(data.samples, stage.warm_start.kind)
            for kind in stage.warm_start.also:
                names_of_pictures(data.samples, kind, key=f"warm_start.also.{kind}")


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = True,
    data: TrainingData | None = None,
    before_training: Any = None,
) -> RunResult:
    """Train from start to end.

    Args:
        recipe: validated.
        resume: go on where an earlier run in the same folder stopped; else start anew.
        data: already read.
        before_training: called with (model, processor, features) once, before the first stage.

    Raises:
        ConfigError, DataError, CheckpointError: with what to do.
    """
    out = Path(recipe.output_dir)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    set_seed(recipe.seed)
    for stage in recipe.stages:
        if stage.kind == "language":
            check_engine(training_arguments(recipe, stage, out))  # now, not after the warm start
    data = data or read_data(recipe.data, progress=ranks.is_main())
    check_warm_start(recipe, data)
    if ranks.is_main():
        prepare_folder(recipe, out, resume)
    ranks.barrier()
    build = dataclasses.replace(recipe.model, parrot=None)
    model, processor = build_model(build)
    features = feature_store(recipe, model, processor)
    if before_training is not None:
        before_training(model, processor, features)
    seconds: dict[str, float] = {}
    for number, stage in enumerate(recipe.stages, start=1):
        folder = out / "stages" / f"{number}-{stage.name}"
        folder.mkdir(parents=True, exist_ok=True)
        if stage.parrot and model.parrot is None:
            add_parrot(model, processor, recipe)
        mark_trained(model, stage.learning_rates)
        if ranks.from_main((folder / "model" / "config.json").is_file()):
            logger.info("stage %s is done; reading %s", stage.name, folder / "model")
            from llava_mole.checkpoint import restore

            restore(model, folder / "model")
            if "vision" in stage.learning_rates:
                features.clear()
            continue
        started = time.monotonic()
        run_stage(recipe, stage, folder, model, processor, data, features)
        save_on_main(model, processor, folder / "model")
        seconds[stage.name] = time.monotonic() - started
        if "vision" in stage.learning_rates:
            features.clear()
    model.eval()
    save_on_main(model, processor, out / "model")
    return RunResult(model, processor, features, seconds)


def prepare_folder(recipe: Recipe, out: Path, resume: bool) -> None:
    """Make OUT, or check that it holds a run of the same recipe.

    Raises:
        ConfigError: it holds another's.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        shutil.rmtree(out / "stages", ignore_errors=True)
        (out / "log.jsonl").unlink(missing_ok=True)
    resolved = json.dumps(dataclasses.asdict(recipe), indent=2, default=str, ensure_ascii=False)
    described = out / "recipe.json"
    changed = described.is_file() and what_matters(described.read_text(encoding="utf-8")) != (
        what_matters(resolved)
    )
    if changed and (out / "stages").is_dir():
        raise ConfigError(
            f"{out} holds a run of another recipe ({described}); choose another output_dir, "
            "or start anew with --no-resume"
        )
    described.write_text(resolved, encoding="utf-8")


def what_matters(resolved: str) -> dict[str, Any]:
    """A resolved recipe without what only says which processes do the work: a run may go on with
    others."""
    try:
        values = json.loads(resolved)
    except ValueError:  # a run was killed while it wrote this
        return {}
    return {key: value for key, value in values.items() if key not in ("workers", "threads")}


def save_on_main(model: Any, processor: LlavaMoleProcessor, folder: Path) -> None:
    """One rank writes, all wait for it."""
    if ranks.is_main():
        model.save_pretrained(folder, processor=processor)
    ranks.barrier()


def feature_store(
    recipe: Recipe, model: LlavaMoleForConditionalGeneration, processor: LlavaMoleProcessor
) -> FeatureStore:
    """Features of the frozen tower: in memory, or on disk where the recipe has a feature_cache."""
    wanted = recipe.data.feature_cache
    cache = None
    if wanted is not None:
        folder = default_cache() / "features" if wanted.folder is None else Path(wanted.folder)
        key = feature_key(model, processor.image_processor)
        cache = FeatureCache(
            folder.expanduser(), key, max_bytes=int(wanted.max_gib * 2**30), about=about(model)
        )
    return FeatureStore(model, processor.image_processor, cache=cache)


def write_left_out(data: TrainingData, path: Path) -> None:
    """Which samples did not fit, a line each; no file where all did."""
    if not data.left_out:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps({"source": source, "where": where, "tokens": tokens}, ensure_ascii=False)
        for source, where, tokens in data.left_out
    ]
    beside = path.with_suffix(".tmp")
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(beside, path)


def rows_per_process(recipe: Recipe, stage: StageRecipe) -> int:
    """A micro-batch's rows, shared among all processes, whoever started them.

    Raises:
        ConfigError: they cannot be shared evenly.
    """
    processes = ranks.size()
    if stage.pictures_per_step % processes:
        nearest = -(-stage.pictures_per_step // processes) * processes
        raise ConfigError(
            f"stages.{stage.name}.pictures_per_step={stage.pictures_per_step} is of all processes "
            f"together and cannot be shared by {processes}: choose a multiple, such as "
            f"{nearest}, or another number of processes"
        )
    return stage.pictures_per_step // processes


def run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    folder: Path,
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    data: TrainingData,
    features: FeatureStore,
) -> None:
    """One stage, in place; resumes from its last complete checkpoint."""
    log = JsonLog(Path(recipe.output_dir) / "log.jsonl", stage.name)
    budget = None
    if recipe.minutes is not None:
        budget = recipe.minutes * 60 * (stage.share_of_time or 0)
    frozen_tower = "vision" not in stage.learning_rates
    few = data.picture_groups() <= FILL_AHEAD
    if frozen_tower and (few or stage.kind == "warm_start"):
        features.fill_together(data.pictures())
    # Too many to hold, and no disk to put them on: the tower works at every step.
    from_store = frozen_tower and (few or features.cache is not None)
    if stage.kind == "warm_start":
        if ranks.is_main():  # alone, with the cores of those who wait
            log.truncate_after(-1)
            threads = torch.get_num_threads()
            torch.set_num_threads(threads * ranks.workers())
            if stage.warm_start.method == "ridge":
                done = ridge_start(
                    model, processor, data.samples, features, stage.warm_start,
                    seed=recipe.seed, variants=data.variants, log=log,
                )  # fmt: skip
            else:
                set_trainable(model, {"projector": stage.warm_start.learning_rate})
                done = warm_start(
                    model, processor, data.samples, features, stage.warm_start, steps=stage.steps,
                    seed=recipe.seed, variants=data.variants, time_budget=budget, log=log,
                )  # fmt: skip
            torch.set_num_threads(threads)
            logger.info("warm start: %s", done)
        ranks.same_weights(model.projector)
        return
    for key in ("share_prefix", "packing"):
        if getattr(stage, key):
            check_supported(model.language_model.config, key)
    if recipe.stages[0] is stage and isinstance(model.projector, Projector):
        match_embeddings(model, processor, data.samples, features)
    set_trainable(model, stage.learning_rates)
    limit = data.leave_out_long(processor, model.config.text_config.max_position_embeddings)
    if ranks.is_main():
        write_left_out(data, Path(recipe.output_dir) / "left_out.jsonl")
    collator = Collator(
        processor,
        share_prefix=stage.share_prefix,
        parrot=model.parrot is not None,
        max_length=limit,
        packing=stage.packing,
        features=features if from_store else None,
        load_pixels=lambda images: processor.image_processor(list(images))["pixel_values"],
    )
    rows = stage_rows(recipe, stage, data, processor, collator=collator)
    arguments = training_arguments(recipe, stage, folder)
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    per_step *= arguments.world_size
    if stage.passes is not None:
        arguments.max_steps = max(1, math.ceil(stage.passes * rows.mixture.rows / per_step))
    rows.rows = arguments.max_steps * per_step
    if arguments.max_steps > LONG and not {"save_strategy", "save_steps"} & {
        *recipe.training,
        *stage.training,
    }:
        arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, LONG
        arguments.save_total_limit = arguments.save_total_limit or 2
    placed = Placed(model, arguments, tower=not from_store)
    trainer = StageTrainer(
        rates=stage.learning_rates,
        time_budget=budget,
        model=placed.model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
    )
    trainer.add_callback(log)
    trainer.add_callback(TimeBudget(trainer))
    checkpoint = ranks.from_main(latest_checkpoint(folder))
    if ranks.is_main():
        step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else -1
        again = log.truncate_after(step)
        if checkpoint:
            logger.info("stage %s goes on after step %d", stage.name, step)
        elif again:
            logger.warning(
                "stage %s has no checkpoint: its first %d steps are done again "
                "(training.save_steps=100 writes one every 100 steps)", stage.name, again,
            )  # fmt: skip
    model.config.use_cache = False
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    placed.bring_home()
