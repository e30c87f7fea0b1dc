"""An inspection on the screen: what the source is, what was found, what to do about it."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llava_mole.inspection.findings import FIRST, SEVERITIES
from llava_mole.inspection.result import Inspection

CHECKS = {
    "record": "the record cannot be used as it is; correct it or take it out",
    "image-missing": "check the image root (--image-root), or whether the pictures were unpacked",
    "image-unreadable": "fetch the picture again, convert it, or take its records out",
    "leak-picture": "take these records out before any figure on the benchmark is published; "
    "schematic pictures that only look the same: --same-from 0.99",
    "leak-picture-alike": "look at both; take the records out if they show the same",
    "leak-question": "look at both; the same question about another picture may be no leak",
    "question-worded-alike": "nothing, if the wording is a common one",
    "benchmark-row": "the row was not compared; repair the benchmark file",
    "benchmark-blank": "nothing; such a picture tells nothing",
    "duplicate": "take one out, or weigh the source as if it were shorter",
    "picture-twice": "keep one name, so that its questions can share the picture",
    "picture-alike": "look whether they should be one picture, or split over train and test",
    "image-small": "leave it out if nothing can be seen in it",
    "image-elongated": "cut it into parts, or leave it out",
    "image-blank": "a failed download or rendering? Leave it out",
    "language": "correct the declared language, or say --language",
    "language-unknown": "declare an ISO 639-1 code, such as 'pt'",
    "too-long": "shorten the conversation, use fewer visual tokens, or a longer context",
    "placeholder-in-text": "replace the placeholder token in the text",
    "chat-template": "training refuses it: change the turns, or take another chat_template",
    "turn-order": "begin with a question and end with its answer; the rest teaches nothing",
    "empty-question": "ask something, unless the picture alone is the prompt",
    "one-word-question": "nothing, if it is meant as a prompt",
    "answer-is-question": "take it out: nothing is learnt from it but repeating",
    "leftover-mark": "remove the mark: the chat template adds its own",
    "unbalanced-tag": "close the tag; the answer was perhaps cut",
    "control-character": "remove them",
    "replacement-character": "decode the original text again, with its own encoding",
}
"""check -> what to do."""

_BAR = 24
_ROWS = 8
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show(inspection: Inspection, console: Console) -> None:
    """Print the report."""
    tables = inspection.tables
    title = Text(f"{inspection.path}: {inspection.described}", style="bold")
    console.print(title, soft_wrap=True)
    unreadable = f", {inspection.unreadable:,} unreadable" if inspection.unreadable else ""
    console.print(
        f"{inspection.records:,} records, {tables.samples:,} of them samples; "
        f"{inspection.pictures:,} pictures{unreadable}"
    )
    _names(console, "domain", tables.domains)
    _names(console, "language", tables.languages)
    _numbers(console, "turns of a sample", tables.turns)
    _numbers(console, "pictures of a sample", tables.pictures)
    _numbers(console, "characters of an answer", tables.answers)
    _numbers(console, "longer side of a picture, pixels", inspection.widths)
    _numbers(console, inspection.measured or "tokens", tables.tokens)
    for benchmark in inspection.benchmarks:
        console.print(
            Text(
                f"compared with {benchmark['path']}: {benchmark['rows']:,} rows, "
                f"{benchmark['pictures']:,} pictures, {benchmark['questions']:,} questions"
            ),
            soft_wrap=True,
        )
    _findings(console, inspection)


def _findings(console: Console, inspection: Inspection) -> None:
    findings = inspection.findings
    for severity in SEVERITIES:
        for (kind, check), count in sorted(findings.counts.items()):
            if kind != severity:
                continue
            console.print(Text(f"\n{severity} {check}: {count:,}", style=_COLOURS[severity]))
            console.print(Text(f"  → {CHECKS[check]}"), soft_wrap=True)
            for finding in findings.first[check]:
                if finding.severity == severity:
                    console.print(Text(f"  {finding.where}: {finding.message}"), soft_wrap=True)
            if count > FIRST:
                console.print(f"  … and {count - FIRST:,} more (--json FILE holds all)")
    counts = ", ".join(
        f"{findings.count(s):,} {s}{'' if findings.count(s) == 1 else 's'}" for s in SEVERITIES
    )
    console.print(Text(f"\n{counts}", style="bold"))


def _names(console: Console, title: str, counts: Counter[str]) -> None:
    if not counts:
        return
    table = Table.grid(padding=(0, 2))
    total = counts.total()
    for name, count in counts.most_common(_ROWS):
        table.add_row(
            f"  {escape(name)}", _bar(count / total), f"{count:,}", f"{count / total:.1%}"
        )
    if len(counts) > _ROWS:
        rest = total - sum(count for _, count in counts.most_common(_ROWS))
        table.add_row(f"  {len(counts) - _ROWS} more", _bar(rest / total), f"{rest:,}", "")
    console.print(f"\n{title}", table)


def _numbers(console: Console, title: str, counts: Counter[int]) -> None:
    """Middle and extremes, and a histogram in powers of two."""
    if not counts:
        return
    low, high = min(counts), max(counts)
    console.print(
        f"\n{escape(title)}: {low:,} to {high:,}, median {_quantile(counts, 0.5):,}, "
        f"99th percentile {_quantile(counts, 0.99):,}"
    )
    if low == high:
        return
    buckets: Counter[int] = Counter()
    for value, count in counts.items():
        buckets[value.bit_length()] += count
    table = Table.grid(padding=(0, 2))
    for bits in range(min(buckets), max(buckets) + 1):
        first, last = (1 << bits) >> 1, (1 << bits) - 1
        label = f"{first:,}" if first >= last else f"{first:,} to {last:,}"
        share = buckets[bits] / counts.total()
        table.add_row(f"  {label}", _bar(share), f"{buckets[bits]:,}")
    console.print(table)


def _quantile(counts: Counter[int], share: float) -> int:
    wanted = share * counts.total()
    for value in sorted(counts):
        wanted -= counts[value]
        if wanted <= 0:
            return value
    return max(counts)


def _bar(share: float) -> str:
    return "█" * round(share * _BAR) or "▏"
