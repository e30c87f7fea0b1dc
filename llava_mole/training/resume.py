"""Where a run stands on disk, and going on from there.

    OUT/.lock                            held while a run writes here
    OUT/recipe.json                      what it was started with
    OUT/stages/2-instruct/checkpoint-50/ whole, or not there: written beside and renamed
    OUT/stages/2-instruct/checkpoint-50/stage.json
                                         of which stage and step, its files, the parts it trains
    OUT/stages/2-instruct/model/         the stage is done
    OUT/earlier-1/                       what came after a checkpoint that a run went back to

`auto` takes the furthest of these that is whole. Only what comes last counts: a stage before it
need not have left anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers.trainer_pt_utils import safe_globals

from llava_mole.data.sources import split_path
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import known_hash, remove_folder, replacing_folder, sweep, writing_file
from llava_mole.training.log import JsonLog
from llava_mole.training.recipe import Recipe

logger = logging.getLogger(__name__)

AUTO, ANEW = "auto", "none"
MARK = "stage.json"
MARKED: dict[str, Any] = {
    "stage": str, "step": int, "seconds": (int, float), "ranks": int, "resumable": bool,
    "parts": list,
}  # fmt: skip
"""Keys of it, and what their values are."""
WRITING = ".writing"
"""Folder of a checkpoint that is being written."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")

FREE_TO_CHANGE = re.compile(
    r"(stages\.\d+\.)?training\.(logging_\w+|save_steps|save_strategy|save_total_limit|report_to"
    r"|run_name|disable_tqdm|eval_\w+|per_device_eval_batch_size|dataloader_\w+|project"
    r"|(activation|gradient)_checkpointing(_kwargs)?)"
    r"|data\.feature_cache(\..+)?|data\.held_out(\..+)?|workers|threads"
)
"""Keys of a recipe that may differ when a run goes on: they move no weight beyond the rounding that
activation checkpointing has, or sums over another number of processes."""

MOVE_WEIGHTS = {".safetensors", ".json", ".jinja", ".model"}
"""Endings of files in a model folder that training from it hangs on."""
LONG_TO_READ = 4e9
"""Bytes of a start whose reading is announced."""


# ---------------------------------------------------------------------- checkpoints


def mark_checkpoint(folder: Path, about: Mapping[str, Any]) -> None:
    """Write `stage.json` into a finished checkpoint, before it is renamed into place."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({**about, "files": files}, indent=1, ensure_ascii=False)
    (folder / MARK).write_text(text + "\n", encoding="utf-8")


def read_mark(folder: Path) -> dict[str, Any]:
    """Raises CheckpointError for a checkpoint that is not whole, or not one that a stage left."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        files, stage, step = dict(mark["files"]), mark["stage"], mark["step"]
    except FileNotFoundError:
        there = "no such folder" if not folder.is_dir() else f"no {MARK} in it"
        raise CheckpointError(
            f"{folder}: {there}; a checkpoint of a run is OUT/stages/N-NAME/checkpoint-STEP"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MARK} cannot be read: {error!r}") from error
    for name, size in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{path}: {'missing' if found is None else f'{found:,} bytes'}, expected {size:,} "
                f"bytes: was {folder} (stage {stage}, step {step}) copied only in part? Go on from "
                "an earlier checkpoint"
            )
    for key, kind in MARKED.items():
        if not isinstance(mark.get(key), kind):
            raise CheckpointError(
                f"{folder / MARK}: {key}={mark.get(key)!r} is not what a stage writes; go on from "
                "an earlier checkpoint"
            )
    if not mark["resumable"]:
        raise CheckpointError(
            f"{folder} holds weights only (training.save_only_model): optimizer and random state "
            "are not there to go on with"
        )
    for path in sorted(folder.iterdir()):
        if problem := unreadable(path):
            raise CheckpointError(
                f"{path} is damaged ({problem}), though as long as it was; go on from an earlier "
                "checkpoint"
            )
    return mark


def unreadable(path: Path) -> str | None:
    """Why a checkpoint's counters, sums or random state cannot be read; None for other files."""
    try:
        if path.name == "trainer_state.json" or path.match("log_sums_*.json"):
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return "no JSON object"
        elif path.match("rng_state*.pth"):
            with safe_globals():
                torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
            pickle.UnpicklingError) as error:  # fmt: skip
        return f"{type(error).__name__}: {str(error)[:80]}"
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, checkpoint) of a stage, in order; being renamed into place is what makes one."""
    return sorted(
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(path.name))
    )


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; others are warned of and left alone."""
    for _, path in reversed(checkpoints(folder)):
        try:
            read_mark(path)
        except CheckpointError as error:
            logger.warning("%s", error)
        else:
            return path
    return None


