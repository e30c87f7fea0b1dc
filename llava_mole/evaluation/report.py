"""evaluate_conditions: a model on trained, unseen, withheld and swapped pictures, by language.

Every figure comes out of `tables.tabulate` over the predictions, so whoever holds the predictions
file can work it out again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from llava_mole import ranks
from llava_mole.errors import ConfigError
from llava_mole.evaluation.conditions import CONDITIONS, limited, swap_pictures
from llava_mole.evaluation.items import Item, read_items
from llava_mole.evaluation.prompts import ask, style_of
from llava_mole.evaluation.scoring import NORMALIZATIONS, Features, OptionScore, score_options
from llava_mole.evaluation.tables import Prediction, Tables, tabulate, write_predictions
from llava_mole.features import FeatureStore
from llava_mole.languages import LANGUAGES
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor

LIKELIHOOD = ("trained", "naming")
"""The cell that `by_language` calls `likelihood`: the name of a trained picture, of four of its
kind, asked in a form never trained."""


@dataclass(frozen=True)
class Report:
    """Figures, and the predictions behind them.

    Attributes:
        protocol: how they were got, in words and settings.
        seconds: spent on scoring, pictures included.
    """

    predictions: tuple[Prediction, ...]
    tables: Tables
    protocol: dict[str, Any]
    seconds: float

    def by_language(self) -> dict[str, Any]:
        """{language: {"likelihood": …, "conditions": {condition: {kind: figures}}}}."""
        out: dict[str, Any] = {}
        for cell in self.tables.cells:
            entry = out.setdefault(cell.language, {"likelihood": None, "conditions": {}})
            figures = {key: getattr(cell, key) for key in FIGURES}
            entry["conditions"].setdefault(cell.condition, {})[cell.kind] = figures
            if (cell.condition, cell.kind) == LIKELIHOOD:
                entry["likelihood"] = cell.accuracy
        return out

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions, for JSON."""
        return {
            **self.by_language(),
            "means": [vars(mean) for mean in self.tables.means],
            "protocol": self.protocol,
            "seconds": round(self.seconds, 1),
        }


FIGURES = ("n", "correct", "accuracy", "low", "high", "chance", "blind")


def evaluate_conditions(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    trained: Path,
    unseen: Path | None = None,
    *,
    conditions: Sequence[str] = CONDITIONS,
    items_per_cell: int | Mapping[str, int | Mapping[str, int]] | None = 100,
    kinds: Sequence[str] | None = None,
    languages: Sequence[str] = LANGUAGES,
    normalization: str = NORMALIZATIONS[0],
    seed: int = 0,
    rows_per_batch: int = 16,
    features: Features | None = None,
    predictions: Path | None = None,
    progress: bool = True,
) -> Report:
    """Score a model under each condition; see `conditions.py` for what they mean.

    Args:
        trained, unseen: eval_train.tsv and eval_test.tsv of `data/openmoji.py`.
        items_per_cell: at most so many per language and kind; by condition if a mapping (a
            condition that it does not name: all), and by kind inside it (a kind that it does not
            name: none).
        kinds: only these; None: all.
        normalization: how likelihoods of options are compared, see `OptionScore.value`.
        seed: of the swapped pictures.
        features: remembers features between calls. None: a store for this call.
        predictions: write them here, as JSONL.

    In a run of several processes (`ranks.py`) this is a collective: each scores its share.

    Raises:
        ConfigError: unknown condition or normalization, `unseen` asked for without its file.
        DataError: an item is malformed.
    """
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise ConfigError(f"conditions {unknown}: allowed are {', '.join(CONDITIONS)}")
    if "unseen" in conditions and unseen is None:
        raise ConfigError("condition 'unseen' needs the file of unseen pictures, eval_test.tsv")
    OptionScore(0.0, 2, 0.0).value(normalization)  # refused before the work, not after it
    started = time.monotonic()

    def wanted(path: Path) -> list[Item]:
        items = [item for item in read_items(path) if item.language in languages]
        return [item for item in items if kinds is None or item.category in kinds]

    files = {"trained": wanted(trained)}
    if "unseen" in conditions and unseen is not None:
        files["unseen"] = wanted(unseen)
    tasks: list[tuple[str, Item, Item | None]] = []
    for condition in conditions:
        cap: int | Mapping[str, int] | None = (
            items_per_cell.get(condition) if isinstance(items_per_cell, Mapping) else items_per_cell
        )
        items = limited(files["unseen" if condition == "unseen" else "trained"], cap)
        # Drawn among all items of the file: which picture an item gets does not hang on the cap.
        swaps = swap_pictures(files["trained"], seed) if condition == "swapped" else {}
        for item in items:
            shown = None if condition == "withheld" else swaps.get(item.index, item)
            tasks.append((condition, item, shown))

    store = FeatureStore(model, processor.image_processor) if features is None else features
    if isinstance(store, FeatureStore):
        pictures: list[Any] = [shown.image for _, _, shown in tasks if shown is not None]
        store.fill_together(pictures, progress=progress)
    queries = [
        ask(item, style_of(item.category), None if shown is None else shown.image)
        for _, item, shown in tasks
    ]
    scores = score_options(
        model,
        processor,
        queries,
        rows_per_batch=rows_per_batch,
        features=store,
        progress=progress and ranks.is_main(),
        together=ranks.size() > 1,
    )
    rows = [
        predict(item, condition, None if shown is None else shown.picture, query, score,
                style_of(item.category), normalization)
        for (condition, item, shown), query, score in zip(tasks, queries, scores, strict=True)
    ]  # fmt: skip
    seconds = time.monotonic() - started
    if predictions is not None and ranks.is_main():
        write_predictions(rows, predictions)
    protocol = {
        "answer": "the option with the highest log-likelihood, compared by `normalization`",
        "normalization": f"{normalization}: {MEANING[normalization]}",
        "prompt": "choice: options in the prompt, letters scored; other kinds: the question alone, "
        "options' full texts scored",
        "likelihood": "naming, trained pictures, question forms never trained, four options of "
        "the same kind",
        "trained": str(trained),
        "unseen": str(unseen) if unseen else None,
        "conditions": list(conditions),
        "items_per_cell": dict(items_per_cell)
        if isinstance(items_per_cell, Mapping)
        else items_per_cell,
        "swap_seed": seed,
        "intervals": "95 %; Wilson for one cell, bootstrap over pictures (2000 draws) for means",
        "items": len(rows),
        "milliseconds_per_item": round(1000 * seconds / max(1, len(rows)), 1),
    }
    return Report(tuple(rows), tabulate(rows, normalization), protocol, seconds)


