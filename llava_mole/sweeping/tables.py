"""Tables of a report: arms against domains, languages and kinds; what each run cost.

Rows first, then how they look: CSV has every figure, Markdown is for reading.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from llava_mole.evaluation.results import cell, points
from llava_mole.evaluation.statistics import wilson
from llava_mole.languages import LANGUAGES
from llava_mole.sweeping.answers import Answers, Scores
from llava_mole.sweeping.claims import interval_of
from llava_mole.sweeping.measures import trained_parameters
from llava_mole.sweeping.sweep_file import Sweep

ALL, DOMAIN, LANGUAGE, KIND = "all", "domain", "language", "kind"


@dataclass(frozen=True)
class Mark:
    """What an arm reached in one part of the questions; 95 % interval over seeds and pictures.

    Attributes:
        by, name: "domain", "charts"; kinds are named with their domain, "charts: trend".
        low, high: with one seed over pictures alone.
        without: accuracy as text alone, where that was asked.
        less: difference to the reference, question by question, with seeds that both have; None
            for the reference itself, and where it cannot be compared.
        less_low, less_high: 95 % of it.
    """

    arm: str
    by: str
    name: str
    mean: float
    low: float
    high: float
    seeds: int
    pictures: int
    questions: int
    without: float | None
    less: float | None = None
    less_low: float | None = None
    less_high: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        ratio: its step time over that of the reference's run of its seed.
        attempts: how often its training was started.
    """

    arm: str
    seed: int
    trained_parameters: int
    parameters: int
    steps: int
    step_seconds: float
    ratio: float | None
    minutes: float
    peak_gib: float
    processes: int
    threads: int
    device: str
    attempts: int
    order: str
    digest: str


def marks(sweep: Sweep, answers: Answers) -> list[Mark]:
    """Of every arm that has a scored run, composed ones too."""
    domains, kinds = answers.column(DOMAIN), answers.column(KIND)
    languages = answers.column(LANGUAGE)
    every = np.ones(len(answers.questions), dtype=bool)
    parts = [(ALL, ALL, every)]
    parts += [(DOMAIN, name, domains == name) for name in sweep.evaluate.domains]
    parts += [(LANGUAGE, name, languages == name) for name in LANGUAGES]
    pairs = dict.fromkeys(zip(domains.tolist(), kinds.tolist(), strict=True))
    parts += [(KIND, f"{d}: {k}", (domains == d) & (kinds == k)) for d, k in pairs]
    found = []
    for arm in [*sweep.arm_names(), *sweep.composed]:
        seeds = answers.seeds(sweep.trained_arms(arm))
        if not seeds:
            continue
        shown = answers.arm(sweep, arm, seeds, "accuracy")
        gain = answers.arm(sweep, arm, seeds, "gain") if sweep.evaluate.withheld else None
        apart = difference(sweep, answers, arm)
        everything = len(sweep.domains_of(arm)) == len(sweep.evaluate.domains)
        for by, name, part in parts:
            if not part.any() or np.isnan(shown[:, part]).any():
                continue
            if by in (ALL, LANGUAGE) and not everything:  # means over all domains
                continue
            one = interval_of(answers, shown, part)
            low, high = one.low, one.high  # nan: of one picture a domain nothing is known
            if not math.isnan(low):
                low, high = max(0.0, low), min(1.0, high)
            if one.se == 0:  # all right or all wrong
                low, high = wilson(round(one.mean * one.units), one.units)
            without = None if gain is None else one.mean - interval_of(answers, gain, part).mean
            mark = Mark(arm, by, name, one.mean, low, high, one.seeds, one.units,
                        int(part.sum()), without)  # fmt: skip
            if apart is not None and not np.isnan(apart[:, part]).any():
                less = interval_of(answers, apart, part)
                mark = replace(mark, less=less.mean, less_low=less.low, less_high=less.high)
            found.append(mark)
    return found


def difference(sweep: Sweep, answers: Answers, arm: str) -> Scores | None:
    """(S, Q) an arm less the reference, with seeds that both have; None if it cannot be taken."""
    reference = reference_of(sweep)
    arms = [*sweep.trained_arms(arm), *sweep.trained_arms(reference)]
    seeds = answers.seeds(arms)
    if arm == reference or not seeds or answers.order_problem(arms, seeds) is not None:
        return None
    own, other = (answers.arm(sweep, one, seeds, "accuracy") for one in (arm, reference))
    return own - other