# ---------------------------------------------------------------------- a run's folder


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run goes on.

    Attributes:
        number: of the stage, from 0; as many as there are stages: all are done.
        checkpoint: of that stage; None: from its beginning.
        model: what the stage before it left, where there is no checkpoint; None: nothing yet.
    """

    number: int = 0
    checkpoint: Path | None = None
    model: Path | None = None


def stage_folder(recipe: Recipe, number: int) -> Path:
    """Of stage `number`, from 0."""
    name = f"{number + 1}-{recipe.stages[number].name}"
    return Path(recipe.output_dir) / "stages" / name


def find_position(recipe: Recipe) -> Position:
    """The furthest that the run in the recipe's folder has come."""
    for number in reversed(range(len(recipe.stages))):
        folder = stage_folder(recipe, number)
        if (folder / "model" / "config.json").is_file():
            return Position(number + 1, model=folder / "model")
        if (checkpoint := latest_checkpoint(folder)) is not None:
            return Position(number, checkpoint=checkpoint)
    return Position()


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder. The system frees the lock when its process dies.

    Raises:
        ConfigError: another run writes here, or no folder can be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={str(out)!r}: {error.strerror}; choose another") from error
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another run is writing in {out}: wait for it, stop it, or choose another output_dir"
        ) from None
    except (NotImplementedError, OSError) as error:  # a file system without locks
        logger.warning("%s cannot be locked (%s): start no second run there", out, error)
        yield
        return
    try:
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        lock.release()


def prepare_folder(recipe: Recipe, resume: str | Path) -> None:
    """Make OUT, or ready it for going on; under `only_run`.

    Args:
        resume: "auto", "none" (start anew), or a checkpoint to go back to.

    Raises:
        ConfigError: it holds another recipe's run.
        CheckpointError: the checkpoint to go back to is not whole, or of no stage of the recipe.
    """
    out = Path(recipe.output_dir)
    clean(out)
    described = out / "recipe.json"
    resolved = described_recipe(recipe)
    before, changed = compared(recipe, resolved)
    if resume == ANEW:
        remove_folder(out / "stages")
        (out / "log.jsonl").unlink(missing_ok=True)
    elif resume == AUTO:
        if before is None and any((out / "stages").glob("*")):
            raise ConfigError(
                f"{out / 'stages'} holds stages, but {described} is missing: they cannot be "
                "compared with this recipe. Start anew with --resume none, or go on from a "
                "checkpoint of your choice: --resume OUT/stages/N-NAME/checkpoint-STEP"
            )
        if (out / "stages").is_dir():
            check_same_recipe(described, changed)
    else:
        for line in changed:
            logger.warning("going on with another recipe: %s", line)
        go_back(recipe, Path(resume))
    with writing_file(described) as file:
        json.dump(resolved, file, indent=2, ensure_ascii=False)


def compared(recipe: Recipe, resolved: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """The recipe that OUT was made by, if any, and what is another than in this one.

    Args:
        resolved: `described_recipe` of it.
    """
    before = read_recipe(Path(recipe.output_dir) / "recipe.json")
    if before is not None:
        before = filled(before, recipe, resolved["content"])
    return before, differences(before, resolved)


def described_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it, with the hashes of what it reads."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    return values | {"content": contents(recipe) | start_content(recipe)}


def filled(before: dict[str, Any], recipe: Recipe, content: Mapping[str, str]) -> dict[str, Any]:
    """A described recipe with what an earlier version of this program did not write: keys that it
    did not have, which then had their defaults, and the hash of the start."""
    found = with_defaults(before, recipe)
    hashes = found.get("content")
    if hashes is None:
        found["content"] = dict(content)
    elif recipe.model.start_from is not None:
        start = recipe.model.start_from
        found["content"] = {**{k: content[k] for k in [start] if k in content}, **hashes}
    return found


def with_defaults(before: Any, now: Any) -> Any:
    """`before` with the fields of the dataclass `now` that it lacks, at their defaults."""
    if isinstance(before, list) and isinstance(now, list | tuple) and len(before) == len(now):
        return [with_defaults(one, other) for one, other in zip(before, now, strict=True)]
    if not dataclasses.is_dataclass(now) or not isinstance(before, dict):
        return before
    found = dict(before)
    for field in dataclasses.fields(now):
        if field.name in before:
            found[field.name] = with_defaults(before[field.name], getattr(now, field.name))
        elif field.default is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(field.default, default=str))
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
            if dataclasses.is_dataclass(default):
                default = dataclasses.asdict(default)  # type: ignore[arg-type]
            found[field.name] = json.loads(json.dumps(default, default=str))
    return found


