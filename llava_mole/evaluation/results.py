"""Reports: report.json with everything, report.csv with every figure, report.md to read.

All of them follow from predictions.jsonl; nothing that changes from run to run (times, hosts) is in
them, so equal predictions give equal reports, byte for byte.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from llava_mole.evaluation.figures import Figure, figures, group_records, yes_no
from llava_mole.evaluation.records import Run
from llava_mole.folders import writing_file

COLUMNS = (
    "by", "name", "n", "asks", "accuracy", "low", "high", "first", "every", "unparsed",
    "unfinished", "vlmevalkit", "chance",
)  # fmt: skip


def make_report(run: Run, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything about a run: its head, its figures, what was left out.

    `hidden_answers` counts asks, `hidden_questions` the questions that are in no figure because one
    pass or more of theirs has a hidden answer.
    """
    hidden = sum(record.score is None for record in run.records)
    groups = group_records(run.records)
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[str(group.asks)] = sizes.get(str(group.asks), 0) + 1
    report: dict[str, Any] = {
        **run.head,
        "figures": [figure.to_dict() for figure in figures(run)],
        "passes_of_questions": dict(sorted(sizes.items())),
        "hidden_answers": hidden,
        "hidden_questions": sum(group.score is None for group in groups),
        "intervals": "95 %, bootstrap over questions, 2000 draws; Wilson's, n questions, where all "
        "scores of a row are 0 or all are 1",
    }
    pope = yes_no(run)
    if pope:
        report["yes_no"] = pope
    return {**report, **(extra or {})}


def write_report(report: dict[str, Any], out: Path) -> None:
    """report.json, report.csv and report.md; each whole or not at all."""
    with writing_file(out / "report.json") as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    with writing_file(out / "report.csv") as file:
        file.write(csv_text(report["figures"]))
    with writing_file(out / "report.md") as file:
        file.write(markdown(report))


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """One line a figure; shares from 0 to 1, six digits."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        cells = [row[name] for name in COLUMNS]
        table.writerow([f"{v:.6f}" if isinstance(v, float) else "" if v is None else v
                        for v in cells])  # fmt: skip
    return text.getvalue()


def markdown(report: dict[str, Any]) -> str:
    """The report to read: what was asked of whom, then a table for each way to divide it."""
    protocol, model = report["protocol"], report["model"]
    meaning = protocol["meaning"]
    lines = [
        f"# {cell(report['title'])}",
        "",
        f"- model: {cell(model['name'])}"
        + (f", {cell(model['dtype'])} on {cell(model['device'])}" if "dtype" in model else ""),
        f"- passes: {protocol['passes']} ({meaning['passes']})",
        f"- answer: {protocol['answer']} ({meaning['answer']})",
        f"- prompt: {protocol['style']} ({meaning['style']})",
        f"- picture: {'shown' if protocol['picture'] else 'withheld'}; "
        f"at most {protocol['max_new_tokens']} new tokens",
        f"- files: {', '.join(_file(file) for file in report['data'])}",
        f"- rows left out: {len(report['left_out'])}",
    ]
    if report["hidden_answers"]:
        lines.append(
            f"- answers hidden: {report['hidden_answers']} asks; see submission.tsv; left out of "
            f"all figures: {report['hidden_questions']} questions"
        )
    check = report.get("batch_check")
    if check:
        lines.append(
            f"- asked again one by one: {check['other_replies']} of {check['asks']} replies and "
            f"{check['other_choices']} choices came out otherwise"
        )
    lines += [
        "",
        "Percent. `accuracy`: questions right in all their passes; `first`: in pass 0 alone; "
        "`unparsed`: replies without a single choice, counted wrong; `VLMEvalKit`: the same "
        "replies under that harness's rule, without a judge; `chance`: of guessing.",
        "",
    ]
    figures_ = report["figures"]
    for by in dict.fromkeys(row["by"] for row in figures_ if row["by"] != "mean"):
        rows = [row for row in figures_ if row["by"] == by]
        if by == "language":
            rows += [row for row in figures_ if row["by"] == "mean"]
        lines += [
            f"| {by} | n | accuracy | 95 % interval | first | unparsed | VLMEvalKit | chance |",
            "|---|---:|---:|---|---:|---:|---:|---:|",
            *(_row(row) for row in rows),
            "",
        ]
    if "yes_no" in report:
        lines += ["| yes/no | n | accuracy | precision | recall | F1 | yes said |",
                  "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for name, rates in report["yes_no"].items():
            keys = ("accuracy", "precision", "recall", "f1", "yes_share")
            cells = [cell(name), f"{rates['n']:,}", *(percent(rates[key]) for key in keys)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _file(file: dict[str, Any]) -> str:
    known = {True: "as published", False: "NOT as published", None: "no published hash"}
    return f"{cell(file['name'])} ({known[file['published']]}, {file['sha256'][:12]})"


def _row(row: dict[str, Any]) -> str:
    name = "mean of languages" if row["by"] == "mean" else cell(row["name"])
    cells = [
        name, f"{row['n']:,}", percent(row["accuracy"]),
        f"{percent(row['low'])} to {percent(row['high'])}", percent(row["first"]),
        percent(row["unparsed"]), percent(row["vlmevalkit"]), percent(row["chance"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def printable(text: str) -> str:
    """Control characters, and halves of surrogate pairs, as �: what a file says must not steer a
    terminal."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def cell(value: object) -> str:
    """A value in a Markdown table or on one line of a list: printable, `|` and \\ escaped, line
    breaks and tabs as one space."""
    text = printable(re.sub(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+", " ", str(value)))
    return text.replace("\\", r"\\").replace("|", r"\|")


def points(share: float, sign: str = "") -> str:
    """A share in percent, one digit behind the point. Of the same answers the same on every
    machine, though sums there are rounded otherwise: 0.0525 and the number next to it are both 5.2.

    Args:
        sign: "+": with its sign.
    """
    return f"{round(100 * share, 9):{sign}.1f}"


def percent(value: float | None) -> str:
    return "–" if value is None or value != value else points(value)


def render(rows: Sequence[Figure], title: str) -> Table:
    """The main figures for a terminal: whole, by language, by category."""
    table = Table(
        title=escape(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", overflow="fold", min_width=8)
    for name in ("n", "accuracy", "95 %", "first", "unread", "VLMEvalKit", "chance"):
        # A narrow terminal folds names; it must not cut figures.
        width = {"95 %": 10, "n": 3}.get(name, max(5, len(name)))
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    previous = ""
    for row in rows:
        if "," in row.by:
            continue
        if previous and row.by not in (previous, "mean"):
            table.add_section()
        previous = row.by
        table.add_row(
            "mean of languages" if row.by == "mean" else escape(printable(row.name)),
            str(row.n), percent(row.accuracy), f"{percent(row.low)}–{percent(row.high)}",
            percent(row.first), percent(row.unparsed), percent(row.vlmevalkit),
            percent(row.chance),
        )  # fmt: skip
    return table


def submission(run: Run) -> str:
    """Test splits without answers: a row for each ask, in the columns that MMBench's server took.

    index, question, A to D (and on), prediction (the letter, or the raw reply where none was read),
    category, l2-category, split.
    """
    letters = sorted({letter for record in run.records for letter in record.options})
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(
        ["index", "question", *letters, "prediction", "category", "l2-category", "split"]
    )
    for record in run.records:
        options = [record.options.get(letter, "") for letter in letters]
        about = [record.category, record.l2, record.split]
        said = record.choice or record.reply
        table.writerow([record.index, record.question, *options, said, *about])
    return text.getvalue()
