"""Languages in given shares: every source is cut into a pool a language, and these are weighted.

A row is one picture's questions, so a draw by language inside a picture could give no more of a
language than the picture has questions in it. Cut before it is planned, each language is a source
to the planner, which keeps the shares of rows exact (`mixture.py`), and a row's questions are of
one language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llava_mole.data.pool import Pool
from llava_mole.data.shares import largest_remainders, shares
from llava_mole.errors import ConfigError


def by_language(
    pools: Sequence[Pool], weights: Mapping[str, float], temperature: float = 1.0
) -> list[Pool]:
    """A pool for each source and language, `SOURCE/LANGUAGE`.

    A source's share stays what it is (weights, sizes, `temperature`, or its number of samples) and
    is shared out among the languages that the source has, in proportion to their weights: where a
    source lacks one, the others of that source get more.

    Args:
        pools: whole sources, filtered.
        weights: language -> relative share, 0 leaves it out; of all languages that are there.
        temperature: of the sources' shares.

    Returns:
        Pools with weights of their own (or numbers of samples): plan them at temperature 1.

    Raises:
        ConfigError: a weight for a language that no source has, a language without a weight, a
            source of which nothing is left.
    """
    there = {pool.name: _languages(pool) for pool in pools}
    problems = _problems(there, weights)
    if problems:
        raise ConfigError("\n".join(problems))
    share = shares([pool.planned for pool in pools], temperature)
    parts = []
    for number, pool in enumerate(pools):
        wanted = np.array([weights[language] for language in there[pool.name]], dtype=np.float64)
        wanted /= wanted.sum() if len(wanted) else 1
        samples = pool.planned.samples
        counts = None if samples is None else largest_remainders(wanted * samples, samples)
        for place, language in enumerate(there[pool.name]):
            part = {
                "weight": None if counts is not None else float(share[number] * wanted[place]),
                "samples": None if counts is None else int(counts[place]),
                "repeat_limit": pool.planned.repeat_limit,
            }
            parts.append(pool.only(language, f"{pool.name}/{language or '(none)'}", part))
    return parts


def _languages(pool: Pool) -> list[str]:
    """Of the samples that take part, in the source's order."""
    return [pool.index.languages[code] for code in np.unique(pool.index.language[pool.records])]


def _problems(there: Mapping[str, Sequence[str]], weights: Mapping[str, float]) -> list[str]:
    every = sorted({language for languages in there.values() for language in languages})
    names = ", ".join(map(repr, every))
    problems = [
        f"language_weights.{language}: no sample is in that language; there are {names}"
        for language in sorted(set(weights) - set(every))
    ]
    problems += [
        f"language_weights: nothing for {language!r}, which the sources hold; say how much of it "
        "there is to be, 0 leaves it out"
        for language in every
        if language not in weights
    ]
    problems += [
        f"language_weights: source {name!r} has {', '.join(map(repr, languages))} only, all of "
        "weight 0; drop the source"
        for name, languages in there.items()
        if languages and not any(weights.get(language) for language in languages)
    ]
    return problems
