"""What an inspection has to say about one place, and where it is gathered.

Counts are exact. In memory stay the first few findings of each check; all of them go to the JSON
file as they come, so that a source with a million problems needs no more memory than one with ten.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from llava_mole.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
FIRST = 5
"""Findings of a check that are shown."""
FORMAT = 1
"""Of the JSON file."""


@dataclass(frozen=True)
class Finding:
    """One thing found at one place.

    Attributes:
        severity: "error": training stops or a figure is worth nothing; "warning": probably not
            meant; "note": worth knowing.
        check: which check found it, a key of `report.CHECKS`.
        where: "file:line" ("file:row" in Parquet and saved datasets).
        message: in words.
        value: what it is about: a picture's name, a length, a place in a benchmark; or None.
    """

    severity: Severity
    check: str
    where: str
    message: str
    value: str | int | float | None = None


class Findings:
    """Takes findings; writes them to a JSON file if there is one.

    A context manager: the file is put in place at `close`, and only then; left without it, nothing
    remains.

    Args:
        path: of the JSON file; None: none.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.first: dict[str, list[Finding]] = {}
        self.counts: Counter[tuple[Severity, str]] = Counter()
        self.path = path
        self._beside = None if path is None else path.with_name(f".{path.name}.{os.getpid()}")
        self._file: TextIO | None = None
        if self._beside is not None:
            with self._telling():
                self._file = self._beside.open("w", encoding="utf-8")
            self._write(f'{{"format": {FORMAT}, "findings": [')

    def add(self, found: Iterable[Finding]) -> None:
        for finding in found:
            shown = self.first.setdefault(finding.check, [])
            if len(shown) < FIRST:
                shown.append(finding)
            if self._file is not None:
                # ASCII: also half characters come through.
                self._write((",\n" if self.counts else "\n") + json.dumps(asdict(finding)))
            self.counts[finding.severity, finding.check] += 1

    def count(self, severity: Severity) -> int:
        return sum(n for (kind, _), n in self.counts.items() if kind == severity)

    def by_check(self) -> dict[str, dict[Severity, int]]:
        """check -> {severity: findings}."""
        out: dict[str, dict[Severity, int]] = {}
        for (severity, check), number in sorted(self.counts.items()):
            out.setdefault(check, {})[severity] = number
        return out

    def close(self, facts: dict[str, Any]) -> None:
        """Put the JSON file in place, `facts` behind the findings."""
        if self._file is None or self._beside is None or self.path is None:
            return
        rest = "".join(f",\n{json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
        self._write(f"\n]{rest}}}\n")
        with self._telling():
            self._file.close()
            os.replace(self._beside, self.path)
        self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        with self._telling():
            self._file.write(text)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error

    def __enter__(self) -> Findings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and self._beside is not None:
            with suppress(OSError):  # what a full disk still has to say is known already
                self._file.close()
            self._beside.unlink(missing_ok=True)
