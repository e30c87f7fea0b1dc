"""Probes: held-out questions with their right answers, to see what a model does with each token.

A benchmark's TSV, asked as the reports ask it (`prompts.ask`), or any source that can be trained on
(`data/sources.py`). A language's probes are spread evenly over the file, so that where all
languages stand in one order, all get the same questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_mole.data.sample import Sample
from llava_mole.data.sources import SourceSpec, open_source
from llava_mole.errors import ConfigError
from llava_mole.evaluation.items import Item, read_items
from llava_mole.evaluation.prompts import ask, style_of


@dataclass(frozen=True)
class Probe:
    """One answered conversation.

    Attributes:
        messages: typed parts with their pictures, the right answer last.
        domain, language: what is compared; "" for a record without a language.
        picture: what questions about one picture have in common.
        source: "file:line".
    """

    messages: list[dict[str, Any]]
    domain: str
    language: str
    picture: Hashable
    source: str


def read_probes(
    domain: str, path: str | Path, language: str | None = None, per_language: int | None = 25
) -> list[Probe]:
    """Probes of one file.

    Args:
        domain: what they are called in tables.
        path: a TSV as MMBench's, or what a recipe's source takes.
        language: of a file that does not say it.
        per_language: at most so many; None: all.

    Raises:
        ConfigError: less than one a language.
        DataError: a row is malformed, or its answer is hidden.
    """
    if per_language is not None and per_language < 1:
        raise ConfigError(f"items={per_language}: at least 1 a language and domain")
    if Path(path).suffix == ".tsv":
        items = read_items(Path(path), language)
        chosen = spread([item.language for item in items], per_language)
        return [probe_of(items[number], domain) for number in chosen]
    source = open_source(SourceSpec(path, domain=domain, language=language))
    index = source.index()
    chosen = spread([index.languages[code] for code in index.language], per_language)
    return [probe_of_sample(source[number], domain) for number in chosen]


def spread(languages: Sequence[str], count: int | None) -> list[int]:
    """Places of `count` entries of each language, evenly over its own, in the order given."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, language in enumerate(languages):
        places[language].append(place)
    kept: list[int] = []
    for own in places.values():
        few = len(own) if count is None else min(count, len(own))
        kept += [own[int(place)] for place in np.linspace(0, len(own) - 1, few)]
    return sorted(kept)


def probe_of(item: Item, domain: str) -> Probe:
    style = style_of(item.category)
    answer = item.answer if style == "letters" else item.right
    messages = ask(item, style, item.image).messages(answer)
    return Probe(messages, domain, item.language, (domain, item.picture), item.source)


def probe_of_sample(sample: Sample, domain: str) -> Probe:
    images = iter(sample.images)
    messages = sample.messages()
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = next(images)
    return Probe(messages, domain, sample.language, (domain, sample.images), sample.source)
