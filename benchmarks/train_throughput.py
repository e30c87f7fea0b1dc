"""A training step beside the straightforward Hugging Face one: seconds and peak memory.

    python benchmarks/train_throughput.py --json throughput.json

Arms, on the same frozen Gemma 3 270M in bfloat16, the same rows, PEFT LoRA and AdamW:

    ours      logits only where a label is supervised
    plain     `labels` given to the language model, as in any tutorial: logits at every position
    full      (--full) ours with experts on the MLPs and six questions sharing a picture

`ours` and `plain` must give the same loss before anything is timed. Steps of both alternate in one
process, so that both meet the same machine; each ratio is the median over pairs. Peak memory is
taken in a process of its own per arm, as the highest resident size while it trains.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGET_SPEED, TARGET_MEMORY = 2.2, 0.6
MIB = 2**20
SAME_LOSS = 0.02
"""Both arms compute in bfloat16 and sum the same cross-entropies in another order."""


@dataclass(frozen=True)
class Workload:
    rows: int
    length: int
    supervised: int
    rank: int
    threads: int


def text_batch(work: Workload, vocabulary: int, device: str) -> dict[str, Tensor]:
    """Random rows; the last `supervised` tokens of each carry a label."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, vocabulary - 1000, (work.rows, work.length), generator=generator)
    labels = torch.full_like(ids, -100)
    labels[:, -work.supervised :] = ids[:, -work.supervised :]
    mask = torch.ones_like(ids)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {key: value.to(device) for key, value in batch.items()}


