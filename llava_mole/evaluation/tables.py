"""Predictions on disk, and every figure that is worked out from them.

One JSON object a line, one line per question and condition, holding what the model was shown, what
each option scored, what was chosen. `recompute` needs nothing else; the reports use it themselves.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_mole.errors import DataError
from llava_mole.evaluation.conditions import blind_accuracy
from llava_mole.evaluation.scoring import OptionScore, choose
from llava_mole.evaluation.statistics import score_interval, wilson
from llava_mole.folders import writing_file


@dataclass(frozen=True)
class Prediction:
    """One question under one condition.

    Attributes:
        index, source: of the row ("file:row").
        picture: whose question it is. shown: the picture shown, None if withheld.
        style: prompt style. prompt: the user's text, whole.
        letters, texts: of the options. scored: what was scored for each, text or letter.
        logprobs, end_logprobs, tokens: per option, see `OptionScore`.
        chosen, answer: letters.
    """

    index: str
    source: str
    condition: str
    language: str
    kind: str
    picture: str
    shown: str | None
    style: str
    prompt: str
    letters: tuple[str, ...]
    texts: tuple[str, ...]
    scored: tuple[str, ...]
    logprobs: tuple[float, ...]
    end_logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    normalization: str
    chosen: str
    answer: str
    correct: bool

    def choice(self, normalization: str) -> str:
        """The letter chosen under a normalization."""
        scores = zip(self.logprobs, self.tokens, self.end_logprobs, strict=True)
        return self.letters[choose([OptionScore(*score) for score in scores], normalization)]


@dataclass(frozen=True)
class Cell:
    """Accuracy of one condition, language and kind.

    Attributes:
        low, high: 95 % Wilson interval.
        chance: of a uniform guess. blind: of that, or of the best guess that knows how often each
            answer is right (`blind_accuracy`), whichever is higher.
    """

    condition: str
    language: str
    kind: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float
    blind: float


@dataclass(frozen=True)
class Mean:
    """Mean over languages of one condition and kind; 95 % interval by bootstrap over pictures."""

    condition: str
    kind: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Tables:
    normalization: str
    cells: tuple[Cell, ...]
    means: tuple[Mean, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """One line each; whole or not at all, over what is there."""
    with writing_file(path) as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Raises DataError naming the line that is not a prediction."""
    predictions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
                lists = {key: tuple(v) for key, v in values.items() if isinstance(v, list)}
                predictions.append(Prediction(**{**values, **lists}))
            except (json.JSONDecodeError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: not a prediction ({error})") from error
    return predictions


def recompute(path: Path, normalization: str | None = None) -> Tables:
    """All figures of a report from its predictions.

    Args:
        path: predictions, as `write_predictions` wrote them.
        normalization: choose anew by this one. None: as recorded; then every recorded choice is
            checked against its likelihoods.

    Raises:
        DataError: a recorded choice does not follow from the recorded likelihoods.
    """
    return tabulate(read_checked(path), normalization)


def read_checked(path: Path) -> list[Prediction]:
    """Predictions whose choices follow from their likelihoods.

    Raises:
        DataError: naming the line whose choice does not, or that is no prediction.
    """
    predictions = read_predictions(path)
    for number, row in enumerate(predictions, start=1):
        agrees = row.chosen == row.choice(row.normalization)
        if not agrees or row.correct != (row.chosen == row.answer):
            raise DataError(
                f"{path}:{number}: chosen {row.chosen!r}, correct {row.correct}: the likelihoods "
                f"say {row.choice(row.normalization)!r} and the answer is {row.answer!r}"
            )
    return predictions


def tabulate(predictions: Sequence[Prediction], normalization: str | None = None) -> Tables:
    """Cells in order of first appearance."""
    rule = normalization or (predictions[0].normalization if predictions else "mean")
    right = [row.answer == row.choice(rule) for row in predictions]
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, row in enumerate(predictions):
        cells[row.condition, row.language, row.kind].append(number)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (condition, _, kind), numbers in cells.items():
        groups[condition, kind] += numbers
    return Tables(
        rule,
        tuple(_cell(key, [predictions[i] for i in n], [right[i] for i in n])
              for key, n in cells.items()),
        tuple(_mean(key, [predictions[i] for i in n], [right[i] for i in n])
              for key, n in groups.items()),
    )  # fmt: skip


def _cell(key: tuple[str, str, str], rows: Sequence[Prediction], right: Sequence[bool]) -> Cell:
    n, correct = len(rows), sum(right)
    low, high = wilson(correct, n)
    answers = [(row.texts[row.letters.index(row.answer)], row.texts) for row in rows]
    chance = _chance(rows)
    blind = max(chance, blind_accuracy(answers))
    return Cell(*key, n, correct, correct / n, low, high, chance, blind)


def _mean(key: tuple[str, str], rows: Sequence[Prediction], right: Sequence[bool]) -> Mean:
    mean, low, high = score_interval(
        right, [row.picture for row in rows], [row.language for row in rows]
    )
    return Mean(*key, len(rows), mean, low, high, _chance(rows))


def _chance(rows: Sequence[Prediction]) -> float:
    return math.fsum(1 / len(row.letters) for row in rows) / len(rows)
