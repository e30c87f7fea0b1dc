"""What a mixture of LoRA experts costs: time and memory against what a user would pick instead.

    python benchmarks/mole_step.py step --out results/step      # whole training step
    python benchmarks/mole_step.py layer --out results/layer    # one MLP, forward and backward
    python benchmarks/mole_step.py decode --out results/decode  # one token with a KV cache
    python benchmarks/mole_step.py memory --out results/memory  # peak memory of a training step

Random weights of the real shapes; experts on gate, up and down projections, r = 16 unless said
otherwise. Arms are timed in turn within each round, on the same new tokens, so they are paired;
medians of the ratios to PEFT's LoRA of the same rank, modules, adapter dtype and autocast are what
counts. Every arm is checked before it is timed: B is not zero, its output equals that of the
`reference` kernel, and every expert that a token chose has a gradient. Run it on an otherwise idle
machine.

On a GPU: `--device cuda`, and a size that fills it: `--size llama-7b --layers 4 --length 1024`.

Arms: `base` no adapter, its gradient going down to the embeddings; `peft` LoRA in the dtype at
hand; `peft-default` LoRA as PEFT makes it on a bf16 base, float32 and without autocast; `E4` and so
on our experts with kernel auto; `E4-masked` with a named kernel; `E4-shared` four experts of half
the rank and a shared one as large, `E4-beside` PEFT's LoRA in the shared one's place; `E4-loop` a
dense loop over all experts and `E4-gather` a loop that gathers each expert's tokens, which is what
public code does.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache
from transformers import __version__ as transformers_version

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from benchmarks.mole_arms import DTYPES, SIZES, TARGETS, Arm, base_model, parse
from llava_mole.training.memory import keep_freed_memory

WARM_UP = {"cpu": 1, "cuda": 3}
"""Rounds that are not counted: libraries start, allocators grow."""

# ---------------------------------------------------------------------- what is timed


def autocast_for(device: str, adapter_dtype: str, arm: str = "") -> Callable[[], Any]:
    """float32 adapters compute in bf16 under autocast, all arms alike but PEFT's default."""
    if adapter_dtype == "float32" and arm != "peft-default":
        return lambda: torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext


def build(options: argparse.Namespace, name: str, dtype: str, **changes: Any) -> Arm:
    shape = {"layers": options.layers, "vocabulary": options.vocabulary, **changes}
    model = base_model(options.size, device=options.device, **shape)
    return Arm(name, model, DTYPES[dtype], options.rank)


def wait(device: str) -> None:
    """Until a GPU has done what it was given; the clock then tells what a user waits for."""
    if device == "cuda":
        torch.cuda.synchronize()


