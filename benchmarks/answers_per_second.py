"""Supervised answers per second of the whole training path, beside the straightforward one.

    python data/openmoji.py --out datasets/openmoji
    python benchmarks/answers_per_second.py --data datasets/openmoji --json answers.json

Every arm trains the same parts of the starter (projector, PEFT LoRA on all linears, r 16, bfloat16)
on the same source, with AdamW, as many answers a step, from the files on disk:

    huggingface  one question a row in random order, padded to the longest; the picture is read and
                 goes through the frozen tower at every step; `labels` given to the language model,
                 so logits at every position
    ours         six questions share a picture, rows of like length packed; features of the tower
                 from the store, filled before (its seconds are printed beside); logits only where a
                 label is supervised
    parrot       ours with Parrot's module on: each question has its own picture

Before anything is timed, both ways must give the same loss on the same questions. Steps of all arms
alternate in one process; a step is everything from planning and reading to the optimizer. The ratio
is the median over rounds. `--grid 1` is what configs/starter.yaml uses (one token a picture);
without it a picture is the tower's 49.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAME_LOSS = 0.02
"""bfloat16, and the store's features are rounded to it."""


class Arm:
    """A model with its data: `step()` trains once and returns the answers it learnt from."""

    def __init__(self, args: argparse.Namespace, data: Any, *, parrot: bool = False) -> None:
        from llava_mole.building import ModelRecipe, build_model
        from llava_mole.configuration import ParrotConfig
        from llava_mole.features import FeatureStore

        self.args, self.data = args, data
        torch.manual_seed(0)
        recipe = ModelRecipe(
            lora={"r": 16, "lora_alpha": 32, "target_modules": LINEARS},
            vision_grid=args.grid,
            parrot=ParrotConfig(hidden_size=320) if parrot else None,
            attn_implementation=args.attention,
        )
        self.model, self.processor = build_model(recipe)
        trained = ("projector.", "parrot.")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".lora_" in name or name.startswith(trained))
        self.model.train()
        self.parrot = parrot
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.features = FeatureStore(self.model, self.processor.image_processor)
        self.fill_seconds = 0.0
        self.at = 0

    def finish(self, loss: torch.Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Ours(Arm):
    """The project's planner, collator, feature store and forward pass."""

    def __init__(self, args: argparse.Namespace, data: Any, *, parrot: bool = False) -> None:
        super().__init__(args, data, parrot=parrot)
        from llava_mole.data.collator import Collator, longest_tree
        from llava_mole.data.rows import MixtureRows
        from llava_mole.training.data import encode_sample

        started = time.perf_counter()
        self.features.fill(data.pictures(), progress=False)
        self.fill_seconds = time.perf_counter() - started
        self.questions = args.questions
        pools = data.pools({})
        mixture = data.mixture(pools, self.questions, seed=0)
        self.collator = Collator(
            self.processor,
            share_prefix=not parrot,
            parrot=parrot,
            max_length=4096,
            packing=args.packing or None,
            features=self.features,
        )
        self.batch = args.answers // self.questions
        self.rows = MixtureRows(
            pools, mixture, lambda sample: encode_sample(self.processor, sample),
            rows=10**9, questions=self.questions, seed=0, batch=self.batch, window=args.window,
            length=longest_tree(self.collator),
        )  # fmt: skip
        self.real = self.computed = 0

    def forward(self, rows: Any) -> tuple[torch.Tensor, int]:
        batch = self.collator(rows)
        languages = batch.pop("languages")
        tokens = batch["segment_ids"] >= 0 if "segment_ids" in batch else batch["attention_mask"]
        self.real += int(tokens.sum())
        self.computed += tokens.numel()
        return self.model(**batch).loss, len(languages)

    def step(self) -> int:
        rows = [self.rows[self.at + i] for i in range(self.batch)]
        self.at += self.batch
        loss, answers = self.forward(rows)
        self.finish(loss)
        return answers


class HuggingFace(Arm):
    """What a tutorial does."""

    def __init__(self, args: argparse.Namespace, data: Any) -> None:
        super().__init__(args, data)
        generator = torch.Generator().manual_seed(0)
        self.order = torch.randperm(len(data.samples), generator=generator).tolist()

    def forward(self, samples: Any) -> tuple[torch.Tensor, int]:
        processor, model = self.processor, self.model
        encoded = [processor.encode(sample.messages()) for sample in samples]
        images = [image for sample in samples for image in sample.images]
        batch = processor.batch(encoded, images, labels=True)
        with torch.no_grad():
            model.vision_tower.eval()
            features = model.vision_tower(batch["pixel_values"])
        projector = next(model.projector.parameters()).dtype
        visual = model.projector(features.to(projector))[:, 1:]
        embeds = model.get_input_embeddings()(batch["input_ids"])
        places = (batch["input_ids"] == processor.image_token_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(places, visual.to(embeds.dtype))
        out = model.language_model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
        )
        return out.loss, len(samples)

    def step(self) -> int:
        chosen = [self.order[(self.at + i) % len(self.order)] for i in range(self.args.answers)]
        self.at += self.args.answers
        loss, answers = self.forward([self.data.samples[i] for i in chosen])
        self.finish(loss)
        return answers


def check_same_loss(ours: Ours, theirs: HuggingFace) -> tuple[float, float]:
    """The same questions both ways, with the same weights: LoRA starts as the identity."""
    rows = [ours.rows[i] for i in range(4)]
    theirs.model.projector.load_state_dict(ours.model.projector.state_dict())
    with torch.no_grad():
        a = float(ours.forward(rows)[0])
        b = float(theirs.forward([sample for row in rows for sample in row.samples])[0])
    if abs(a - b) > SAME_LOSS * abs(b):
        raise SystemExit(f"the arms differ: loss {a:.4f} (ours) against {b:.4f} (huggingface)")
    return a, b


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of data/openmoji.py")
    parser.add_argument("--answers", type=int, default=24, help="a step (default 24)")
    parser.add_argument("--questions", type=int, default=6, help="that share a picture (default 6)")
    parser.add_argument("--packing", type=int, default=512, help="tokens of a row, 0: off (512)")
    parser.add_argument("--window", type=int, default=8, help="of lengths, in steps (default 8)")
    parser.add_argument("--grid", type=int, help="visual tokens a side (default: the tower's 7)")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    from llava_mole.training.data import read_data
    from llava_mole.training.recipe import SourceRecipe

    data = read_data([SourceRecipe(str(args.data / "train.json"))], progress=False)
    list(data.samples)  # read once, for both
    arms: dict[str, Any] = {"huggingface": HuggingFace(args, data), "ours": Ours(args, data)}
    losses = check_same_loss(arms["ours"], arms["huggingface"])
    arms["parrot"] = Ours(args, data, parrot=True)
    rate: dict[str, list[float]] = {name: [] for name in arms}
    steps: dict[str, Callable[[], int]] = {name: arm.step for name, arm in arms.items()}
    for round_number in range(args.warmup + args.rounds):
        for name in list(steps) if round_number % 2 else list(steps)[::-1]:
            started = time.perf_counter()
            answers = steps[name]()
            if round_number >= args.warmup:
                rate[name].append(answers / (time.perf_counter() - started))
    found = {
        "answers_per_second": {name: statistics.median(values) for name, values in rate.items()},
        "times_huggingface": {
            name: statistics.median(a / b for a, b in zip(values, rate["huggingface"], strict=True))
            for name, values in rate.items()
        },
        "real_tokens": {name: arms[name].real / arms[name].computed for name in ("ours", "parrot")},
        "fill_seconds": arms["ours"].fill_seconds,
        "pictures": len(data.pictures()),
        "same_loss": losses,
        "settings": {k: str(v) for k, v in vars(args).items()},
    }
    print(f"{args.answers} answers a step, grid {args.grid or 7}, {args.attention}, "
          f"packing {args.packing}, {torch.get_num_threads()} threads")  # fmt: skip
    for name, value in found["answers_per_second"].items():
        tokens = found["real_tokens"].get(name)
        print(
            f"{name:<12}{value:>8.1f} answers/s{found['times_huggingface'][name]:>7.2f} x"
            + (f"   {tokens:.1%} of positions are tokens" if tokens else "")
        )
    print(f"the store was filled with {found['pictures']:,} pictures in "
          f"{found['fill_seconds']:.1f} s")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
