"""Records on disk: predictions.jsonl, whole or refused.

Whoever reads a report back from predictions must be able to trust them: every line is checked for
its kind, its place and whether what it says goes together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_mole.data.quoting import short
from llava_mole.errors import DataError
from llava_mole.evaluation.metrics import METRICS
from llava_mole.evaluation.records import FORMAT, Record, Run
from llava_mole.folders import writing_file
from llava_mole.languages import LANGUAGES

HEAD: dict[str, tuple[type, tuple[str, ...]]] = {
    "benchmark": (str, ()),
    "title": (str, ()),
    "data": (list, ()),
    "left_out": (list, ()),
    "metric": (str, ()),
    "protocol": (
        dict, ("passes", "answer", "style", "max_new_tokens", "picture", "meaning"),
    ),
    "model": (dict, ("name",)),
    "plan": (dict, ("asks", "batches")),
}  # fmt: skip
"""Key of a head -> (kind, keys inside it) without which there is no report."""
TEXTS = ("file", "row", "index", "group", "question_id", "question", "language", "split",
         "category", "l2", "prompt", "reply")  # fmt: skip
MAYBE_TEXTS = ("picture", "answer", "choice")


def write_run(run: Run, path: Path) -> None:
    """Whole or not at all: written beside its place, synced, renamed."""
    with writing_file(path) as file:
        file.write(dump_line({"run": run.head}))
        for record in run.records:
            file.write(dump_line(asdict(record)))


def dump_line(value: Mapping[str, Any]) -> str:
    """As JSON, readable; halves of surrogate pairs, which a server may send, as escapes."""
    text = json.dumps(value, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read_run(path: Path) -> Run:
    """A predictions file, whole.

    Raises:
        DataError: it is missing, cut, has no head, or a line is no record or says two things that
            do not go together; file, line and key are named.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no predictions can be read ({error})") from error
    lines = text.split("\n")
    head = read_head(parse_line(lines[0], f"{path}:1").get("run"), f"{path}:1")
    records = []
    seen: dict[tuple[str, int], int] = {}
    passes: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        record = read_record(parse_line(line, f"{path}:{number}"), f"{path}:{number}")
        check_score(record, head["metric"], f"{path}:{number}")
        if record.key in seen:
            raise DataError(f"{path}:{number}: question and pass of line {seen[record.key]} again")
        seen[record.key] = number
        passes[record.group] = passes.get(record.group, 0) + 1
        records.append(record)
    asks = head["plan"]["asks"]
    if len(records) != asks:
        raise DataError(f"{path}: {len(records)} predictions, the run asked {asks}; was it cut?")
    for record in records:
        if record.turn >= passes[record.group]:
            raise DataError(
                f"{path}:{seen[record.key]}: pass {record.turn} of question {record.group}, of "
                f"which {passes[record.group]} passes are there; was a line lost?"
            )
    return Run(head, tuple(records))


def read_head(head: Any, where: str) -> dict[str, Any]:
    """Raises DataError for what is no head of a run."""
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise DataError(
            f"{where}: no head of a run (format {FORMAT}); is it a predictions.jsonl of eval/?"
        )
    for key, (kind, inner) in HEAD.items():
        value = head.get(key)
        lacking = [k for k in inner if not isinstance(value, dict) or k not in value]
        if not isinstance(value, kind) or lacking:
            what = f"lacks {', '.join(lacking)}" if lacking else f"is no {kind.__name__}"
            raise DataError(f"{where}: the head's {key} {what}")
    if any(not isinstance(f, dict) or not {"name", "sha256", "published"} <= set(f)
           for f in head["data"]):  # fmt: skip
        raise DataError(f"{where}: the head's data are no list of files")
    if head["metric"] != "choice" and head["metric"] not in METRICS:
        raise DataError(f"{where}: the head's metric {head['metric']!r} is not known")
    return head


def parse_line(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); was the file cut?") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_record(values: dict[str, Any], where: str) -> Record:
    """Raises DataError naming the key whose value is of another kind than a record's."""
    names = set(Record.__dataclass_fields__)
    if set(values) != names:
        lacking, foreign = sorted(names - set(values)), sorted(set(values) - names)
        raise DataError(f"{where}: not a prediction (lacks {lacking}, does not know {foreign})")
    options, answers = values["options"], values["answers"]
    wrong = [key for key in TEXTS if not isinstance(values[key], str)]
    wrong += [key for key in MAYBE_TEXTS if not isinstance(values[key], str | None)]
    wrong += [key for key in ("turn", "batch") if type(values[key]) is not int or values[key] < 0]
    if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
        wrong.append("options")
    if not isinstance(answers, list) or not all(isinstance(v, str) for v in answers):
        wrong.append("answers")
    if type(values["finished"]) is not bool:
        wrong.append("finished")
    if values["language"] not in LANGUAGES:
        wrong.append("language")
    if not wrong:
        wrong += [key for key in ("answer", "choice")
                  if values[key] is not None and values[key] not in options]  # fmt: skip
        scores, score = values["scores"], values["score"]
        if scores is not None and (
            not isinstance(scores, dict)
            or set(scores) != set(options)
            or not all(_finite(value) for value in scores.values())
        ):
            wrong.append("scores")
        if score is not None and not (_finite(score) and 0 <= score <= 1):
            wrong.append("score")
    if wrong:
        raise DataError(
            f"{where}: not a prediction: {wrong[0]} is {short(values[wrong[0]])}"
            + (f" (also {', '.join(wrong[1:])})" if wrong[1:] else "")
        )
    return Record(**{**values, "answers": tuple(answers)})


def check_score(record: Record, metric: str, where: str) -> None:
    """Raises DataError where choice or score do not follow from what else the line says."""
    if record.scores is not None:
        best = max(record.scores.values())
        if record.choice is None or record.scores[record.choice] != best:
            raise DataError(f"{where}: choice {record.choice!r} is not the likeliest option")
    if metric == "choice":
        expected = None if record.answer is None else float(record.choice == record.answer)
        if record.score != expected:
            raise DataError(
                f"{where}: score {record.score}, but {record.choice!r} was chosen and "
                f"{record.answer!r} is right"
            )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
