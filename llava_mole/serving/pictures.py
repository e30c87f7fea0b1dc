"""Pictures of requests are decoded for one request at a time: memory is bounded, whoever asks.

They are decoded in one thread for another reason too: each thread keeps memory of its own for what
it frees, and forty threads would keep forty large pictures' worth.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_ONE = ThreadPoolExecutor(1, thread_name_prefix="pictures")


def one_at_a_time(work: Callable[[], T]) -> T:
    """What the work gives, once it is its turn; never called from within such work."""
    return _ONE.submit(work).result()
