"""A loss or a gradient that is no number: stop before the optimizer step, and keep what shows it.

    OUT/nonfinite/instruct-step-120/rank-0.safetensors   the step's micro-batches, random state
    OUT/nonfinite/instruct-step-120/rank-0.json          samples, losses, rates, what was found
    OUT/nonfinite/instruct-step-120/model/               the weights before the step

    python -m llava_mole.training.replay OUT/nonfinite/instruct-step-120

does the step again. Gradients that overflow because a GradScaler scaled them (fp16) do not count:
it skips their step and scales less. They do once its scale is below 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava_mole import sharding
from llava_mole.folders import writing_file
from llava_mole.training.parts import parameters_by_part
from llava_mole.training.undisturbed import random_state, set_random_state


class StepRecord:
    """What the optimizer step at hand has seen, on this rank; references, no copies."""

    def __init__(self) -> None:
        self.begin([], None, None)

    def begin(self, batches: Sequence[Mapping[str, Any]], items: Any, samples: Any) -> None:
        """The micro-batches of the step; supervised tokens and samples of all of its ranks."""
        self.batches = list(batches)
        self.items, self.samples = items, samples
        self.random: dict[str, Tensor] | None = None
        self.losses: list[dict[str, float]] = []

    def before_pass(self) -> None:
        if self.random is None:
            self.random = random_state()

    def after_pass(self, losses: dict[str, float]) -> None:
        self.losses.append(losses)

    def wrong(self) -> list[int]:
        """Numbers of the micro-batches whose loss is no number."""
        return [
            number
            for number, losses in enumerate(self.losses)
            if not all(map(math.isfinite, losses.values()))
        ]


def scaled_down(scaler: Any) -> bool:
    """Whether a GradScaler will answer a gradient that is no number: by skipping the step."""
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= 1


def retrace(
    model: Any,
    batches: Sequence[Mapping[str, Any]],
    random: dict[str, Tensor],
    items: Any,
    samples: Any,
) -> tuple[list[dict[str, float]], dict[str, list[str]]]:
    """Do a step's passes again, up to the gradients, which are not clipped, and summed over ranks
    only where the model lies in pieces; then a collective.

    Args:
        model: the plain model, with the weights before the step; its gradients are replaced.
        batches: micro-batches, as the collator made them.
        random: state before the first pass.
        items, samples: what losses are divided by.

    Returns:
        Losses of each micro-batch by name; part -> names of its parameters whose gradients hold a
        value that is no number; of those in pieces, in this rank's.
    """
    now = random_state()
    set_random_state(random)
    model.train()
    model.zero_grad()
    device = next(model.parameters()).device
    losses = []
    for batch in batches:
        inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
        out = model(**inputs, num_items_in_batch=items, num_samples_in_batch=samples)
        out.loss.backward()
        losses.append({name: float(value) for name, value in out.losses.items()})
    wrong = {}
    for part, parameters in parameters_by_part(model).items():
        names = [
            name
            for name, parameter in parameters.items()
            if parameter.grad is not None
            and not bool(torch.isfinite(sharding.own_piece(parameter.grad)).all())
        ]
        if names:
            wrong[part] = names
    model.zero_grad()
    set_random_state(now)
    return losses, wrong


def write_record(folder: Path, rank: int, record: StepRecord, about: Mapping[str, Any]) -> None:
    """Write this rank's files; see the module's docstring.

    Args:
        about: what else goes into the JSON file.
    """
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, batch in enumerate(record.batches)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    tensors |= {f"random.{name}": value for name, value in (record.random or {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"rank-{rank}.safetensors.tmp"
    save_file(tensors, beside)
    beside.rename(folder / f"rank-{rank}.safetensors")
    values = {
        **about,
        "items": None if record.items is None else float(record.items),
        "samples": None if record.samples is None else float(record.samples),
        "micro_batches": [
            {"samples": batch.get("sources", []), "losses": losses}
            for batch, losses in zip(record.batches, record.losses, strict=False)
        ],
    }
    with writing_file(folder / f"rank-{rank}.json") as file:
        json.dump(readable(values), file, indent=1, ensure_ascii=False)


def readable(value: Any) -> Any:
    """JSON has no word for what is no number: as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: readable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [readable(one) for one in value]
    return value


def in_words(
    *,
    stage: str,
    step: int,
    record: StepRecord,
    norm: float | None,
    parts: Mapping[str, Sequence[str]],
    lost: Sequence[str],
    before_step: bool,
    folder: Path,
    checkpoint: Path | None,
    rates: Mapping[str, float],
    options: Any,
) -> str:
    """The message that ends the run.

    Args:
        before_step: no weight has changed, and the weights were kept, too.
    """
    wrong = record.wrong()
    if wrong:
        values = ", ".join(f"{name} {value}" for name, value in record.losses[wrong[0]].items())
        what = f"the loss is no number ({values})"
        places = [s for number in wrong for s in record.batches[number].get("sources", [])]
    else:
        what = f"the gradient's norm is {norm}"
        what += "".join(f"; {part}: {len(names)} tensors" for part, names in parts.items())
        places = [s for batch in record.batches for s in batch.get("sources", [])]
    if lost:
        when = "were no numbers before" if before_step else "are no numbers now"
        what += f"; {len(lost)} weights {when}, the first {lost[0]}"
    more = f" and {len(places) - 8} more" if len(places) > 8 else ""
    samples = ", ".join(places[:8]) + more or "not known on this rank"
    on = ", ".join(f"{part} {rate:g}" for part, rate in rates.items())
    last = "there is no checkpoint yet" if checkpoint is None else f"--resume {checkpoint}"
    kept = "batch, random state"
    if before_step:
        kept += f", weights. See it again: python -m llava_mole.training.replay {folder}"
    keys = [
        f"lower learning_rates (now {on})",
        f"training.max_grad_norm (now {options.max_grad_norm:g})",
        f"training.warmup_steps (now {options.warmup_steps:g})",
        f"training.adam_epsilon (now {options.adam_epsilon:g})",
    ]
    if options.fp16:
        keys.insert(0, "model.dtype=bfloat16 or float32 (now float16)")
    done = "stopped before the optimizer step, no weight has changed"
    if not before_step:
        done = "DeepSpeed has taken the step already; these weights are not written"
    return (
        f"stage {stage}, step {step}: {what}; {done}.\n"
        f"  samples: {samples}\n  kept in {folder}: {kept}\n"
        f"  go on: {last}, with changed keys; the same recipe would come here again\n"
        "  keys to try: " + "; ".join(keys)
    )