def rounds(
    functions: dict[str, Callable[[Any], Any]], inputs: list[Any], device: str
) -> dict[str, list[float]]:
    """Seconds per call, arms in turn within a round, the first rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    gc.freeze()  # what was built is not searched again each time
    for number, value in enumerate(tqdm(inputs, desc="rounds", file=sys.stderr)):
        for name, function in functions.items():
            gc.collect()
            wait(device)
            start = time.perf_counter()
            function(value)
            wait(device)
            if number >= WARM_UP[device]:
                times[name].append(time.perf_counter() - start)
    gc.unfreeze()
    return times


def number_of_inputs(options: argparse.Namespace) -> int:
    return options.rounds + WARM_UP[options.device]


def time_step(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    arms, notes = {}, {}
    ids = new_ids(options, generator)
    for name in options.arms:
        arms[name] = build(options, name, dtype)
        notes[name] = arms[name].check(ids, autocast_for(options.device, dtype, name))
        print(f"  {name}: {arms[name].trained:,} trained {notes[name]}", file=sys.stderr)

    def run(arm: Arm) -> Callable[[Any], None]:
        context = autocast_for(options.device, dtype, arm.name)

        def call(ids: Tensor) -> None:
            with context():
                arm.step(ids)

        return call

    inputs = [new_ids(options, generator) for _ in range(number_of_inputs(options))]
    times = rounds({name: run(arm) for name, arm in arms.items()}, inputs, options.device)
    return {"times": times, "notes": notes, "trained": {n: a.trained for n, a in arms.items()}}


def time_layer(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    context = autocast_for(options.device, dtype)
    generator = torch.Generator().manual_seed(2)
    arms, notes = {}, {}
    ids = new_ids(options, generator)
    for name in options.arms:
        arm = build(options, name, dtype, layers=1, vocabulary=64)
        notes[name] = arm.check(ids % 64, context)
        arms[name] = arm

    def run(arm: Arm) -> Callable[[Any], None]:
        block = next(m for m in arm.model.modules() if all(hasattr(m, n) for n in TARGETS))

        def call(pair: tuple[Tensor, Tensor]) -> None:
            x, grad = pair
            leaf = x.clone().requires_grad_()
            with context():
                out = block(leaf)
            out.backward(grad)
            for parameter in block.parameters():
                parameter.grad = None

        return call

    width = SIZES[options.size]["hidden_size"]

    def pair() -> tuple[Tensor, Tensor]:
        size = (options.batch, options.length, width)
        x, grad = (torch.randn(size, generator=generator) for _ in range(2))
        return x.to(options.device, torch.bfloat16), grad.to(options.device, torch.bfloat16)

    inputs = [pair() for _ in range(number_of_inputs(options))]
    times = rounds({name: run(arm) for name, arm in arms.items()}, inputs, options.device)
    return {"times": times, "notes": notes}


def time_decode(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Seconds per token: a prompt of `length` tokens, then single tokens."""
    context = autocast_for(options.device, dtype)
    generator = torch.Generator().manual_seed(2)
    options.batch = 1
    ids = new_ids(options, generator)
    calls = {}
    for name in options.arms:
        arm = build(options, name, dtype)
        arm.check(ids, context)
        arm.model.eval()
        cache = DynamicCache(config=arm.model.config)

        def call(tokens: Tensor, arm: Arm = arm, cache: DynamicCache = cache) -> None:
            with torch.no_grad(), context():
                for token in tokens:
                    arm.model(input_ids=token.view(1, 1), cache=cache, use_cache=True)

        with torch.no_grad(), context():
            arm.model(input_ids=ids, cache=cache, use_cache=True)
        calls[name] = call
    inputs = [new_ids(options, generator)[0, :8] for _ in range(number_of_inputs(options))]
    times = rounds(calls, inputs, options.device)
    return {"times": {name: [value / 8 for value in values] for name, values in times.items()}}


