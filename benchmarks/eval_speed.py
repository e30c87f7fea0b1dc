r"""Questions per second of circular evaluation, against what a user would write instead.

    python benchmarks/eval_speed.py --model runs/quickstart/model \
        --data runs/quickstart/data/benchmark/openmoji_test_{en,cn,pt,ar,tr,ru}.tsv

Arms, on the same questions, prompts, weights, dtype, threads, bound on new tokens and end tokens:

- harness: `llava_mole.evaluation`: the tower once a picture, a question's beginning once for all of
  its passes, rows that have ended leave the batch
- batched: `model.generate` on batches of as many rows, sorted by length, padded on the left
- batched-equal: as batched, but only rows of one length share a batch (no padding)
- single: `model.generate` on one row at a time

Before anything is timed, the replies of all arms are compared with one another. In float32 they are
the same; in bfloat16 near ties fall either way with the shapes that a product has, between the
harness and `generate` as between `generate` on one row and on many. Rounds go through the arms in
turn; medians are reported, and the harness's ratio to each. Loading the model and reading files are
left out; making tokens, decoding pictures and running the tower are in, anew in every round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole.evaluation.asks import Ask, Unit, make_units
from llava_mole.evaluation.extraction import extract_choice
from llava_mole.evaluation.items import Item, first_of_each, read_items
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.plan import make_plan
from llava_mole.evaluation.protocol import STYLES, Protocol

ARMS = ("harness", "batched", "batched-equal", "single")
Replies = dict[tuple[str, int], str]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model folder")
    add("--data", type=Path, nargs="+", required=True, help="TSVs, …_xx.tsv, with circular rows")
    add("--categories", nargs="+", help="only these kinds of question")
    add("--questions", type=int, default=8, help="of each file (default 8)")
    add("--rounds", type=int, default=3)
    add("--rows-per-batch", type=int, default=64, help="passes in a batch (default 64)")
    add("--max-new-tokens", type=int, default=16)
    add("--style", choices=tuple(STYLES), default="letters")
    add("--dtype", default="auto", help="of the language model and tower (default: as saved)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--json", type=Path, help="file for all figures")
    return parser.parse_args(argv)


def questions(args: argparse.Namespace) -> list[Item]:
    items: list[Item] = []
    for path in args.data:
        found = read_items(path, path.stem[-2:])
        if args.categories:
            found = [item for item in found if item.category in args.categories]
        # Evenly over the file's kinds of question.
        groups = list(dict.fromkeys(item.group for item in found))
        step = max(1, len(groups) // args.questions)
        kept = set(groups[::step][: args.questions])
        items += first_of_each([item for item in found if item.group in kept], args.questions)
    return items


def harness(ours: OurModel, units: list[Unit], rows: int) -> Replies:
    ours.forget()
    plan = make_plan(units, ours.lengths(units), rows, mixed=ours.mixes)
    said: Replies = {}
    parts = [[units[number] for number in batch] for batch in plan.batches]
    ours.prepare(parts)
    for part in parts:
        for unit, replies in zip(part, ours.answer(part), strict=True):
            for ask, reply in zip(unit.asks, replies, strict=True):
                said[ask.group, ask.turn] = reply.text
    return said


def messages(ask: Ask) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": ask.item.image}, {"type": "text", "text": ask.prompt}]
    return [{"role": "user", "content": parts}]


def generated(
    model: Any, processor: Any, units: list[Unit], protocol: Protocol, rows: int, equal: bool
) -> Replies:
    """`generate` on batches of rows of like length."""
    asks = [ask for unit in units for ask in unit.asks]
    lengths = [
        len(processor.encode(messages(ask), add_generation_prompt=True).input_ids) for ask in asks
    ]
    order = sorted(range(len(asks)), key=lambda number: (lengths[number], number))
    batches: list[list[int]] = []
    for number in order:
        room = bool(batches) and len(batches[-1]) < rows
        if room and (not equal or lengths[batches[-1][0]] == lengths[number]):
            batches[-1].append(number)
        else:
            batches.append([number])
    said: Replies = {}
    for batch in batches:
        inputs = processor.apply_chat_template(
            [messages(asks[number]) for number in batch],
            tokenize=True, return_dict=True, add_generation_prompt=True,
        ).to(model.device)  # fmt: skip
        out = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, do_sample=False)
        texts = processor.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for number, text in zip(batch, texts, strict=True):
            said[asks[number].group, asks[number].turn] = text.strip()
    return said


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    protocol = Protocol(passes="circular", style=args.style, max_new_tokens=args.max_new_tokens)
    units = make_units(questions(args), protocol)
    asks = {(ask.group, ask.turn): ask for unit in units for ask in unit.asks}
    dtype = None if args.dtype == "auto" else args.dtype
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype).eval()
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    processor = AutoProcessor.from_pretrained(args.model)
    rows = args.rows_per_batch
    ours = OurModel(model, processor, protocol)
    runs: dict[str, Callable[[], Replies]] = {
        "harness": lambda: harness(ours, units, rows),
        "batched": lambda: generated(model, processor, units, protocol, rows, equal=False),
        "batched-equal": lambda: generated(model, processor, units, protocol, rows, equal=True),
        "single": lambda: generated(model, processor, units, protocol, 1, equal=True),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in args.arms}
    differ: dict[str, dict[str, int]] = {}
    replies: dict[str, Replies] = {}
    with torch.inference_mode():
        for number in range(args.rounds + 1):  # the first one is compared, not timed
            for arm in args.arms:
                started = time.perf_counter()
                found = runs[arm]()
                if number:
                    seconds[arm].append(time.perf_counter() - started)
                else:
                    replies[arm] = found
    for one, other in itertools.combinations(args.arms, 2):
        pairs = [(key, text, replies[other][key]) for key, text in replies[one].items()]
        differ[f"{one}, {other}"] = {
            "replies": sum(a != b for _, a, b in pairs),
            "choices": sum(choice(asks[k], a) != choice(asks[k], b) for k, a, b in pairs),
        }
    per_second = {
        arm: len(units) / statistics.median(times) for arm, times in seconds.items() if times
    }
    result = {
        "questions": len(units), "asks": len(asks), "rounds": args.rounds,
        "rows_per_batch": rows, "max_new_tokens": args.max_new_tokens, "style": args.style,
        "dtype": str(next(model.language_model.parameters()).dtype),
        "threads": torch.get_num_threads(), "device": model.device.type,
        "longest_reply_tokens": max(
            len(processor.tokenizer(text)["input_ids"]) for text in replies[args.arms[0]].values()
        ),
        "seconds": seconds, "questions_per_second": per_second,
        "harness_against": {
            arm: per_second[args.arms[0]] / speed for arm, speed in per_second.items()
        },
        "different": differ,
    }  # fmt: skip
    table = Table(title=f"{len(units)} questions, {len(asks)} asks, {result['dtype']}")
    for name in ("arm", "questions/s", "harness ×", "other replies", "other choices"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, speed in per_second.items():
        other = differ.get(f"{args.arms[0]}, {arm}", {"replies": 0, "choices": 0})
        table.add_row(
            arm, f"{speed:.2f}", f"{per_second[args.arms[0]] / speed:.2f}",
            str(other["replies"]), str(other["choices"]),
        )  # fmt: skip
    Console().print(table)
    for names, counts in differ.items():
        print(f"{names}: {counts['replies']} replies differ, {counts['choices']} choices")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


def choice(ask: Ask, reply: str) -> str | None:
    return extract_choice(reply, ask.item.options, ask.item.language)


if __name__ == "__main__":
    raise SystemExit(main())
