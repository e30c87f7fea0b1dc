"""What the runs answered, out of their folders alone: questions against arms and seeds.

Every figure of a report comes from here. Runs can only be compared if they were asked the same
questions, so that is checked question by question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mole.errors import DataError
from llava_mole.evaluation.tables import Prediction, read_checked
from llava_mole.languages import LANGUAGES
from llava_mole.sweeping.order import where_they_part
from llava_mole.sweeping.plan import arm_recipe, run_folder, run_name
from llava_mole.sweeping.run_folder import (
    ATTEMPTS,
    DONE,
    ORDER,
    TRAINED,
    about_run,
    read_json,
    read_lines,
)
from llava_mole.sweeping.scoring import (
    SHOWN,
    TEST_SCORINGS,
    WITHHELD,
    as_written,
    other_questions,
    predictions_file,
    scored,
    settings_of,
)
from llava_mole.sweeping.sweep_file import Sweep

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """One question, as every run is asked it."""

    domain: str
    language: str
    kind: str
    picture: str
    index: str
    prompt: str
    texts: tuple[str, ...]
    answer: str


Right = dict[Question, bool]


@dataclass
class Answers:
    """All that was answered on a split.

    Attributes:
        questions: Q of them.
        shown, withheld: (arm, seed) -> (Q,) 1 right, 0 wrong, nan not asked for it is in a domain
            that its arm is not scored on; with its picture, and without.
        orders: (arm, seed) -> what the run drew (`order.py`).
        runs: (arm, seed) -> done.json.
        recipes: (arm, seed) -> `plan.arm_recipe` of it, where that is known.
        other_data: arm -> why its samples differ, where it says so.
        stale: runs that were scored with other settings than `evaluate` has now.
        attempts: (arm, seed) -> how often its training was started.
        scorings: the lines of test_scorings.jsonl.
    """

    split: str
    questions: tuple[Question, ...] = ()
    shown: dict[tuple[str, int], Scores] = field(default_factory=dict)
    withheld: dict[tuple[str, int], Scores] = field(default_factory=dict)
    orders: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    runs: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    recipes: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    other_data: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    attempts: dict[tuple[str, int], int] = field(default_factory=dict)
    scorings: list[dict[str, Any]] = field(default_factory=list)

    def declare(self, sweep: Sweep) -> None:
        """Take over which arms say that their samples differ."""
        said = {arm: sweep.arm(arm).other_data for arm in sweep.arm_names()}
        self.other_data = {arm: why for arm, why in said.items() if why is not None}

    def column(self, name: str) -> NDArray[np.str_]:
        """(Q,) an attribute of the questions."""
        return np.array([getattr(question, name) for question in self.questions], dtype=str)

    def seeds(self, arms: Sequence[str]) -> list[int]:
        """Those with which all of these arms were scored."""
        per_arm = [{seed for arm, seed in self.shown if arm == wanted} for wanted in arms]
        return sorted(set.intersection(*per_arm)) if per_arm else []

    def side(self, sweep: Sweep, parts: dict[str, float], seeds: Sequence[int], measure: str
             ) -> Scores:  # fmt: skip
        """(S, Q): the weighted sum of arms, composed ones put together from theirs."""
        total = np.zeros((len(seeds), len(self.questions)))
        for name, weight in parts.items():
            total += weight * self.arm(sweep, name, seeds, measure)
        return total

    def arm(self, sweep: Sweep, name: str, seeds: Sequence[int], measure: str) -> Scores:
        """(S, Q) of an arm, or of a composed one."""
        if name not in sweep.composed:
            return np.array([self.measured(name, seed, measure) for seed in seeds])
        domains = self.column("domain")
        made = np.zeros((len(seeds), len(self.questions)))
        for domain, arm in sweep.composed[name].items():
            own = domains == domain
            made[:, own] = self.arm(sweep, arm, seeds, measure)[:, own]
        return made

    def measured(self, arm: str, seed: int, measure: str) -> Scores:
        if measure == "accuracy":
            return self.shown[arm, seed]
        return self.shown[arm, seed] - self.withheld[arm, seed]

    def recipe_problem(self, arms: Sequence[str]) -> str | None:
        """Why the runs of one of these arms can't be put together: they are of several recipes."""
        for wanted in arms:
            own = [key for key in self.runs if key[0] == wanted and key in self.recipes]
            for key in own[1:]:
                if apart := where_both_have(self.recipes[own[0]], self.recipes[key]):
                    return (
                        f"{run_name(*own[0])} and {run_name(*key)} are of other recipes, data or "
                        f"starts: {'; '.join(apart[:3])}"
                    )
        return None

    def order_problem(self, arms: Sequence[str], seeds: Sequence[int]) -> str | None:
        """Why these arms can't be compared: with some seed they drew other samples, undeclared."""
        plain = [arm for arm in arms if arm not in self.other_data]
        for seed in seeds:
            for arm in plain[1:]:
                one, other = self.orders[plain[0], seed], self.orders[arm, seed]
                parting = where_they_part(one, other)
                if parting is not None:
                    return (
                        f"{run_name(plain[0], seed)} and {run_name(arm, seed)} did not see the "
                        f"same samples in the same order ({parting}), and neither arm says "
                        "other_data"
                    )
        return None


