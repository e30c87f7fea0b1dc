"""What a warm start buys before the language model runs: by gradient steps, and solved for.

    python benchmarks/warm_start.py --data runs/quickstart/data \\
        --pictures twitter=FOLDER google=FOLDER --json warm_start.json

Two projectors of the starter's parts learn from the same pictures, re-drawings and names: an
`mlp2x_gelu` by contrast and alignment (`training/warm_start.py`), an `rbf` in closed form
(`training/ridge.py`), each with 16 visual tokens a picture and with one. Then, without the language
model, for the drawings trained on and for each artist's (FOLDER: see other_artists.py):

    cosine   between a picture's mean visual token and its name's input embeddings
    choice   how often the right name of four of the same kind is the nearest by cosine

over the naming questions of `eval_train.tsv`, mean over languages. Chance is 0.25. The picture, not
the question, is what counts here, so each picture and language is one case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from benchmarks.other_artists import drawings_of, key_of
from llava_mole.building import ModelRecipe, build_model
from llava_mole.configuration import ProjectorConfig
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.evaluation.items import Item, read_items
from llava_mole.features import FeatureStore
from llava_mole.training.data import read_data
from llava_mole.training.recipe import SourceRecipe, WarmStartRecipe
from llava_mole.training.ridge import ridge_start
from llava_mole.training.warm_start import names_of_pictures, warm_start

ALSO = {"kind": 3.0, "attribute": 4.0}
GRADIENT = WarmStartRecipe(
    learning_rate=3e-3, alignment_weight=10, also=ALSO, token_dropout=0.5, feature_noise=0.3,
    variant_share=0.6,
)  # fmt: skip
RIDGE = WarmStartRecipe(method="ridge", alignment_weight=10, also=ALSO)


def name_directions(
    model: Any, processor: Any, names: Mapping[Path, Mapping[str, str]]
) -> Callable[[str, str], Tensor]:
    """(language, name) -> (D,): its mean input embedding, less the mean of the language's names."""
    table = model.get_input_embeddings()

    @torch.no_grad()
    def mean(name: str) -> Tensor:
        ids = torch.tensor(processor.question_ids(name), device=model.device)
        return table(ids).float().mean(0).cpu()

    by_language: dict[str, list[Tensor]] = defaultdict(list)
    for known in names.values():
        for language, name in known.items():
            by_language[language].append(mean(name))
    centres = {language: torch.stack(found).mean(0) for language, found in by_language.items()}
    return lambda language, name: F.normalize(mean(name) - centres[language], dim=0)


