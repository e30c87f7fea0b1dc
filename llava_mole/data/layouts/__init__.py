"""What a record says: one layout for each way to write a conversation with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava_mole.data.layouts.base import Defaults, Layout
from llava_mole.data.layouts.llava import LLAVA, SHAREGPT
from llava_mole.data.layouts.messages import Messages
from llava_mole.data.layouts.mmbench import MmBench
from llava_mole.data.layouts.pairs import Alpaca, NanoVlm, Swift
from llava_mole.data.layouts.vqa import Vqa
from llava_mole.data.quoting import keys_of
from llava_mole.errors import DataError

__all__ = ["LAYOUTS", "Defaults", "Layout", "detect_layout", "no_match"]

_IN_ORDER = (MmBench(), LLAVA, SHAREGPT, Messages(), Swift(), Alpaca(), NanoVlm(), Vqa())
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _IN_ORDER}
"""By name; where a record matches several, the first is taken."""


def detect_layout(records: Sequence[Any], where: Sequence[str]) -> Layout:
    """The layout that most of the records match.

    Args:
        records: some of a source, at least one.
        where: the place of each.

    Raises:
        DataError: no record matches any; says what each layout needs.
    """
    objects = [record for record in records if isinstance(record, dict)]
    counts = {
        name: sum(layout.matches(record) for record in objects) for name, layout in LAYOUTS.items()
    }
    best = max(counts, key=lambda name: counts[name])  # of equals, the first
    if not counts[best]:
        raise DataError(no_match(records[0], where[0]))
    return LAYOUTS[best]


def no_match(record: Any, where: str) -> str:
    """What to say about a record that no layout matches."""
    needs = "; ".join(f"{name}: {layout.needs}" for name, layout in LAYOUTS.items())
    return f"{where}: {keys_of(record)}; no layout matches. What each needs: {needs}"
