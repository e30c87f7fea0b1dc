"""`llava-mole train --dry-run`: everything a run will do, before it costs anything.

The resolved recipe, parameters by part, memory and time as far as they can be worked out, the
mixture that the planner will really draw, and one sample decoded token by token with its label
mask. Where data or weights are on another machine, what needs neither is printed before the error.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_mole import starting
from llava_mole.building import build_model
from llava_mole.data.collator import check_trainable
from llava_mole.errors import CheckpointError, DataError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.parrot import LanguageConditionedMoE
from llava_mole.processing import IGNORE, Encoded, LlavaMoleProcessor
from llava_mole.structure import model_without_weights
from llava_mole.training.data import TrainingData, encode_sample, planned_rows, read_stages
from llava_mole.training.foresight import print_estimate
from llava_mole.training.held_out import HeldOut, read_held_out
from llava_mole.training.history import rates
from llava_mole.training.mix import MixReport, mix_report, passes_of, print_mix
from llava_mole.training.parts import count_parameters, set_trainable
from llava_mole.training.recipe import Recipe
from llava_mole.training.run import check_warm_start, training_arguments


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print it all. Loads the model's parts, trains nothing, writes nothing.

    Raises:
        ConfigError, DataError, CheckpointError: what the run would raise of recipe, data files and
            parts. Pictures are looked for, not decoded; of the samples one is tokenized.
    """
    console.rule("recipe")
    resolved = dataclasses.asdict(recipe) | {"model": starting.shown(recipe.model)}
    console.print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), markup=False)
    for stage in recipe.stages:
        if stage.kind == "language":
            training_arguments(recipe, stage, Path(recipe.output_dir))
    # What needs neither data nor weights comes first: they may lie on another machine.
    console.rule("parameters")
    plain = dataclasses.replace(recipe.model, parrot=None)
    console.print(parameter_table(recipe, model_without_weights(plain)))
    try:
        read = read_stages(recipe)
        check_warm_start(recipe, read)
        model, processor = build_model(plain)
    except (DataError, CheckpointError):
        print_estimate(recipe, console)
        raise
    console.rule("mixture")
    means: dict[str, tuple[float, float, int | None]] = {}
    for data in {id(one): one for one in read}.values():
        data.leave_out_long(processor, model.config.text_config.max_position_embeddings)
    for stage, data in zip(recipe.stages, read, strict=True):
        if stage.kind != "language":
            continue
        rows = planned_rows(recipe, stage, data, processor)
        report = mix_report(data, rows, processor)
        print_mix(report, console, f"stage {stage.name}: {passes_of(rows)}")
        means[stage.name] = mean_lengths(report)
    print_estimate(recipe, console, means)
    held_out = read_held_out(recipe)
    if held_out is not None:
        held_out.leave_out_long(processor, model.config.text_config.max_position_embeddings)
        console.rule("held out")
        scored = HeldOut(held_out, processor, seed=recipe.seed)
        console.print(held_out_table(scored))
        for stage in recipe.stages:
            if stage.kind == "language":
                options = training_arguments(recipe, stage, Path(recipe.output_dir))
                if options.metric_for_best_model is not None:
                    scored.check_metric(options.metric_for_best_model)
    console.rule("one sample")
    steered = any(stage.parrot for stage in recipe.stages)
    print_sample(read[-1], processor, model, console, steered=steered)


def mean_lengths(report: MixReport) -> tuple[float, float, int | None]:
    """Tokens of a sample, and supervised ones, over what the plan draws; of the longest, where all
    were measured."""
    longest = [source.longest for source in report.sources]
    known = [length for length in longest if length is not None]
    drawn = sum(source.drawn for source in report.sources)
    return (
        sum((source.tokens_per_sample or 0) * source.drawn for source in report.sources) / drawn,
        sum((source.supervised_per_sample or 0) * source.drawn for source in report.sources)
        / drawn,
        max(known) if len(known) == len(longest) else None,
    )


def count_by_stage(
    recipe: Recipe, model: LlavaMoleForConditionalGeneration
) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Parameters: {part: in all}, and for each stage {part: trained}.

    Args:
        model: the recipe's without Parrot, weights or not; Parrot is added where a stage has it.
    """
    stages: list[dict[str, int]] = []
    for stage in recipe.stages:
        if stage.parrot and model.parrot is None and recipe.model.parrot is not None:
            width = model.config.text_config.hidden_size
            with torch.device(model.device):
                model.parrot = LanguageConditionedMoE(width, recipe.model.parrot)
        solved = {"projector": 1.0}  # a ridge has no rate
        set_trainable(model, rates(stage, parrot=model.parrot is not None) or solved)
        stages.append({part: trained for part, _, trained in count_parameters(model)})
    return {part: total for part, total, _ in count_parameters(model)}, stages


def parameter_table(recipe: Recipe, model: LlavaMoleForConditionalGeneration) -> Table:
    """Part by stage: total, and what each stage trains."""
    totals, stages = count_by_stage(recipe, model)
    table = Table("part", "total", *(f"trained in {stage.name}" for stage in recipe.stages))
    for part, total in totals.items():
        table.add_row(part, f"{total:,}", *(f"{stage.get(part, 0):,}" for stage in stages))
    return table


def held_out_table(scored: HeldOut) -> Table:
    """Samples by source and language, and whether letters are scored."""
    table = Table("source", "samples", "languages", "scored by")
    for number, source in enumerate(scored.data.sources):
        items = [item for item in scored.items if item.source == number]
        languages = Counter(item.names[2] for item in items)
        by = "loss, right letters" if scored.lettered[number] else "loss"
        shown = ", ".join(f"{name} {count:,}" for name, count in sorted(languages.items()))
        table.add_row(source.name, f"{len(items):,}", shown, by)
    return table


def print_sample(
    data: TrainingData,
    processor: LlavaMoleProcessor,
    model: LlavaMoleForConditionalGeneration,
    console: Console,
    *,
    steered: bool,
) -> None:
    """First sample in tokens; supervised ones reversed, runs of placeholders shortened. What
    conditions its images where Parrot is on in some stage."""
    sample = data.samples[0]
    encoded = encode_sample(processor, sample)
    check_trainable(sample.source, encoded, model.config.text_config.max_position_embeddings)
    names = [image.name if isinstance(image, Path) else "in the file" for image in sample.images]
    console.print(f"{sample.source}, images {names}")
    console.print(token_view(encoded, processor))
    for question in encoded.questions if steered else ():
        console.print(f"its image is conditioned on {processor.tokenizer.decode(question)!r}")


def token_view(encoded: Encoded, processor: LlavaMoleProcessor) -> Text:
    view = Text()
    run = 0
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if token == processor.image_token_id:
            run += 1
            continue
        if run:
            view.append(f"{processor.image_token}×{run}", style="cyan")
            run = 0
        piece = repr(processor.tokenizer.decode([token]))[1:-1]
        view.append(piece + "·", style="reverse green" if label != IGNORE else "")
    view.append(f"\n{encoded.supervised} of {len(encoded.input_ids)} tokens are supervised (green)")
    return view