MEANING = {
    "mean": "log-likelihood per token, the end of turn counted as one",
    "sum": "log-likelihood of the whole answer, the end of turn included",
    "mean_without_end": "log-likelihood per token, the end of turn left out",
    "sum_without_end": "log-likelihood of the answer's tokens, the end of turn left out",
}


def predict(
    item: Item,
    condition: str,
    shown: str | None,
    query: Any,
    scores: Sequence[OptionScore],
    style: str,
    normalization: str,
) -> Prediction:
    """The record of one scored item."""
    values = [score.value(normalization) for score in scores]
    chosen = tuple(item.options)[values.index(max(values))]
    return Prediction(
        index=item.index,
        source=Path(item.source).name,
        condition=condition,
        language=item.language,
        kind=item.category,
        picture=item.picture,
        shown=shown,
        style=style,
        prompt=query.question,
        letters=tuple(item.options),
        texts=tuple(item.options.values()),
        scored=query.options,
        logprobs=tuple(score.logprob for score in scores),
        end_logprobs=tuple(score.end_logprob for score in scores),
        tokens=tuple(score.tokens for score in scores),
        normalization=normalization,
        chosen=chosen,
        answer=item.answer,
        correct=chosen == item.answer,
    )


# ---------------------------------------------------------------------- showing it


def _grid(tables: Tables) -> list[tuple[str, str, dict[str, float], float, float, float]]:
    """(condition, kind, accuracy by language, mean, half width of its interval, chance)."""
    by: dict[tuple[str, str], dict[str, float]] = {}
    for cell in tables.cells:
        by.setdefault((cell.condition, cell.kind), {})[cell.language] = cell.accuracy
    return [
        (m.condition, m.kind, by[m.condition, m.kind], m.accuracy, (m.high - m.low) / 2, m.chance)
        for m in tables.means
    ]


def render_table(tables: Tables, title: str = "") -> Table:
    """Accuracy in percent by condition, kind and language, for a rich console."""
    languages = [code for code in LANGUAGES if any(c.language == code for c in tables.cells)]
    table = Table(title=title or None, title_justify="left")
    for name in ("pictures", "question"):
        table.add_column(name)
    for name in (*languages, "mean", "chance"):
        table.add_column(name, justify="right")
    previous = ""
    for condition, kind, by, mean, half, chance in _grid(tables):
        if previous and condition != previous:
            table.add_section()
        cells = [_percent(by.get(code)) for code in languages]
        name = condition if condition != previous else ""
        table.add_row(name, kind, *cells, f"{_percent(mean)} ± {100 * half:.0f}", _percent(chance))
        previous = condition
    return table


def markdown_table(tables: Tables) -> str:
    """The same as Markdown."""
    languages = [code for code in LANGUAGES if any(c.language == code for c in tables.cells)]
    head = ["pictures", "question", *languages, "mean", "chance"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for condition, kind, by, mean, half, chance in _grid(tables):
        cells = [_percent(by.get(code)) for code in languages]
        tail = [f"{_percent(mean)} ± {100 * half:.0f}", _percent(chance)]
        lines.append("| " + " | ".join([condition, kind, *cells, *tail]) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f}"
