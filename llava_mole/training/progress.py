"""What a person sees of a run: a bar for each stage, a line for each evaluation, the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class StageProgress(TrainerCallback):
    """A bar on the main rank: stage, steps, time left, the last loss and rate."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.bar is None:
            return
        for name, short in (("loss", "loss"), ("learning_rate", "rate"), ("eval_loss", "held out")):
            if name in logs:
                self.shown[short] = f"{logs[name]:.3g}"
        self.bar.set_postfix(self.shown)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> Any:
        if self.bar is not None:
            self.bar.write(f"{self.title}, step {state.global_step}: {metrics_in_words(metrics)}")

    def close(self) -> None:
        """Also where training ended early: what is printed next begins on a line of its own."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()


def metrics_in_words(metrics: Mapping[str, float]) -> str:
    """The whole, then languages: 'held-out loss 1.234 (en 1.1, tr 1.4), letters right 43%'."""
    by_language = [
        f"{name.removeprefix('eval_language_').removesuffix('_loss')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("eval_language_") and name.endswith("_loss")
    ]
    text = f"held-out loss {metrics['eval_loss']:.4f} ({', '.join(by_language)})"
    if "eval_accuracy" in metrics:
        text += f", right letter {100 * metrics['eval_accuracy']:.1f}%"
    return text


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, 4.1 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
