"""How long what is left of a sweep takes, going by the runs that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from statistics import fmean
from typing import Protocol

from llava_mole.sweeping.plan import PlannedRun, run_folder
from llava_mole.sweeping.run_folder import DONE, TRAINED, read_json
from llava_mole.sweeping.scoring import scored
from llava_mole.sweeping.sweep_file import Sweep


class Going(Protocol):
    """A run that is going on, the minutes that it was expected to take when it was started, and the
    seconds that it has taken so far."""

    @property
    def run(self) -> PlannedRun: ...
    @property
    def minutes(self) -> float: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Past:
    """Minutes that a sweep's runs have taken, as their folders say.

    Attributes:
        runs: arm -> of its finished runs. scorings: arm -> of its runs' scorings on the split.
    """

    runs: dict[str, list[float]]
    scorings: dict[str, list[float]]

    def expected(self, run: PlannedRun) -> float:
        """Minutes of a run, as its arm's took, or else as all took; 0 where there are none. One
        that is trained is only scored."""
        of_arms = self.scorings if (run.folder / TRAINED).is_file() else self.runs
        known = of_arms.get(run.arm) or [one for of_arm in of_arms.values() for one in of_arm]
        return fmean(known) if known else 0.0

    def expected_in_all(self, one: Going) -> float:
        """Minutes of a run that is going on: once it is trained, not of its scoring alone."""
        return max(one.minutes, self.expected(one.run))

    def spent(self) -> float:
        return sum(sum(of_arm) for of_arm in self.runs.values())


def past(sweep: Sweep, split: str) -> Past:
    """Reads every run's folder, once."""
    found = Past({}, {})
    for arm in sweep.arm_names():
        for seed in sweep.seeds:
            folder = run_folder(sweep.out, arm, seed)
            if (done := read_json(folder / DONE)) is not None:
                found.runs.setdefault(arm, []).append(float(done["minutes"]))
            if of := scored(folder, split)["domains"].values():
                minutes = sum(one["seconds"] for one in of) / 60
                found.scorings.setdefault(arm, []).append(minutes)
    return found


def seconds_left(
    left: Sequence[PlannedRun], going: Sequence[Going], at_once: int, past: Past
) -> float:
    """Until the last run ends; 0 where none has ended. The next one takes the slot that is free
    first."""
    slots = [max(0.0, 60 * past.expected_in_all(one) - one.seconds) for one in going]
    slots += [0.0] * (at_once - len(slots))
    heapify(slots)
    for run in left:
        heapreplace(slots, slots[0] + 60 * past.expected(run))
    return max(slots)


def beyond_budget(sweep: Sweep, run: PlannedRun, going: Sequence[Going], past: Past) -> str | None:
    """Why a run should not be started; None where the budget allows it."""
    if sweep.minutes is None:
        return None
    spent = past.spent() + sum(past.expected_in_all(one) for one in going)
    ahead = past.expected(run)
    if spent + ahead <= sweep.minutes and spent < sweep.minutes:
        return None
    return (
        f"minutes: {sweep.minutes:g} is the budget, {spent:.1f} are spent or under way, "
        f"{run.name} would take about {ahead:.1f}"
    )
