"""What a run leaves, and the few lines that say so at its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llava_mole.features import FeatureStore
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.training.memory import peaks_in_words
from llava_mole.training.progress import duration
from llava_mole.training.recipe import Recipe


@dataclasses.dataclass
class StageEnd:
    """How a stage ended.

    Attributes:
        seconds: it took, those of stopped runs that it went on from included.
        best: (metric, value, step) where `training.metric_for_best_model` names one.
        best_is_kept: the stage left its best checkpoint, not its last step.
        told_to_end: the process was, in the stage's last step.
    """

    seconds: float
    best: tuple[str, float, int] | None = None
    best_is_kept: bool = False
    told_to_end: bool = False


@dataclasses.dataclass
class RunResult:
    """What a run leaves."""

    model: LlavaMoleForConditionalGeneration
    processor: LlavaMoleProcessor
    features: FeatureStore
    ends: dict[str, StageEnd]
    """Of the stages that this process ran, or finished."""
    peaks: dict[str, float]
    """GiB, all ranks together; see `memory.peak_memory`."""

    @property
    def seconds(self) -> dict[str, float]:
        return {name: end.seconds for name, end in self.ends.items()}


def summary(recipe: Recipe, result: RunResult) -> str:
    """The end of a run in a few lines: where the model lies, time, best metric, memory."""
    out = Path(recipe.output_dir)
    last = result.ends.get(recipe.stages[-1].name)
    best = last is not None and last.best_is_kept
    which = f"the best of stage {recipe.stages[-1].name}" if best else "as the last step left it"
    lines = [f"model: {out / 'model'} ({which})", f"log: {out / 'log.jsonl'}"]
    for name, end in result.ends.items():
        if end.best is not None:
            metric, value, step = end.best
            place = "left by the stage" if end.best_is_kept else "the stage went on to its end"
            lines.append(f"best: {name}, {metric} {value:.4g} at step {step}, {place}")
    if result.ends:
        each = ", ".join(f"{name} {duration(end.seconds)}" for name, end in result.ends.items())
        total = sum(end.seconds for end in result.ends.values())
        lines.append(f"time: {duration(total)} ({each})")
    else:
        lines.append("time: every stage was done already")
    lines.append(f"peak memory: {peaks_in_words(result.peaks)}")
    return "\n".join(lines)
