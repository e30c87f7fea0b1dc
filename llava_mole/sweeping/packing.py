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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mole.errors import DataError
from llava_mole.folders import sha256_file, writing_file
from llava_mole.sweeping.answers import Answers, Question, Scores
from llava_mole.sweeping.order import where_they_part
from llava_mole.sweeping.plan import run_name
from llava_mole.sweeping.run_folder import read_json
from llava_mole.sweeping.scoring import settings_of
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.training.resume import only_run

MARKS = {"0": 0.0, "1": 1.0, "-": np.nan}
COLUMNS = ("domain", "language", "kind", "picture", "index", "prompt")


def add_to_pack(sweep: Sweep, answers: Answers, folder: Path) -> tuple[list[str], list[str]]:
    """Write both files of a split. Runs that the folder has a pack of and `answers` lacks, as of
    seeds that another machine did, stay in it; those that both have are taken from `answers`.

    Returns:
        Names of the runs that were kept, and of those that were replaced by others' answers.

    Raises:
        ConfigError: another process packs into the folder, or it cannot be made.
        DataError: no run is scored on the split, or some were scored with other settings. Or what
            is packed cannot stay beside these: of other settings, questions or recipes, of arms or
            seeds that the sweep file lacks, of other samples with the same seed. Nothing is changed
            then.
    """
    with only_run(folder):
        return _add_to_pack(sweep, answers, folder)


def _add_to_pack(sweep: Sweep, answers: Answers, folder: Path) -> tuple[list[str], list[str]]:
    kept: list[tuple[str, int]] = []
    other: list[tuple[str, int]] = []
    if answers.questions and pack_files(folder, answers.split)[1].exists():
        try:
            packed = read_pack(sweep, answers.split, folder, every=True)
            kept = [key for key in packed.runs if key not in answers.runs]
            replaced = [key for key in packed.runs if key in answers.runs]
            other = other_answers(answers, packed, replaced)
            answers = joined(sweep, answers, packed, kept)
            check_alike(answers, kept)
        except DataError as error:
            raise DataError(
                f"{error}\nNothing was written. Pack into another folder, or remove "
                f"{answers.split}.csv and {answers.split}.json from {folder} if they can go"
            ) from error
    write_pack(sweep, answers, folder)
    return [run_name(*key) for key in kept], [run_name(*key) for key in other]


