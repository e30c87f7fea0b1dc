"""How several processes share a step's rows."""

from __future__ import annotations

from llava_mole import ranks
from llava_mole.errors import ConfigError
from llava_mole.training.recipe import Recipe, StageRecipe


def rows_per_process(stage: StageRecipe, processes: int) -> int:
    """A micro-batch's rows, shared among all processes, whoever starts them.

    Raises:
        ConfigError: they cannot be shared evenly.
    """
    if stage.pictures_per_step % processes:
        nearest = -(-stage.pictures_per_step // processes) * processes
        raise ConfigError(
            f"stages.{stage.name}.pictures_per_step={stage.pictures_per_step} is of all processes "
            f"together and cannot be shared by {processes}: choose a multiple, such as "
            f"{nearest}, or another number of processes"
        )
    return stage.pictures_per_step // processes


def workers_of(recipe: Recipe) -> int:
    """How many processes this machine starts for a recipe.

    Raises:
        ConfigError: they cannot share a stage's rows evenly: said before any is started.
    """
    processes = ranks.affordable(recipe.workers)
    for stage in recipe.stages:
        if stage.kind == "language":
            rows_per_process(stage, processes)
    return processes
