"""A sweep's answers in two small files that may be published: who was right about which question.

PACK/SPLIT.csv     a line a question: domain, language, kind, picture, index, digest of its text
PACK/SPLIT.json    a run's marks as a string of 0, 1 and - (not asked), in the order of those lines;
                   its figures

Every table and verdict of a report can be worked out from them (`llava-mole sweep FILE --report
--from PACK`). Words of the questions and likelihoods of the options stay in the runs' folders: a
data set's licence may forbid to pass the words on.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mole.errors import DataError
from llava_mole.folders import writing_file
from llava_mole.sweeping.answers import Answers, Question, Scores
from llava_mole.sweeping.plan import run_name
from llava_mole.sweeping.run_folder import read_json
from llava_mole.sweeping.scoring import settings_of
from llava_mole.sweeping.sweep_file import Sweep

MARKS = {"0": 0.0, "1": 1.0, "-": np.nan}
COLUMNS = ("domain", "language", "kind", "picture", "index", "prompt")


def add_to_pack(sweep: Sweep, answers: Answers, folder: Path) -> list[str]:
    """Write both files of a split. Runs that the folder has a pack of and `answers` lacks, as of
    seeds that another machine did, stay in it; those that both have are taken from `answers`.

    Returns:
        Names of the runs that were kept.

    Raises:
        DataError: no run is scored on the split; or the pack is of other questions, or a run that
            it keeps drew other samples than one with the same seed: nothing is changed.
    """
    kept: list[tuple[str, int]] = []
    if answers.questions and (folder / f"{answers.split}.json").is_file():
        packed = read_pack(sweep, answers.split, folder)
        kept = [key for key in packed.runs if key not in answers.runs]
        answers = joined(sweep, answers, packed, kept, folder)
        for seed in {seed for _, seed in kept}:
            problem = answers.order_problem([arm for arm, s in answers.runs if s == seed], [seed])
            if problem is not None:
                raise DataError(f"{folder}: {problem}; pack these runs into another folder")
    write_pack(sweep, answers, folder)
    return [run_name(arm, seed) for arm, seed in kept]


def joined(
    sweep: Sweep, own: Answers, packed: Answers, kept: Sequence[tuple[str, int]], folder: Path
) -> Answers:
    """`own` with some runs of a pack, whose questions are taken for known by their digests."""
    asked = [
        replace(question, prompt=digest(question), texts=(), answer="")
        for question in own.questions
    ]
    at = {question: number for number, question in enumerate(packed.questions)}
    if kept and at.keys() != set(asked):
        raise DataError(
            f"{folder}: its {len(at)} questions are not the {len(asked)} that these runs were "
            "asked: pack these into another folder"
        )
    places = [at[question] for question in asked] if kept else []
    found = replace(own, shown={}, withheld={}, orders={}, runs={}, attempts={})
    for key in [(arm, seed) for arm in sweep.arm_names() for seed in sweep.seeds]:
        source = packed if key in kept else own
        if key not in source.runs:
            continue
        order: Sequence[int] | slice = places if key in kept else slice(None)
        found.shown[key] = source.shown[key][order]
        if key in source.withheld:
            found.withheld[key] = source.withheld[key][order]
        found.orders[key], found.runs[key] = source.orders[key], source.runs[key]
        found.attempts[key] = source.attempts[key]
    found.scorings = [*(one for one in packed.scorings if one not in own.scorings), *own.scorings]
    return found


def write_pack(sweep: Sweep, answers: Answers, folder: Path) -> Path:
    """Both files of a split, whatever is there; the folder is made.

    Raises:
        DataError: no run is scored on the split.
    """
    if not answers.questions:
        raise DataError(f"no run of {sweep.out} is scored on {answers.split}: nothing to pack")
    with writing_file(folder / f"{answers.split}.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for question in answers.questions:
            values = {**asdict(question), "prompt": digest(question)}
            table.writerow([values[column] for column in COLUMNS])
    runs = {}
    for (arm, seed), done in answers.runs.items():
        withheld = answers.withheld.get((arm, seed))
        runs[run_name(arm, seed)] = {
            "arm": arm,
            "seed": seed,
            "shown": marks(answers.shown[arm, seed]),
            **({} if withheld is None else {"withheld": marks(withheld)}),
            "order": answers.orders[arm, seed],
            "attempts": answers.attempts[arm, seed],
            "done": done,
        }
    values = {
        "split": answers.split,
        "settings": settings_of(sweep),
        "runs": runs,
        "test_scorings": answers.scorings,
    }
    with writing_file(folder / f"{answers.split}.json") as file:
        json.dump(values, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return folder


def read_pack(sweep: Sweep, split: str, folder: Path) -> Answers:
    """What `write_pack` wrote; runs of arms and seeds that the sweep file lacks are left out.

    Raises:
        DataError: a file is missing or is no such file, or the questions are not those that
            `evaluate` asks for.
    """
    table, path = folder / f"{split}.csv", folder / f"{split}.json"
    if not table.is_file() or not path.is_file():
        raise DataError(f"{folder}: no {split}.csv with {split}.json; --pack writes them")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    values = read_json(path) or {}
    found = Answers(split)
    try:
        found.questions = tuple(
            Question(**{column: row[column] for column in COLUMNS}, texts=(), answer="")
            for row in rows
        )
        if values["settings"] != settings_of(sweep):
            raise DataError(
                f"{path}: was packed with evaluate={values['settings']}, the sweep file asks for "
                f"{settings_of(sweep)}"
            )
        found.scorings = values["test_scorings"]
        for run in values["runs"].values():
            key = (run["arm"], run["seed"])
            if run["arm"] not in sweep.arm_names() or run["seed"] not in sweep.seeds:
                continue
            asked = np.isin(found.column("domain"), sweep.domains_of(run["arm"]))
            found.shown[key] = scores(run["shown"], asked, path)
            if "withheld" in run:
                found.withheld[key] = scores(run["withheld"], asked, path)
            found.orders[key], found.runs[key] = run["order"], run["done"]
            found.attempts[key] = run["attempts"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no pack of a sweep ({type(error).__name__}: {error})") from error
    found.declare(sweep)
    return found


def digest(question: Question) -> str:
    """Of all that was asked: the prompt, the options, the right one."""
    text = json.dumps([question.prompt, question.texts, question.answer], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def marks(right: Scores) -> str:
    return "".join("-" if np.isnan(one) else "1" if one else "0" for one in right)


def scores(text: Any, asked: NDArray[np.bool_], path: Path) -> Scores:
    """(Q,) where the sweep file has the arm asked; nan elsewhere."""
    if not isinstance(text, str) or len(text) != len(asked) or set(text) - set(MARKS):
        raise DataError(f"{path}: a run's marks are not {len(asked)} of 0, 1 and -, one a question")
    found = np.array([MARKS[one] for one in text])
    if np.isnan(found[asked]).any():
        raise DataError(
            f"{path}: a run was not asked all that the sweep file has it asked; arms.NAME.domains"
        )
    return np.where(asked, found, np.nan)
