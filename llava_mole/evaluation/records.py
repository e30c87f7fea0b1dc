"""What a run leaves: a head that says everything about it, and a line for every question asked.

predictions.jsonl: line 1 is the head (`{"run": {...}}`), each further line one ask. Every figure of
a report follows from this file alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_mole.evaluation.asks import Ask
from llava_mole.evaluation.extraction import VERSION, extract_choice
from llava_mole.evaluation.metrics import METRICS
from llava_mole.evaluation.models.base import Reply

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One ask and what came of it.

    Attributes:
        file, row: of the question ("mmmb_en.tsv", "17": the line).
        index: of the row; in a generated pass moved by pass · 10^6.
        group: what is right or wrong as one. turn: which pass of it.
        question_id: the same in every language in which a question is asked. question: its text.
        language, split, category, l2: as the row says.
        picture: first 16 hex digits of the SHA-256 of the picture's file; None if withheld.
        prompt: the user's text, whole.
        options: letter -> text as shown; empty for answers that are texts.
        answer: the right letter; None where hidden or a text. answers: accepted texts.
        reply: as it came. finished: the model ended it itself.
        scores: letter -> log-likelihood, where options were scored.
        choice: the letter read from the reply; None: no single choice in it.
        score: 1 right, 0 wrong, in between for metrics that grade; None where the answer is hidden.
        batch: number of the plan's batch.
    """

    file: str
    row: str
    index: str
    group: str
    turn: int
    question_id: str
    question: str
    language: str
    split: str
    category: str
    l2: str
    picture: str | None
    prompt: str
    options: dict[str, str]
    answer: str | None
    answers: tuple[str, ...]
    reply: str
    finished: bool
    scores: dict[str, float] | None
    choice: str | None
    score: float | None
    batch: int

    @property
    def key(self) -> tuple[str, int]:
        return self.group, self.turn


@dataclass(frozen=True)
class Run:
    """A file of predictions, read.

    Attributes:
        head: benchmark, protocol, model, data, versions, plan.
        records: in the plan's order of questions.
    """

    head: dict[str, Any]
    records: tuple[Record, ...]


def make_record(ask: Ask, reply: Reply, batch: int, *, metric: str, shown: bool) -> Record:
    """Read and score one reply."""
    item = ask.item
    choice = read_choice(reply.text, item.options, item.language, reply.scores)
    return Record(
        file=item.file,
        row=item.source.rpartition(":")[2],
        index=item.index,
        group=ask.group,
        turn=ask.turn,
        question_id=item.question_id,
        question=item.question,
        language=item.language,
        split=item.split,
        category=item.category,
        l2=item.l2,
        picture=hashlib.sha256(item.image).hexdigest()[:16] if shown else None,
        prompt=ask.prompt,
        options=item.options,
        answer=item.answer or None,
        answers=item.answers,
        reply=reply.text,
        finished=reply.finished,
        scores=reply.scores,
        choice=choice,
        score=score_of(choice, reply.text, item.answer or None, item.answers, metric),
        batch=batch,
    )


def read_choice(
    reply: str, options: Mapping[str, str], language: str, scores: Mapping[str, float] | None
) -> str | None:
    """The letter: of the highest likelihood where options were scored, else as extracted."""
    if scores is not None:
        return max(scores, key=scores.__getitem__)
    return extract_choice(reply, options, language) if options else None


def score_of(
    choice: str | None, reply: str, answer: str | None, answers: Sequence[str], metric: str
) -> float | None:
    """1 right, 0 wrong or unread; a text metric's value; None where the answer is hidden."""
    if metric == "choice":
        return None if answer is None else float(choice == answer)
    return METRICS[metric](reply, answers) if answers else None


def reread(records: Iterable[Record], metric: str) -> list[Record]:
    """The same replies under today's reading and scoring: choice and score anew."""
    out = []
    for record in records:
        choice = read_choice(record.reply, record.options, record.language, record.scores)
        score = score_of(choice, record.reply, record.answer, record.answers, metric)
        out.append(Record(**{**vars(record), "choice": choice, "score": score}))
    return out


READING = {"extraction_version": VERSION, "format": FORMAT}
"""Of the rules that read replies; part of every head."""
