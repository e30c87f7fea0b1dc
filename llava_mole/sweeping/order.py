"""In which order a run draws its samples, as a digest: arms of one seed must share it.

Only then is a difference between two arms of one seed a difference between the arms. The order is
the planner's: which records of which source, row by row, and how many rows a step takes. Sorting by
length inside a window (`length_window`) comes after it and hangs on the model's tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from llava_mole.training.data import TrainingData, planned_rows
from llava_mole.training.recipe import Recipe, StageRecipe
from llava_mole.training.resume import contents

PIECE = 1000
"""Rows that have a digest of their own, so that the place where two orders part can be told."""


def order_of(recipe: Recipe, read: Sequence[TrainingData]) -> dict[str, Any]:
    """What a run draws.

    Args:
        read: of each stage; what is too long is left out where `leave_out_long` has looked.

    Returns:
        {"digest": of all, "content": of the data files, "stages": [{"name", "kind", "rows",
        "rows_per_step", "samples", "digest", "pieces": [of each thousand rows]}]}
    """
    template = recipe.model.chat_template
    files = [digest for path, digest in contents(recipe).items() if path != template]
    content = digest_of(sorted(files))
    stages = [drawn(recipe, stage, data) for stage, data in zip(recipe.stages, read, strict=True)]
    told = [[stage["kind"], stage["rows_per_step"], stage["digest"]] for stage in stages]
    return {"digest": digest_of([content, told]), "content": content, "stages": stages}


def drawn(recipe: Recipe, stage: StageRecipe, data: TrainingData) -> dict[str, Any]:
    """Of one stage. A warm start sees its samples all at once: only their number counts."""
    about: dict[str, Any] = {"name": stage.name, "kind": stage.kind}
    if stage.kind != "language":
        count = len(data.samples)
        nothing: dict[str, Any] = {"rows": 0, "rows_per_step": 0, "pieces": []}
        return about | nothing | {"samples": count, "digest": digest_of([stage.kind, count])}
    rows = planned_rows(recipe, stage, data, None)
    pieces, samples = [], 0
    for start in range(0, rows.rows, PIECE):
        piece = hashlib.sha256()
        for number in range(start, min(start + PIECE, rows.rows)):
            pool, records = rows.records(number)
            samples += len(records)
            piece.update(f"{pool.source.name}:{','.join(map(str, records))}\n".encode())
        pieces.append(piece.hexdigest()[:16])
    return about | {
        "rows": rows.rows,
        "rows_per_step": rows_per_step(recipe, stage),
        "samples": samples,
        "digest": digest_of(pieces),
        "pieces": pieces,
    }


def rows_per_step(recipe: Recipe, stage: StageRecipe) -> int:
    """Of all processes and micro-batches together."""
    training = {**recipe.training, **stage.training}
    return stage.pictures_per_step * int(training.get("gradient_accumulation_steps", 1))


def planned_steps(order: Mapping[str, Any]) -> int:
    """Optimizer steps of all language stages."""
    return sum(
        max(1, -(-stage["rows"] // stage["rows_per_step"]))
        for stage in order["stages"]
        if stage["rows_per_step"]
    )


def where_they_part(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """In words; None where two orders are the same."""
    if one["digest"] == other["digest"]:
        return None
    if one["content"] != other["content"]:
        return "they read other data files"
    kinds = [[stage["kind"] for stage in order["stages"]] for order in (one, other)]
    if kinds[0] != kinds[1]:
        return f"their stages are {', '.join(kinds[0])} and {', '.join(kinds[1])}"
    for mine, theirs in zip(one["stages"], other["stages"], strict=True):
        at = f"stage {mine['name']}"
        if mine["rows_per_step"] != theirs["rows_per_step"]:
            return f"{at}: {mine['rows_per_step']} and {theirs['rows_per_step']} rows a step"
        for number, (a, b) in enumerate(zip(mine["pieces"], theirs["pieces"], strict=False)):
            if a != b:
                return f"{at}: other samples from row {number * PIECE:,} on, or within {PIECE:,}"
        if mine["digest"] != theirs["digest"]:
            return f"{at}: {mine['rows']:,} and {theirs['rows']:,} rows"
    return "they differ"


def digest_of(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
