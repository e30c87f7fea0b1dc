"""`llava-mole sweep FILE --dry-run`: the arms, what they train, and whether they see the same.

Trains and loads nothing; of the data the index is read.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava_mole.errors import ConfigError, DataError
from llava_mole.sweeping import TEST
from llava_mole.sweeping.beforehand import Training
from llava_mole.sweeping.measures import parameters_of, trained_parameters
from llava_mole.sweeping.one_run import is_finished
from llava_mole.sweeping.order import order_of, planned_steps, where_they_part
from llava_mole.sweeping.plan import PlannedRun, in_one_line
from llava_mole.sweeping.reusing import donors, not_reusable, reusable
from llava_mole.sweeping.run_folder import RUN, changed
from llava_mole.sweeping.scoring import check_choice, check_files
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.training.data import read_stages


@dataclass(frozen=True)
class Outlook:
    """What an arm will be.

    Attributes:
        steps: of language stages; None where its data are not here.
        order: what it draws with the first seed; None likewise.
    """

    run: PlannedRun
    trained: int
    total: int
    steps: int | None
    order: dict[str, object] | None


def foresee(run: PlannedRun, problems: list[str]) -> Outlook:
    """Count and plan one arm.

    Args:
        problems: what is wrong with its data is added, once for all arms.
    """
    parameters = parameters_of(run.recipe)
    total = sum(part["total"] for part in parameters.values())
    order = None
    try:
        order = order_of(run.recipe, read_stages(run.recipe, progress=False))
    except DataError as error:
        if str(error) not in problems:
            problems.append(str(error))
    steps = None if order is None else planned_steps(order)
    return Outlook(run, trained_parameters(parameters), total, steps, order)


def dry_run(
    sweep: Sweep,
    runs: list[PlannedRun],
    split: str,
    console: Console,
    *,
    missing: Sequence[Training] = (),
    later: Sequence[str] = (),
) -> int:
    """Print it; 2 where data or question files are missing, or an order differs undeclared.

    Args:
        missing: models that are trained first.
        later: arms that start from them, of which no more can be told.
    """
    for training in missing:
        console.print(f"first: llava-mole {shlex.join(training.words)}", markup=False,
                      soft_wrap=True)  # fmt: skip
    if later:
        console.print(f"more is told of these when that is there: {', '.join(later)}",
                      markup=False, soft_wrap=True)  # fmt: skip
    problems: list[str] = []
    arms = {run.arm: run for run in reversed(runs)}  # with the first seed
    outlooks = [foresee(arms[name], problems) for name in sweep.arm_names() if name in arms]
    table = Table("arm", "trained parameters", "of", "steps", "order")
    for one in outlooks:
        other = one.run.about.other_data
        order = "–" if one.order is None else str(one.order["digest"])[:8]
        table.add_row(
            escape(one.run.arm), f"{one.trained:,}", f"{one.total:,}",
            "–" if one.steps is None else f"{one.steps:,}",
            f"{order} (other data: {escape(other)})" if other else order,
        )  # fmt: skip
    if outlooks:
        console.print(table)
    sets = {one.run.arm: one.run.about.set for one in outlooks}
    for name, changes in {"every arm": sweep.set, **sets}.items():
        shown = "".join(f"\n  {key}: {in_one_line(value)}" for key, value in changes.items())
        console.print(f"{name}, over the base:{shown or ' nothing'}", markup=False, soft_wrap=True)
    if any(one.run.recipe.minutes is not None for one in outlooks):
        console.print("minutes is set in a recipe: its runs stop by the clock, not by steps, so "
                      "arms that are slower see less", soft_wrap=True)  # fmt: skip
    plain = [one for one in outlooks if one.order and one.run.about.other_data is None]
    for one in plain[1:]:
        assert plain[0].order is not None
        assert one.order is not None
        parting = where_they_part(plain[0].order, one.order)
        if parting is not None:
            problems.append(
                f"arms.{one.run.arm}: would not see what {plain[0].run.arm} sees ({parting}); if "
                f'that is meant, say why: other_data: "twice the samples"'
            )
    states = {run.name: state_of(sweep, run, split) for run in runs}
    for state in dict.fromkeys(states.values()):
        names = [name for name, own in states.items() if own == state]
        console.print(f"{state}: {len(names)} ({', '.join(names)})", soft_wrap=True)
    for run in runs:
        if states[run.name] == "to do":
            for donor in donors(sweep, run):
                why = not_reusable(sweep, donor, split)
                console.print(f"{run.name}: not to be copied from {donor.folder}: {why}",
                              markup=False, soft_wrap=True)  # fmt: skip
    claims = [f"{name}: {claim.about or claim.direction}" for name, claim in sweep.claims.items()]
    for claim in claims:
        console.print(f"claim {claim}", markup=False, soft_wrap=True)
    try:
        check_files(sweep.evaluate, split)
        if split == TEST:
            check_choice(sweep, [*arms, *later])
    except (ConfigError, DataError) as error:
        problems.append(str(error))
    for problem in problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    return 2 if problems else 0


def state_of(sweep: Sweep, run: PlannedRun, split: str) -> str:
    if changed(run):
        return "there with another recipe"
    if is_finished(sweep, run, split):
        return "done"
    if reusable(sweep, run, split) is not None:
        return "done by another sweep, to be copied"
    return "begun" if (run.folder / RUN).is_file() else "to do"
