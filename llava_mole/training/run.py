"""Run a recipe: build the model, then its stages in order, each resumable.

OUT/recipe.json                  the resolved recipe
OUT/log.jsonl                    every logged step of every stage
OUT/stages/1-warm_start/model/   what a finished stage leaves; its presence means "done"
OUT/stages/3-instruct/checkpoint-50/
OUT/model/                       the result

What is resumed, and how, is in `resume.py`; docs/training.md tells the user.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy, set_seed

from llava_mole import checkpoint, ranks
from llava_mole.building import build_model
from llava_mole.data.collator import Collator
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_key import about, feature_key
from llava_mole.features import FeatureStore
from llava_mole.folders import writing_file
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.projector import Projector
from llava_mole.starter import default_cache
from llava_mole.starting import switch_parrot_on
from llava_mole.training import hub_push
from llava_mole.training.data import TrainingData, read_stages, stage_rows
from llava_mole.training.ending import Ended, told_to_end
from llava_mole.training.environment import check_environment
from llava_mole.training.held_out import HeldOut, read_held_out, scored_by
from llava_mole.training.history import rates, record_data, record_stage
from llava_mole.training.log import JsonLog
from llava_mole.training.memory import memory_advice, peak_memory
from llava_mole.training.parallel import Placed, check_engine
from llava_mole.training.parts import mark_trained, set_trainable
from llava_mole.training.progress import StageProgress
from llava_mole.training.recipe import Recipe, StageRecipe
from llava_mole.training.result import RunResult, StageEnd
from llava_mole.training.resume import (
    AUTO,
    Position,
    find_position,
    only_run,
    prepare_folder,
    stage_folder,
)
from llava_mole.training.ridge import ridge_start
from llava_mole.training.sharing import rows_per_process
from llava_mole.training.trainer import StageTrainer
from llava_mole.training.warm_start import match_embeddings, warm_start, warm_start_answers
from llava_mole.tree import check_supported

logger = logging.getLogger(__name__)

LONG = 500
"""Steps after which a stage writes a checkpoint, where the recipe says nothing about them."""
FILL_AHEAD = 50_000
"""Pictures up to which the features of all are computed before a stage, shared among the ranks."""


def add_parrot(model: LlavaMoleForConditionalGeneration, processor: Any, recipe: Recipe) -> None:
    """Switch the language-conditioned MoE on, from this stage."""
    assert recipe.model.parrot is not None
    switch_parrot_on(model, processor, recipe.model.parrot)


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
    for key in hub_push.KEYS:
        options.pop(key, None)  # a run pushes its model, not each stage's folder
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if options.get(key) is False:  # what YAML makes of a bare no
            options[key] = "no"
    said = {**recipe.training, **stage.training}
    if "save_steps" in said and options["save_strategy"] == "no":
        options["save_strategy"] = "steps"
    if recipe.data.held_out and "eval_strategy" not in said:
        options["eval_strategy"] = "steps"  # and once more when the stage ends
        options.setdefault("eval_steps", LONG)
    if options.get("load_best_model_at_end") and "save_strategy" not in said:
        options["save_strategy"] = options.get("eval_strategy", "no")
        options.setdefault("save_steps", options.get("eval_steps", LONG))
    try:
        return TrainingArguments(
            output_dir=str(folder),
            max_steps=stage.steps,
            per_device_train_batch_size=rows_per_process(stage, ranks.size()),
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


def check_warm_start(recipe: Recipe, read: Sequence[TrainingData]) -> None:
    """Raises DataError if a warm start asks for a kind of sample that its data lack."""
    for stage, data in zip(recipe.stages, read, strict=True):
        if stage.kind == "warm_start":
            warm_start_answers(data.kept(), stage.warm_start)


def run_recipe(
    recipe: Recipe,
    *,
    resume: str | Path = AUTO,
    data: TrainingData | None = None,
    before_training: Any = None,
) -> RunResult:
    """Train from start to end.

    Args:
        recipe: validated.
        resume: "auto": go on where an earlier run in the same folder stopped; "none": start anew;
            a checkpoint's folder: go back to it, what came after is put aside.
        data: the recipe's own `data:`, already read.
        before_training: called with (model, processor, features) once, before the first stage.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: with what to do.
    """
    out = Path(recipe.output_dir)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    for stage in recipe.stages:
        if stage.kind == "language":
            check_engine(training_arguments(recipe, stage, out))  # now, not after the warm start
    check_environment(recipe)
    push = hub_push.push_of(recipe.training, recipe.output_dir)
    repository = hub_push.prepare(push) if push is not None and ranks.is_main() else ""
    read = read_stages(recipe, data=data, progress=ranks.is_main())
    held_out = read_held_out(recipe)
    check_warm_start(recipe, read)
    every_save = push is not None and push.strategy == "every_save"
    callbacks = [hub_push.PushCheckpoints(push, repository)] if push and every_save else []
    with ExitStack() as stack:
        if ranks.is_main():
            stack.enter_context(only_run(out))
            prepare_folder(recipe, resume)
        ranks.barrier()
        result = run_stages(recipe, read, held_out, before_training, callbacks)
    if push is not None and ranks.is_main():
        hub_push.push_finished(push, repository, out / "model")
    return result


def run_stages(
    recipe: Recipe,
    read: Sequence[TrainingData],
    held_out: TrainingData | None,
    before_training: Any,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunResult:
    """All stages from where the run stands.

    Args:
        read: what each stage draws from.
        held_out, before_training: see `run_recipe`.
        callbacks: further ones of every stage's Trainer.
    """
    out = Path(recipe.output_dir)
    set_seed(recipe.seed)
    model, processor = build_model(dataclasses.replace(recipe.model, parrot=None))
    features = feature_store(recipe, model, processor)
    if before_training is not None:
        before_training(model, processor, features)
    record_data(model.config, recipe, read)
    position: Position = ranks.from_main(find_position(recipe) if ranks.is_main() else None)
    log = out / "log.jsonl"
    ends: dict[str, StageEnd] = {}
    for number, stage in enumerate(recipe.stages):
        # Whatever was drawn before: a run that goes on from here has not drawn it.
        set_seed(recipe.seed + 1000 * (1 + number))
        if stage.parrot and model.parrot is None:
            add_parrot(model, processor, recipe)
        mark_trained(model, stage.learning_rates)
        if number < position.number:
            logger.info("stage %s is done", stage.name)
            if number == position.number - 1 and position.model is not None:
                checkpoint.restore(model, position.model)
            record_stage(model.config, recipe, stage, rows_per_step(recipe, stage), log)
        else:
            folder = stage_folder(recipe, number)
            folder.mkdir(parents=True, exist_ok=True)
            start = position.checkpoint if number == position.number else None
            with memory_advice(recipe, stage):
                ends[stage.name] = run_stage(
                    recipe, stage, folder, model, processor, read[number], features,
                    held_out=held_out, start=start, callbacks=callbacks,
                )  # fmt: skip
            record_stage(model.config, recipe, stage, rows_per_step(recipe, stage), log)
            save_on_main(model, processor, folder / "model")
            if ends[stage.name].told_to_end and number + 1 < len(recipe.stages):
                raise Ended(128 + signal.SIGTERM)
        if "vision" in stage.learning_rates:
            features.clear()
    model.eval()
    save_on_main(model, processor, out / "model")
    peaks = ranks.gather(peak_memory())
    total = {place: sum(one[place] for one in peaks) for place in peaks[0]}
    return RunResult(model, processor, features, ends, total)


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


def write_left_out(left_out: Sequence[tuple[str, str, int]], path: Path) -> None:
    """Which samples did not fit, held-out ones too, a line each; no file where all did."""
    if not left_out:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps({"source": source, "where": where, "tokens": tokens}, ensure_ascii=False)
        for source, where, tokens in left_out
    ]
    with writing_file(path) as file:
        file.write("\n".join(lines) + "\n")


def rows_per_step(recipe: Recipe, stage: StageRecipe) -> int:
    """Rows of an optimizer step, all processes and accumulated micro-batches together."""
    accumulated = {**recipe.training, **stage.training}.get("gradient_accumulation_steps", 1)
    return rows_per_process(stage, ranks.size()) * ranks.size() * int(accumulated)


def run_stage(
    recipe: Recipe,
    stage: StageRecipe,
    folder: Path,
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    data: TrainingData,
    features: FeatureStore,
    *,
    held_out: TrainingData | None = None,
    start: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> StageEnd:
    """One stage, in place; from its beginning, or from one of its checkpoints."""
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
        return start_projector(recipe, stage, model, processor, data, features, log, budget)
    for key in ("share_prefix", "packing"):
        if getattr(stage, key):
            check_supported(model.language_model.config, key)
    untrained = recipe.stages[0] is stage and recipe.model.start_from is None
    if untrained and isinstance(model.projector, Projector):
        match_embeddings(model, processor, data.kept(), features)
    set_trainable(model, stage.learning_rates)
    context = model.config.text_config.max_position_embeddings
    limit = data.leave_out_long(processor, context)
    left_out = list(data.left_out)
    if held_out is not None:
        held_out.leave_out_long(processor, context)
        left_out += held_out.left_out
    if ranks.is_main():
        name = "left_out.jsonl" if stage.data is None else f"left_out-{stage.name}.jsonl"
        write_left_out(left_out, Path(recipe.output_dir) / name)
    collator = Collator(
        processor,
        share_prefix=stage.share_prefix,
        parrot=model.parrot is not None,
        max_length=limit,
        packing=stage.packing,
        features=features if from_store else None,
        load_pixels=lambda images: processor.image_processor(list(images))["pixel_values"],
        note_sources=True,
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
        if arguments.save_strategy == SaveStrategy.NO:
            arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, LONG
        arguments.save_total_limit = arguments.save_total_limit or 2
    scored = None
    if held_out is not None and arguments.eval_strategy != "no":
        scored = HeldOut(held_out, processor, seed=recipe.seed)
        if arguments.metric_for_best_model is not None:
            scored.check_metric(arguments.metric_for_best_model)
        if collator.features is not None:
            features.fill_together(held_out.pictures())
    placed = Placed(model, arguments, tower=not from_store)
    with told_to_end() as ending:
        trainer = StageTrainer(
            rates=stage.learning_rates,
            time_budget=budget,
            stage=stage.name,
            held_out=scored,
            kept=Path(recipe.output_dir) / "nonfinite",
            ending=ending,
            model=placed.model,
            args=arguments,
            train_dataset=rows,
            data_collator=collator,
            processing_class=processor,
        )
        if held_out is not None and scored is not None:
            trainer.scored_by = scored_by(recipe, held_out, arguments)
        trainer.add_callback(log)
        for callback in callbacks:
            trainer.add_callback(callback)
        if ranks.is_main():
            rewind(log, stage, start)
        with without_cache(placed.model), progress_bar(recipe, stage, trainer):
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    state = trainer.state
    if trainer.ends_here and state.global_step < state.max_steps:
        logger.warning(
            "stage %s was told to end: it goes on after step %d with the same command",
            stage.name, state.global_step,
        )  # fmt: skip
        raise Ended(128 + (ending.asked or signal.SIGTERM))
    placed.bring_home()
    end = StageEnd(trainer.elapsed, told_to_end=trainer.ends_here)
    if arguments.metric_for_best_model is not None and state.best_global_step:
        metric = f"eval_{arguments.metric_for_best_model.removeprefix('eval_')}"
        end.best = (metric, float(state.best_metric), state.best_global_step)
        end.best_is_kept = bool(arguments.load_best_model_at_end and state.best_model_checkpoint)
    return end


def start_projector(
    recipe: Recipe,
    stage: StageRecipe,
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    data: TrainingData,
    features: FeatureStore,
    log: JsonLog,
    budget: float | None,
) -> StageEnd:
    """A stage of kind warm_start: the main rank works with all cores, the others get its result."""
    started = time.monotonic()
    if ranks.is_main():  # alone, with the cores of those who wait
        log.truncate_after(-1)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads * ranks.workers())
        samples = data.kept()
        if stage.warm_start.method == "ridge":
            done = ridge_start(
                model, processor, samples, features, stage.warm_start,
                seed=recipe.seed, variants=data.variants, log=log,
            )  # fmt: skip
        else:
            set_trainable(model, rates(stage, parrot=model.parrot is not None))
            done = warm_start(
                model, processor, samples, features, stage.warm_start, steps=stage.steps,
                seed=recipe.seed, variants=data.variants, time_budget=budget,
                language_weights=data.recipe.language_weights, log=log,
            )  # fmt: skip
        torch.set_num_threads(threads)
        logger.info("warm start: %s", done)
    ranks.same_weights(model.projector)
    if model.parrot is not None:
        ranks.same_weights(model.parrot)
    return StageEnd(time.monotonic() - started)


def rewind(log: JsonLog, stage: StageRecipe, start: Path | None) -> None:
    """Take back the lines of steps that will be done again."""
    step = int(start.name.rsplit("-", 1)[1]) if start else -1
    again = log.truncate_after(step)
    if start:
        logger.info("stage %s goes on after step %d", stage.name, step)
    elif again:
        logger.warning(
            "stage %s has no checkpoint: its first %d steps are done again "
            "(training.save_steps=100 writes one every 100 steps)", stage.name, again,
        )  # fmt: skip


@contextmanager
def without_cache(model: LlavaMoleForConditionalGeneration) -> Iterator[None]:
    """No KV cache while training; what the model's config says of it stays."""
    before = model.config.use_cache
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


@contextmanager
def progress_bar(recipe: Recipe, stage: StageRecipe, trainer: StageTrainer) -> Iterator[None]:
    """A bar for the stage, closed also where training ends early."""
    number = 1 + recipe.stages.index(stage)
    bar = StageProgress(f"{stage.name} ({number}/{len(recipe.stages)})")
    if not trainer.args.disable_tqdm:
        trainer.add_callback(bar)
    try:
        yield
    finally:
        bar.close()