def reference_of(sweep: Sweep) -> str:
    return sweep.reference or sweep.arm_names()[0]


def costs(sweep: Sweep, answers: Answers) -> list[Cost]:
    """A row for each scored run."""
    reference = reference_of(sweep)
    found = []
    for (arm, seed), run in answers.runs.items():
        other = answers.runs.get((reference, seed))
        known = other is not None and other["step_seconds"] > 0
        ratio = run["step_seconds"] / other["step_seconds"] if other and known else None
        parameters = run["parameters"]
        found.append(
            Cost(
                arm=arm, seed=seed,
                trained_parameters=trained_parameters(parameters),
                parameters=sum(part["total"] for part in parameters.values()),
                steps=run["steps"], step_seconds=run["step_seconds"], ratio=ratio,
                minutes=run["minutes"], peak_gib=max(run["peak_gib"].values()),
                processes=run["processes"], threads=run["threads"], device=run["device"],
                attempts=answers.attempts[arm, seed],
                order=str(run["order"]), digest=run["digest"],
            )
        )  # fmt: skip
    return found


# ---------------------------------------------------------------------- showing them


def to_csv(rows: Sequence[Any], columns: Sequence[str]) -> str:
    """These attributes of dataclasses of one kind."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        values = [getattr(row, name) for name in columns]
        table.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return text.getvalue()


def marks_table(rows: Sequence[Mark], by: str) -> str:
    """Markdown: a line an arm, a column a part; percent, with half the interval's width. Last the
    mean's difference to the reference, where there is one."""
    own = [row for row in rows if row.by in (ALL, by)]
    names = list(dict.fromkeys(row.name for row in own if row.by == by))
    arms = list(dict.fromkeys(row.arm for row in own))
    compared = any(row.less is not None for row in own)
    heads = [*names, "mean", *["less the reference"] * compared]
    lines = [f"| arm | {' | '.join(map(cell, heads))} |"]
    lines.append("|---|" + "---:|" * len(heads))
    found = {(row.arm, row.by, row.name): row for row in own}
    for arm in arms:
        whole = found.get((arm, ALL, ALL))
        cells = [in_percent(found.get((arm, by, name))) for name in names] + [in_percent(whole)]
        lines.append(f"| {cell(arm)} | {' | '.join(cells + [less(whole)] * compared)} |")
    return "\n".join(lines) + "\n"


def kinds_table(rows: Sequence[Mark]) -> str:
    """Markdown: a line a kind, a column an arm, for there are many kinds."""
    own = [row for row in rows if row.by == KIND]
    arms = list(dict.fromkeys(row.arm for row in own))
    found = {(row.arm, row.name): row for row in own}
    lines = [f"| kind | {' | '.join(map(cell, arms))} |", "|---|" + "---:|" * len(arms)]
    for name in dict.fromkeys(row.name for row in own):
        cells = " | ".join(in_percent(found.get((arm, name))) for arm in arms)
        lines.append(f"| {cell(name)} | {cells} |")
    return "\n".join(lines) + "\n"


def costs_table(rows: Sequence[Cost]) -> str:
    """Markdown: medians over seeds, a line an arm."""
    lines = [
        "| arm | trained parameters | steps | seconds a step | × reference | minutes | peak GiB "
        "| seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        ratios = [row.ratio for row in own if row.ratio is not None]
        lines.append(
            f"| {cell(arm)} | {own[0].trained_parameters:,} | {own[0].steps:,} "
            f"| {median(row.step_seconds for row in own):.3g} "
            f"| {f'{median(ratios):.2f}' if ratios else '–'} "
            f"| {median(row.minutes for row in own):.1f} "
            f"| {max(row.peak_gib for row in own):.2f} | {len(own)} |"
        )
    return "\n".join(lines) + "\n"


def less(mark: Mark | None) -> str:
    if mark is None or mark.less is None or mark.less_low is None or mark.less_high is None:
        return "–"
    if math.isnan(mark.less_low):
        return points(mark.less, "+")
    return f"{points(mark.less, '+')} ± {points((mark.less_high - mark.less_low) / 2)}"


def in_percent(mark: Mark | None) -> str:
    if mark is None:
        return "–"
    if math.isnan(mark.low):
        return points(mark.mean)
    return f"{points(mark.mean)} ± {points((mark.high - mark.low) / 2)}"
