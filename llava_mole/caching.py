"""`llava-mole cache`: a recipe's features ahead of its runs, and what the cache holds.

Only the tower is built. A run of the recipe then finds every picture's features on disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from llava_mole import starting
from llava_mole.building import ModelRecipe, from_anywhere
from llava_mole.digests import Picture
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import MAX_BYTES, FeatureCache
from llava_mole.feature_folder import KeyInfo, list_keys, remove_keys
from llava_mole.feature_key import TowerAlone, about, feature_key
from llava_mole.features import FeatureStore
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.starter import default_cache
from llava_mole.training.data import read_stages
from llava_mole.training.recipe import FeatureCacheRecipe, Recipe
from llava_mole.training.schema import load_recipe
from llava_mole.vision import load_vision

logger = logging.getLogger(__name__)

GIB = 2**30


@dataclass(frozen=True)
class CacheReport:
    """What filling did, or would do."""

    folder: Path
    """Of the key."""
    pictures: int
    """Files and pictures inside containers that the sources name, other drawings included."""
    distinct: int
    """By content."""
    hits: int
    """Of the distinct ones: held already."""
    computed: int
    """Run through the tower now; with `dry_run` what would be."""
    held: int
    """Of the distinct ones: in the cache at the end; with `dry_run` now."""
    bytes: int
    """Added on disk; with `dry_run` what would be."""
    seconds: float
    """Spent; with `dry_run` an estimate, from one batch of the pictures that are missing."""


def features_folder(folder: str | Path | None = None) -> Path:
    """Where features are kept: `folder`, or `features/` in the user's cache."""
    return default_cache() / "features" if folder is None else Path(folder).expanduser()


