"""A warm start in which a picture is pulled to one language at a time, that of a question about it.

So Parrot can take part in it: its experts learn which way a picture's tokens go for each language
from answers' embeddings alone, a step of which costs no pass of the language model, while the
picture's other languages don't pull at the same time. Languages are drawn by their weights, so
pull and questions are of a mixture that is mostly English. The contrast is the mean over the step's
languages, as always: there one with few pictures weighs as much as one with many.

This is ours: the paper's first stage trains the projector alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_mole.data.sample import ImageRef, Sample
from llava_mole.errors import DataError
from llava_mole.processing import LlavaMoleProcessor


def questions_of_pictures(
    samples: Sequence[Sample], kinds: Sequence[str]
) -> tuple[dict[tuple[ImageRef, str], list[int]], list[list[dict[str, Any]]]]:
    """What is asked about each picture, in each language.

    Returns:
        (picture, language) -> numbers of questions; and those questions, each once however many
        pictures share it, as conversations that end before the last answer.
    """
    numbers: dict[str, int] = {}
    questions: list[list[dict[str, Any]]] = []
    asked: dict[tuple[ImageRef, str], list[int]] = defaultdict(list)
    for sample in samples:
        if sample.metadata.get("kind", "") not in kinds or len(sample.images) != 1:
            continue
        end = max(place for place, turn in enumerate(sample.turns) if turn.role == "assistant")
        text = repr([(turn.role, turn.text) for turn in sample.turns[:end]])
        if text not in numbers:
            numbers[text] = len(questions)
            questions.append(sample.messages()[:end])
        asked[sample.images[0], sample.language].append(numbers[text])
    return asked, questions


class OneLanguage:
    """Draws a language for each picture of a step, and a question in it.

    Args:
        processor: says what of a question steers a picture.
        samples: whose questions are asked; of `kinds` alone.
        pictures: N of them.
        answered: (N, languages) True where a picture has an answer.
        languages: their codes, in that order.
        weights: code -> how often it is drawn among the languages that a picture has; none: alike.

    Raises:
        DataError: a picture has answers, but in languages of weight 0 alone.
    """

    def __init__(
        self,
        processor: LlavaMoleProcessor,
        samples: Sequence[Sample],
        kinds: Sequence[str],
        pictures: Sequence[ImageRef],
        answered: Tensor,
        languages: Sequence[str],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.processor, self.pictures, self.languages = processor, pictures, languages
        self.asked, self.questions = questions_of_pictures(samples, kinds)
        self.steers: dict[int, list[int]] = {}
        each = [float(weights.get(one, 0)) if weights else 1.0 for one in languages]
        self.chance = answered.double().numpy() * each
        total = self.chance.sum(1, keepdims=True)
        if not total.all():
            picture = pictures[int(np.flatnonzero(total == 0)[0])]
            name = picture if isinstance(picture, Path) else "a picture of a table"
            raise DataError(
                f"{name}: has answers in languages of weight 0 alone; give one of them a weight "
                "in data.language_weights, or leave such samples out (data.sources: keep)"
            )
        self.chance /= total

    def draw(self, rng: np.random.Generator, rows: Sequence[int]) -> tuple[Tensor, list[list[int]]]:
        """One language a picture, and what of a question in it steers the picture.

        Args:
            rows: K pictures.

        Returns:
            (K, languages), True at the language; and K lists of tokens.
        """
        chosen = torch.zeros(len(rows), len(self.languages), dtype=torch.bool)
        questions = []
        for place, row in enumerate(rows):
            column = int(rng.choice(len(self.languages), p=self.chance[row]))
            chosen[place, column] = True
            known = self.asked[self.pictures[row], self.languages[column]]
            questions.append(self.steering(known[int(rng.integers(len(known)))]))
        return chosen, questions

    def steering(self, number: int) -> list[int]:
        """Of a question, as for a row that a language stage trains on."""
        if number not in self.steers:
            encoded = self.processor.encode(self.questions[number], add_generation_prompt=True)
            (self.steers[number],) = encoded.questions
        return self.steers[number]
