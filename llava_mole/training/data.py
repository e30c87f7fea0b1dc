"""A recipe's data: sources opened, other drawings found, and the rows that each stage draws."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from llava_mole.data.collator import Collator, check_supervised, longest_tree
from llava_mole.data.language_shares import by_language
from llava_mole.data.mixture import Mixture
from llava_mole.data.pool import Keep, Pool, Samples
from llava_mole.data.rows import MixtureRows
from llava_mole.data.sample import ImageRef, Sample
from llava_mole.data.source_index import SourceIndex
from llava_mole.data.sources import SourceSpec, open_source, split_path
from llava_mole.errors import ConfigError, DataError
from llava_mole.processing import Encoded, LlavaMoleProcessor
from llava_mole.training.checks import source_names
from llava_mole.training.recipe import (
    DataRecipe,
    KeepRecipe,
    Recipe,
    SourceRecipe,
    StageRecipe,
)

logger = logging.getLogger(__name__)

HELD = 100_000
"""Samples up to which all are kept in memory once they were read."""
TEMPLATE_TOKENS = 256
"""More than a chat template adds to a conversation, what it adds to each turn apart."""


class AllSamples(Sequence[Sample]):
    """The samples of several sources, one after the other; read on demand."""

    def __init__(self, sources: Sequence[Samples]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source) for source in sources])
        self._held: list[Sample] | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> list[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | list[Sample]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        if self._held is not None:
            return self._held[number]
        source = int(np.searchsorted(self.ends, number, side="right"))
        return self.sources[source][number - int(self.ends[source - 1] if source else 0)]

    def __iter__(self) -> Iterator[Sample]:
        if self._held is None and len(self) <= HELD:
            self._held = [source[i] for source in self.sources for i in range(len(source))]
        if self._held is not None:
            yield from self._held
        else:
            for source in self.sources:
                yield from (source[i] for i in range(len(source)))


class SomeSamples:
    """Records of a source, as a source."""

    def __init__(self, source: Samples, records: np.ndarray) -> None:
        self.source, self.records, self.name = source, records, source.name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int, /) -> Sample:
        return self.source[int(self.records[number])]

    def index(self) -> SourceIndex:
        index = self.source.index()
        arrays = {name: values[self.records] for name, values in index.arrays().items()}
        return SourceIndex.of(arrays, index.names())


@dataclass
class TrainingData:
    """What a recipe's `data:` section names, opened and indexed."""

    recipe: DataRecipe
    sources: list[Samples]
    variants: dict[Path, list[Path]]
    too_long: dict[str, np.ndarray] = field(default_factory=dict)
    """source -> (n,) bool, once `leave_out_long` has looked."""
    left_out: list[tuple[str, str, int]] = field(default_factory=list)
    """(source, 'file:line', tokens) of those."""

    def __post_init__(self) -> None:
        self.samples = AllSamples(self.sources)

    def kept(self) -> Sequence[Sample]:
        """Those that take part by `keep` and `language_weights`, each once, in the files' order.

        Raises:
            ConfigError: see `pools`.
        """
        no_filter = all(recipe.keep == KeepRecipe() for recipe in self.recipe.sources)
        if no_filter and not self.recipe.language_weights:
            return self.samples
        records: dict[str, list[np.ndarray]] = {source.name: [] for source in self.sources}
        for pool in self.pools({}):
            if pool.planned.weight != 0 and pool.planned.samples != 0:
                records[pool.source.name].append(pool.records)
        return AllSamples(
            [
                SomeSamples(source, np.sort(np.concatenate(records[source.name])))
                for source in self.sources
                if records[source.name]
            ]
        )

    def pictures(self) -> list[ImageRef]:
        """Every picture and variant, each once."""
        found: dict[ImageRef, None] = {}
        for source in self.sources:
            first = np.unique(source.index().group, return_index=True)[1]
            for number in np.sort(first):
                found.update(dict.fromkeys(source[int(number)].images))
        for paths in self.variants.values():
            found.update(dict.fromkeys(paths))
        return list(found)

    def picture_groups(self) -> int:
        """How many picture sets there are, and other drawings: cheap."""
        groups = sum(len(np.unique(source.index().group)) for source in self.sources)
        return groups + sum(len(paths) for paths in self.variants.values())

    def leave_out_long(self, processor: LlavaMoleProcessor, context: int) -> int:
        """Find what is longer than the context; refuse it, or note it to be left out.

        Only samples whose text could be too long are tokenized: a token is at least a byte.

        Args:
            context: of the language model, in tokens; data.max_length may be less.

        Returns:
            The limit, in tokens.

        Raises:
            DataError: there are some, and data.too_long is "error".
        """
        limit = min(context, self.recipe.max_length or context)
        per_turn = tokens_per_turn(processor)
        self.left_out = []
        for source in self.sources:
            index = source.index()
            pictures = index.images.astype(np.int64) * processor.tokens_per_image
            bound = index.text_bytes + pictures + index.turns * per_turn + TEMPLATE_TOKENS
            mask = np.zeros(len(source), dtype=bool)
            for number in np.flatnonzero(bound > limit):
                sample = source[int(number)]
                tokens = len(encode_sample(processor, sample).input_ids)
                if tokens > limit:
                    mask[number] = True
                    self.left_out.append((source.name, sample.source, tokens))
            self.too_long[source.name] = mask
        if not self.left_out:
            return limit
        _, where, tokens = max(self.left_out, key=lambda entry: entry[2])
        counts = {s.name: (int(self.too_long[s.name].sum()), len(s)) for s in self.sources}
        by_source = "; ".join(
            f"{name}: {long:,} of {held:,}" + ", nothing is left of it" * (long == held)
            for name, (long, held) in counts.items()
            if long
        )
        message = (
            f"{len(self.left_out):,} of {len(self.samples):,} samples are longer than {limit} "
            f"tokens, the longest has {tokens:,} ({where})"
        )
        if self.recipe.too_long == "error":
            raise DataError(
                f"{message}; leave them out with data.too_long=drop, raise data.max_length up to "
                f"the model's context of {context}, or shorten them: nothing is cut"
            )
        logger.warning("%s: left out (%s)", message, by_source)
        return limit

    def pools(self, kind_weights: dict[str, float]) -> list[Pool]:
        """A pool for each source.

        Raises:
            ConfigError: a filter names what its source does not have, or a weight no source.
        """
        problems, pools = [], []
        kinds = {kind for source in self.sources for kind in source.index().kinds}
        for kind in sorted(set(kind_weights) - kinds):
            there = ", ".join(repr(one) for one in sorted(kinds) if one) or "none with a name"
            problems.append(
                f"kind_weights.{kind}: no sample is of that kind; there are {there} (without any: "
                "'data.kind_weights={}')"
            )
        for source, recipe in zip(self.sources, self.recipe.sources, strict=True):
            try:
                pools.append(
                    Pool(
                        source,
                        keep=Keep(**vars(recipe.keep)),
                        without=self.too_long.get(source.name),
                        reason="too long",
                        kind_weights=kind_weights,
                        share={
                            "weight": recipe.weight,
                            "samples": recipe.samples,
                            "cap": recipe.cap,
                            "repeat_limit": recipe.repeat_limit or self.recipe.repeat_limit,
                        },
                    )
                )
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        if self.recipe.language_weights:
            pools = by_language(pools, self.recipe.language_weights, self.recipe.temperature)
        if not any(len(pool.records) for pool in pools):
            reasons = ", ".join(sorted({why for pool in pools for why in pool.left_out}))
            raise DataError(
                f"every one of {len(self.samples):,} samples is left out ({reasons or 'empty'})"
            )
        return pools

    def mixture(self, pools: Sequence[Pool], questions: int, seed: int) -> Mixture:
        """The plan over pools; see `Mixture`."""
        return Mixture(
            [pool.planned for pool in pools],
            questions=questions,
            # Pools by language have been given their shares, temperature included.
            temperature=1.0 if self.recipe.language_weights else self.recipe.temperature,
            stop=self.recipe.length or "all_exhausted",  # type: ignore[arg-type]  # checked before
            seed=seed,
        )


