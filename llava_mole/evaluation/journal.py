"""Journal: finished batches on disk, so that a run that was killed repeats nothing.

    OUT/journal/head.json          what run this is
    OUT/journal/NAME.jsonl         one file a process: a line per finished batch
    OUT/predictions.jsonl          all of it in the plan's order, once the last batch is there

A line holds all records of its batch and is synced to disk; one that was cut by a kill or a full
disk does not parse, and its batch counts as not done, as does one that holds other questions than
the plan's batch. Processes write files of their own, and any number of processes may go on with
what others left.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_mole.errors import DataError
from llava_mole.evaluation.record_files import (
    dump_line,
    read_record,
    read_run,
    write_run,
)
from llava_mole.evaluation.records import Record, Run
from llava_mole.folders import writing_file

FOLDER = "journal"
PREDICTIONS = "predictions.jsonl"


class Journal:
    """Of one run in one folder.

    Args:
        out: the run's folder.
        head: of the run; decides whether what is there belongs to it.
        batches: (group, pass) of every ask, by batch of the plan.
        order: the same in the order of predictions.jsonl.
    """

    def __init__(
        self,
        out: Path,
        head: dict[str, Any],
        batches: Sequence[Sequence[tuple[str, int]]],
        order: Sequence[tuple[str, int]],
    ) -> None:
        self.batches = batches
        self.order = order
        self.out = out
        self.folder = out / FOLDER
        self.head = json.loads(json.dumps(head))
        self._file: Any = None

    def finished(self) -> Run | None:
        """The whole run, if an earlier one ended. Raises DataError if it was another run."""
        path = self.out / PREDICTIONS
        if not path.is_file():
            return None
        run = read_run(path)
        self._check(run.head, path)
        if [record.key for record in run.records] != list(self.order):
            raise DataError(f"{path}: not the questions of this run, or in another order")
        return run

    def begin(self) -> dict[int, list[Record]]:
        """Make the folder, or read what is in it: batch -> its records.

        Raises:
            DataError: it is another run's.
        """
        head = self.folder / "head.json"
        done = self.done()
        if done:
            try:
                found = json.loads(head.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{head}: cannot be read ({error}), so nobody knows whose batches lie "
                    "beside it; --fresh puts them aside"
                ) from error
            self._check(found, head)
        else:  # a run that failed before its first batch leaves nothing that could be lost
            with writing_file(head) as file:
                json.dump(self.head, file, ensure_ascii=False, indent=1)
        return done

    def done(self) -> dict[int, list[Record]]:
        """Finished batches of all processes."""
        found: dict[int, list[Record]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            if not path.is_file():
                continue
            for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
                try:
                    entry = json.loads(line)
                    records = [read_record(r, f"{path}:{number}") for r in entry["records"]]
                    batch = entry["batch"]
                    keys = [record.key for record in records]
                    whole = type(batch) is int and batch >= 0 and keys == list(self.batches[batch])
                except (ValueError, KeyError, IndexError, TypeError, AttributeError, DataError):
                    continue  # cut by a kill, or nobody's: not done
                if whole:
                    found.setdefault(batch, records)
        return found

    def add(self, batch: int, records: Sequence[Record]) -> None:
        """A finished batch, on disk before this returns."""
        if self._file is None:
            name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = (self.folder / name).open("ab", buffering=0)
        entry = {"batch": batch, "records": [asdict(record) for record in records]}
        # A line of its own even behind one that a full disk has cut.
        left = memoryview(b"\n" + dump_line(entry).encode())
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> Run:
        """Write predictions.jsonl in the order of questions, read it back, remove the journal.

        Raises:
            DataError: a batch is missing.
        """
        done = self.done()
        missing = [number for number in range(len(self.batches)) if number not in done]
        if missing:
            raise DataError(f"{self.folder}: batches {missing[:5]} are missing; run again")
        place = {key: number for number, key in enumerate(self.order)}
        records = [record for batch in done.values() for record in batch]
        records.sort(key=lambda record: place[record.key])
        write_run(Run(self.head, tuple(records)), self.out / PREDICTIONS)
        run = self.finished()
        assert run is not None
        self.clean()
        return run

    def clean(self) -> None:
        """Remove the journal of a run that is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, found: dict[str, Any], where: Path) -> None:
        other = [
            place
            for place in differences(found, self.head)
            if not place.startswith("model.name:")  # where it lies; its hash says what it is
        ]
        if other:
            raise DataError(
                f"{where}: {self.out} holds another run; it differs in {'; '.join(other[:6])}. "
                "Name another --out, or --fresh to put the old one aside"
            )

    def put_aside(self) -> Path | None:
        """Move what an earlier run left to OUT/earlier-N; where to, or None."""
        names = (FOLDER, PREDICTIONS, "report.json", "report.csv", "report.md", "submission.tsv")
        old = [self.out / name for name in names]
        old = [path for path in old if path.exists()]
        if not old:
            return None
        number = 1
        while (self.out / f"earlier-{number}").exists():
            number += 1
        target = self.out / f"earlier-{number}"
        target.mkdir()
        for path in old:
            os.rename(path, target / path.name)
        return target


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """ "key: this, not that" wherever two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        out = []
        for key in sorted({*found, *wanted}):
            name = f"{path}.{key}" if path else key
            out += differences(found.get(key), wanted.get(key), name)
        return out
    return [] if found == wanted else [f"{path}: there {shown(found)}, now {shown(wanted)}"]


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
