"""From items to what is asked: each question's passes, grouped into what is right or wrong as one.

- vanilla: every row is a group of its own, but for rows that are another row's question with its
  options moved (a circular file's), which are left out.
- circular: the rows index + k·10^6 of a question, k = 0, 1, …, as the file has them (MMBench's).
  Published files leave some questions unturned ("none of the above" stays last), so a question may
  have fewer passes than options; a pass that is missing in between is an error. Passes whose words
  differ (`Unit.reworded`) are counted and told.
- circular_generated: pass k shows option j at place (j + k) mod N. For files without such rows.
- paired: two yes/no questions, one of each answer, right only together; all else stays alone. Two
  rows are a pair where their indices say so (index + 10^6, MMMB's), else where they are of one
  picture and category, in the file's order (MME's layout).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_mole.errors import DataError
from llava_mole.evaluation.items import PER_PASS, Item
from llava_mole.evaluation.prompts import prompt_of
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.wording import AFFIRMATION


@dataclass(frozen=True)
class Ask:
    """One question as it is put to the model once.

    Attributes:
        item: the row; in a generated pass with its options and answer rotated and its index moved.
        group: what is right or wrong as one.
        turn: pass, from 0; of a pair 0 or 1.
        prompt: the user's text, whole.
    """

    item: Item
    group: str
    turn: int
    prompt: str

    @property
    def scored(self) -> tuple[str, ...]:
        """Letters of the options."""
        return tuple(self.item.options)


@dataclass(frozen=True)
class Unit:
    """All passes of one group, which a model may answer together."""

    asks: tuple[Ask, ...]

    @property
    def group(self) -> str:
        return self.asks[0].group

    @property
    def reworded(self) -> bool:
        """Of a circular question: a pass is not pass 0 with its options moved, word for word. So it
        is where each row was translated by itself; or where rows do not belong together."""
        first = self.asks[0].item
        return any(not is_turned(ask.item, first) for ask in self.asks[1:])


def make_units(
    items: Sequence[Item], protocol: Protocol, bad_rows: list[DataError] | None = None
) -> list[Unit]:
    """The groups of a protocol, in the order of their first row.

    Args:
        items: rows of one or several files.
        protocol: checked already.
        bad_rows: what was refused so far. Groups that are not whole are told here and left out, as
            is one that may have lost its last pass to that. None: the first is raised.

    Raises:
        DataError: a group is not whole; no row of a file is a first pass; nothing to pair.
    """
    if protocol.passes == "vanilla":
        groups = [[item] for item in unturned(items)]
    elif protocol.passes == "circular":
        groups = _stored(items, bad_rows)
    elif protocol.passes == "circular_generated":
        groups = [rotations(item) for item in unturned(items)]
    else:
        groups = _pairs(unturned(items))
    units = []
    for group in groups:
        name = f"{group[0].file}/{group[0].index}"
        if protocol.passes == "paired":
            name = "+".join([name, *(item.index for item in group[1:])])
        units.append(
            Unit(
                tuple(
                    Ask(item, name, turn, prompt_of(item, protocol))
                    for turn, item in enumerate(group)
                )
            )
        )
    return units


def unturned(items: Sequence[Item]) -> list[Item]:
    """All rows but those that ask another row's question with its options in other places."""
    first = {item.group: item for item in items if item.turn == 0}
    return [item for item in items if not is_turned(item, first.get(item.group))]


def is_turned(item: Item, first: Item | None) -> bool:
    """Whether a row is a later pass of `first`: same words and picture, each option somewhere."""
    return (
        first is not None
        and item.turn > 0
        and item.question == first.question
        and item.image == first.image
        and sorted(item.options.values()) == sorted(first.options.values())
        and not (item.answer and first.answer and item.right != first.right)
    )


def rotations(item: Item) -> list[Item]:
    """An item's passes: in pass k each option has moved k letters up, the last ones to the front.

    Index, category and picture are the item's; the index of pass k is index + k·10^6 where it is a
    number.
    """
    letters, texts = list(item.options), list(item.options.values())
    passes = []
    for k in range(len(letters)):
        turned = [texts[(place - k) % len(texts)] for place in range(len(texts))]
        answer = letters[(letters.index(item.answer) + k) % len(letters)] if item.answer else ""
        index = item.index if item.number is None else str(item.number + k * PER_PASS)
        passes.append(
            replace(
                item, options=dict(zip(letters, turned, strict=True)), answer=answer, index=index
            )
        )
    return passes


def _stored(items: Sequence[Item], bad_rows: list[DataError] | None) -> list[list[Item]]:
    by_group: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_group[item.group].append(item)
    if items and all(len(rows) == 1 for rows in by_group.values()):
        raise DataError(
            f"{items[0].source}: passes=circular, but no question has a row index + {PER_PASS:,}; "
            "ask with passes=circular_generated where a file holds each question once"
        )
    # Where rows of a file were refused, a question short of a pass may have lost its last one.
    paths = {rows[0].source.rpartition(":")[0] for rows in by_group.values()}
    refused = [str(error) for error in bad_rows or []]
    damaged = {path for path in paths if any(text.startswith(f"{path}:") for text in refused)}
    whole = []
    for rows in by_group.values():
        rows.sort(key=lambda item: item.turn)
        problem = _not_whole(rows, rows[0].source.rpartition(":")[0] in damaged)
        if not problem:
            whole.append(rows)
        elif bad_rows is None:
            raise DataError(problem)
        else:
            bad_rows.append(DataError(problem))
    return whole


def _not_whole(rows: Sequence[Item], damaged: bool) -> str:
    first = rows[0]
    turns, most = [item.turn for item in rows], len(first.options)
    if turns != list(range(len(turns))) or len(turns) > most:
        return (
            f"{first.source}: column index: question {first.base} has passes {turns}, expected 0, "
            f"1, … without a gap and at most {most}, one an option (index + k·{PER_PASS:,})"
        )
    if damaged and len(turns) < most:
        return (
            f"{first.source}: column index: question {first.base} has {len(turns)} passes for "
            f"{most} options, and rows of its file were refused: one of them may be its last"
        )
    for item in rows[1:]:
        if len(item.options) != most:
            return (
                f"{item.source}: columns A to D: {len(item.options)} options, but {most} in pass 0 "
                f"({first.source}): not the same question"
            )
    return ""


def _pairs(items: Sequence[Item]) -> list[list[Item]]:
    by_group: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_group[item.group].append(item)
    waiting: dict[tuple[str, str, str, str], list[list[Item]]] = defaultdict(list)
    groups: list[list[Item]] = []
    for rows in by_group.values():
        if len(rows) == 2 and {affirmed(item) for item in rows} == {True, False}:
            groups.append(rows)
            continue
        for item in rows:
            said = affirmed(item)
            alone = waiting[item.file, item.language, item.picture, item.category]
            partner = next((g for g in alone if said is not None and affirmed(g[0]) != said), None)
            if partner is not None:
                partner.append(item)
                alone.remove(partner)
                continue
            groups.append([item])
            if said is not None:
                alone.append(groups[-1])
    if items and all(len(group) == 1 for group in groups):
        raise DataError(
            f"{items[0].source}: passes=paired, but no two yes/no questions of one picture and "
            "category with different answers are among the rows"
        )
    return groups


def affirmed(item: Item) -> bool | None:
    """Whether the right answer of a yes/no question is yes; None if it is none, or hidden."""
    yes, no = AFFIRMATION[item.language]
    texts = {text.casefold() for text in item.options.values()}
    if len(item.options) != 2 or not item.answer or not (texts & yes and texts & no):
        return None
    return item.right.casefold() in yes
