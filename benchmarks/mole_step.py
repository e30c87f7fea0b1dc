"""What a mixture of LoRA experts costs: time and memory against what a user would pick instead.

    python benchmarks/mole_step.py step --out results/step      # whole training step
    python benchmarks/mole_step.py layer --out results/layer    # one MLP, forward and backward
    python benchmarks/mole_step.py decode --out results/decode  # one token with a KV cache
    python benchmarks/mole_step.py memory --out results/memory  # peak memory of a training step

Random weights of the real shapes; experts on gate, up and down projections, r = 16. Arms are timed
in turn within each round, on the same new tokens, so that they are paired; medians of the ratios
to PEFT's LoRA of the same rank, modules, adapter dtype and autocast are what counts. Every arm is
checked before it is timed: B is not zero, its output equals that of the `reference` kernel, and
every expert that a token chose has a gradient. Run it on an otherwise idle machine.

Arms: `base` no adapter; `peft` LoRA in the dtype at hand; `peft-default` LoRA as PEFT makes it on a
bf16 base, float32 and without autocast; `E4` and so on our experts with kernel auto; `E4-masked`
with a named kernel; `E4-loop` a dense loop over all experts and `E4-gather` a loop that gathers
each expert's tokens, which is what public code does.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig
from transformers import __version__ as transformers_version

from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    mark_trainable,
    route_statistics,
)
from llava_mole.training.memory import keep_freed_memory

TARGETS = ["gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 16, 32
SIZES: dict[str, dict[str, Any]] = {
    "gemma3-270m": {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "sliding_window": 512,
    },
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
}  # fmt: skip
PEFT = ("peft", "peft-default")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def base_model(size: str, vocabulary: int) -> Any:
    """bf16, frozen, the same random weights every time."""
    torch.manual_seed(0)
    kind = Gemma3TextConfig if size.startswith("gemma") else LlamaConfig
    config = kind(**SIZES[size], vocab_size=vocabulary, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


# ---------------------------------------------------------------------- baselines


class LoopExperts(nn.Module):
    """All experts on one linear as public code writes them; a router per MLP decides for it.

    `gathers`: each expert computes its own tokens only; else all experts compute all tokens.
    """

    def __init__(self, linear: nn.Linear, experts: int, dtype: torch.dtype, gathers: bool) -> None:
        super().__init__()
        self.gathers = gathers
        shape_a, shape_b = (RANK, linear.in_features), (linear.out_features, RANK)
        self.down = nn.ParameterList(torch.randn(shape_a, dtype=dtype) for _ in range(experts))
        self.up = nn.ParameterList(torch.randn(shape_b, dtype=dtype) for _ in range(experts))
        self.probs: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.probs is not None
        flat = x.reshape(-1, x.shape[-1])
        chosen = self.probs.argmax(dim=1)
        out = flat.new_zeros(len(flat), len(self.up[0]))
        for expert, (a, b) in enumerate(zip(self.down, self.up, strict=True)):
            a, b = a.to(x.dtype), b.to(x.dtype)
            if self.gathers:
                rows = (chosen == expert).nonzero().squeeze(1)
                update = F.linear(F.linear(flat[rows], a), b) * (ALPHA / RANK)
                out = out.index_add(0, rows, update)
            else:
                on = (chosen == expert).to(x.dtype).unsqueeze(1)
                out = out + F.linear(F.linear(flat, a), b) * (ALPHA / RANK) * on
        return out.view(*x.shape[:-1], -1)


def add_loops(model: nn.Module, experts: int, dtype: torch.dtype, gathers: bool) -> None:
    """Experts of `LoopExperts` on every MLP, balance loss included (`loop_balance`)."""
    for module in list(model.modules()):
        if not all(hasattr(module, name) for name in TARGETS):
            continue
        linears = [getattr(module, name) for name in TARGETS]
        router = nn.Linear(linears[0].in_features, experts)
        loops = [LoopExperts(linear, experts, dtype, gathers) for linear in linears]
        module.loop_router = router
        module.loops = nn.ModuleList(loops)

        def route(block: nn.Module, args: Any, router: Any = router, loops: Any = loops) -> None:
            probs = router(args[0].reshape(-1, args[0].shape[-1]).float()).softmax(-1)
            for loop in loops:
                loop.probs = probs
            block.probs = probs

        module.register_forward_pre_hook(route)
        for linear, loop in zip(linears, loops, strict=True):
            linear.register_forward_hook(lambda _, args, out, loop=loop: out + loop(args[0]))


def loop_balance(model: nn.Module) -> Tensor:
    """LLaVA-MoLE's balance loss of a model with `LoopExperts`."""
    blocks = [module for module in model.modules() if hasattr(module, "loop_router")]
    probs = torch.stack([block.probs for block in blocks]).mean(0)  # type: ignore[arg-type]
    chosen = F.one_hot(probs.argmax(1), probs.shape[1]).float()
    return 0.01 * (probs.mean(0) * chosen.mean(0)).sum()


