"""Batcher: many conversations written together, each as it would be written alone.

One thread owns the model. Between two steps it drops who is done, cancelled or out of time, takes
in who waits (their prompts in one pass), and then writes one token for everybody: continuous
batching. A step costs about the same for sixteen rows as for one, so throughput grows with those
who ask.

Rows see nothing of each other (`decoding.py`). A model whose rows cannot be masked by us (a family
that `tree.py` does not know, experts that are routed by the whole prompt) is served one at a time
by `generate`, in the same queue.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from llava_mole import heads
from llava_mole.decoding import Rows, Tree, best, end_tokens, joined, rows_supported
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.serving.generation import Generation, QueueFullError

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 4096
"""Of prompts that are taken in at one step, or one prompt of more: those being written wait for
it."""
FAILURES = (RuntimeError, ValueError, IndexError, MemoryError)
"""What torch, transformers and we raise over a conversation: told to its reader."""
STEPS_BETWEEN_CALLS = 8
"""Tokens that are written for everybody between two explanations."""
SLACK = 64
"""Unused places of the cache before it is packed anew."""


class Batcher:
    """A queue and the thread that serves it.

    Args:
        model, processor: of one folder; the model is used by nobody else meanwhile.
        max_rows: conversations that are written together.
        max_waiting: conversations that may wait beside them.
    """

    def __init__(
        self,
        model: LlavaMoleForConditionalGeneration,
        processor: LlavaMoleProcessor,
        *,
        max_rows: int = 16,
        max_waiting: int = 64,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.together = rows_supported(model)
        self.ends = end_tokens(model, processor)
        self._waiting: deque[Generation] = deque()
        self._writing: dict[int, Generation] = {}
        self._next: dict[int, int] = {}  # the token that each row was given last
        self._draws: dict[int, torch.Generator] = {}
        self._rows: Rows | None = None
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._count = self._since_call = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for those who ask

    def submit(self, one: Generation) -> None:
        """Queue it.

        Raises:
            QueueFullError: as many wait as may.
        """
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} conversations wait already; try again in a moment"
                )
            self._waiting.append(one)
            self._changed.notify()

    def call(self, work: Callable[[], Any]) -> Any:
        """Have the thread do something else with the model, between two steps; what it returns.

        Raises:
            QueueFullError: the server is shutting down.
            Exception: what the work raised.
        """
        found: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is shutting down")
            self._calls.append((work, found))
            self._changed.notify()
        return found.result()

    def position(self, one: Generation) -> int:
        """How many are before it: those that wait; 0 where it is being written, or done."""
        with self._changed:
            if one in self._waiting:
                return self._waiting.index(one) + 1
        return 0

    def load(self) -> tuple[int, int]:
        """(being written, waiting)."""
        with self._changed:
            return len(self._writing), len(self._waiting)

    def close(self) -> None:
        """End all that is written and waiting, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._writing or self._calls or self._closed):
                    self._changed.wait()
                if self._closed:
                    for one in [*self._waiting, *self._writing.values()]:
                        one.finish("cancelled")
                    for _, found in self._calls:
                        found.set_exception(QueueFullError("the server is shutting down"))
                    return
                taken = self._take()
                # What else is asked of the model must not stop those that are being written.
                self._since_call += 1
                due = not self._writing or self._since_call >= STEPS_BETWEEN_CALLS
                called = self._calls.popleft() if self._calls and due else None
            if called is not None:
                self._do(*called)
                self._since_call = 0
            with torch.inference_mode():
                if not self.together:
                    for one in taken:
                        self._write_alone(one)
                    continue
                self._guarded(taken, self._begin, taken)
                self._drop()
                if self._writing:
                    self._guarded(list(self._writing.values()), self._step)

    def _do(self, work: Callable[[], Any], found: Future[Any]) -> None:
        try:
            found.set_result(work())
        except Exception as error:  # told to who asked for it
            found.set_exception(error)

    def _take(self) -> list[Generation]:
        """Those whose turn it is; who has given up by then is told so."""
        room = self.max_rows - len(self._writing) if self.together else 1
        taken: list[Generation] = []
        tokens = 0
        while self._waiting and len(taken) < room:
            one = self._waiting[0]
            reason = one.over()
            if reason is None:
                tokens += len(one.encoded.input_ids)
                if taken and tokens > PREFILL_TOKENS:
                    break
                taken.append(one)
            else:
                one.finish(reason)
            self._waiting.popleft()
        return taken

    def _guarded(self, involved: list[Generation], work: Any, *arguments: Any) -> None:
        """Do it; what goes wrong is told to those involved, and nobody else."""
        if not involved:
            return
        try:
            work(*arguments)
        except FAILURES as error:
            if work == self._begin and len(involved) > 1:  # one of them; the others need not suffer
                for one in involved:
                    self._guarded([one], self._begin, [one])
                return
            logger.exception("no answer for %d conversations", len(involved))
            for one in involved:
                one.finish("error", error)
            self._drop()

    def _drop(self) -> None:
        """Free the rows of those who are done, or have given up."""
        for number, one in list(self._writing.items()):
            reason = one.over()
            if reason is not None:
                one.finish(reason)
            if one.finish_reason is not None:
                del self._writing[number], self._next[number], self._draws[number]
        if not self._writing:
            self._rows = None
        elif self._rows is not None:
            self._rows.keep(self._writing)
            self._rows.compact(SLACK)

    def _begin(self, taken: list[Generation]) -> None:
        """Read the prompts of those who come in; each gets its first token."""
        numbers = list(range(self._count, self._count + len(taken)))
        self._count += len(taken)
        prompts = [one.encoded.input_ids for one in taken]
        trees = [Tree(ids[:-1], [ids[-1:]], []) for ids in prompts]
        device = self.model.device
        width = max(map(len, prompts))
        rows = Rows(trees, numbers, width, self.processor.pad_id, device)
        inputs: dict[str, Any] = {}
        pixels = [one.pixels for one in taken if one.pixels is not None]
        if pixels:
            inputs["image_features"] = self.model.encode_images(torch.cat(pixels).to(device))
            questions = [question for one in taken for question in one.encoded.questions]
            steering = self.processor.steering(questions)
            inputs |= {name: value.to(device) for name, value in steering.items()}
        with heads.only_at(decoder_of(self.model.language_model), rows.last):
            logits = self.model(
                input_ids=rows.input_ids, segment_ids=rows.segments, cache=rows.cache,
                use_cache=True, **inputs,
            ).logits[0]  # fmt: skip
        self._rows = rows if self._rows is None else joined([self._rows, rows])
        # From here on they are being written.
        for number, one in zip(numbers, taken, strict=True):
            self._writing[number], self._next[number] = one, self.processor.pad_id
            self._draws[number] = draws = torch.Generator(device)
            if one.sampling.seed is None:
                draws.seed()
            else:
                draws.manual_seed(one.sampling.seed)
        self._choose(numbers, logits)

    def _step(self) -> None:
        """One token for everybody."""
        assert self._rows is not None
        given = {(number, 0): self._next[number] for number in self._rows.rows}
        ids, positions, mask, active = self._rows.step(self.model, given)
        with heads.only_at(decoder_of(self.model.language_model), active):
            logits = self.model(
                input_ids=ids, position_ids=positions, attention_mask=mask,
                cache=self._rows.cache, use_cache=True,
            ).logits[0]  # fmt: skip
        self._choose(list(self._rows.rows), logits)
        self._drop()

    def _choose(self, numbers: list[int], logits: Tensor) -> None:
        """Each row's next token, (S, V) -> its answer.

        Args:
            numbers: S rows.
        """
        greedy: list[int] | None = None
        for place, number in enumerate(numbers):
            one = self._writing[number]
            sampling, row = one.sampling, logits[place : place + 1]
            if len(one.tokens) < sampling.min_new_tokens:
                row = row.clone()
                row[:, list(self.ends)] = -torch.inf
            elif sampling.temperature == 0:
                greedy = best(logits) if greedy is None else greedy
                self._next[number] = greedy[place]
                one.add(greedy[place], greedy[place] in self.ends)
                continue
            token = draw(row, one, self._draws[number])
            self._next[number] = token
            one.add(token, token in self.ends)

    # ------------------------------------------------------------------ one at a time

    def _write_alone(self, one: Generation) -> None:
        """`generate`, for models whose rows cannot be masked by us."""
        sampling, device = one.sampling, self.model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor([one.encoded.input_ids], device=device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if one.pixels is not None:
            inputs["pixel_values"] = one.pixels.to(device)
            steering = self.processor.steering(one.encoded.questions)
            inputs |= {name: value.to(device) for name, value in steering.items()}
        if sampling.temperature > 0:
            inputs |= {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
            inputs["top_p"] = sampling.top_p
            torch.manual_seed(torch.seed() if sampling.seed is None else sampling.seed)
        else:
            inputs["do_sample"] = False
        try:
            self.model.generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=sampling.min_new_tokens or None,
                streamer=_Hand(one, self.ends),
                stopping_criteria=StoppingCriteriaList([_WhenOver(one)]),
            )
            one.finish(one.over() or "length")
        except FAILURES as error:
            logger.exception("no answer")
            one.finish("error", error)


class _Hand(BaseStreamer):
    """Hands each new token to its answer."""

    def __init__(self, one: Generation, ends: frozenset[int]) -> None:
        self.one, self.ends, self.prompt_seen = one, ends, False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
        elif self.one.finish_reason is None:
            token = int(value.flatten()[0])
            self.one.add(token, token in self.ends)

    def end(self) -> None:
        return


class _WhenOver(StoppingCriteria):
    """Ends `generate` for an answer that is finished, cancelled or out of time."""

    def __init__(self, one: Generation) -> None:
        self.one = one

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        over = self.one.finish_reason is not None or self.one.over() is not None
        return torch.full((input_ids.shape[0],), over, device=input_ids.device)


def draw(logits: Tensor, one: Generation, draws: torch.Generator) -> int:
    """(1, V) -> a token, greedy or drawn as the answer's sampling says."""
    sampling = one.sampling
    if sampling.temperature == 0:
        return best(logits)[0]
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.float())
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=draws))
