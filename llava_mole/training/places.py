"""Where a run may write: a folder that can be made, and nothing in it that the run reads.

`OUT/model` is replaced and `OUT/stages` removed or replaced, so weights that a run begins with may
not lie there; paths are compared as what they really are, through links and `..`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llava_mole import starting
from llava_mole.data.sources import split_path
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.training.recipe import Recipe
from llava_mole.vision import MODEL_FOLDER

LOCAL = "local-dir:"


def place_problems(recipe: Recipe) -> list[str]:
    """What is wrong with `output_dir`, by itself and against what the recipe reads."""
    problem = folder_problem(Path(recipe.output_dir))
    return [f"output_dir={recipe.output_dir!r}: {problem}"] if problem else written_over(recipe)


def folder_problem(folder: Path) -> str | None:
    """Why no folder can be made there; None if nothing speaks against it."""
    for path in (folder, *folder.parents):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue  # made on the way, or a parent tells
        except (OSError, ValueError) as error:  # a name too long, a NUL in it, no right to look
            return f"no folder can be made there ({getattr(error, 'strerror', None) or error})"
        if not stat.S_ISDIR(mode):
            return f"{path} is a file; choose another folder"
        break
    return None


def written_over(recipe: Recipe) -> list[str]:
    """What the run reads from where it writes."""
    out = Path(recipe.output_dir)
    written = [out / "model", out / "stages"]
    problems = []
    for key, path in places_read(recipe):
        real = Path(os.path.realpath(path))
        for place in written:
            own = Path(os.path.realpath(place))
            if real == own or own in real.parents:
                problems.append(
                    f"{key}: {path} lies in {place}, which this run writes over; choose another "
                    "output_dir, or copy the folder elsewhere first"
                )
    return problems


def places_read(recipe: Recipe) -> list[tuple[str, Path]]:
    """(key, path) of the weights and data on disk that a recipe names, and of the folders that the
    one it starts from refers to."""
    model = recipe.model
    found = [("model.language_model", Path(model.language_model).expanduser())]
    found.append(("model.vision_model", Path(model.vision_model.removeprefix(LOCAL)).expanduser()))
    lists = {"data.sources": recipe.data.sources, "data.held_out": recipe.data.held_out}
    for stage in recipe.stages:
        if stage.data is not None:
            lists[f"stages.{stage.name}.data.sources"] = stage.data.sources
    for key, sources in lists.items():
        for number, source in enumerate(sources):
            try:
                path = split_path(source.path)[0]
            except (OSError, ValueError):  # too long, a NUL in it: reading the data says so
                continue
            found.append((f"{key}.{number}", path))
    if model.start_from is None:
        return found
    start = Path(model.start_from).expanduser()
    found.append(("model.start_from", start))
    try:
        config = starting.read_start(start)
    except (CheckpointError, ConfigError):
        return found  # `checks.inherit` says so
    refers = f"model.start_from={model.start_from}"
    if config.text_source is not None:
        found.append((f"{refers}: its language model", start / config.text_source["name"]))
    if config.vision is not None:
        vision = config.vision_part
        tower = vision.model.removeprefix(LOCAL)
        found.append((f"{refers}: its tower", start / tower))
        if vision.source is not None and vision.source["name"].startswith(MODEL_FOLDER):
            kept = vision.source["name"].removeprefix(MODEL_FOLDER)
            found.append((f"{refers}: its tower", start / kept))
    return found