def tower_store(model: ModelRecipe, folder: Path, max_bytes: int) -> FeatureStore:
    """A store over the cache for the tower of a recipe's `model:` section, and nothing else of it.

    Raises:
        ConfigError: see `load_vision`.
    """
    if model.start_from is not None:
        tower, vision = starting.start_tower(model.start_from, model.vision_dtype)
    else:
        tower, vision = load_vision(
            from_anywhere(model.vision_model, "local-dir:"),
            model.vision_pretrained,
            layer=model.vision_layer,
            select=model.vision_select,
            grid=model.vision_grid,
            revision=model.vision_revision,
            resize=model.vision_resize,
            dtype=model.vision_dtype,
        )
    if (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
        tower = tower.to(device)
    alone = TowerAlone(tower, vision)
    image_processor = LlavaMoleImageProcessor(vision.preprocess)
    key = feature_key(alone, image_processor)
    cache = FeatureCache(folder, key, max_bytes=max_bytes, about=about(alone))
    return FeatureStore(alone, image_processor, cache=cache)


def fill_cache(
    recipe: Recipe,
    folder: Path,
    *,
    max_bytes: int = MAX_BYTES,
    dry_run: bool = False,
    progress: bool = True,
    pictures: Sequence[Picture] | None = None,
) -> CacheReport:
    """Compute the features of all pictures of a recipe that the cache does not hold yet.

    Args:
        recipe: its tower, its sources.
        folder: of the cache.
        max_bytes: bound on it.
        dry_run: look only; a few pictures are run through the tower, to tell how long it would
            take, and not stored.
        pictures: instead of those of the sources.

    Raises:
        ConfigError, DataError, CheckpointError: with what to do.
    """
    started = time.monotonic()
    if pictures is None:
        every = {id(data): data for data in read_stages(recipe, progress=progress)}.values()
        pictures = list(dict.fromkeys(picture for data in every for picture in data.pictures()))
    store = tower_store(recipe.model, folder, max_bytes)
    cache = store.cache
    assert cache is not None
    distinct = dict(zip(store.digests(pictures, progress), pictures, strict=True))
    missing = [picture for digest, picture in distinct.items() if not cache.has(digest)]
    hits = len(distinct) - len(missing)
    if dry_run:
        seconds = len(missing) * seconds_per_picture(store, missing)
        size = len(missing) * cache.row_bytes
        return CacheReport(
            cache.folder, len(pictures), len(distinct), hits, len(missing), hits, size, seconds
        )
    before = bytes_held(cache)
    computed = store.fill(missing, progress)
    size = max(0, bytes_held(cache) - before)
    seconds = time.monotonic() - started
    held = sum(map(cache.has, distinct))
    return CacheReport(
        cache.folder, len(pictures), len(distinct), hits, computed, held, size, seconds
    )


def seconds_per_picture(store: FeatureStore, pictures: Sequence[Picture]) -> float:
    """Measured on two batches, the first of which warms up; 0 without pictures."""
    plain = FeatureStore(store.model, store.image_processor, store.batch_size)
    some = pictures[: 2 * store.batch_size]
    if not some:
        return 0.0
    plain.fill(some[: store.batch_size], progress=False)
    plain.clear()
    started = time.monotonic()
    plain.fill(some, progress=False)
    return (time.monotonic() - started) / len(some)


def bytes_held(cache: FeatureCache) -> int:
    size = 0
    for path in cache.folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process made room
            size += path.stat().st_size
    return size


def describe(report: CacheReport, max_bytes: int, *, dry_run: bool) -> list[str]:
    """The report in lines."""
    same = report.pictures - report.distinct
    lines = [
        f"{report.pictures:,} pictures"
        + (f", {same:,} of them the same as another" if same else "")
        + f"; {report.hits:,} of {report.distinct:,} held already"
    ]
    size, missing = report.bytes / GIB, report.distinct - report.hits
    if dry_run:
        free = shutil.disk_usage(existing(report.folder)).free
        lines.append(
            f"would compute {missing:,}: about {report.seconds:,.0f} s and {size:,.2f} GiB "
            f"(bound on the folder {max_bytes / GIB:,.1f} GiB, free on its disk "
            f"{free / GIB:,.1f} GiB)"
        )
        if report.bytes > min(max_bytes, free):
            lines.append("they do not fit: what does not will be computed by every run anew")
    else:
        lines.append(f"computed {report.computed:,}: {size:,.2f} GiB in {report.seconds:,.1f} s")
        if lost := report.distinct - report.held:
            lines.append(f"{lost:,} could not be stored (see the warnings): runs compute them anew")
    return [*lines, f"folder: {report.folder}"]


def existing(path: Path) -> Path:
    """The path or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def keys_table(keys: Sequence[KeyInfo]) -> Table:
    """Keys with tower, transform, size and age."""
    key = Column("key", no_wrap=True, min_width=12)  # --clear wants it whole
    table = Table(key, "tower", "layer", "features", "pictures", "GiB", "last used")
    for info in keys:
        parts, named = (as_mapping(info.described.get(name)) for name in ("key", "about"))
        tower = " ".join(str(named[k]) for k in ("model", "pretrained") if named.get(k))
        shape = parts.get("shape")
        wide = " x ".join(map(str, shape)) if isinstance(shape, list) else "?"
        grid = f", grid {parts['grid']}" if parts.get("grid") else ""
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.last_used))
        cells = (
            info.id[:12], tower or "?", str(parts.get("layer") or "last") + grid, wide,
            f"{info.pictures:,}", f"{info.bytes / GIB:.2f}", used if info.last_used else "never",
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    return table


def as_mapping(value: object) -> dict[str, Any]:
    """What a file that anyone may have edited holds, if it is an object."""
    return value if isinstance(value, dict) else {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `llava-mole cache`."""
    parser.add_argument("--config", type=Path, help="recipe whose pictures' features to compute")
    parser.add_argument("--folder", type=Path, help="of the cache, instead of the recipe's")
    parser.add_argument(
        "--max-gib", type=gibibytes, help="bound on the folder, instead of the recipe's"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    parser.add_argument("--list", action="store_true", help="print what the cache holds")
    parser.add_argument(
        "--clear",
        nargs="*",
        metavar="KEY",
        help="remove these keys (as --list names them), or everything",
    )
    parser.add_argument("--json", type=Path, help="write the figures of filling here")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, dotted"
    )


def gibibytes(text: str) -> float:
    value = float(text)
    if not 0 < value * GIB < 2**62 or value * GIB < 1:
        raise argparse.ArgumentTypeError(f"{text} is no size above 0")
    return value


def cache_command(args: argparse.Namespace, console: Console | None = None) -> int:
    """The body of `llava-mole cache`.

    Raises:
        ConfigError, DataError, CheckpointError: with what to do.
    """
    console = console or Console()
    recipe = load_recipe(args.config, args.overrides) if args.config else None
    wanted = FeatureCacheRecipe()
    if recipe is not None and recipe.data.feature_cache is not None:
        wanted = recipe.data.feature_cache
    folder = features_folder(args.folder or wanted.folder)
    max_bytes = int((args.max_gib or wanted.max_gib) * GIB)
    if args.clear is not None:
        removed = remove_keys(folder, args.clear or None)
        size = sum(info.bytes for info in removed) / GIB
        console.print(f"removed {len(removed)} keys, {size:.2f} GiB, from {folder}")
        return 0
    if args.list:
        console.print(f"{folder}:")
        console.print(keys_table(list_keys(folder)))
        return 0
    if recipe is None:
        raise ConfigError("cache: name a recipe with --config, or say --list or --clear")
    report = fill_cache(recipe, folder, max_bytes=max_bytes, dry_run=args.dry_run)
    for line in describe(report, max_bytes, dry_run=args.dry_run):
        console.print(line, soft_wrap=True, highlight=False)
    if args.json:
        figures = {**vars(report), "folder": str(report.folder), "dry_run": args.dry_run}
        try:
            args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json {args.json}: cannot be written ({error})") from error
    return 0
