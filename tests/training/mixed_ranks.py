"""A process of `test_mixed_ranks.py`: ranks with other kinds of rows, in the same passes.

    python -m tests.training.mixed_ranks OUT PARTS '{"engine": "fsdp", "experts": {…}, "seeds": 4}'

Every pass is compared with what one process computes on the rows of all. Writes OUT/RANK.json: the
largest difference of any gradient, relative to the largest gradient there is, by pass.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from llava_mole import ranks
from llava_mole.building import build_model
from llava_mole.configuration import ParrotConfig
from llava_mole.exiting import run_to_end
from llava_mole.mole import MoleConfig
from llava_mole.training.parallel import Sharding, shard
from llava_mole.training.parts import PARTS, set_trainable
from tests.conftest import TinyParts
from tests.helpers import assistant, awaken, picture, training_batch, user

KINDS = ("text", "pictures", "both")


def chats(kind: str, seed: int) -> list[Any]:
    """Rows of one rank."""
    pictures = {"text": 0, "pictures": 2, "both": 1}[kind]
    made = [
        [user(f"What is {seed + n}?", picture(seed + n)), assistant("thing " * (1 + n))]
        for n in range(pictures)
    ]
    texts = {"text": 2, "pictures": 0, "both": 1}[kind]
    return made + [[user("Say " + "it " * n), assistant(f"it {seed}")] for n in range(texts)]


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter that has one, whole."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
    return found


def main(out: str, parts: str, options: str) -> int:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    chosen = json.loads(options)
    recipe = TinyParts(Path(parts)).recipe(
        chosen.get("family", "gemma3_text"),
        parrot=ParrotConfig(num_experts=3, hidden_size=16),
        mole=MoleConfig(**chosen["experts"]),
        lora=True,
        vision_layer=chosen.get("vision_layer"),
    )
    torch.manual_seed(0)
    model, processor = build_model(recipe)
    awaken(model)
    names = chosen.get("train", [part for part in PARTS if part != "language_model"])
    set_trainable(model, dict.fromkeys(names, 0.1))
    ranks.join()
    alone = copy.deepcopy(model).train()
    engine: Any = model.train()
    if chosen["engine"] == "ddp":
        engine = DistributedDataParallel(model, find_unused_parameters=False)
    else:
        shard(model, options=Sharding(reshard_after_forward=chosen.get("reshard", True)))
    differences: dict[str, float] = {}
    compositions = [("text", "pictures"), ("pictures", "text"), ("text", "text"), ("both", "text")]
    for seed in range(chosen["seeds"]):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(KINDS), (2,), generator=generator).tolist()
        kinds = compositions[seed] if seed < 4 else tuple(KINDS[k] for k in drawn)
        shares = [chats(kind, 10 * seed + rank) for rank, kind in enumerate(kinds)]
        rows = [chat for share in shares for chat in share]
        everything = training_batch(processor, rows)
        counts = {
            "num_items_in_batch": int((everything["labels"][:, 1:] != -100).sum()),
            "num_samples_in_batch": len(rows),
        }
        alone.zero_grad()
        expected = alone(**everything, **counts)
        expected.loss.backward()
        out_ = engine(**training_batch(processor, shares[ranks.rank()]), **counts)
        (out_.loss * 2).backward()  # gradients are averaged over the ranks
        found, wanted = gradients(model), gradients(alone)
        engine.zero_grad()  # of the pieces: the next pass leaves some units whole
        assert found.keys() == wanted.keys(), set(found) ^ set(wanted)
        largest = max(float(g.abs().max()) for g in wanted.values())
        worst = max(float((found[n] - g).abs().max()) for n, g in wanted.items())
        loss = sum(ranks.gather(float(out_.loss)))
        assert abs(loss - float(expected.loss)) < 1e-4 * abs(loss), (loss, expected.loss)
        differences[f"{seed}: {' + '.join(kinds)}"] = worst / largest
        # Also without gradients, as in evaluation.
        engine.eval()
        with torch.no_grad():
            engine(**training_batch(processor, shares[ranks.rank()]))
        engine.train()
    (Path(out) / f"{ranks.rank()}.json").write_text(json.dumps(differences))
    ranks.leave()
    return 0


if __name__ == "__main__":
    run_to_end(lambda: main(*sys.argv[1:]))
