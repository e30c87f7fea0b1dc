"""`llava-mole sweep FILE --report`: everything that is said of a sweep, from its folders alone.

OUT/report/SPLIT/report.md      claims, tables, what to know about the runs
OUT/report/SPLIT/report.json    the same, every figure
OUT/report/SPLIT/marks.csv      arm by domain, language, kind
OUT/report/SPLIT/claims.csv, runs.csv
OUT/report/SPLIT/claims.png, domains.png, languages.png
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_mole.evaluation.results import cell, points
from llava_mole.folders import sweep as remove_leftovers
from llava_mole.folders import writing_file
from llava_mole.sweeping import TEST
from llava_mole.sweeping.answers import Answers, read_answers
from llava_mole.sweeping.claims import Verdict, decide
from llava_mole.sweeping.figures import draw_claims, draw_marks
from llava_mole.sweeping.plan import run_name
from llava_mole.sweeping.sweep_file import Sweep
from llava_mole.sweeping.tables import (
    DOMAIN,
    LANGUAGE,
    Cost,
    Mark,
    costs,
    costs_table,
    kinds_table,
    marks,
    marks_table,
    reference_of,
    to_csv,
)

COLUMNS = {
    "marks": ("arm", "by", "name", "mean", "low", "high", "seeds", "pictures", "questions",
              "without", "less", "less_low", "less_high"),
    "claims": ("claim", "verdict", "reason", "direction", "mean", "low", "high", "p", "p_holm",
               "pictures", "questions", "weakest"),
    "runs": tuple(Cost.__dataclass_fields__),
}  # fmt: skip


@dataclass(frozen=True)
class SweepReport:
    """What a sweep has come to on a split."""

    split: str
    verdicts: tuple[Verdict, ...]
    marks: tuple[Mark, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    """What a reader must know: missing runs, second looks at test, runs on other machines."""


def make_report(sweep: Sweep, split: str, answers: Answers | None = None) -> SweepReport:
    """From `answers` (`packing.read_pack`), or the runs' folders.

    Raises:
        DataError, CheckpointError: see `read_answers`.
    """
    answers = answers or read_answers(sweep, split)
    found = costs(sweep, answers)
    return SweepReport(
        split,
        tuple(decide(sweep, answers)),
        tuple(marks(sweep, answers)),
        tuple(found),
        tuple(notes(sweep, answers, found)),
    )


def notes(sweep: Sweep, answers: Answers, found: Sequence[Cost]) -> list[str]:
    """What else there is to know."""
    said = []
    runs = [(arm, seed) for seed in sweep.seeds for arm in sweep.arm_names()]
    wanted = [one for one in runs if answers.split != TEST or one[0] in sweep.protocol.chosen]
    missing = [run_name(*one) for one in wanted if one not in answers.shown]
    if missing:
        said.append(f"{len(missing)} of {len(wanted)} runs are not scored: {', '.join(missing)}")
    if answers.stale:
        said.append(
            f"{len(answers.stale)} runs were scored with other settings or questions than "
            "`evaluate` has now; "
            f"the sweep without --report scores them anew: {', '.join(answers.stale)}"
        )
    for arm in [one for one in sweep.arm_names() if answers.seeds([one])]:
        if problem := answers.recipe_problem([arm]):
            said.append(f"**tables mix several recipes**: {problem}; --again does them anew")
        if sweep.arm(arm).domains:
            said.append(f"{arm} is scored on {', '.join(sweep.domains_of(arm))} only")
        if arm in answers.other_data:
            said.append(f"{arm} is declared to see other data: {answers.other_data[arm]}")
    for name, values in (
        ("processes and threads", {(one.processes, one.threads) for one in found}),
        ("devices", {one.device for one in found}),
    ):
        if len(values) > 1:
            said.append(
                f"runs had different {name} ({', '.join(sorted(map(str, values)))}): step times "
                "can't be compared, and weights differ by rounding"
            )
    again = [run_name(one.arm, one.seed) for one in found if one.attempts > 1]
    if again:
        said.append(f"trained in several sessions, memory is the last one's: {', '.join(again)}")
    return said + looks_at_test(answers.scorings)


def looks_at_test(lines: Sequence[dict[str, Any]]) -> list[str]:
    """How often anyone looked at test, and at what.

    Args:
        lines: one for each run and domain; without a domain it is of all.
    """
    if not lines:
        return []
    looks = Counter((str(line["run"]), line.get("domain")) for line in lines)
    often: dict[str, int] = {}
    for (run, _), count in looks.items():
        often[run] = max(often.get(run, 0), count)
    times = sum(often.values())
    said = [f"test was scored {times} times, {len(often)} runs; see test_scorings.jsonl"]
    copied = {str(line["run"]) for line in lines if "copied_from" in line}
    if copied:
        said.append(f"copied from another sweep that scored them: {', '.join(sorted(copied))}")
    again = {run: count for run, count in often.items() if count > 1}
    if again:
        shown = ", ".join(f"{run} {count} times" for run, count in again.items())
        said.append(f"**scored on test more than once**: {shown}")
    choices = {line["choice"]: line for line in lines}
    if len(choices) > 1:
        shown = "; ".join(
            f"{', '.join(line['chosen'])} ({line['reason']})" for line in choices.values()
        )
        said.append(f"**the choice changed between scorings on test**: {shown}")
    return said


def claim_line(one: Verdict) -> str:
    """A claim in one line: verdict, difference, interval, p, what it rests on."""
    text = f"{one.claim}: {one.verdict}"
    if one.mean is not None and one.low is not None and one.high is not None:
        text += f": {points(one.mean, '+')} points"
        text += "" if math.isnan(one.low) else f" ({from_to(one.low, one.high)})"
    if one.p is not None:
        text += f", p {in_words(one.p)}"
    if one.p_holm is not None:
        text += f", corrected {in_words(one.p_holm)}"
    if one.seeds:
        text += f"; {len(one.seeds)} seeds, {one.pictures:,} pictures"
    return text + (f"; {one.reason}" if one.reason else "")


def in_words(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def claims_table(verdicts: Sequence[Verdict]) -> str:
    """Markdown: a line a claim."""
    lines = [
        "| claim | difference | 95 % | bootstrap | p | corrected | verdict |",
        "|---|---:|---|---|---:|---:|---|",
    ]
    for one in verdicts:
        difference = interval = drawn = "–"
        if one.mean is not None and one.low is not None and one.high is not None:
            difference = points(one.mean, "+")
            interval = "–" if math.isnan(one.low) else from_to(one.low, one.high)
        if one.bootstrap is not None:
            drawn = from_to(*one.bootstrap)
        verdict = one.verdict + (f": {one.reason}" if one.reason else "")
        values = (one.about or one.claim, difference, interval, drawn, in_words(one.p),
                  in_words(one.p_holm), verdict)  # fmt: skip
        lines.append(f"| {' | '.join(map(cell, values))} |")
    return "\n".join(lines) + "\n"


def from_to(low: float, high: float) -> str:
    return f"{points(low, '+')} to {points(high, '+')}"


def to_markdown(sweep: Sweep, report: SweepReport) -> str:
    """For people."""
    lines = [f"# {sweep.out.name}, {report.split}", ""]
    if sweep.protocol.chosen:
        lines += [f"Chosen on {sweep.protocol.development}: {', '.join(sweep.protocol.chosen)}. "
                  f"{sweep.protocol.reason}", ""]  # fmt: skip
    if report.verdicts:
        lines += [
            "## Claims",
            "",
            "First less second, with the 95 % interval for new seeds and new pictures; p values "
            "two-sided, corrected for several claims (Holm).",
            "",
        ]
        for one in report.verdicts:
            about = f" {cell(one.about)}" if one.about else ""
            lines.append(f"- {cell(claim_line(one))}.{about}")
        lines.append("")
    if report.marks:
        lines += ["## Accuracy", "", "Percent; mean over domains of means over languages, ± half "
                  "of the 95 % interval over seeds and pictures. Last the difference to "
                  f"{cell(reference_of(sweep))}, question by question.", ""]  # fmt: skip
        for by in (DOMAIN, LANGUAGE):
            lines += [marks_table(report.marks, by)]
        lines += [kinds_table(report.marks), "## Runs", "", costs_table(report.costs)]
    if report.notes:
        lines += ["## To know", "", *(f"- {note}" for note in report.notes), ""]
    return "\n".join(lines)


def to_json(sweep: Sweep, report: SweepReport) -> dict[str, Any]:
    return {
        "split": report.split,
        "sweep": asdict(sweep),
        "claims": [one.to_dict() for one in report.verdicts],
        "marks": [asdict(one) for one in report.marks],
        "runs": [asdict(one) for one in report.costs],
        "notes": list(report.notes),
    }


def known(value: Any) -> Any:
    """With null for what is no number, as JSON has none."""
    if isinstance(value, dict):
        return {key: known(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(sweep: Sweep, report: SweepReport) -> Path:
    """All files of it; the folder."""
    folder = sweep.out / "report" / report.split
    texts = {
        "report.md": to_markdown(sweep, report),
        "report.json": json.dumps(known(to_json(sweep, report)), indent=1, ensure_ascii=False)
        + "\n",
        "marks.csv": to_csv(report.marks, COLUMNS["marks"]),
        "claims.csv": to_csv(report.verdicts, COLUMNS["claims"]),
        "runs.csv": to_csv(report.costs, COLUMNS["runs"]),
    }
    for name, text in texts.items():
        with writing_file(folder / name) as file:
            file.write(text)
    remove_leftovers(folder)
    (folder / "claims.png").unlink(missing_ok=True)  # of claims that are no more
    draw_claims(report.verdicts, folder / "claims.png")
    draw_marks(report.marks, DOMAIN, folder / "domains.png")
    draw_marks(report.marks, LANGUAGE, folder / "languages.png")
    return folder
