"""Which questions are answered together: batches, fixed before the first answer.

In bfloat16 a reply may depend on what shares its batch (padding most of all). So batches hold
questions of equal length, or of neighbouring lengths for a model that computes the lengths apart by
itself, and are a function of the questions, the protocol and `rows_per_batch` alone. Processes and
resumed runs take whole batches: whoever answers one, its replies are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava_mole.errors import ConfigError
from llava_mole.evaluation.asks import Unit


@dataclass(frozen=True)
class Plan:
    """Batches of units, by their numbers.

    Attributes:
        batches: longest questions first: what does not fit in memory fails at once.
        rows_per_batch: bound on the passes of a batch; a unit is never split.
    """

    batches: tuple[tuple[int, ...], ...]
    rows_per_batch: int

    def digest(self) -> str:
        """Hex SHA-256 of the batches."""
        return hashlib.sha256(json.dumps(self.batches).encode()).hexdigest()


def make_plan(
    units: Sequence[Unit], lengths: Sequence[Hashable], rows_per_batch: int, *, mixed: bool = False
) -> Plan:
    """Batches of units of one length.

    Args:
        lengths: per unit, from the model; equal ones may share a batch. Sortable.
        rows_per_batch: at most so many passes in a batch, but at least one unit.
        mixed: unequal ones may, too (`Answerer.mixes`).

    Raises:
        ConfigError: no row in a batch.
    """
    if rows_per_batch < 1:
        raise ConfigError(f"rows_per_batch={rows_per_batch}: must be at least 1")
    order = sorted(range(len(units)), key=lambda n: (lengths[n], n), reverse=True)
    batches: list[list[int]] = []
    rows = 0
    for number in order:
        more = len(units[number].asks)
        fits = bool(batches) and rows + more <= rows_per_batch
        if fits and (mixed or lengths[batches[-1][0]] == lengths[number]):
            batches[-1].append(number)
            rows += more
        else:
            batches.append([number])
            rows = more
    return Plan(tuple(tuple(sorted(batch)) for batch in batches), rows_per_batch)
