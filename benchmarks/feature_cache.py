"""What the feature cache buys: the tower at every step, against its features read from disk.

    python data/openmoji.py --out datasets/openmoji --limit 200 --variants 1
    python benchmarks/feature_cache.py --data datasets/openmoji --json feature_cache.json

Stages without a language-model forward, each in both arms:

    gradient   a step of the warm start (`training/warm_start.py`), 128 pictures
    ridge      the whole closed form (`training/ridge.py`), which reads every picture three times

Both arms must leave the same projector, bit for bit, before anything is timed. The tower's arm
reads and decodes the pictures and runs the tower with folded norms at each step; the other reads a
cache that a run before it has filled. What filling took stands beside it.

With `--stages language`, a training step of the language model: pixels through the model, as
without a store, against features. There the tower is a part of the step only, so the measured
seconds stand beside the predicted ones: the step with pixels, less preparing and encoding its
pictures, plus reading their features, each timed alone. The first losses must agree. Arms take
turns; figures are medians.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from llava_mole.building import ModelRecipe, build_model
from llava_mole.configuration import ProjectorConfig
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_key import feature_key
from llava_mole.features import FeatureStore
from llava_mole.training.data import TrainingData, read_data
from llava_mole.training.parts import set_trainable
from llava_mole.training.recipe import SourceRecipe, WarmStartRecipe
from llava_mole.training.ridge import ridge_start
from llava_mole.training.warm_start import match_embeddings, warm_start

Features = Callable[[Sequence[Any]], Tensor]
TARGET = 5.0
"""Times as fast, where no language model runs."""
SAME_LOSS = 0.02
"""The model's own pass rounds features to no bfloat16 and folds no norms."""
WARMING = 3
"""Steps of a run before those that are timed."""


class Clock:
    """Features, and when they were asked for."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.marks: list[float] = []

    def __call__(self, pictures: Sequence[Any]) -> Tensor:
        self.marks.append(time.perf_counter())
        return self.features(pictures)


class TowerEachTime:
    """Features computed at every call, nothing kept but the folded tower."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __call__(self, pictures: Sequence[Any]) -> Tensor:
        self.store.memory.clear()
        return self.store(pictures)


Arm = tuple[str, Features]


def arms_of(
    model: Any, processor: Any, data: TrainingData, folder: Path
) -> tuple[list[Arm], dict[str, float]]:
    """The tower, and a cache as a later run finds it; what filling that took."""
    image_processor = processor.image_processor

    def cached() -> FeatureStore:
        cache = FeatureCache(folder, feature_key(model, image_processor))
        return FeatureStore(model, image_processor, cache=cache)

    started = time.perf_counter()
    computed = cached().fill(data.pictures())
    filled = {"pictures": computed, "seconds": time.perf_counter() - started}
    arms = [("tower", TowerEachTime(FeatureStore(model, image_processor))), ("cache", cached())]
    return arms, filled


def check_same(states: Sequence[dict[str, Tensor]], what: str) -> None:
    for name, tensor in states[0].items():
        if not torch.equal(tensor, states[1][name]):
            raise ConfigError(f"{what}: the arms leave another {name}; nothing was timed")


def compare(run: Callable[[Features], float], model: Any, arms: Sequence[Arm], what: str,
            rounds: int) -> dict[str, Any]:  # fmt: skip
    """Seconds of each arm; `run` trains the projector from where it starts and returns seconds."""
    start = copy.deepcopy(model.projector.state_dict())
    seconds: dict[str, list[float]] = {name: [] for name, _ in arms}
    states = []
    for round_ in range(rounds + 1):
        for name, features in arms if round_ % 2 else reversed(arms):
            model.projector.load_state_dict(start)
            took = run(features)
            if round_:
                seconds[name].append(took)
            else:  # the first round warms up, and shows that both arms do the same
                states.append(copy.deepcopy(model.projector.state_dict()))
        if not round_:
            check_same(states, what)
            print(f"{what}: both arms leave the same projector")
    return row(what, {name: statistics.median(values) for name, values in seconds.items()})


def row(what: str, seconds: dict[str, float]) -> dict[str, Any]:
    return {"stage": what, **seconds, "ratio": seconds["tower"] / seconds["cache"]}


def gradient(args: argparse.Namespace, data: TrainingData, folder: Path) -> dict[str, Any]:
    model, processor = build(args, ProjectorConfig())
    recipe = WarmStartRecipe(pictures_per_step=args.pictures_per_step)

    def run(features: Features) -> float:
        """Median seconds of a step: from one question for features to the next."""
        clock = Clock(features)
        warm_start(
            model, processor, data.samples, clock, recipe, steps=args.steps + WARMING,
            seed=args.seed, variants=data.variants,
        )  # fmt: skip
        steps = [*clock.marks[1:], time.perf_counter()]  # the first call matches the scale
        took = [after - before for before, after in itertools.pairwise(steps)]
        return statistics.median(took[WARMING:])

    arms, filled = arms_of(model, processor, data, folder)
    found = compare(run, model, arms, "gradient", args.rounds)
    return {**found, "unit": f"step of {args.pictures_per_step} pictures", "filling": filled}


def ridge(args: argparse.Namespace, data: TrainingData, folder: Path) -> dict[str, Any]:
    units = len(data.pictures())
    model, processor = build(args, ProjectorConfig(type="rbf", units=units, width=0.05))
    recipe = WarmStartRecipe(method="ridge", alignment_weight=10)

    def run(features: Features) -> float:
        started = time.perf_counter()
        ridge_start(
            model, processor, data.samples, features, recipe, seed=args.seed,
            variants=data.variants,
        )  # fmt: skip
        return time.perf_counter() - started

    arms, filled = arms_of(model, processor, data, folder)
    found = compare(run, model, arms, "ridge", args.rounds)
    return {**found, "unit": f"stage over {units:,} pictures", "filling": filled}


