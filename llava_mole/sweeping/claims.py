"""What the runs say of each claim: supported, not supported, or not decidable, and why.

- **Supported**: the difference has the claimed direction (not_worse: it is above -no_worse), p
  after Holm is below 0.05, and where `no_worse` is asked for, every domain is shown to be above
  that margin. A claim of several parts holds only if all do, so its p is the largest of theirs
  (intersection-union test, Berger 1982).
- **Not supported**: the interval lies below what would matter (`smallest`, or 0), or in some domain
  the interval (corrected for the number of domains) lies beyond `no_worse`.
- **Not decidable**: neither; or runs are missing, there is one seed, or arms saw other samples.
- **Exploratory**: the sweep file says so; p stands as it is, nothing is decided.

All p are two-sided: p < 0.05 where the 95 % interval excludes the value in question; 1 where the
difference points the other way.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mole.evaluation.results import points
from llava_mole.evaluation.statistics import (
    SeedInterval,
    hierarchical_bootstrap,
    holm,
    seed_interval,
)
from llava_mole.sweeping.answers import Answers, Scores
from llava_mole.sweeping.plan import run_name
from llava_mole.sweeping.sweep_file import NOT_WORSE, Claim, Sweep

SUPPORTED, NOT_SUPPORTED, NOT_DECIDABLE = "supported", "not supported", "not decidable"
EXPLORATORY = "exploratory"
LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """One claim, decided.

    Attributes:
        mean, low, high: first less second, in share of right answers; 95 % interval.
        p: of the claim as made; p_holm: corrected for the number of claims.
        seeds, pictures, questions: what it rests on.
        domains: domain -> (mean, low, high) of the same difference there.
        by_seed: (S,) the difference with each seed.
        bootstrap: 2.5 and 97.5 % of the hierarchical bootstrap, to hold beside the interval.
        weakest: the part of the claim that has the largest p.
        worse: domains that are beyond `no_worse`, corrected for their number (Bonferroni).
        reason: of a verdict that is none, or of what speaks against the claim.
    """

    claim: str
    about: str
    verdict: str
    reason: str
    direction: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    seeds: tuple[int, ...] = ()
    pictures: int = 0
    questions: int = 0
    domains: dict[str, tuple[float, float, float]] | None = None
    by_seed: tuple[float, ...] = ()
    bootstrap: tuple[float, float] | None = None
    weakest: str = ""
    worse: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(sweep: Sweep, answers: Answers) -> list[Verdict]:
    """All claims of a sweep. One that cannot be decided counts among them for Holm's correction,
    an exploratory one does not."""
    found = {name: weigh(sweep, answers, name, claim) for name, claim in sweep.claims.items()}
    made = [name for name, claim in sweep.claims.items() if not claim.exploratory]
    corrected = holm([1.0 if (p := found[name].p) is None else p for name in made])
    for name, p in zip(made, corrected, strict=True):
        if found[name].p is not None:
            found[name] = judged(replace(found[name], p_holm=p), sweep.claims[name])
    return [explored(one) if sweep.claims[name].exploratory else one for name, one in found.items()]


def explored(one: Verdict) -> Verdict:
    """An exploratory claim: no verdict; of several parts p is the largest, so whose it is."""
    several = one.p is not None and one.weakest != "the difference"
    return replace(one, verdict=EXPLORATORY, reason=f"p: {one.weakest}" if several else one.reason)


def weigh(sweep: Sweep, answers: Answers, name: str, claim: Claim) -> Verdict:
    """Difference, interval and p of a claim, its verdict open; or why there is none."""
    blank = Verdict(name, claim.about, NOT_DECIDABLE, "", claim.direction)
    arms = list(
        dict.fromkeys([*sweep.trained_arms(claim.first), *sweep.trained_arms(claim.second)])
    )
    seeds = answers.seeds(arms)
    reasons = []
    missing = [
        run_name(arm, seed)
        for seed in sweep.seeds
        for arm in arms
        if (arm, seed) not in answers.shown
    ]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        reasons.append(f"not scored on {answers.split}: {', '.join(missing[:4])}{more}")
    problem = answers.recipe_problem(arms) or answers.order_problem(arms, seeds)
    if problem is not None:
        return replace(blank, reason="; ".join([*reasons, problem]))
    if not seeds:
        return replace(blank, reason="; ".join(reasons))
    part = chosen(answers, claim)
    if not part.any():
        return replace(blank, reason="no question is of its domains, languages and kinds")
    difference = answers.side(sweep, sweep.parts(claim.first), seeds, claim.measure)
    difference -= answers.side(sweep, sweep.parts(claim.second), seeds, claim.measure)
    null = -(claim.no_worse or 0) if claim.direction == NOT_WORSE else 0.0
    whole = interval_of(answers, difference, part, null)
    if len(seeds) == 1:
        reasons.append("one seed says nothing of other seeds")
    if math.isnan(whole.se):
        reasons.append("a domain has a single picture")
    domains = {}
    shown = {"the difference": p_of_direction(whole, claim.direction, null)}
    worse = []
    column = answers.column("domain")
    names = [str(name) for name in dict.fromkeys(column[part])]
    for domain in names:
        there = part & (column == domain)
        one = interval_of(answers, difference, there)
        domains[domain] = (one.mean, one.low, one.high)
        if claim.no_worse is not None:
            sign = -1 if claim.direction == "less" else 1
            margin = interval_of(answers, sign * difference, there, null=-claim.no_worse)
            within = margin.mean > -claim.no_worse
            shown[f"no worse in {domain}"] = margin.p if within else 1.0
            if not within and margin.p * len(names) < LEVEL:
                worse.append(domain)
    weakest = max(shown, key=lambda name: shown[name])
    _, draws = hierarchical_bootstrap(difference[:, part], **layout(answers, part))
    low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
    return replace(
        blank,
        reason="; ".join(reasons),
        mean=whole.mean, low=whole.low, high=whole.high,
        p=None if reasons else shown[weakest],
        weakest=weakest, worse=tuple(worse),
        seeds=tuple(seeds), pictures=whole.units, questions=int(part.sum()),
        domains=domains,
        by_seed=tuple(interval_of(answers, row[None], part).mean for row in difference),
        bootstrap=(low, high),
    )  # fmt: skip


def chosen(answers: Answers, claim: Claim) -> NDArray[np.bool_]:
    """(Q,) the questions that a claim is about."""
    part = np.ones(len(answers.questions), dtype=bool)
    for names, column in ((claim.domains, "domain"), (claim.languages, "language"),
                          (claim.kinds, "kind")):  # fmt: skip
        if names is not None:
            part &= np.isin(answers.column(column), names)
    return part


def layout(answers: Answers, part: NDArray[np.bool_]) -> dict[str, Any]:
    """Pictures are drawn within their domain, languages weigh the same within it, domains too."""
    names = {"units": "picture", "groups": "language", "strata": "domain"}
    return {key: answers.column(column)[part].tolist() for key, column in names.items()}


def interval_of(
    answers: Answers, scores: Scores, part: NDArray[np.bool_], null: float = 0.0
) -> SeedInterval:
    """Mean over domains of the mean over languages, of (S, Q) scores."""
    return seed_interval(scores[:, part], **layout(answers, part), null=null)


def p_of_direction(found: SeedInterval, direction: str, null: float) -> float:
    """1 where the difference lies on the other side of what is claimed."""
    above = {"greater": True, "less": False, NOT_WORSE: True, "different": found.mean > null}
    right = found.mean > null if above[direction] else found.mean < null
    return found.p if right else 1.0


def judged(one: Verdict, claim: Claim) -> Verdict:
    """With the verdict that its figures give."""
    assert one.mean is not None
    assert one.low is not None
    assert one.high is not None
    assert one.p_holm is not None
    sign = -1 if claim.direction == "less" else 1
    low, high = sorted((sign * one.low, sign * one.high))
    against = []
    if claim.direction == "different":
        if claim.smallest and -claim.smallest < low and high < claim.smallest:
            against.append(f"a difference of {in_points(claim.smallest)} is excluded")
    elif claim.direction == NOT_WORSE:
        if high < -(claim.no_worse or 0):
            against.append(f"the mean is worse by more than {in_points(claim.no_worse or 0)}")
    elif high < claim.smallest or high < 0:
        against.append(
            "the difference points the other way"
            if high < 0
            else f"a difference of {in_points(claim.smallest)} is excluded"
        )
    against += [
        f"{domain} is worse by more than {in_points(claim.no_worse or 0)}" for domain in one.worse
    ]
    if against:
        return replace(one, verdict=NOT_SUPPORTED, reason="; ".join(against))
    if one.p_holm < LEVEL:
        return replace(one, verdict=SUPPORTED)
    corrected = one.p is not None and one.p < LEVEL
    left = "only before the correction for several claims" if corrected else "not shown"
    return replace(one, reason=f"{one.weakest}: {left}")


def in_points(value: float) -> str:
    return f"{points(value)} points"
