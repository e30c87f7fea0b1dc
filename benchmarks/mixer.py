"""The mixture planner beside `datasets.interleave_datasets`: shares, first batch, resume, memory.

    python benchmarks/mixer.py --json mixer.json

Twenty sources of 500,000 samples, weights drawn at random, 10 million samples. Each arm runs in a
process of its own; memory is that process's peak, imports included and named beside it.

    ours       llava_mole.data.mixture: every row's source and picture, in pieces of a million
    map        interleave_datasets over map-style datasets
    iterable   interleave_datasets over iterable datasets, `state_dict` taken after --reach samples
               (to reach 5 million would take as long as `whole` says), and by `skip`

`share error` is the largest difference, in samples, between what a source was asked for and what it
got among those that were drawn. `interleave_datasets` draws sources at random, so its own error
grows with the square root of the length; it also stops where its strategy says (all_exhausted), not
at a length: with weights from 0.5 to 1.5 that is about twice as far.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

MIB = 2**20
BATCH = 128
ARMS = ("ours", "map", "iterable")


def weights(sources: int) -> np.ndarray:
    drawn = np.random.default_rng(0).random(sources) + 0.5
    return drawn / drawn.sum()


def peak() -> float:
    """MiB of this process, so far at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def share_error(counts: np.ndarray, share: np.ndarray) -> float:
    return float(np.abs(counts - share * counts.sum()).max())


def ours(args: argparse.Namespace) -> dict[str, Any]:
    from llava_mole.data.mixture import Mixture, PlannedSource

    share = weights(args.sources)
    imported = peak()
    started = time.perf_counter()
    sizes = np.ones(args.samples // args.sources, dtype=np.int32)
    sources = [PlannedSource(f"s{i}", sizes, weight=float(w)) for i, w in enumerate(share)]
    mixture = Mixture(sources, stop=args.samples)
    mixture.plan(0, BATCH)
    first = time.perf_counter() - started
    counts = np.zeros(args.sources, dtype=np.int64)
    for start in range(0, mixture.rows, 1_000_000):
        part = mixture.plan(start, min(start + 1_000_000, mixture.rows))
        counts += np.bincount(part.source, minlength=args.sources)
    whole = time.perf_counter() - started
    started = time.perf_counter()
    again = Mixture(sources, stop=args.samples)
    found = again.plan(args.resume, args.resume + BATCH)
    resume = time.perf_counter() - started
    straight = mixture.plan(args.resume - 1000, args.resume + BATCH)
    assert (found.group == straight.group[1000:]).all(), "resumed elsewhere"
    return {
        "first_batch_s": first, "whole_s": whole, "resume_s": resume,
        "share_error": share_error(counts, share), "samples": int(counts.sum()),
        "peak_mib": peak(), "imports_mib": imported,
    }  # fmt: skip


def interleaved(args: argparse.Namespace, iterable: bool) -> tuple[Any, np.ndarray]:
    from datasets import Dataset, interleave_datasets

    share = weights(args.sources)
    size = args.samples // args.sources
    parts: list[Any] = [
        Dataset.from_dict({"source": np.full(size, i, dtype=np.int16), "row": np.arange(size)})
        for i in range(args.sources)
    ]
    if iterable:
        parts = [part.to_iterable_dataset() for part in parts]
    args.imports_mib = peak()
    args.started = time.perf_counter()
    mixed = interleave_datasets(
        parts, probabilities=share.tolist(), seed=0, stopping_strategy="all_exhausted"
    )
    return mixed, share


def map_style(args: argparse.Namespace) -> dict[str, Any]:
    mixed, share = interleaved(args, iterable=False)
    mixed[list(range(BATCH))]
    first = time.perf_counter() - args.started
    # The order is a table of indices, made when it was called; the first samples are counted.
    length = min(args.samples, len(mixed))
    counts = np.zeros(args.sources, dtype=np.int64)
    for start in range(0, length, 1_000_000):
        part = mixed.with_format("numpy")[start : min(start + 1_000_000, length)]["source"]
        counts += np.bincount(part, minlength=args.sources)
    whole = time.perf_counter() - args.started
    started = time.perf_counter()
    again, _ = interleaved(args, iterable=False)
    again[list(range(args.resume, args.resume + BATCH))]
    return {
        "first_batch_s": first, "whole_s": whole, "resume_s": time.perf_counter() - started,
        "share_error": share_error(counts, share), "samples": int(counts.sum()),
        "length_of_its_own": len(mixed), "peak_mib": peak(), "imports_mib": args.imports_mib,
    }  # fmt: skip


def iterable_style(args: argparse.Namespace) -> dict[str, Any]:
    mixed, share = interleaved(args, iterable=True)
    counts = np.zeros(args.sources, dtype=np.int64)
    first = 0.0
    for number, sample in enumerate(mixed):
        counts[sample["source"]] += 1
        if number + 1 == BATCH:
            first = time.perf_counter() - args.started
        if number + 1 == args.reach:
            break
    reached = time.perf_counter() - args.started
    state = mixed.state_dict()
    started = time.perf_counter()
    again, _ = interleaved(args, iterable=True)
    again.load_state_dict(state)
    next(iter(again))
    return {
        "first_batch_s": first, "whole_s": reached * args.samples / args.reach,
        "whole_is": f"{reached:.1f} s for {args.reach:,} samples, scaled",
        "resume_s": time.perf_counter() - started,
        "share_error": share_error(counts, share), "samples": int(counts.sum()),
        "peak_mib": peak(), "imports_mib": args.imports_mib,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10_000_000, help="default 10,000,000")
    parser.add_argument("--sources", type=int, default=20, help="default 20")
    parser.add_argument("--resume", type=int, default=5_000_000, help="default 5,000,000")
    parser.add_argument("--reach", type=int, default=200_000, help="of iterable (default 200,000)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure = {"ours": ours, "map": map_style, "iterable": iterable_style}[args.one]
        print(json.dumps(measure(args)))
        return 0
    results = {}
    for arm in args.arms:
        command = [sys.executable, __file__, "--one", arm]
        for key in ("samples", "sources", "resume", "reach"):
            command += [f"--{key}", str(getattr(args, key))]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            print(f"{arm}: {found.stderr.strip()[-1500:]}", file=sys.stderr)
            return 1
        results[arm] = json.loads(found.stdout.strip().splitlines()[-1])
    columns = ("first_batch_s", "whole_s", "resume_s", "share_error", "samples", "peak_mib",
               "imports_mib")  # fmt: skip
    print("| arm | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for arm, figures in results.items():
        cells = [f"{figures[column]:,.3f}".rstrip("0").rstrip(".") for column in columns]
        print(f"| {arm} | " + " | ".join(cells) + " |")
    for arm, figures in results.items():
        for key in ("whole_is", "length_of_its_own"):
            if key in figures:
                print(f"{arm}: {key.replace('_', ' ')}: {figures[key]}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