def contents(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by path of the training data's files and of a template file: what a run that goes on
    must find as it was. Of a folder: its files' names and sizes; of a hub dataset nothing."""
    stages = [stage.data for stage in recipe.stages if stage.data is not None]
    paths = [s.path for data in (recipe.data, *stages) for s in data.sources]
    places = [split_path(path)[0] for path in paths if not path.startswith("hub:")]
    template = recipe.model.chat_template
    if template is not None and template.endswith(".jinja"):
        places.append(Path(template))
    found = {}
    for path in places:
        if path.is_file():
            found[str(path)] = known_hash(path)
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            sizes = [[p.relative_to(path).as_posix(), p.stat().st_size] for p in files]
            found[str(path)] = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    return found


def start_content(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by path of the model folder that a run starts from: of the names and hashes of its
    weights, configurations, tokenizer and template. Empty where it starts from none; models that
    the folder refers to are not read."""
    if recipe.model.start_from is None:
        return {}
    folder = Path(recipe.model.start_from).expanduser()
    found = (path for path in folder.rglob("*") if path.suffix in MOVE_WEIGHTS)
    files = sorted(path for path in found if path.is_file())
    if (size := sum(path.stat().st_size for path in files)) > LONG_TO_READ:
        logger.info("reading %s (%.0f GB), to know it again", folder, size / 1e9)
    hashes = [[p.relative_to(folder).as_posix(), known_hash(p)] for p in files]
    return {recipe.model.start_from: hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}


def clean(out: Path) -> None:
    """Remove what killed runs left half made."""
    folders = [out, out / "stages", *(out / "stages").glob("*"), *out.glob("nonfinite")]
    for folder in folders:
        for path in sweep(folder):
            logger.info("removed %s, left by a run that was killed", path)
        if (folder / WRITING).exists():
            remove_folder(folder / WRITING)


def read_recipe(described: Path) -> dict[str, Any] | None:
    if not described.is_file():
        return None
    try:
        values = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{described} cannot be read ({error}); start anew with --resume none"
        ) from error
    return values if isinstance(values, dict) else {}


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """'key: before -> now' of each key that differs, but for those that are free to."""
    if before is None and not path:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        pairs = [(str(key), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(before, now, strict=True))]
    elif before == now or FREE_TO_CHANGE.fullmatch(path):
        return []
    else:
        return [f"{path}: {json.dumps(before)[:80]} -> {json.dumps(now)[:80]}"]
    return [
        line
        for key, one, other in pairs
        for line in differences(one, other, f"{path}.{key}" if path else key)
    ]


def check_same_recipe(described: Path, changed: Sequence[str]) -> None:
    if not changed:
        return
    lines = "".join(f"\n  {line}" for line in changed)
    raise ConfigError(
        f"{described.parent} holds a run of another recipe ({described}):{lines}\n"
        "Choose another output_dir, start anew with --resume none, or go on with the changed "
        "recipe from a checkpoint of your choice: --resume OUT/stages/N-NAME/checkpoint-STEP"
    )


def go_back(recipe: Recipe, checkpoint: Path) -> None:
    """Make a checkpoint the furthest that the run has come: what came after it is put aside, and
    one that lies elsewhere is copied in.

    Raises:
        CheckpointError: see `read_mark`; or its stage is not one of the recipe's.
    """
    out = Path(recipe.output_dir)
    mark = read_mark(checkpoint)
    names = [stage.name for stage in recipe.stages]
    if mark["stage"] not in names:
        raise CheckpointError(
            f"{checkpoint} is of stage {mark['stage']!r}; this recipe has {', '.join(names)}"
        )
    number = names.index(mark["stage"])
    folder = stage_folder(recipe, number)
    own = checkpoint.resolve().parent == folder.resolve()
    later = [stage_folder(recipe, later) for later in range(number + 1, len(names))]
    later += [folder / "model"]
    later += [p for step, p in checkpoints(folder) if not own or step > mark["step"]]
    later = [path for path in later if path.exists()]
    if later:
        aside = earlier(out)
        for path in later:
            target = aside / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
        for name in ("log.jsonl", "recipe.json"):
            if (out / name).is_file():
                shutil.copy2(out / name, aside / name)
        logger.warning("what came after %s is now in %s", checkpoint, aside)
    if not own:
        if recipe.stages[number].kind != "language":
            raise CheckpointError(f"{checkpoint}: stage {mark['stage']} has no checkpoints")
        with replacing_folder(folder / f"checkpoint-{mark['step']}") as building:
            shutil.copytree(checkpoint, building, dirs_exist_ok=True)
    log = JsonLog(out / "log.jsonl", names[number])
    log.drop(names[number + 1 :])


def earlier(out: Path) -> Path:
    number = 1
    while (out / f"earlier-{number}").exists():
        number += 1
    return out / f"earlier-{number}"
