"""One run of a sweep, in this process: train, score what it learnt, say that it is done.

Each step leaves a file that appears whole, so a run that is killed goes on after the last one; the
training itself goes on from its checkpoints. What is scored is always the folder that was saved,
never the model in memory: then it does not matter when, or how often, a run was stopped.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import Any

import torch

import llava_mole
from llava_mole import ranks
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.sweeping import DEVELOPMENT, SPLITS, TEST
from llava_mole.sweeping.measures import measured
from llava_mole.sweeping.order import order_of, where_they_part
from llava_mole.sweeping.plan import PlannedRun, run_folder, run_name
from llava_mole.sweeping.run_folder import (
    DONE,
    ORDER,
    PREDICTIONS,
    TRAINED,
    begin,
    check_unchanged,
    is_done,
    now,
    own_digest,
    put_aside,
    read_json,
    tidy,
    write_json,
)
from llava_mole.sweeping.scoring import check_choice, score_run, scored, scores_left
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.training.data import read_stages
from llava_mole.training.resume import only_run
from llava_mole.training.run import run_recipe


def is_finished(sweep: Sweep, run: PlannedRun, split: str) -> bool:
    """Nothing is left to do."""
    return is_done(run) and not scores_left(sweep, run, split)


def do_run(sweep: Sweep, run: PlannedRun, *, split: str = DEVELOPMENT, again: bool = False) -> None:
    """Do what is left of a run; a collective where several processes share it.

    Args:
        split: what is scored, DEVELOPMENT or TEST.
        again: a folder with a run of another recipe is put aside; without it that is refused.

    Raises:
        ConfigError: another recipe's run is there, or it draws other samples than its peers.
        DataError, CheckpointError, TrainingError: what training or scoring raises.
    """
    if split == TEST:
        check_choice(sweep, [run.arm])
    with ExitStack() as stack:
        if ranks.is_main():
            if again and changed_folder(run):
                put_aside(sweep, run)
            check_unchanged([run])
        if ranks.from_main(is_finished(sweep, run, split) if ranks.is_main() else None):
            if ranks.is_main():
                tidy(run.folder, sweep.keep)
            return
        if ranks.is_main():
            stack.enter_context(only_run(run.folder / PREDICTIONS))
            begin(run)
        ranks.barrier()
        here = ranks.from_main(read_json(run.folder / TRAINED) if ranks.is_main() else None)
        if here is None:
            here = train(sweep, run)
        if not (run.folder / "model").is_dir() and scores_left(sweep, run, split):
            raise CheckpointError(
                f"{run.name}: its model is not there any more (keep: {sweep.keep}), and {split} "
                "is not scored as the sweep file asks: do it anew in another output_dir with "
                "keep: model"
            )
        score_run(sweep, run, split)
        if ranks.is_main():
            finish(sweep, run, here)
        ranks.barrier()


def changed_folder(run: PlannedRun) -> bool:
    """Whether the folder holds a run of another recipe, or one that cannot be read."""
    try:
        check_unchanged([run])
        for name in (TRAINED, DONE, ORDER):
            read_json(run.folder / name)
    except (ConfigError, CheckpointError):
        return True
    return False


def train(sweep: Sweep, run: PlannedRun) -> dict[str, Any]:
    """From where it stands to its end; what `trained.json` then holds."""
    recipe = run.recipe
    read = read_stages(recipe, progress=ranks.is_main())
    own = [data for stage, data in zip(recipe.stages, read, strict=True) if stage.data is None]

    def compare_order(model: Any, processor: Any, features: Any) -> None:
        """Before a step is paid for."""
        for data in {id(one): one for one in read}.values():
            data.leave_out_long(processor, model.config.text_config.max_position_embeddings)
        problem = None
        if ranks.is_main():
            order = order_of(recipe, read)
            problem = order_problem(sweep, run, order)
            if problem is None:
                write_json(run.folder / ORDER, order)
        problem = ranks.from_main(problem)
        if problem is not None:
            raise ConfigError(problem)

    started = time.monotonic()
    result = run_recipe(recipe, data=own[0] if own else None, before_training=compare_order)
    order = read_json(run.folder / ORDER) or {}
    about = {
        "arm": run.arm,
        "seed": run.seed,
        "digest": own_digest(run),
        "order": order.get("digest"),
        **measured(recipe, result, run.folder),
        "session_seconds": round(time.monotonic() - started, 1),
        "versions": {"llava_mole": llava_mole.__version__, "torch": torch.__version__},
        "finished": now(),
    }
    del result
    gc.collect()
    if ranks.is_main():
        write_json(run.folder / TRAINED, about)
    return about


def order_problem(sweep: Sweep, run: PlannedRun, order: dict[str, Any]) -> str | None:
    """Whether another arm of this seed, neither declared to differ, draws other samples."""
    if run.about.other_data is not None:
        return None
    for arm in sweep.arm_names():
        if arm == run.arm or sweep.arm(arm).other_data is not None:
            continue
        other = read_json(run_folder(sweep.out, arm, run.seed) / ORDER)
        parting = None if other is None else where_they_part(order, other)
        if parting is not None:
            return (
                f"{run.name} and {run_name(arm, run.seed)} would not see the same samples in the "
                f"same order ({parting}): a difference between them would not be the arms' alone. "
                f'If that is meant, say why: arms.{run.arm}.other_data: "twice the samples"'
            )
    return None


def finish(sweep: Sweep, run: PlannedRun, trained: dict[str, Any]) -> None:
    """Write `done.json` and remove what need not stay."""
    figures = {split: scored(run.folder, split)["domains"] for split in SPLITS}
    # The last session by the clock; of sessions that were stopped, what the stages' log has.
    training = max(trained["session_seconds"], trained["seconds"])
    seconds = training + sum(one["seconds"] for of in figures.values() for one in of.values())
    done = {
        **trained,
        "minutes": round(seconds / 60, 2),
        "accuracy": {
            split: {name: one["accuracy"] for name, one in of.items()}
            for split, of in figures.items()
            if of
        },
        "kept": sweep.keep,
        "done": now(),
    }
    write_json(run.folder / DONE, done)
    tidy(run.folder, sweep.keep)
