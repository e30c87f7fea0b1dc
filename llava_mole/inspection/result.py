"""What an inspection found, as figures and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from llava_mole.inspection.findings import Findings
from llava_mole.inspection.records import Tables


@dataclass
class Inspection:
    """What an inspection found.

    Attributes:
        described: the source in a line.
        pictures: different pictures that were there to be opened.
        benchmarks: per file, {"path", "rows", "pictures", "questions"}.
        measured: how tokens were counted; "" if they were not.
    """

    path: str
    described: str
    records: int
    tables: Tables
    pictures: int
    unreadable: int
    widths: Counter[int]
    """longer side in pixels -> pictures"""
    benchmarks: list[dict[str, str | int]]
    measured: str
    findings: Findings

    @property
    def exit_code(self) -> int:
        """0: no error found; 1: errors."""
        return 1 if self.findings.count("error") else 0

    def facts(self) -> dict[str, Any]:
        """What the JSON file holds behind the findings."""
        tables = self.tables
        return {
            "source": {"path": self.path, "described": self.described},
            "counts": {
                "records": self.records,
                "samples": tables.samples,
                "pictures": self.pictures,
                "pictures_unreadable": self.unreadable,
                **{f"{name}s": self.findings.count(name) for name in ("error", "warning", "note")},
            },
            "by_check": self.findings.by_check(),
            "tables": {
                "domains": dict(tables.domains.most_common()),
                "languages": dict(tables.languages.most_common()),
                "turns": _sorted(tables.turns),
                "pictures": _sorted(tables.pictures),
                "answer_characters": _sorted(tables.answers),
                "tokens": _sorted(tables.tokens),
                "longer_side": _sorted(self.widths),
            },
            "tokens_counted": self.measured,
            "benchmarks": self.benchmarks,
        }


def _sorted(counter: Counter[int]) -> dict[str, int]:
    return {str(key): counter[key] for key in sorted(counter)}
