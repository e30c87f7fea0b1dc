"""evaluate: questions, a protocol and a model in, predictions out; killed, resumed or sharded.

Under `accelerate launch` (or torchrun) each process takes every n-th batch of one plan. A process
that finds batches done takes the next; so what is asked of the model for each batch is the same
however the run was cut, and so is predictions.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from llava_mole import ranks
from llava_mole.errors import DataError
from llava_mole.evaluation.asks import Unit
from llava_mole.evaluation.journal import Journal
from llava_mole.evaluation.models.base import Answerer, require
from llava_mole.evaluation.plan import make_plan
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.records import READING, Run, make_record


def evaluate(
    units: Sequence[Unit],
    model: Answerer,
    protocol: Protocol,
    out: Path,
    *,
    about: dict[str, Any],
    metric: str = "choice",
    rows_per_batch: int = 32,
    fresh: bool = False,
    progress: bool = True,
) -> Run:
    """Ask everything that is not answered yet; the whole run.

    Args:
        units: from `asks.make_units`.
        model: answers whole batches.
        protocol: as `units` were made with.
        out: folder; what an unfinished run of the same kind left there is gone on with.
        about: what else decides the predictions (benchmark, data files and their hashes).
        metric: how replies are scored: "choice", or a name in `metrics.METRICS`.
        rows_per_batch: passes a batch; part of the plan.
        fresh: put an earlier run aside (OUT/earlier-N) and start anew.
        progress: show a bar.

    Every process of a group must call it. Raises:
        DataError: nothing to ask; the folder holds another run.
        ConfigError: the model cannot answer in the protocol's way.
    """
    if not units:
        raise DataError("no question left: check --languages, --limit and the files")
    require(model.answers, protocol.answer, str(model.describe().get("name")))
    plan = make_plan(units, model.lengths(units), rows_per_batch, mixed=model.mixes)
    head = {
        **about,
        **READING,
        "metric": metric,
        "protocol": protocol.describe(),
        "model": model.describe(),
        "plan": {
            "rows_per_batch": rows_per_batch,
            "batches": len(plan.batches),
            "questions": len(units),
            "asks": sum(len(unit.asks) for unit in units),
            "sha256": plan.digest(),
            "questions_sha256": questions_digest(units),
        },
    }
    by_batch = [
        [(ask.group, ask.turn) for number in batch for ask in units[number].asks]
        for batch in plan.batches
    ]
    order = [(ask.group, ask.turn) for unit in units for ask in unit.asks]
    journal = Journal(out, head, by_batch, order)
    if fresh and ranks.is_main():
        journal.put_aside()
    ranks.barrier()
    whole = journal.finished()
    if whole is not None:
        if ranks.is_main():
            journal.clean()  # a kill may have come between the last file and this
        return whole
    # One process looks: another may have finished a batch before the next one has looked.
    done = set(ranks.from_main(sorted(journal.begin()) if ranks.is_main() else None))
    todo = [number for number in range(len(plan.batches)) if number not in done]
    todo = todo[ranks.rank() :: ranks.size()]
    rows = {n: sum(len(units[u].asks) for u in plan.batches[n]) for n in todo}
    bar = tqdm(
        total=sum(rows.values()), desc="asking", unit="ask",
        disable=not (progress and ranks.is_main()),
    )  # fmt: skip
    model.prepare([[units[u] for u in plan.batches[number]] for number in todo])
    try:
        with bar:
            for number in todo:
                part = [units[u] for u in plan.batches[number]]
                replies = model.answer(part)
                journal.add(
                    number,
                    [
                        make_record(ask, reply, number, metric=metric, shown=protocol.picture)
                        for unit, said in zip(part, replies, strict=True)
                        for ask, reply in zip(unit.asks, said, strict=True)
                    ],
                )
                bar.update(rows[number])
    finally:
        journal.close()
    ranks.barrier()
    if ranks.is_main():
        journal.finish()
    ranks.barrier()
    found = journal.finished()
    assert found is not None
    return found


def questions_digest(units: Sequence[Unit]) -> str:
    """Hex SHA-256 of all that is asked and what is right: the same questions give the same."""
    digest = hashlib.sha256()
    pictures: dict[int, str] = {}
    for ask in (ask for unit in units for ask in unit.asks):
        item = ask.item
        if id(item.image) not in pictures:
            pictures[id(item.image)] = hashlib.sha256(item.image).hexdigest()
        said = [ask.group, ask.turn, ask.prompt, item.options, item.answer, item.answers]
        digest.update(json.dumps([*said, pictures[id(item.image)]]).encode())
    return digest.hexdigest()


def compare_batches(
    units: Sequence[Unit], model: Answerer, run: Run, count: int, *, seed: int = 0
) -> dict[str, Any]:
    """Ask some questions again, each by itself, and count what comes out otherwise.

    In bfloat16 a reply may depend on what shares its batch; this says how often it does.

    Args:
        count: questions, drawn by seed.

    Returns:
        {"questions", "asks", "other_replies", "other_choices", "examples"}.
    """
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(units))[:count].tolist())
    known = {record.key: record for record in run.records}
    metric = run.head["metric"]
    asks = replies = choices = 0
    examples: list[dict[str, Any]] = []
    for number in chosen:
        unit = units[number]
        for ask, reply in zip(unit.asks, model.answer([unit])[0], strict=True):
            before = known[ask.group, ask.turn]
            now = make_record(ask, reply, before.batch, metric=metric, shown=True)
            asks += 1
            choices += (now.choice, now.score) != (before.choice, before.score)
            if reply.text != before.reply:
                replies += 1
                if len(examples) < 5:
                    examples.append(
                        {"row": f"{before.file}:{before.row}", "batch": before.reply,
                         "alone": reply.text}
                    )  # fmt: skip
    return {
        "questions": len(chosen), "asks": asks, "other_replies": replies,
        "other_choices": choices, "seed": seed, "examples": examples,
    }  # fmt: skip
