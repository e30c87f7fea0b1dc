"""OUT/log.jsonl: one line for all that was logged, the same numbers that every callback gets.

A resumed stage drops the lines of the steps that it does again, so a run that was killed leaves the
log of one that was not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llava_mole.folders import writing_file

SHARE = re.compile(r"(experts_.+)/(\d+)")
"""Of a language's tokens, what each expert got: a number each for callbacks, a list in the log."""
END = "train_runtime"
"""In the last line of a stage, which is written again if the stage is."""


def gathered(values: Mapping[str, Any]) -> dict[str, Any]:
    """experts_tr/0, experts_tr/1, … as one list experts_tr."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        match = SHARE.fullmatch(name)
        if match is None:
            found[name] = value
        else:
            found.setdefault(match[1], []).append(value)
    return found


class JsonLog(TrainerCallback):
    """Appends what is logged; at resume, drops what comes after the checkpoint."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def __call__(self, values: Mapping[str, Any]) -> None:
        line = json.dumps({"stage": self.stage, **gathered(values)}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self({"step": state.global_step, **logs})

    def truncate_after(self, step: int) -> int:
        """Keep other stages' lines, and this stage's up to `step`; the last step that is dropped,
        or 0."""
        if not self.path.is_file():
            return 0
        kept, last = [], 0
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run
            own = values.get("stage") == self.stage
            if not own or (values.get("step", 0) <= step and END not in values):
                kept.append(line)
            else:
                last = max(last, int(values.get("step", 0)))
        with writing_file(self.path) as file:
            file.write("".join(line + "\n" for line in kept))
        return last

    def drop(self, stages: list[str]) -> None:
        """Drop all lines of these stages: they are done anew."""
        for stage in stages:
            JsonLog(self.path, stage).truncate_after(-1)
