"""What `data.held_out` and the keys that need it must say, checked with the rest of a recipe."""

from __future__ import annotations

import os

from llava_mole.training.recipe import Recipe

NOT_HELD_OUT = ("variants", "weight", "cap", "repeat_limit")


def real(path: str) -> str:
    """A source's path through links and `..`; a hub dataset's is itself."""
    return path if path.startswith("hub:") else os.path.realpath(path)


def check_held_out(recipe: Recipe) -> list[str]:
    """`data.held_out`, and the keys of `training` that need it."""
    problems = []
    sources = recipe.data.held_out
    for number, source in enumerate(sources):
        for key in NOT_HELD_OUT:
            if getattr(source, key) is not None:
                problems.append(
                    f"data.held_out.{number}.{key}: not read, held-out samples are not drawn; to "
                    "take some of them say samples or keep"
                )
        trained = [recipe.data, *(stage.data for stage in recipe.stages if stage.data)]
        same = [(real(other.path), other.keep) for data in trained for other in data.sources]
        if (real(source.path), source.keep) in same:
            problems.append(f"data.held_out.{number}: {source.path} is also in data.sources")
    for stage in recipe.stages:
        options = {**recipe.training, **stage.training}
        wanted = [
            key
            for key in ("eval_strategy", "eval_steps", "load_best_model_at_end",
                        "metric_for_best_model", "eval_on_start")
            if options.get(key) not in (None, False, "no")
        ]  # fmt: skip
        if wanted and not sources and stage.kind == "language":
            problems.append(
                f"training.{wanted[0]}={options[wanted[0]]!r} (stage {stage.name}): nothing is "
                "held out; name sources under data.held_out"
            )
            break
    return problems