def other_answers(
    own: Answers, packed: Answers, keys: Iterable[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Those of the runs that answered something otherwise than the pack says."""
    mine = {wordless(question): at for at, question in enumerate(own.questions)}
    both = [(mine[one], at) for at, one in enumerate(packed.questions) if one in mine]
    ours, theirs = [one for one, _ in both], [other for _, other in both]
    return [
        key
        for key in keys
        if not np.array_equal(own.shown[key][ours], packed.shown[key][theirs], equal_nan=True)
    ]


def joined(sweep: Sweep, own: Answers, packed: Answers, kept: Sequence[tuple[str, int]]) -> Answers:
    """`own` with some runs of a pack, whose questions are told apart by their digests."""
    questions = joined_questions(sweep, own, packed)
    places = {wordless(question): at for at, question in enumerate(questions)}
    found = replace(
        own, questions=questions, shown={}, withheld={}, orders={}, runs={}, recipes={},
        attempts={},
    )  # fmt: skip
    for key in [(arm, seed) for arm in sweep.arm_names() for seed in sweep.seeds]:
        source = packed if key in kept else own
        if key not in source.runs:
            continue
        at = [places[wordless(question)] for question in source.questions]
        for marks_of, into in ((source.shown, found.shown), (source.withheld, found.withheld)):
            if key in marks_of:
                into[key] = np.full(len(questions), np.nan)
                into[key][at] = marks_of[key]
        found.orders[key], found.runs[key] = source.orders[key], source.runs[key]
        found.attempts[key] = source.attempts[key]
        if key in source.recipes:
            found.recipes[key] = source.recipes[key]
    found.scorings = [*(one for one in packed.scorings if one not in own.scorings), *own.scorings]
    return found


def joined_questions(sweep: Sweep, own: Answers, packed: Answers) -> tuple[Question, ...]:
    """Domain by domain: what `own` was asked, or else what the pack's runs were.

    Raises:
        DataError: in some domain they were asked different ones.
    """
    found: list[Question] = []
    for domain in sweep.evaluate.domains:
        mine, theirs = (
            [question for question in answers.questions if question.domain == domain]
            for answers in (own, packed)
        )
        if mine and theirs and set(map(wordless, mine)) != set(map(wordless, theirs)):
            raise DataError(
                f"the pack's {len(theirs)} questions on {domain} are not the {len(mine)} that "
                "these runs were asked"
            )
        found += mine or theirs
    return tuple(found)


def check_alike(found: Answers, keys: Iterable[tuple[str, int]]) -> None:
    """Raises DataError where a run is not of its arm's recipe, or drew other samples than the runs
    with its seed."""
    if problem := found.recipe_problem(list(dict.fromkeys(arm for arm, _ in found.runs))):
        raise DataError(problem)
    for arm, seed in keys:
        arms = [name for name, other_seed in found.runs if other_seed == seed]
        if (problem := found.order_problem(arms, [seed])) is not None:
            raise DataError(f"{run_name(arm, seed)}: {problem}")


def pack_files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}.csv", folder / f"{split}.json"


def write_pack(sweep: Sweep, answers: Answers, folder: Path) -> Path:
    """Both files of a split, whatever is there; the folder is made.

    Raises:
        DataError: no run is scored on the split, some were scored with other settings than the
            sweep file's, or an arm's runs are of several recipes.
    """
    if not answers.questions:
        raise DataError(f"no run of {sweep.out} is scored on {answers.split}: nothing to pack")
    if answers.stale:
        raise DataError(
            f"scored with other settings or questions than evaluate has now: "
            f"{', '.join(answers.stale)}. The "
            f"same sweep with --split {answers.split} scores them anew; then pack"
        )
    check_alike(answers, [])
    table, path = pack_files(folder, answers.split)
    with writing_file(table) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for question in answers.questions:
            values = {**asdict(question), "prompt": digest(question)}
            rows.writerow([values[column] for column in COLUMNS])
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
        "questions": sha256_file(table),
        "settings": settings_of(sweep),
        "recipes": {arm: recipe for (arm, _), recipe in answers.recipes.items()},
        "runs": runs,
        "test_scorings": answers.scorings,
    }
    with writing_file(path) as file:
        json.dump(values, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return folder


def read_pack(sweep: Sweep, split: str, folder: Path, *, every: bool = False) -> Answers:
    """What `write_pack` wrote; runs of arms and seeds that the sweep file lacks are left out.

    Args:
        every: refuse such runs.

    Raises:
        DataError: a file is missing or is no such file, they were not written together, or the
            questions are not those that `evaluate` asks for.
    """
    table, path = pack_files(folder, split)
    if not table.is_file() or not path.is_file():
        raise DataError(f"{folder}: no {split}.csv with {split}.json; --pack writes them")
    values = read_json(path) or {}
    if values.get("questions", "") not in ("", sha256_file(table)):
        raise DataError(f"{table} is not the one that {path} was written with")
    if values.get("split", split) != split:
        raise DataError(f"{path} is of {values['split']}, not of {split}")
    found = Answers(split)
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found.questions = tuple(
            Question(**{column: row[column] for column in COLUMNS}, texts=(), answer="")
            for row in rows
        )
        if len(set(found.questions)) < len(found.questions):
            raise DataError(f"{table}: a question stands there twice")
        if values["settings"] != settings_of(sweep):
            raise DataError(
                f"{path}: was packed with evaluate={values['settings']}, the sweep file asks for "
                f"{settings_of(sweep)}"
            )
        found.scorings = values["test_scorings"]
        check_lines(found.scorings)
        asked_of = set(found.column("domain").tolist())
        for name, run in values["runs"].items():
            key = (run["arm"], run["seed"])
            if name != run_name(*key):
                raise DataError(f"{path}: {name} says that it is {run_name(*key)}")
            if run["arm"] not in sweep.arm_names() or run["seed"] not in sweep.seeds:
                if every:
                    name = run_name(run["arm"], run["seed"])
                    raise DataError(f"{path} has {name}, which the sweep file does not have")
                continue
            lacking = [one for one in sweep.domains_of(run["arm"]) if one not in asked_of]
            if lacking:
                raise DataError(f"{path} has no question on {', '.join(lacking)}")
            check_figures(run)
            asked = np.isin(found.column("domain"), sweep.domains_of(run["arm"]))
            found.shown[key] = scores(run["shown"], asked, path)
            if "withheld" in run:
                found.withheld[key] = scores(run["withheld"], asked, path)
            found.orders[key], found.runs[key] = run["order"], run["done"]
            found.attempts[key] = run["attempts"]
            if run["arm"] in values.get("recipes", {}):
                found.recipes[key] = values["recipes"][run["arm"]]
    except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: no pack of a sweep ({type(error).__name__}: {error})") from error
    found.declare(sweep)
    strange = sorted(asked_of - set(sweep.evaluate.domains))
    if strange:
        raise DataError(f"{path} has questions on {', '.join(strange)}: not in evaluate.domains")
    return found


def check_figures(run: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError where figures of a run are not what reports read."""
    done = run["done"]
    for key in ("step_seconds", "minutes"):
        float(done[key])
    for key in ("steps", "processes", "threads"):
        int(done[key])
    max(float(one) for one in done["peak_gib"].values())
    sum(int(part["total"]) + int(part["trained"]) for part in done["parameters"].values())
    str(done["device"]), str(done["digest"]), str(done["order"])
    int(run["attempts"])
    where_they_part(run["order"], {**run["order"], "digest": ""})


def check_lines(scorings: Any) -> None:
    """Raises KeyError, TypeError where a line about test lacks what reports read of it."""
    for line in scorings:
        line["run"], line["choice"], line["chosen"], line["reason"]


def wordless(question: Question) -> Question:
    """Without words: as a pack has it."""
    return replace(question, prompt=digest(question), texts=(), answer="")


def digest(question: Question) -> str:
    """Of all that was asked: the prompt, the options, the right one; a pack's own has it as its
    prompt."""
    if not question.texts:
        return question.prompt
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
