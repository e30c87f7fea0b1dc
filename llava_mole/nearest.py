"""Which known name an unknown one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(key: str, known: Sequence[str]) -> str:
    """The end of an error: the nearest match, or all that is known."""
    match = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {match[0]!r}?" if match else f" (known: {', '.join(known)})"
