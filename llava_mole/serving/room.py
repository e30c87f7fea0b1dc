"""Room: the models of a page and the visitors who are being answered just now.

A question goes to every model at once; its answers come back together, as far as each has come, a
dozen times a second: often enough to read along, seldom enough that a full room does not spend its
time on sending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from llava_mole.errors import DataError
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.generation import Generation, QueueFullError, Sampling
from llava_mole.serving.limits import Limits
from llava_mole.serving.talk import Answer, Question, Talk, messages_of, without_folders

logger = logging.getLogger(__name__)

INTERVAL = 0.08
"""Seconds between two looks at the answers."""
PATIENCE = 0.4
"""Seconds before somebody is told of a queue: the next step of the model may take them in."""
PATIENCE_TO_DROP = 30
"""Seconds that `drop` waits for pictures that are being decoded; nothing else takes long."""
FAILURES = (DataError, QueueFullError, RuntimeError, ValueError, IndexError, MemoryError)
"""What is told to the visitor: ours, torch's and transformers'."""


class Run:
    """One visitor's question while it is being answered.

    Attributes:
        stopped: write no more; what is there stays. dropped: nobody wants to see it any more.
    """

    def __init__(self) -> None:
        self.stopped = self.dropped = False
        self._ones: list[Generation] = []
        self._lock = threading.Lock()

    def add(self, one: Generation) -> None:
        with self._lock:
            self._ones.append(one)
            if self.stopped:
                one.cancel()

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for one in self._ones:
                one.cancel()


class Room:
    """See the module's docstring.

    Args:
        engines: models, in the order of the page.
        limits: of one question.
    """

    def __init__(self, engines: Sequence[ChatEngine], limits: Limits | None = None) -> None:
        self.engines = tuple(engines)
        self.limits = limits or Limits()
        self._runs: dict[str, Run] = {}

    async def answers(
        self, visitor: str, talk: Talk, question: Question, sampling: Sampling
    ) -> AsyncIterator[tuple[Answer, ...]]:
        """The models' answers, one a model, as far as they have come; the last ones are over.

        Leaving the loop early frees their places. After `drop`, nothing more is given.

        Args:
            visitor: who asks; one question at a time. `stop` and `drop` take the same name.
            talk: what was said before.
            sampling: how the answers are written; its length and time are held to the limits.
        """
        if visitor in self._runs:
            problem = "your last question is still being answered: stop it, or wait"
            yield tuple(Answer(state="error", problem=problem) for _ in self.engines)
            return
        run = self._runs[visitor] = Run()
        try:
            started = time.monotonic()
            found = [Answer() for _ in self.engines]
            yield tuple(found)
            submitted = asyncio.gather(
                *(
                    asyncio.to_thread(self._submit, number, run, talk, question, sampling)
                    for number in range(len(self.engines))
                )
            )
            ones = await submitted
            found = [one if isinstance(one, Answer) else Answer() for one in ones]
            while not run.dropped:
                found = [
                    answer if isinstance(one, Answer) else _further(answer, one, started)
                    for answer, one in zip(found, ones, strict=True)
                ]
                yield tuple(found)
                if all(one.over for one in found):
                    break
                await asyncio.sleep(INTERVAL)
        finally:
            run.stop()
            del self._runs[visitor]

    def stop(self, visitor: str) -> None:
        """End what is being written for a visitor; what is there of it stays."""
        if (run := self._runs.get(visitor)) is not None:
            run.stop()

    async def drop(self, visitor: str) -> None:
        """End what is being written for a visitor, and give no more of it; returns when it is so.

        Its `answers` gives nothing after this was called.
        """
        if (run := self._runs.get(visitor)) is not None:
            run.dropped = True
            run.stop()
            for _ in range(round(PATIENCE_TO_DROP / INTERVAL)):
                if self._runs.get(visitor) is not run:
                    break
                await asyncio.sleep(INTERVAL)

    def is_answering(self, visitor: str) -> bool:
        return visitor in self._runs

    def answering(self) -> int:
        """Visitors whose question is open."""
        return len(self._runs)

    def close(self) -> None:
        for engine in self.engines:
            engine.close()

    def _submit(
        self, number: int, run: Run, talk: Talk, question: Question, sampling: Sampling
    ) -> Generation | Answer:
        limits = self.limits
        try:
            if len(question.text) > limits.characters:
                raise DataError(
                    f"{len(question.text):,} characters, at most {limits.characters:,} are read"
                )
            bounded = replace(
                sampling,
                max_new_tokens=min(sampling.max_new_tokens, limits.tokens),
                seconds=limits.seconds,
            )
            messages = messages_of(talk, question, number, limits)
            one = self.engines[number].submit(
                messages, sampling=bounded, steering=question.steering
            )
        except FAILURES as error:
            pictures = [path for asked in talk for path in asked.question.pictures]
            return Answer(
                state="error",
                problem=without_folders(_told(error), [*pictures, *question.pictures]),
            )
        run.add(one)
        return one


def _further(answer: Answer, one: Generation, started: float) -> Answer:
    """An answer with what has come since."""
    if answer.over:
        return answer
    pieces = one.taken()
    seconds = time.monotonic() - started
    text = answer.text + "".join(piece for piece in pieces if piece is not None)
    state, problem = ("writing" if one.tokens else "waiting"), ""
    if None in pieces:
        state = one.finish_reason or "stop"
        if one.error is not None:
            problem = _told(one.error)
    return Answer(
        text,
        state,
        one.position() if state == "waiting" and seconds > PATIENCE else 0,
        problem,
        len(one.tokens),
        one.first_token,
        seconds,
    )


def _told(error: Exception) -> str:
    """An error in words for a visitor: ours as they are, others by their kind."""
    if isinstance(error, DataError | QueueFullError):
        return str(error)
    logger.error("no answer", exc_info=error)
    return f"the model could not answer ({type(error).__name__}: {str(error)[:200]})"