def measure_memory(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Peak MiB of three training steps, each arm in a process of its own: resident, or allocated on
    the GPU."""
    peaks, parameters = {}, {}
    for name in tqdm(options.arms, desc="arms", file=sys.stderr):
        command = [sys.executable, __file__, "peak", "--arms", name, "--adapter-dtype", dtype]
        command += ["--keep-memory"] if options.keep_memory else []
        command += ["--layers", str(options.layers)] if options.layers else []
        for key in ("size", "vocabulary", "batch", "length", "rank", "device"):
            command += [f"--{key}", str(getattr(options, key))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        peaks[name], parameters[name] = found["peak"], found["bytes"]
    return {"peaks": peaks, "parameter_bytes": parameters}


def peak(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    arm = build(options, options.arms[0], dtype)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        with autocast_for(options.device, dtype)():
            arm.step(new_ids(options, generator))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    allocated = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else 0
    return {"peak": allocated or resident, "bytes": arm.bytes}


def new_ids(options: argparse.Namespace, generator: torch.Generator) -> Tensor:
    size = (options.batch, options.length)
    return torch.randint(4, options.vocabulary, size, generator=generator).to(options.device)


# ---------------------------------------------------------------------- report


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """Median over rounds of an arm's time over PEFT's in the same round."""
    if "peft" not in times:
        return {}
    return {
        name: median(t / p for t, p in zip(values, times["peft"], strict=True))
        for name, values in times.items()
    }


def tabulate(title: str, result: dict[str, Any]) -> Table:
    table = Table(title=title)
    if "peaks" in result:
        for column in ("arm", "peak MiB", "adapter MiB"):
            table.add_column(column)
        for name, value in result["peaks"].items():
            own = result["parameter_bytes"][name] / 2**20
            table.add_row(name, f"{value:,.0f}", f"{own:,.1f}")
        return table
    for column in ("arm", "median ms", "x PEFT", "quartiles"):
        table.add_column(column)
    relative = ratios(result["times"])
    for name, values in result["times"].items():
        each = sorted(values)
        low, high = each[len(each) // 4], each[(3 * len(each)) // 4]
        table.add_row(
            name,
            f"{1e3 * median(values):.1f}",
            f"{relative[name]:.3f}" if name in relative else "",
            f"{1e3 * low:.1f} to {1e3 * high:.1f}",
        )
    return table


def plot(path: Path, title: str, results: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for dtype, result in results.items():
        by_kind: dict[str, list[tuple[int, float]]] = {}
        for name, value in ratios(result["times"]).items():
            experts, kind = parse(name)
            if experts:
                by_kind.setdefault(kind, []).append((experts, value))
        for kind, points in by_kind.items():
            points.sort()
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{kind}, {dtype} adapters")
    axes.axhline(1.0, color="grey", linewidth=1, label="PEFT LoRA, same rank")
    axes.set(xscale="log", yscale="log", xlabel="experts", ylabel="time relative to PEFT LoRA")
    axes.set_title(title)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def machine(device: str) -> dict[str, Any]:
    found = {"cpu": platform.processor(), "threads": torch.get_num_threads()}
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found


KINDS: dict[str, Callable[[argparse.Namespace, str], dict[str, Any]]] = {
    "step": time_step,
    "layer": time_layer,
    "decode": time_decode,
    "memory": measure_memory,
    "peak": peak,
}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("kind", choices=KINDS, help="what to measure ('peak': one arm, for memory)")
    result.add_argument("--size", choices=SIZES, default="gemma3-270m", help="shape of the model")
    result.add_argument(
        "--vocabulary",
        type=int,
        default=4096,
        help="small by default: with Gemma's 262144 the head and its loss are most of the step "
        "and hide what the adapters cost",
    )
    result.add_argument("--layers", type=int, help="so many instead of the size's own")
    result.add_argument("--rank", type=int, default=16, help="of PEFT's LoRA and of each expert")
    result.add_argument("--device", choices=WARM_UP, default="cpu")
    result.add_argument("--batch", type=int, default=8)
    result.add_argument("--length", type=int, default=128, help="tokens of a row")
    result.add_argument(
        "--arms",
        nargs="+",
        default=["base", "peft", "E4", "E16", "E64"],
        help="see above; PEFT is what the others are compared with",
    )
    result.add_argument(
        "--adapter-dtype",
        nargs="+",
        choices=DTYPES,
        default=["bfloat16", "float32"],
        help="float32 adapters compute in bf16 under autocast, PEFT's too",
    )
    result.add_argument("--rounds", type=int, default=15)
    result.add_argument(
        "--keep-memory",
        action="store_true",
        help="every arm keeps what it frees, as `llava-mole train` does",
    )
    result.add_argument("--out", type=Path, help="folder for result.json and plot.png")
    return result


def main() -> None:
    options = parser().parse_args()
    if options.keep_memory:
        keep_freed_memory()
    results = {}
    for dtype in options.adapter_dtype:
        print(f"{options.kind}, {options.size}, {dtype} adapters", file=sys.stderr)
        results[dtype] = KINDS[options.kind](options, dtype)
        gc.collect()
    if options.kind == "peak":
        print(json.dumps(results[options.adapter_dtype[0]]))
        return
    for dtype, result in results.items():
        Console().print(tabulate(f"{options.kind}, {options.size}, {dtype} adapters", result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        described = {
            "options": {k: str(v) for k, v in vars(options).items()},
            "versions": {"torch": torch.__version__, "transformers": transformers_version},
            "machine": machine(options.device),
            "results": results,
            "ratios": {d: ratios(r["times"]) for d, r in results.items() if "times" in r},
        }
        (options.out / "result.json").write_text(json.dumps(described, indent=2) + "\n")
        if options.kind != "memory":
            plot(options.out / "plot.png", f"{options.kind}, {options.size}", results)


if __name__ == "__main__":
    main()
