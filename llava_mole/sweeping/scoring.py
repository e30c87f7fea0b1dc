"""Score a run's model on a split, question by question; and the guard before the test split.

Test is for what was chosen on the development split. Who may be scored is in the sweep's
`protocol`; every scoring leaves a line in OUT/test_scorings.jsonl before its first prediction is
written, so a second look can't go unseen.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_mole import ranks
from llava_mole.errors import ConfigError, DataError
from llava_mole.folders import known_hash, sha256_file
from llava_mole.folders import sweep as remove_leftovers
from llava_mole.sweeping import TEST
from llava_mole.sweeping.plan import PlannedRun
from llava_mole.sweeping.run_folder import (
    SCORED,
    append_line,
    now,
    read_json,
    split_folder,
    write_json,
)
from llava_mole.sweeping.sweep_file import Evaluation, Sweep, unknown

logger = logging.getLogger(__name__)

SHOWN, WITHHELD = "trained", "withheld"
"""Conditions of `evaluate_conditions`, whose first file is the split's here: with its picture, and
as text alone."""
TEST_SCORINGS = "test_scorings.jsonl"


def questions_file(asked: Evaluation, domain: str, split: str) -> Path:
    return Path(asked.domains[domain]) / f"eval_{split}.tsv"


def check_files(asked: Evaluation, split: str) -> None:
    """Before anything is trained.

    Raises:
        DataError: listing the files that are not there, and those without a question of the
            languages and kinds that are asked; a kind that no file has; a file that is no table
            of questions.
    """
    files = [questions_file(asked, domain, split) for domain in asked.domains]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise DataError(
            "evaluate.domains: no such file:\n  " + "\n  ".join(missing) + "\nA builder in data/ "
            "writes them; data/README.md names the builders"
        )
    from llava_mole.evaluation.items import read_items

    problems, every = [], set()
    for path in files:
        cells = {(item.language, item.category) for item in read_items(path)}
        kinds = {kind for _, kind in cells}
        every |= kinds
        wanted = [
            kind
            for language, kind in cells
            if (asked.languages is None or language in asked.languages)
            and (asked.kinds is None or kind in asked.kinds)
        ]
        if not wanted:
            languages = ", ".join(sorted({language for language, _ in cells}))
            problems.append(f"{path} has {', '.join(sorted(kinds))} in {languages}")
    problems = [f"evaluate: no question is of the languages and kinds that are asked: {one}"
                for one in problems]  # fmt: skip
    problems += unknown(asked.kinds, sorted(every), "evaluate.kinds")
    if problems:
        raise DataError("\n".join(problems))


def check_choice(sweep: Sweep, arms: Sequence[str]) -> None:
    """Raises ConfigError for arms that were not chosen on the development split."""
    others = [arm for arm in arms if arm not in sweep.protocol.chosen]
    if others:
        said = ", ".join(sweep.protocol.chosen) or "no arm"
        raise ConfigError(
            f"test is not scored: the protocol names {said}, not {', '.join(others)}. Choose on "
            f"the {sweep.protocol.development} split, then write down which arms and why:\n"
            f"  protocol:\n    chosen: [{', '.join(arms)}]\n    reason: …\n"
            "in the sweep file or in a file of its own (protocol: choice.yaml), and commit it"
        )


def settings_of(sweep: Sweep) -> dict[str, Any]:
    """What a score hangs on beside model and files."""
    asked = asdict(sweep.evaluate)
    asked.pop("domains")
    return asked


def scored(folder: Path, split: str) -> dict[str, Any]:
    """What is scored of a split: {"settings", "domains": {name: {…}}}."""
    return read_json(split_folder(folder, split) / SCORED) or {"settings": None, "domains": {}}


def scores_left(sweep: Sweep, run: PlannedRun, split: str) -> list[str]:
    """Domains that are yet to be scored as the sweep file asks: of other questions than the file
    has now, or of predictions that are not those that were written, too."""
    found = scored(run.folder, split)
    wanted = sweep.domains_of(run.arm)
    if found["settings"] != settings_of(sweep):
        return wanted
    return [
        domain
        for domain in wanted
        if domain not in found["domains"]
        or other_questions(sweep.evaluate, found["domains"][domain], domain, split)
        or not as_written(found["domains"][domain], predictions_file(run.folder, split, domain))
    ]


def other_questions(asked: Evaluation, known: Mapping[str, Any], domain: str, split: str) -> bool:
    """Whether the file that is there now is not the one whose questions were asked."""
    path = questions_file(asked, domain, split)
    return path.is_file() and known.get("sha256", "") != known_hash(path)


def as_written(known: Mapping[str, Any], predictions: Path) -> bool:
    """Whether predictions are there as they were written."""
    return predictions.is_file() and known.get("predictions", "") == known_hash(predictions)


def predictions_file(folder: Path, split: str, domain: str) -> Path:
    return split_folder(folder, split) / f"{domain}.jsonl"


def score_run(sweep: Sweep, run: PlannedRun, split: str) -> None:
    """Score the model that a run left, domain by domain; a collective.

    Raises:
        DataError: a questions file is malformed.
    """
    folder = run.folder
    if ranks.is_main():
        remove_leftovers(split_folder(folder, split))
    left = ranks.from_main(scores_left(sweep, run, split) if ranks.is_main() else None)
    if not left:
        return
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from llava_mole.evaluation.report import evaluate_conditions
    from llava_mole.evaluation.tables import write_predictions
    from llava_mole.training.run import feature_store

    model = AutoModelForImageTextToText.from_pretrained(folder / "model")
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    processor = AutoProcessor.from_pretrained(folder / "model")
    features = feature_store(run.recipe, model, processor)  # the recipe's cache, where it has one
    asked = sweep.evaluate
    found = scored(folder, split)
    if found["settings"] != settings_of(sweep):
        found = {"settings": settings_of(sweep), "split": split, "domains": {}}
    for domain in left:
        path = questions_file(asked, domain, split)
        options: dict[str, Any] = {} if asked.languages is None else {"languages": asked.languages}
        report = evaluate_conditions(
            model, processor, path,
            conditions=(SHOWN, WITHHELD) if asked.withheld else (SHOWN,),
            items_per_cell=asked.items, kinds=asked.kinds, normalization=asked.normalization,
            features=features, **options,
        )  # fmt: skip
        if not report.predictions:
            raise DataError(f"{path}: no question is of the languages and kinds that are asked")
        if not ranks.is_main():
            continue
        if split == TEST:
            append_line(sweep.out / TEST_SCORINGS, scoring_line(sweep, run, domain))
        predictions = predictions_file(folder, split, domain)
        write_predictions(report.predictions, predictions)
        right = [row.correct for row in report.predictions if row.condition == SHOWN]
        found["domains"][domain] = {
            "file": str(path),
            "sha256": sha256_file(path),
            "predictions": sha256_file(predictions),
            "questions": len(right),
            "accuracy": round(sum(right) / len(right), 4),
            "seconds": round(report.seconds, 1),
        }
        write_json(split_folder(folder, split) / SCORED, found)


def scoring_line(sweep: Sweep, run: PlannedRun, domain: str) -> dict[str, Any]:
    """The line that a scoring on test leaves, one for each domain."""
    chosen = asdict(sweep.protocol)
    text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
    return {
        "time": now(),
        "run": run.name,
        "domain": domain,
        "digest": run.digest,
        "choice": hashlib.sha256(text.encode()).hexdigest()[:16],
        "chosen": chosen["chosen"],
        "reason": chosen["reason"],
        "settings": settings_of(sweep),
    }
