"""The estimate of a recipe's stages as `--dry-run` prints it, component by component."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from llava_mole.training.estimate import DEVICES, GIB, UTILISATION, Estimate, estimate_stage
from llava_mole.training.probes import Probes, Rows
from llava_mole.training.recipe import Recipe, StageRecipe

TEXT = (256, 128)
"""Tokens of text of a sample, and supervised ones, where the data were not looked at."""
LONGEST = 2048
"""Tokens of the longest row, where the recipe does not bound it."""
SETTINGS = ((1, "ddp"), (8, "ddp"), (8, "fsdp2"))


def micro_batch(
    stage: StageRecipe, processes: int, picture: int, tokens: float, supervised: float
) -> Rows:
    """A micro-batch on one of the devices that share it; `picture`: visual tokens of one."""
    questions = stage.questions_per_picture if stage.share_prefix else 1
    length = stage.packing or picture + questions * max(1, tokens - picture)
    return Rows(
        max(1, stage.pictures_per_step // processes), round(length),
        min(round(length), max(1, round(questions * supervised))),
    )  # fmt: skip


def estimates(
    recipe: Recipe, stage: StageRecipe, mean: tuple[float, float, int | None] | None = None
) -> list[tuple[str, Estimate]]:
    """The stage on one device and on eight, (label, estimate).

    Args:
        mean: tokens of a sample, visual ones included, supervised ones, and those of the longest
            (None: not known); None: `TEXT`.
    """
    probes = Probes(recipe, stage)
    picture = probes.vision.tokens_per_image
    tokens, supervised, seen = mean or (picture + TEXT[0], TEXT[1], None)
    bound = min(
        int(probes.text.max_position_embeddings), recipe.data_of(stage).max_length or LONGEST
    )
    longest = seen or max(bound, round(tokens))
    found = []
    for processes, sharding in SETTINGS:
        made = estimate_stage(
            recipe,
            stage,
            longest=micro_batch(stage, processes, picture, longest, (longest - picture) / 2),
            mean=micro_batch(stage, processes, picture, tokens, supervised),
            processes=processes,
            sharding=sharding,
            probes=probes,
        )
        found.append(("1 device" if processes == 1 else f"{processes}, {sharding}", made))
    return found


def print_estimate(
    recipe: Recipe,
    console: Console,
    means: Mapping[str, tuple[float, float, int | None]] | None = None,
) -> None:
    """Every language stage: memory of a device by component, its peak, seconds of a step.

    Args:
        means: stage -> see `estimates`, where the data were looked at.
    """
    console.rule("memory and time, worked out on paper")
    for stage in recipe.stages:
        if stage.kind != "language":
            continue
        found = estimates(recipe, stage, (means or {}).get(stage.name))
        first = found[0][1]
        table = Table(
            f"stage {stage.name}, GiB a device", title=f"rows of {first.longest.tokens} tokens"
        )
        for label, made in found:
            table.add_column(f"{label}: {made.longest.rows} rows each", justify="right")
        for part in dict.fromkeys(part for _, made in found for part in made.memory):
            cells = (f"{made.memory.get(part, 0) / GIB:.2f}" for _, made in found)
            table.add_row(part, *cells)
        table.add_section()
        table.add_row("estimated peak", *(f"{made.peak / GIB:.1f}" for _, made in found))
        for device in DEVICES.values():
            fits = (
                f"{made.step_seconds(device):.3g} s"
                if made.peak <= device.gib * GIB
                else "too much"
                for _, made in found
            )
            table.add_row(f"a step on {device.name}, {device.gib:g} GiB", *fits)
        console.print(table)
        console.print(
            f"estimated peak: {first.peak / GIB:.1f} GiB on one device, of "
            + " or ".join(f"{d.gib:g} ({d.name})" for d in DEVICES.values())
            + f"; steps at rows of {first.mean.tokens} tokens, {UTILISATION:.0%} of the peak rate, "
            "without exchange between devices",
            markup=False,
        )
