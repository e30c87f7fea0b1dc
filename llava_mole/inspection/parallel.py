"""The same work on many parts of a source, over processes, results in the order of the parts."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from llava_mole.errors import DataError

State = TypeVar("State")
Part = TypeVar("Part")
Result = TypeVar("Result")

_AHEAD = 3
"""Parts a process that are under way or wait to be taken: what bounds the memory."""

_WORK: Callable[[Any], Any] | None = None
"""of a worker process"""


def in_order(
    work: Callable[[State, Part], Result],
    state: State,
    parts: Sequence[Part],
    workers: int,
) -> Iterator[Result]:
    """`work(state, part)` of each part, in order.

    Args:
        work: a function of a module.
        state: what all parts share; sent to each process once.
        workers: processes; 1: this one.

    Raises:
        DataError: a process died.
    """
    if workers < 2 or len(parts) < 2:
        yield from (work(state, part) for part in parts)
        return
    # As torch's data loaders: forked where the system can, so that scripts need no __main__ guard.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, _start, (work, state))
    waiting: deque[Future[Result]] = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(_run, part))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that inspected a part of the data died, perhaps for lack of memory; "
            "try again with fewer (--workers 1)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(work: Callable[[Any, Any], Any], state: Any) -> None:
    global _WORK

    def bound(part: Any) -> Any:
        return work(state, part)

    _WORK = bound


def _run(part: Any) -> Any:
    assert _WORK is not None
    return _WORK(part)


def ranges(total: int, size: int) -> list[range]:
    """0 to `total` in ranges of `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]