def build(arm: str, work: Workload, device: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model with its batch, ready to train."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    from llava_mole.building import ModelRecipe, build_model
    from llava_mole.mole import MoleConfig
    from llava_mole.starter import ensure_starter

    starter = ensure_starter()
    lora = {"r": work.rank, "lora_alpha": 2 * work.rank, "target_modules": MLP + ATTENTION}
    torch.manual_seed(0)
    if arm == "plain":
        model = AutoModelForCausalLM.from_pretrained(starter.language_model, dtype=torch.bfloat16)
        inject_adapter_in_model(LoraConfig(task_type="CAUSAL_LM", **lora), model)
        vocabulary = model.config.vocab_size
    else:
        experts = None
        if arm == "full":
            lora["target_modules"] = ATTENTION
            experts = MoleConfig(num_experts=4, r=work.rank)
        model, _ = build_model(ModelRecipe(lora=lora, experts=experts))
        vocabulary = model.config.text_config.vocab_size
    for name, parameter in model.named_parameters():
        adapter = ".lora_" in name or ".mole_" in name
        parameter.requires_grad_(adapter or (arm == "full" and name.startswith("projector.")))
        if adapter and ".mole_router" not in name:
            # The same dtype in every arm, whatever each library would choose by itself.
            parameter.data = parameter.data.to(torch.bfloat16)
    model.to(device).train()
    batch = text_batch(work, vocabulary, device)
    return model, tree_batch(model, work, batch) if arm == "full" else batch


def tree_batch(model: Any, work: Workload, batch: dict[str, Tensor]) -> dict[str, Any]:
    """The same questions, six to a picture: its visual tokens once, then six branches."""
    vision = model.config.vision_part
    branches = 6
    rows = -(-work.rows // branches)
    question = max(work.supervised + 1, work.length - vision.tokens_per_image)
    length = vision.tokens_per_image + branches * question
    ids = batch["input_ids"].flatten()[:1].repeat(rows, length)
    ids[:, : vision.tokens_per_image] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    segments = torch.zeros_like(ids)
    for branch in range(branches):
        start = vision.tokens_per_image + branch * question
        segments[:, start : start + question] = branch + 1
        answer = slice(start + question - work.supervised, start + question)
        labels[:, answer] = ids[:, answer]
    features = torch.randn(rows, 1 + vision.num_patches, vision.width, device=ids.device)
    return {
        "input_ids": ids,
        "labels": labels,
        "segment_ids": segments,
        "image_features": features,
    }


def stepper(arm: str, work: Workload, device: str) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    model, batch = build(arm, work, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def timed(step: Callable[[], float]) -> float:
    started = time.perf_counter()
    step()  # .item() waits for the device
    return time.perf_counter() - started


def check_same_loss(steps: dict[str, Callable[[], float]]) -> dict[str, float]:
    """First loss of each arm. LoRA starts as the identity, so both are the base model's."""
    first = {arm: step() for arm, step in steps.items()}
    ours, plain = first["ours"], first["plain"]
    if abs(ours - plain) > SAME_LOSS * abs(plain):
        raise SystemExit(f"the arms differ: loss {ours:.4f} (ours) against {plain:.4f} (plain)")
    return first


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Highest:
    """Highest resident size while it runs.

    Not ru_maxrss: loading passes through a peak of its own, which training need not reach again.
    """

    def __enter__(self) -> Highest:
        self.value = resident()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stop.wait(0.002):
            self.value = max(self.value, resident())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def measure_memory(arm: str, work: Workload, device: str, steps: int = 3) -> dict[str, float]:
    """In this process: MiB after loading, highest while training, and the process's own record."""
    torch.set_num_threads(work.threads)
    step = stepper(arm, work, device)
    if device == "cuda":
        loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            step()
        peak = torch.cuda.max_memory_allocated()
        return {"loaded_mib": loaded / MIB, "peak_mib": peak / MIB}
    loaded = resident()
    with Highest() as highest:
        for _ in range(steps):
            step()
    record = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    return {
        "loaded_mib": loaded / MIB,
        "peak_mib": highest.value / MIB,
        "record_mib": record / MIB,
    }


def memory_of(arm: str, work: Workload, device: str) -> dict[str, float]:
    """The same in a fresh process, so that arms do not inherit each other's memory."""
    arguments = [f"--{key}={value}" for key, value in asdict(work).items()]
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", arm, f"--device={device}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(work: Workload, device: str, repeats: int, warmup: int, full: bool) -> dict[str, Any]:
    """Everything measured, as it goes into the JSON file."""
    torch.set_num_threads(work.threads)
    arms = ["ours", "plain"] + ["full"] * full
    memory = {arm: memory_of(arm, work, device) for arm in arms}
    steps = {arm: stepper(arm, work, device) for arm in arms}
    losses = check_same_loss(steps)
    for _ in range(max(0, warmup - 1)):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats):
        for arm in arms if repeat % 2 == 0 else arms[::-1]:
            seconds[arm].append(timed(steps[arm]))
    speed = statistics.median(
        plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)
    )
    share = memory["ours"]["peak_mib"] / memory["plain"]["peak_mib"]
    added = {arm: values["peak_mib"] - values["loaded_mib"] for arm, values in memory.items()}
    return {
        "workload": asdict(work),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "first_loss": losses,
        "seconds": seconds,
        "median_seconds": {arm: statistics.median(values) for arm, values in seconds.items()},
        "memory": memory,
        "times_as_fast": speed,
        "peak_memory_share": share,
        "added_memory_share": added["ours"] / added["plain"],
        "meets_target": speed >= TARGET_SPEED and share <= TARGET_MEMORY,
    }


def show(found: dict[str, Any]) -> None:
    work = found["workload"]
    print(
        f"{work['rows']} x {work['length']} tokens, {work['supervised']} supervised per row, "
        f"LoRA r={work['rank']}, bfloat16, {work['threads']} threads"
    )
    print(
        f"{'arm':<8}{'s / step':>10}{'loaded MiB':>12}{'peak MiB':>10}{'added MiB':>11}{'loss':>10}"
    )
    for arm, seconds in found["median_seconds"].items():
        memory = found["memory"][arm]
        print(
            f"{arm:<8}{seconds:>10.3f}{memory['loaded_mib']:>12.0f}{memory['peak_mib']:>10.0f}"
            f"{memory['peak_mib'] - memory['loaded_mib']:>11.0f}{found['first_loss'][arm]:>10.4f}"
        )
    verdict = "met" if found["meets_target"] else "missed"
    print(
        f"ours is {found['times_as_fast']:.2f} x as fast (target {TARGET_SPEED}) at "
        f"{found['peak_memory_share']:.2f} of the peak memory (target {TARGET_MEMORY}): {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12, help="rows of a step (default 12)")
    parser.add_argument("--length", type=int, default=80, help="tokens of a row (default 80)")
    parser.add_argument("--supervised", type=int, default=5, help="of them with a label (5)")
    parser.add_argument("--rank", type=int, default=16, help="LoRA's rank (16)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="timed pairs, 7 or more (9)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="also experts and shared pictures")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--memory-of", choices=("ours", "plain", "full"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    work = Workload(options.rows, options.length, options.supervised, options.rank, options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, work, options.device)))
        return
    if options.repeats < 7:
        print(f"{options.repeats} repeats are too few for a median worth quoting", file=sys.stderr)
    found = compare(work, options.device, options.repeats, options.warmup, options.full)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