def read_data(
    recipe: DataRecipe | Sequence[SourceRecipe],
    *,
    progress: bool = True,
    key: str = "data.sources",
) -> TrainingData:
    """Open and index every source.

    Args:
        recipe: the `data:` section, or its sources.
        key: where in the recipe they stand, for messages.

    Raises:
        DataError: naming file and line of the first record that is wrong.
    """
    if not isinstance(recipe, DataRecipe):
        recipe = DataRecipe(list(recipe))
    sources: list[Samples] = []
    variants: dict[Path, list[Path]] = {}
    for name, wanted in zip(source_names(recipe.sources), recipe.sources, strict=True):
        if not wanted.path.startswith("hub:") and not is_there(wanted.path):
            raise DataError(
                f"{key}: {wanted.path}: no such file; data/README.md tells how the "
                "data are made or where they are published (the starter's: data/openmoji.py)"
            )
        spec = SourceSpec(
            wanted.path,
            name=name,
            format=wanted.format,
            image_root=wanted.image_root,
            domain=wanted.domain,
            language=wanted.language,
        )
        source = open_source(spec)
        logger.info("data: %s: %s", wanted.path, source.describe())
        source.index(progress=progress)
        sources.append(source)
        if wanted.variants:
            _add_variants(variants, Path(wanted.variants), source, wanted.path)
    return TrainingData(recipe, sources, variants)


def read_stages(
    recipe: Recipe, *, data: TrainingData | None = None, progress: bool = True
) -> list[TrainingData]:
    """What each stage draws from; the same object where it is the same data.

    Args:
        data: the recipe's own `data:`, if it was read before.

    Raises:
        DataError: see `read_data`.
    """
    read = [] if data is None else [(recipe.data, data)]
    found = []
    for stage in recipe.stages:
        wanted = recipe.data_of(stage)
        known = next((done for one, done in read if one == wanted), None)
        if known is None:
            known = read_data(wanted, progress=progress)
            read.append((wanted, known))
        found.append(known)
    return found