@torch.no_grad()
def measure(
    model: Any,
    features: FeatureStore,
    items: Sequence[tuple[Item, Any]],
    direction: Callable[[str, str], Tensor],
    centre: Tensor,
) -> dict[str, float]:
    """Cosine and choice over (item, picture to show), mean over languages."""
    dtype = next(model.projector.parameters()).dtype
    cosines, right = defaultdict(list), defaultdict(list)
    model.projector.eval()
    for start in range(0, len(items), 64):
        part = items[start : start + 64]
        seen = features([picture for _, picture in part])[:, 1:].to(dtype)
        vectors = F.normalize(model.projector(seen).float().mean(1) - centre, dim=-1)
        for vector, (item, _) in zip(vectors, part, strict=True):
            near = {
                letter: float(vector @ direction(item.language, text))
                for letter, text in item.options.items()
            }
            cosines[item.language].append(near[item.answer])
            right[item.language].append(max(near, key=lambda x: near[x]) == item.answer)

    def mean(found: dict[str, list[Any]]) -> float:
        return sum(sum(v) / len(v) for v in found.values()) / len(found)

    return {"cosine": round(mean(cosines), 4), "choice": round(mean(right), 4)}


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    named = [entry.partition("=")[0] for entry in args.pictures if "=" in entry]
    if len({*named, "own"}) <= len(args.pictures):
        raise DataError("--pictures: expected NAME=FOLDER, each NAME once and none `own`")
    artists = {
        name: drawings_of(Path(folder))
        for name, _, folder in (entry.partition("=") for entry in args.pictures)
    }
    data = read_data(
        [SourceRecipe(str(args.data / "train.json"), variants=str(args.data / "names.json"))]
    )
    cases: dict[tuple[str, str], Item] = {}
    for item in read_items(args.data / "eval_train.tsv"):
        if item.category == "naming":
            cases.setdefault((item.picture, item.language), item)
    items = [
        item for item in cases.values()
        if all(key_of(item.picture) in files for files in artists.values())
    ]  # fmt: skip
    if not items:
        raise DataError(f"no picture of {args.data} has a drawing in every folder")
    shown: dict[str, list[tuple[Item, Any]]] = {"own": [(item, item.image) for item in items]}
    for name, files in artists.items():
        read = {item.picture: files[key_of(item.picture)].read_bytes() for item in items}
        shown[name] = [(item, read[item.picture]) for item in items]
    drawings = len(data.pictures())
    arms = []
    for grid in args.grids:
        for method in ("gradient", "ridge"):
            torch.manual_seed(args.seed)
            projector = (
                ProjectorConfig(dropout=0.1)
                if method == "gradient"
                else ProjectorConfig(type="rbf", units=drawings, width=0.05)
            )
            parts = ModelRecipe(
                args.language_model, vision_model=args.vision_model, vision_grid=grid,
                projector=projector,
            )  # fmt: skip
            model, processor = build_model(parts)
            if method == "gradient":  # the next arm of this grid has the same tower
                features = FeatureStore(model, processor.image_processor)
                pictures = [picture for cases in shown.values() for _, picture in cases]
                features.fill([*data.pictures(), *pictures])
            common = (model, processor, data.samples, features)
            options = {"seed": args.seed, "variants": data.variants}
            started = time.monotonic()
            if method == "ridge":
                ridge_start(*common, RIDGE, **options)
            else:
                warm_start(*common, GRADIENT, steps=args.steps, **options)
            seconds = time.monotonic() - started
            names = names_of_pictures(data.samples, "naming")
            direction = name_directions(model, processor, names)
            table = model.get_input_embeddings()
            tokens = sorted(
                {t for known in names.values() for n in known.values()
                 for t in processor.question_ids(n)}
            )  # fmt: skip
            with torch.no_grad():
                centre = table(torch.tensor(tokens)).float().mean(0)
            found = {
                name: measure(model, features, cases, direction, centre)
                for name, cases in shown.items()
            }
            tokens_shown = grid * grid
            arms.append({"method": method, "tokens": tokens_shown, "seconds": seconds, **found})
            print(arms[-1], flush=True)
    return arms


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of data/openmoji.py")
    parser.add_argument("--pictures", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--grids", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--steps", type=int, default=2500, help="of the gradient arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--language-model", default="starter", help="or a folder, or a hub id")
    parser.add_argument("--vision-model", default="starter", help="or local-dir:FOLDER")
    parser.add_argument("--json", type=Path, help="write figures here")
    args = parser.parse_args(argv)
    try:
        arms = run(args)
    except (CheckpointError, ConfigError, DataError) as error:
        print(f"warm_start: {error}", file=sys.stderr)
        return 1
    sets = [name for name in arms[0] if name not in ("method", "tokens", "seconds")]
    table = Table(
        "warm start",
        "tokens",
        "seconds",
        *(f"{s}: {f}" for s in sets for f in ("cosine", "choice")),
    )
    for arm in arms:
        cells = [f"{arm[s][f]:.3f}" for s in sets for f in ("cosine", "choice")]
        table.add_row(arm["method"], str(arm["tokens"]), f"{arm['seconds']:.0f}", *cells)
    Console(width=140).print(table)
    if args.json:
        args.json.write_text(json.dumps({"arms": arms, "steps": args.steps}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
