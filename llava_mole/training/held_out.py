"""Evaluation while a model is trained: its loss on samples that it never trains on.

The loss is the mean over supervised tokens, of all held-out samples and by source, domain and
language: sums over tokens divided once, so it depends neither on the batch size nor on how many
ranks share the work (batches are made before they are shared out, and sums are taken in the
samples' order). Of lettered questions (a benchmark TSV) also the share where the right letter is
the likeliest of those that the question offers, from the same forward pass.

    eval_loss, eval_tokens, eval_accuracy
    eval_source_NAME_loss, eval_domain_NAME_loss, eval_language_xx_loss, … and _accuracy
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import TrainingArguments

from llava_mole import heads, ranks
from llava_mole.data.collator import Collator
from llava_mole.data.layouts.mmbench import MmBench
from llava_mole.data.pool import Keep, Pool
from llava_mole.data.random_order import key_of, shuffled
from llava_mole.data.rows import Row
from llava_mole.data.sample import Sample, Turn
from llava_mole.data.sources import Source
from llava_mole.errors import ConfigError
from llava_mole.processing import IGNORE, LlavaMoleProcessor
from llava_mole.training.data import TrainingData, encode_sample, read_data
from llava_mole.training.recipe import DataRecipe, Recipe
from llava_mole.training.undisturbed import undisturbed

logger = logging.getLogger(__name__)


def read_held_out(recipe: Recipe) -> TrainingData | None:
    """What `data.held_out` names, opened; None where it names nothing."""
    if not recipe.data.held_out:
        return None
    own = DataRecipe(
        recipe.data.held_out, max_length=recipe.data.max_length, too_long=recipe.data.too_long
    )
    return read_data(own, progress=ranks.is_main(), key="data.held_out")


def scored_by(recipe: Recipe, data: TrainingData, arguments: TrainingArguments) -> str:
    """Hex digest of what two scores must share to be compared: held-out samples, metric, model."""
    digest = hashlib.sha256()
    said = {
        "model": asdict(recipe.model),
        "held_out": [asdict(source) for source in recipe.data.held_out],
        "limits": [recipe.data.max_length, recipe.data.too_long, recipe.seed],
        "metric": [arguments.metric_for_best_model, arguments.greater_is_better],
    }
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for source in data.sources:
        for name, values in source.index().arrays().items():
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Item:
    """A held-out sample by its place.

    Attributes:
        source, record: numbers.
        width: bytes and visual tokens, for batches of like length.
        names: of its cells: source, domain, language.
    """

    source: int
    record: int
    width: int
    names: tuple[str, str, str]


@dataclass
class Result:
    """Of one sample: summed loss, supervised tokens, and whether its letter was found (None: it
    offers no letters)."""

    loss: float
    tokens: int
    correct: bool | None = None


class HeldOut(Dataset[Sample]):
    """The held-out samples of a run, ready to be scored at any step.

    Args:
        data: the recipe's `data.held_out`, opened.
        processor: of the model.
        seed: of the choice where a source says `samples`.

    Raises:
        ConfigError: a filter names what its source does not have, or nothing is left.
    """

    def __init__(self, data: TrainingData, processor: LlavaMoleProcessor, *, seed: int) -> None:
        self.data = data
        self.processor = processor
        self.items: list[Item] = []
        self._letters: dict[str, int | None] = {}
        for number, (source, recipe) in enumerate(
            zip(data.sources, data.recipe.sources, strict=True)
        ):
            without = data.too_long.get(source.name)
            pool = Pool(source, keep=Keep(**vars(recipe.keep)), without=without)
            records = np.sort(pool.records)
            if recipe.samples is not None and recipe.samples < len(records):
                order = shuffled(len(records), key_of(seed, "held out", source.name))
                records = np.sort(records[order[: recipe.samples]])
            if not len(records):
                raise ConfigError(f"data.held_out: {source.name}: no sample is left of it")
            index = source.index()
            visual = index.images.astype(np.int64) * processor.tokens_per_image
            for record in records.tolist():
                names = (
                    source.name,
                    index.domains[index.domain[record]],
                    index.languages[index.language[record]],
                )
                width = int(index.text_bytes[record] + visual[record])
                self.items.append(Item(number, record, width, names))
        self.lettered = [
            isinstance(source, Source) and isinstance(source.layout, MmBench)
            for source in data.sources
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Sample:
        item = self.items[number]
        return self.data.sources[item.source][item.record]

    def cells(self) -> list[str]:
        """Prefixes of the metrics: '', 'source_NAME_', 'domain_NAME_', 'language_xx_'."""
        found = dict.fromkeys(
            f"{kind}_{name}_"
            for item in self.items
            for kind, name in zip(("source", "domain", "language"), item.names, strict=True)
        )
        return ["", *sorted(found)]

    def check_metric(self, name: str) -> None:
        """Raises ConfigError if no evaluation will give `training.metric_for_best_model`."""
        known = [f"{cell}loss" for cell in self.cells()]
        lettered = [item for item in self.items if self.lettered[item.source]]
        for item in lettered:
            for kind, value in zip(("source", "domain", "language"), item.names, strict=True):
                known += ["accuracy", f"{kind}_{value}_accuracy"]
        known = list(dict.fromkeys(known))
        if name.removeprefix("eval_") not in known:
            near = difflib.get_close_matches(name.removeprefix("eval_"), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(
                f"training.metric_for_best_model={name!r}: no metric of data.held_out; {hint}"
            )

    # ------------------------------------------------------------------ scoring

    def batches(self, size: int) -> list[list[int]]:
        """Numbers of items, those of like length and with or without pictures together."""
        index = [source.index() for source in self.data.sources]

        def order(number: int) -> tuple[bool, int, int]:
            item = self.items[number]
            return (bool(index[item.source].images[item.record]), item.width, number)

        numbers = sorted(range(len(self.items)), key=order, reverse=True)
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def evaluate(
        self, model: nn.Module, collator: Collator, *, batch_size: int, progress: bool = False
    ) -> dict[str, float]:
        """Metrics by name; see the module's docstring. A collective: each rank takes its share.

        The model, its mode and all random state are afterwards as they were.

        Args:
            collator: of the stage; rows are laid out one sample each whatever it says of sharing.
            batch_size: samples of a forward pass.
        """
        started = time.monotonic()
        plain = replace(collator, share_prefix=False, packing=None, note_sources=False)
        todo = self.batches(batch_size)
        mine = todo[ranks.rank() :: ranks.size()]
        # Sharded models need every rank in every pass: who has no batch left repeats one.
        rounds = math.ceil(len(todo) / ranks.size())
        results: dict[int, Result] = {}
        with undisturbed(model):
            for turn in tqdm(
                range(rounds), desc="held out", unit="batch", leave=False, disable=not progress
            ):
                batch = mine[turn] if turn < len(mine) else todo[0]
                found = self._score(model, plain, batch)
                if turn < len(mine):
                    results.update(zip(batch, found, strict=True))
        for other in ranks.gather(results):
            results.update(other)
        metrics = self._summed([results[number] for number in range(len(self.items))])
        metrics["seconds"] = round(time.monotonic() - started, 3)
        return metrics

    def _score(self, model: nn.Module, collator: Collator, batch: Sequence[int]) -> list[Result]:
        samples = [self[number] for number in batch]
        encoded = [encode_sample(self.processor, sample) for sample in samples]
        rows = [
            Row(sample.images, (sample,), (item,))
            for sample, item in zip(samples, encoded, strict=True)
        ]
        inputs: dict[str, Any] = collator(rows)
        inputs.pop("languages")
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        logits = model(**inputs).logits[0]
        labels = inputs["labels"][:, 1:].to(logits.device)
        targets = labels[labels != IGNORE]
        picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1).float()
        losses = (heads.log_normalizers(logits) - picked).double().cpu()
        counts = (labels != IGNORE).sum(1).tolist()
        found, start = [], 0
        for number, sample, count in zip(batch, samples, counts, strict=True):
            result = Result(float(losses[start : start + count].sum()), count)
            if self.lettered[self.items[number].source]:
                result.correct = self._letter_found(sample, logits[start])
            found.append(result)
            start += count
        return found

    def _letter_found(self, sample: Sample, logits: torch.Tensor) -> bool | None:
        """Whether the right letter is the likeliest of those offered as the answer's first token;
        None where letters begin with one token."""
        tokens = [self._letter(sample, letter) for letter in sample.metadata["letters"]]
        if None in tokens or len(set(tokens)) < len(tokens):
            return None
        best = int(torch.argmax(logits[torch.tensor(tokens, device=logits.device)]))
        return bool(sample.metadata["letters"][best] == sample.turns[-1].text)

    def _letter(self, sample: Sample, letter: str) -> int | None:
        """The token that an answer of that letter begins with."""
        if letter not in self._letters:
            answered = replace(sample, turns=(*sample.turns[:-1], Turn("assistant", letter)))
            item = encode_sample(self.processor, answered)
            first = next((i for i, label in enumerate(item.labels) if label != IGNORE), None)
            self._letters[letter] = None if first is None else item.input_ids[first]
            same = [k for k, v in self._letters.items() if v == self._letters[letter]]
            if len(same) > 1:
                logger.warning(
                    "held out: letters %s begin with one token in this tokenizer: no accuracy",
                    ", ".join(same),
                )
        return self._letters[letter]

    def _summed(self, results: Sequence[Result]) -> dict[str, float]:
        members: dict[str, list[Result]] = defaultdict(list)
        for item, result in zip(self.items, results, strict=True):
            members[""].append(result)
            for kind, name in zip(("source", "domain", "language"), item.names, strict=True):
                members[f"{kind}_{name}_"].append(result)
        metrics: dict[str, float] = {}
        for cell in self.cells():
            tokens = sum(result.tokens for result in members[cell])
            metrics[f"{cell}loss"] = math.fsum(r.loss for r in members[cell]) / tokens
            answers = [r.correct for r in members[cell] if r.correct is not None]
            if answers:
                metrics[f"{cell}accuracy"] = sum(answers) / len(answers)
        metrics["tokens"] = sum(result.tokens for result in results)
        return metrics