def is_there(path: str) -> bool:
    """Whether a source's path, less the split or name behind its colon, is on this disk."""
    try:
        return split_path(path)[0].exists()
    except (OSError, ValueError):  # too long, a NUL in it
        return False


def _add_variants(
    variants: dict[Path, list[Path]], listed: Path, source: Samples, path: str
) -> None:
    others = read_variants(listed)
    first = np.unique(source.index().group, return_index=True)[1]
    pictures = dict.fromkeys(
        image
        for number in np.sort(first)
        for image in source[int(number)].images
        if isinstance(image, Path)
    )
    # One picture may be written in several ways (relative, through a link).
    matched = {p: others[real] for p in pictures if (real := p.resolve()) in others}
    if others and not matched:
        raise DataError(
            f"data.sources.variants: {listed} knows other drawings of {len(others)} pictures, but "
            f"no sample of {path} shows any of them (the first is {next(iter(others))})"
        )
    for picture, drawings in matched.items():
        variants[picture] = list(dict.fromkeys([*variants.get(picture, []), *drawings]))


def read_variants(path: Path) -> dict[Path, list[Path]]:
    """Picture (its real path) -> other drawings of it, from a builder's names.json."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data.sources.variants: {path} cannot be read: {error}") from error
    root = path.parent.resolve()
    found: dict[Path, list[Path]] = {}
    if not isinstance(names, dict):
        raise DataError(f"data.sources.variants: {path}: expected an object, picture -> what it is")
    for key, entry in names.items():
        try:
            drawings = [root / v["file"] for v in entry.get("variants", []) if v["keeps_colour"]]
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f'data.sources.variants: {path}: {key!r}: expected {{"variants": [{{"file": …, '
                f'"keeps_colour": true}}, …]}}, found {str(entry)[:80]}'
            ) from error
        outside = [d for d in drawings if not d.resolve().is_relative_to(root)]
        if outside:
            raise DataError(f"{path}: variant {outside[0]} of {key} is outside {root}")
        if drawings:
            found[(root / "images" / f"{key}.png").resolve()] = drawings
    return found


def encode_sample(processor: LlavaMoleProcessor, sample: Sample) -> Encoded:
    """Tokens of a sample; errors name its line.

    Raises:
        DataError: an answer is empty, nothing is learnt, or what `processor.encode` raises.
    """
    for number, turn in enumerate(sample.turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            # Not zero tokens, for the template ends it: the model would learn to say nothing.
            raise DataError(f"{sample.source}: turn {number}: the answer is empty")
    try:
        encoded = processor.encode(sample.messages())
    except DataError as error:
        raise DataError(f"{sample.source}: {error}") from error
    check_supervised(sample.source, encoded)
    return encoded


def tokens_per_turn(processor: LlavaMoleProcessor) -> int:
    """More than the chat template adds to a turn."""
    few, many = (
        len(processor.encode([{"role": "user", "content": "a"},
                              {"role": "assistant", "content": "a"}] * pairs).input_ids)
        for pairs in (2, 10)
    )  # fmt: skip
    return math.ceil((many - few) / 16) + 1


def stage_rows(
    recipe: Recipe,
    stage: StageRecipe,
    data: TrainingData,
    processor: LlavaMoleProcessor | None,
    *,
    rows: int | None = None,
    batch: int | None = None,
    collator: Collator | None = None,
) -> MixtureRows:
    """The rows that a language stage draws.

    Args:
        processor: None: rows are looked at, not encoded.
        rows: how many; None: one pass.
        batch: rows of a micro-batch, of all processes together.
        collator: tells how long a row is; without it rows keep the planned order.
    """
    weights = data.recipe.kind_weights if stage.kind_weights is None else stage.kind_weights
    seed = recipe.seed + 1000 * (1 + recipe.stages.index(stage))
    pools = data.pools(weights)

    def encode(sample: Sample) -> Encoded:
        if processor is None:
            raise ConfigError(f"{sample.source}: these rows were planned without a tokenizer")
        return encode_sample(processor, sample)

    mixture = data.mixture(pools, stage.questions_per_picture, seed)
    return MixtureRows(
        pools,
        mixture,
        encode,
        rows=mixture.rows if rows is None else rows,
        questions=stage.questions_per_picture,
        seed=seed,
        variants=data.variants,
        variant_share=data.recipe.variant_share,
        batch=batch or stage.pictures_per_step,
        window=stage.length_window if collator and stage.packing is None else 1,
        length=longest_tree(collator) if collator else None,
    )


def planned_rows(
    recipe: Recipe, stage: StageRecipe, data: TrainingData, processor: LlavaMoleProcessor | None
) -> MixtureRows:
    """What one process draws in a stage, in the planned order: to look at, not to train on."""
    rows = stage_rows(recipe, stage, data, processor)
    if stage.passes is not None:
        rows.rows = max(1, round(stage.passes * rows.mixture.rows))
    else:
        accumulated = {**recipe.training, **stage.training}.get("gradient_accumulation_steps", 1)
        rows.rows = stage.steps * stage.pictures_per_step * int(accumulated)
    return rows