# ---------------------------------------------------------------------- arms


class Arm:
    """One way to adapt a model.

    Args:
        name: see the module.
        model: with frozen base.
        dtype: of the adapters.
    """

    def __init__(self, name: str, model: nn.Module, dtype: torch.dtype) -> None:
        self.name = name
        self.experts, self.kind = parse(name)
        self.model: Any = model
        if self.kind == "peft-default":
            dtype = torch.float32
        if self.kind in PEFT:
            lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
            self.model = get_peft_model(model, lora, autocast_adapter_dtype=False)
            for key, parameter in self.model.named_parameters():
                if ".lora_" in key:
                    parameter.data = parameter.data.to(dtype)
        elif self.kind in ("loop", "gather"):
            add_loops(model, self.experts, dtype, gathers=self.kind == "gather")
        elif self.kind != "base":
            add_experts(model, self.config(dtype, self.kind))
            mark_trainable(model)
        self.awaken()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.bytes = sum(p.numel() * p.element_size() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None

    def config(self, dtype: torch.dtype, kernel: str) -> MoleConfig:
        return MoleConfig(
            num_experts=self.experts,
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=TARGETS,
            adapter_dtype=str(dtype).removeprefix("torch."),
            kernel=kernel,
        )

    @torch.no_grad()
    def awaken(self) -> None:
        """B is not zero: an adapter that does nothing must not look fast."""
        generator = torch.Generator().manual_seed(1)
        for key, parameter in self.model.named_parameters():
            if "lora_" in key or ".loops." in key:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.02 * noise)

    def loss(self, ids: Tensor) -> Tensor:
        if self.kind == "base":
            # Nothing to train: the gradient goes down to the embeddings, as with any adapter.
            embeds = self.model.get_input_embeddings()(ids).detach().requires_grad_()
            return self.model(inputs_embeds=embeds, labels=ids, use_cache=False).loss
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        if self.kind in ("loop", "gather"):
            return loss + loop_balance(self.model)
        if self.kind not in PEFT:
            return loss + sum(auxiliary_losses(self.model).values())
        return loss

    def step(self, ids: Tensor) -> None:
        self.loss(ids).backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def check(self, ids: Tensor, context: Callable[[], Any]) -> str:
        """Raises RuntimeError where the arm does not do what it is timed for."""
        with context():
            self.loss(ids).backward()
        grads = {k: p.grad for k, p in self.model.named_parameters() if p.requires_grad}
        empty = [key for key, grad in grads.items() if grad is None or not bool(grad.any())]
        note = ""
        if self.kind in ("base", *PEFT):
            if empty:
                raise RuntimeError(f"{self.name}: no gradient for {empty[0]}")
        elif self.kind in ("loop", "gather"):
            if any(".loop_router." in key for key in empty):
                raise RuntimeError(f"{self.name}: a router without gradient")
        else:
            note = self.check_experts(ids, context)
        for parameter in self.model.parameters():
            parameter.grad = None
        return note

    def check_experts(self, ids: Tensor, context: Callable[[], Any]) -> str:
        use = {use.name: use for use in route_statistics(self.model)}
        for name, bank in adapter_of(self.model).banks.items():
            block = name.rpartition(".")[0]
            for matrix in (bank.lora_A, bank.lora_B):
                assert matrix is not None
                assert matrix.grad is not None
                by_expert = matrix.grad.view(self.experts, -1).any(dim=1)
                if not torch.equal(by_expert, use[block].load > 0):
                    raise RuntimeError(f"{self.name}: {name} trains other experts than were chosen")
        blocks = [m for m in self.model.modules() if all(hasattr(m, n) for n in TARGETS)]
        generator = torch.Generator().manual_seed(3)
        size = (*ids.shape, blocks[0].gate_proj.in_features)
        x = torch.randn(size, generator=generator).bfloat16()
        worst = 0.0
        with torch.no_grad(), context():
            # Block by block: through the whole model, roundings change a route here and there.
            for block in blocks:
                found = block(x).float()
                with reference(self.model):
                    expected = block(x).float()
                worst = max(worst, float((found - expected).norm() / expected.norm()))
        if worst > 0.01:  # each output is rounded to 8 bits once or twice
            raise RuntimeError(f"{self.name}: a block differs from reference by {worst:.3f}")
        loads = torch.stack([one.load for one in use.values()])
        return (
            f"reference within {worst:.4f}, "
            f"{int((loads > 0).sum(1).float().median())}/{self.experts} experts used a layer"
        )