def where_both_have(one: Any, other: Any, path: str = "") -> list[str]:
    """'key: one | other' where two recipes differ in a key that both have: another version of this
    program may have more."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(f"{path}.{key}", one[key], other[key]) for key in one if key in other]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{path}.{n}", *pair) for n, pair in enumerate(zip(one, other, strict=True))]
    else:
        return [] if one == other else [f"{path.removeprefix('.')}: {one} | {other}"]
    return [line for at, left, right in pairs for line in where_both_have(left, right, at)]


def read_answers(sweep: Sweep, split: str) -> Answers:
    """Read what finished runs left; no model is loaded.

    Raises:
        DataError: a run was asked other questions than the others, or a file of predictions was
            changed after it was written.
        CheckpointError: a file of a run cannot be read.
    """
    found = Answers(split)
    runs: dict[tuple[str, int], dict[str, Right]] = {}
    for arm in sweep.arm_names():
        for seed in sweep.seeds:
            folder = run_folder(sweep.out, arm, seed)
            done = read_json(folder / DONE)
            marks = scored(folder, split)
            lacking = set(sweep.domains_of(arm)) - set(marks["domains"])
            if done is None or lacking:
                continue
            others = [
                domain
                for domain in sweep.domains_of(arm)
                if other_questions(sweep.evaluate, marks["domains"][domain], domain, split)
            ]
            if marks["settings"] != settings_of(sweep) or others:
                found.stale.append(run_name(arm, seed))
            files = [about_run(folder), read_json(folder / TRAINED)]
            check_one_run(run_name(arm, seed), files, done)
            run = read_run(sweep, arm, seed, split, marks["domains"])
            if sweep.evaluate.withheld and run[WITHHELD].keys() != run[SHOWN].keys():
                continue  # of other settings: among the stale
            runs[arm, seed] = run
            order = read_json(folder / ORDER)
            if order is None:
                raise DataError(f"{folder / ORDER}: missing, though the run is done; moved?")
            found.orders[arm, seed] = order
            found.runs[arm, seed] = done
            if files[0] is not None:
                found.recipes[arm, seed] = arm_recipe(files[0]["recipe"])
            started = read_lines(folder / ATTEMPTS)
            found.attempts[arm, seed] = sum(line["trains"] for line in started)
    found.questions = same_questions(sweep, {key: run[SHOWN] for key, run in runs.items()}, split)
    for key, run in runs.items():
        found.shown[key] = in_order(run[SHOWN], found.questions)
        if sweep.evaluate.withheld:
            found.withheld[key] = in_order(run[WITHHELD], found.questions)
    found.declare(sweep)
    found.scorings = read_lines(sweep.out / TEST_SCORINGS)
    return found


def check_one_run(name: str, files: Sequence[dict[str, Any] | None], done: dict[str, Any]) -> None:
    """Raises DataError where a folder's files are of several recipes."""
    digests = {str(values.get("digest")) for values in (*files, done) if values is not None}
    if len(digests) > 1:
        raise DataError(f"{name}: its files are of several recipes ({', '.join(sorted(digests))})")


def read_run(
    sweep: Sweep, arm: str, seed: int, split: str, known: Mapping[str, Any]
) -> dict[str, Right]:
    """Condition -> question -> whether it was right, in the domains that the arm is scored on.

    Args:
        known: domain -> what scored.json has of it.
    """
    found: dict[str, Right] = {SHOWN: {}, WITHHELD: {}}
    for domain in sweep.domains_of(arm):
        path = predictions_file(run_folder(sweep.out, arm, seed), split, domain)
        if not path.is_file():
            raise DataError(f"{path}: missing, though {run_name(arm, seed)} is scored; moved?")
        rows = read_checked(path)  # names the line, where a line tells
        if not as_written(known[domain], path):
            raise DataError(
                f"{path} was changed after it was written. The same command without --report "
                f"scores {run_name(arm, seed)} anew where its model is still there"
            )
        for number, row in enumerate(rows, start=1):
            right = found[row.condition]
            question = question_of(domain, row)
            if question in right:
                raise DataError(f"{path}:{number}: question {row.index} stands there twice")
            right[question] = row.correct
    return found


def same_questions(
    sweep: Sweep, runs: Mapping[tuple[str, int], Right], split: str
) -> tuple[Question, ...]:
    """All questions, in an order that all runs share.

    Raises:
        DataError: in some domain two runs were asked different ones.
    """
    every: list[Question] = []
    for domain in sweep.evaluate.domains:
        first, expected = "", set[Question]()
        for (arm, seed), run in runs.items():
            if domain not in sweep.domains_of(arm):
                continue
            own = {question for question in run if question.domain == domain}
            if not first:
                first, expected = run_name(arm, seed), own
            elif own != expected:
                raise DataError(
                    f"{run_name(arm, seed)} was asked other questions on {split} than {first}: "
                    f"{what_differs(expected, own)}. Were the question files built "
                    "anew, or `evaluate` changed, between them? The same command with --split "
                    f"{split} scores anew what is out of date"
                )
        every += sorted(
            expected, key=lambda q: (q.kind, LANGUAGES.index(q.language), q.index, q.prompt)
        )
    return tuple(every)


def in_order(right: Right, questions: Sequence[Question]) -> Scores:
    """(Q,) 1, 0, or nan for what was not asked."""
    return np.array([right.get(question, np.nan) for question in questions], dtype=float)


def question_of(domain: str, row: Prediction) -> Question:
    return Question(
        domain=domain,
        language=row.language,
        kind=row.kind,
        picture=row.picture,
        index=row.index,
        prompt=row.prompt,
        texts=row.texts,
        answer=row.answer,
    )


def what_differs(one: set[Question], other: set[Question]) -> str:
    missing, more = one - other, other - one
    example = next(iter(sorted(missing | more, key=lambda q: (q.domain, q.index))))
    return (
        f"{len(missing)} of {len(one)} are missing, {len(more)} are new, e.g. question "
        f"{example.index} of {example.domain} ({example.language}, {example.kind})"
    )
