"""Do a step again that ended a run: python -m llava_mole.training.replay OUT/nonfinite/NAME

Loads the weights before the step, its micro-batches and the random state, runs forward and backward
passes, and says which losses and gradients are no numbers. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_mole.errors import CheckpointError
from llava_mole.training.nonfinite import retrace
from llava_mole.training.parts import set_trainable


def read_record(
    folder: Path, rank: int
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """(micro-batches, random state, what rank-N.json holds).

    Raises:
        CheckpointError: a file is missing.
    """
    files = [folder / f"rank-{rank}.safetensors", folder / f"rank-{rank}.json", folder / "model"]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{', '.join(missing)} not found; a run that met a loss that is no number leaves them "
            "in OUT/nonfinite/STAGE-step-N"
        )
    about = json.loads(files[1].read_text(encoding="utf-8"))
    batches: list[dict[str, Any]] = [{} for _ in about["micro_batches"]]
    random = {}
    for name, value in load_file(files[0]).items():
        where, _, key = name.partition(".")
        if where == "random":
            random[key] = value
        else:
            batches[int(where)][key] = value
    return batches, random, about


def replay(folder: Path, rank: int = 0) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
    """What `retrace` returns, for a folder that a run left."""
    batches, random, about = read_record(folder, rank)
    model = AutoModelForImageTextToText.from_pretrained(
        folder / "model", attn_implementation=about["attn_implementation"]
    )
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    set_trainable(model, about["learning_rates"])
    autocast = torch.autocast(model.device.type, torch.float16) if about["fp16"] else nullcontext()
    with autocast:
        return retrace(model, batches, random, about["items"], about["samples"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="OUT/nonfinite/STAGE-step-N")
    parser.add_argument("--rank", type=int, default=0, help="whose micro-batches (default 0)")
    args = parser.parse_args(argv)
    try:
        _, _, about = read_record(args.folder, args.rank)
        losses, wrong = replay(args.folder, args.rank)
    except CheckpointError as error:
        Console(stderr=True).print(f"replay: {error}", markup=False, soft_wrap=True)
        return 2
    console = Console(soft_wrap=True, highlight=False)
    for number, (found, entry) in enumerate(zip(losses, about["micro_batches"], strict=True)):
        bad = "" if all(map(math.isfinite, found.values())) else "   <- no number"
        values = ", ".join(f"{name} {value:.6g}" for name, value in found.items())
        console.print(f"micro-batch {number}: {values}{bad}")
        console.print("  " + "\n  ".join(entry["samples"]))
    for part, names in wrong.items():
        console.print(f"gradients of {part}: {len(names)} tensors with no number, first {names[0]}")
    if not wrong:
        console.print("all gradients are finite")
    return 0


if __name__ == "__main__":
    sys.exit(main())