@contextmanager
def reference(model: nn.Module) -> Iterator[None]:
    """Inside, the experts are computed by the readable kernel."""
    adapter = adapter_of(model)
    shapes = []
    for module in model.modules():
        holder = module._modules.get("mole_router")
        if holder is not None:
            shapes.append((holder, dict(holder.shapes)))
            holder.shapes.update(dict.fromkeys(holder.shapes))
    kernels = {bank: bank.kernel for bank in adapter.banks.values()}
    for bank in kernels:
        bank.kernel = "reference"
    try:
        yield
    finally:
        for bank, kernel in kernels.items():
            bank.kernel = kernel
        for holder, before in shapes:
            holder.shapes.update(before)


def parse(name: str) -> tuple[int, str]:
    """ "E16-tiled" -> (16, "tiled"); "E16" -> (16, "auto"); "peft" -> (0, "peft")."""
    if name in ("base", *PEFT):
        return 0, name
    head, _, kind = name.partition("-")
    if not head.startswith("E") or not head[1:].isdigit():
        raise SystemExit(f"arm {name!r}: base, peft, E4, E4-masked, E4-loop, E4-gather, ...")
    return int(head[1:]), kind or "auto"


# ---------------------------------------------------------------------- what is timed


def autocast_for(adapter_dtype: str, arm: str = "") -> Callable[[], Any]:
    """float32 adapters compute in bf16 under autocast, all arms alike but PEFT's default."""
    if adapter_dtype == "float32" and arm != "peft-default":
        return lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext


