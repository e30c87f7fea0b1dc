"""How much memory a run takes, and what to change when it runs out.

The advice is in order of what it costs: first what changes no result, then what changes how fast
it is reached, then what changes the data or the model.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from llava_mole.errors import TrainingError
from llava_mole.training.recipe import Recipe, StageRecipe

GIB = 2**30
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of malloc.h for `mallopt`."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees on the CPU, for its next step; True where it does.

    glibc hands large blocks back to the system as they are freed and gets the next ones empty, so
    that every step pays for each page of its activations and gradients anew
    (benchmarks/README.md has what that costs). Nothing is changed where an accelerator holds the
    tensors, where the C library is another, or where the environment says how memory is allocated.
    """
    if torch.accelerator.is_available() or any(name in os.environ for name in OWN_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, GIB)) and bool(mallopt(TRIM_THRESHOLD, -1))


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def peak_memory() -> dict[str, float]:
    """Peaks of this process so far in GiB: "process", and "accelerator" where there is one."""
    found = {"process": peak_memory_gib()}
    if torch.accelerator.is_available():
        found["accelerator"] = torch.accelerator.max_memory_allocated() / GIB
    return found


def peaks_in_words(peaks: dict[str, float]) -> str:
    return ", ".join(f"{place} {gib:.2f} GiB" for place, gib in peaks.items())


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: an accelerator's, the CPU's, or Python's own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and should_reduce_batch_size(error)


@contextmanager
def memory_advice(recipe: Recipe, stage: StageRecipe) -> Iterator[None]:
    """Where memory runs out inside, say which keys to change.

    Raises:
        TrainingError: with the present values of these keys, and the peak that was seen.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        changes = "".join(f"\n  {change}" for change in advice(recipe, stage))
        raise TrainingError(
            f"stage {stage.name}: memory ran out (peak so far: {peaks_in_words(peak_memory())}): "
            f"{what[:300]}\nWhat helps, the cheapest first:{changes}\nA run with changed rows goes "
            "on from a checkpoint that is named: --resume OUT/stages/N-NAME/checkpoint-STEP"
        ) from error


def advice(recipe: Recipe, stage: StageRecipe) -> list[str]:
    """Keys to change, their present values, what that costs; the cheapest first."""
    options: dict[str, Any] = {**recipe.training, **stage.training}
    at = f"stages.{stage.name}"
    if stage.kind == "warm_start":
        half = max(2, stage.warm_start.pictures_per_step // 2)
        return [
            f"{at}.warm_start.pictures_per_step={half} (now {stage.warm_start.pictures_per_step})",
            *features_on_disk(recipe),
        ]
    found = []
    accumulated = int(options.get("gradient_accumulation_steps", 1))
    per_step = stage.pictures_per_step
    if per_step > 1:
        divisor = next((d for d in (2, 3, 5, 7) if per_step % d == 0), per_step)
        found.append(
            f"{at}.pictures_per_step={per_step // divisor} (now {per_step}) with "
            f"training.gradient_accumulation_steps={accumulated * divisor} (now {accumulated}): as "
            "many rows a step, in smaller pieces"
        )
    recomputed = options.get("activation_checkpointing", options.get("gradient_checkpointing"))
    if not recomputed:
        found.append(
            "training.activation_checkpointing=true (now false): the same gradients; activations "
            "are computed twice, about a third more time"
        )
    evaluated = int(options.get("per_device_eval_batch_size", 8))
    if recipe.data.held_out and evaluated > 1:
        found.append(
            f"training.per_device_eval_batch_size={evaluated // 2} (now {evaluated}), if it was "
            "the evaluation: the same result"
        )
    if recipe.workers > 1:
        found.append(f"workers=1 (now {recipe.workers}): one copy of the model; slower")
    found += features_on_disk(recipe)
    if stage.packing is not None:
        found.append(
            f"{at}.packing={max(16, stage.packing // 2)} (now {stage.packing}): less a row"
        )
    if stage.questions_per_picture > 1:
        found.append(
            f"{at}.questions_per_picture={stage.questions_per_picture // 2} (now "
            f"{stage.questions_per_picture}): fewer answers a step"
        )
    if not any(word in str(options.get("optim", "")) for word in ("8bit", "paged", "adafactor")):
        found.append(
            f"training.optim=adamw_8bit (now {options.get('optim', 'adamw_torch_fused')}): "
            "optimizer state of a quarter, needs bitsandbytes; training differs slightly"
        )
    if recipe.model.dtype == "float32":
        found.append("model.dtype=bfloat16 (now float32): half the language model")
    found.append(
        f"data.max_length (now {recipe.data.max_length or 'the context'}) with data.too_long=drop: "
        "long samples are left out, and listed"
    )
    heavy = [part for part in ("language_model", "vision") if part in stage.learning_rates]
    found += [
        f"{at}.learning_rates without {part} (now {stage.learning_rates[part]:g}): it stays frozen"
        + (", model.lora or model.experts learn in its place" if part == "language_model" else "")
        for part in heavy
    ]
    return found


def features_on_disk(recipe: Recipe) -> list[str]:
    if recipe.data.feature_cache is not None:
        return []
    return ["'data.feature_cache={}' (now none): a frozen tower's features on disk, not in memory"]