def language(args: argparse.Namespace, data: TrainingData, folder: Path) -> dict[str, Any]:
    """A training step with experts of pixels against one of features, measured and predicted."""
    model, processor = build(args, ProjectorConfig(), lora=True)
    arms, filled = arms_of(model, processor, data, folder)
    store = arms[1][1]
    match_embeddings(model, processor, data.samples, store)
    model.config.use_cache = False
    set_trainable(model, {"projector": 1e-4, "lora": 1e-4})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    samples = [sample for sample in data.samples if len(sample.images) == 1]
    device = model.device

    def batch(step: int, features: Features | None) -> dict[str, Tensor]:
        chosen = [samples[(step * args.rows + n) % len(samples)] for n in range(args.rows)]
        pictures = [sample.images[0] for sample in chosen]
        encoded = [processor.encode(sample.messages()) for sample in chosen]
        if features is None:
            found = processor.batch(encoded, pictures, labels=True)
        else:
            found = text_batch(processor, encoded)
            found["image_features"] = features(pictures)
        return {name: tensor.to(device) for name, tensor in found.items()}

    def step(number: int, features: Features | None) -> tuple[float, float]:
        """Seconds and loss."""
        started = time.perf_counter()
        loss = model(**batch(number, features)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started, loss.item()

    with torch.no_grad():
        losses = [model(**batch(0, features)).loss.item() for features in (None, store)]
    if abs(losses[0] - losses[1]) > SAME_LOSS * abs(losses[0]):
        raise ConfigError(f"language: the arms' first losses are {losses}; nothing was timed")
    print(f"language: first losses {losses[0]:.4f} and {losses[1]:.4f}")
    seconds: dict[str, list[float]] = {"tower": [], "cache": [], "encode": [], "read": []}
    model.train()
    for number in range(WARMING + args.steps):
        took = {"tower": step(number, None)[0], "cache": step(number, store)[0]}
        pictures = [
            samples[(number * args.rows + n) % len(samples)].images[0] for n in range(args.rows)
        ]
        started = time.perf_counter()
        with torch.no_grad():
            model.encode_images(processor.image_processor(pictures)["pixel_values"].to(device))
        took["encode"] = time.perf_counter() - started
        started = time.perf_counter()
        store(pictures)
        took["read"] = time.perf_counter() - started
        if number >= WARMING:
            for name, value in took.items():
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    predicted = median["tower"] - median["encode"] + median["read"]
    found = row("language", {"tower": median["tower"], "cache": median["cache"]})
    return {
        **found, "unit": f"step of {args.rows} pictures", "encode": median["encode"],
        "read": median["read"], "predicted_cache": predicted,
        "predicted_ratio": median["tower"] / predicted, "losses": losses, "filling": filled,
    }  # fmt: skip


STAGES = {"gradient": gradient, "ridge": ridge, "language": language}


def text_batch(processor: Any, encoded: Sequence[Any]) -> dict[str, Tensor]:
    """What `processor.batch` gives beside pixels."""
    bare = [type(item)(item.input_ids, item.labels, []) for item in encoded]
    questions = [question for item in encoded for question in item.questions]
    return {**processor.batch(bare, labels=True), **processor.steering(questions)}


def build(args: argparse.Namespace, projector: ProjectorConfig, lora: bool = False) -> Any:
    torch.manual_seed(args.seed)
    return build_model(
        ModelRecipe(
            args.language_model,
            vision_model=args.vision_model,
            vision_grid=args.grid,
            projector=projector,
            lora={"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
            if lora
            else None,
        )
    )


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("stage", "of", "tower each time, s", "cache, s", "ratio", "predicted")
    for found in rows:
        predicted = found.get("predicted_ratio")
        table.add_row(
            found["stage"], found["unit"], f"{found['tower']:.3f}", f"{found['cache']:.3f}",
            f"{found['ratio']:.2f}", "" if predicted is None else f"{predicted:.2f}",
        )  # fmt: skip
    return table


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of data/openmoji.py")
    parser.add_argument("--folder", type=Path, help="of the cache (default: a temporary one)")
    parser.add_argument("--pictures-per-step", type=int, default=128, help="gradient (128)")
    parser.add_argument("--rows", type=int, default=12, help="pictures of a language step (12)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a run (20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm (3)")
    parser.add_argument("--grid", type=int, help="patches averaged to so many squared (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stages", nargs="+", choices=tuple(STAGES), default=["gradient", "ridge"],
        help="what to measure (gradient ridge)",
    )  # fmt: skip
    parser.add_argument("--language-model", default="starter", help="or a folder, or a hub id")
    parser.add_argument("--vision-model", default="starter", help="or local-dir:FOLDER")
    parser.add_argument("--json", type=Path, help="write figures here")
    args = parser.parse_args(argv)
    try:
        data = read_data(
            [SourceRecipe(str(args.data / "train.json"), variants=str(args.data / "names.json"))]
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            rows = [STAGES[name](args, data, folder) for name in args.stages]
    except (CheckpointError, ConfigError, DataError) as error:
        print(f"feature_cache: {error}", file=sys.stderr)
        return 1
    filled = rows[0]["filling"]
    Console(width=120).print(table_of(rows))
    print(
        f"filling: {filled['pictures']:,} pictures in {filled['seconds']:.1f} s, once; target "
        f"{TARGET:g} x where no language model runs"
    )
    if args.json:
        figures = {"machine": machine(), "target": TARGET, "stages": rows}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