def rounds(functions: dict[str, Callable[[Any], Any]], inputs: list[Any]) -> dict[str, list[float]]:
    """Seconds per call, arms in turn within a round, the first round left out."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number, value in enumerate(tqdm(inputs, desc="rounds", file=sys.stderr)):
        for name, function in functions.items():
            gc.collect()
            start = time.perf_counter()
            function(value)
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def time_step(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    arms, notes = {}, {}
    ids = new_ids(options, generator)
    for name in options.arms:
        arms[name] = Arm(name, base_model(options.size, options.vocabulary), DTYPES[dtype])
        notes[name] = arms[name].check(ids, autocast_for(dtype, name))
        print(f"  {name}: {arms[name].trained:,} trained {notes[name]}", file=sys.stderr)

    def run(arm: Arm) -> Callable[[Any], None]:
        context = autocast_for(dtype, arm.name)

        def call(ids: Tensor) -> None:
            with context():
                arm.step(ids)

        return call

    inputs = [new_ids(options, generator) for _ in range(options.rounds + 1)]
    times = rounds({name: run(arm) for name, arm in arms.items()}, inputs)
    return {"times": times, "notes": notes, "trained": {n: a.trained for n, a in arms.items()}}


def time_layer(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    context = autocast_for(dtype)
    generator = torch.Generator().manual_seed(2)
    arms, notes = {}, {}
    one = {**SIZES[options.size], "num_hidden_layers": 1}
    ids = new_ids(options, generator)
    for name in options.arms:
        with shape(options.size, one):
            arm = Arm(name, base_model(options.size, 64), DTYPES[dtype])
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
        return x.bfloat16(), grad.bfloat16()

    inputs = [pair() for _ in range(options.rounds + 1)]
    return {"times": rounds({n: run(a) for n, a in arms.items()}, inputs), "notes": notes}


def time_decode(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Seconds per token: a prompt of `length` tokens, then single tokens."""
    context = autocast_for(dtype)
    generator = torch.Generator().manual_seed(2)
    options.batch = 1
    ids = new_ids(options, generator)
    calls = {}
    for name in options.arms:
        arm = Arm(name, base_model(options.size, options.vocabulary), DTYPES[dtype])
        arm.check(ids, context)
        arm.model.eval()

        def call(tokens: Tensor, arm: Arm = arm) -> None:
            with torch.no_grad(), context():
                for token in tokens:
                    arm.model(input_ids=token.view(1, 1), cache=arm.cache, use_cache=True)

        arm.cache = DynamicCache(config=arm.model.config)
        with torch.no_grad(), context():
            arm.model(input_ids=ids, cache=arm.cache, use_cache=True)
        calls[name] = call
    inputs = [new_ids(options, generator)[0, :8] for _ in range(options.rounds + 1)]
    times = rounds(calls, inputs)
    return {"times": {name: [value / 8 for value in values] for name, values in times.items()}}


def measure_memory(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Peak resident MiB of three training steps, each arm in a process of its own."""
    peaks, parameters = {}, {}
    for name in tqdm(options.arms, desc="arms", file=sys.stderr):
        command = [sys.executable, __file__, "peak", "--arms", name, "--adapter-dtype", dtype]
        command += ["--keep-memory"] if options.keep_memory else []
        for key in ("size", "vocabulary", "batch", "length"):
            command += [f"--{key}", str(getattr(options, key))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        peaks[name], parameters[name] = found["peak"], found["bytes"]
    return {"peaks": peaks, "parameter_bytes": parameters}


def peak(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    arm = Arm(options.arms[0], base_model(options.size, options.vocabulary), DTYPES[dtype])
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        with autocast_for(dtype)():
            arm.step(new_ids(options, generator))
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": arm.bytes,
    }


@contextmanager
def shape(size: str, values: dict[str, Any]) -> Iterator[None]:
    before, SIZES[size] = SIZES[size], values
    try:
        yield
    finally:
        SIZES[size] = before


def new_ids(options: argparse.Namespace, generator: torch.Generator) -> Tensor:
    size = (options.batch, options.length)
    return torch.randint(4, options.vocabulary, size, generator=generator)


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
            "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
            "results": results,
            "ratios": {d: ratios(r["times"]) for d, r in results.items() if "times" in r},
        }
        (options.out / "result.json").write_text(json.dumps(described, indent=2) + "\n")
        if options.kind != "memory":
            plot(options.out / "plot.png", f"{options.kind}, {options.size}", results)


if __name__ == "__main__":
    main()
