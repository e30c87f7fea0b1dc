"""What is shown with each question: its picture, none, or another's.

- `trained`: pictures of the training set, question forms never trained.
- `unseen`: pictures never trained on.
- `withheld`: the `trained` items as text alone. What is answered right is guessed from the words;
  of names nothing can be, as they are asked in blocks (`data/README.md`): there 1/4 is built in.
- `swapped`: the `trained` items, each with the picture of another item of its kind. The picture is
  drawn uniformly (seeded; the same in every language) among those whose own answer is not offered
  by the item in any language, so that reading the picture leads to no option: with k options chance
  is 1/k. Yes/no: among pictures whose name the question does not hold; a perfect reader says no to
  all, so chance is the share of items whose answer is that of a picture that does not fit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from llava_mole.errors import DataError
from llava_mole.evaluation.items import Item

CONDITIONS = ("trained", "unseen", "withheld", "swapped")

NORMALIZATIONS = ("mean", "sum", "mean_without_end", "sum_without_end")
"""What `scoring.choose` compares. The first is the default everywhere."""


def item_key(item: Item) -> tuple[str, str]:
    """The same in all languages in which an item is asked: kind, and number or picture."""
    return item.category, item.tags.get("item", item.index)


def swap_pictures(items: Sequence[Item], seed: int) -> dict[str, Item]:
    """Index of each item -> the item whose picture it is shown with.

    Raises:
        DataError: no other picture of the kind fits an item.
    """
    groups: dict[str, dict[tuple[str, str], list[Item]]] = defaultdict(lambda: defaultdict(list))
    names: dict[str, set[str]] = defaultdict(set)
    for item in items:
        groups[item.category][item_key(item)].append(item)
        if item.category in ("naming", "choice"):
            names[item.picture].add(item.right)
    swapped: dict[str, Item] = {}
    for kind in sorted(groups):
        rng = np.random.default_rng((seed, *kind.encode()))
        keys = list(groups[kind])
        for versions in groups[kind].values():
            own = {item.picture for item in versions}
            offered = {text for item in versions for text in item.options.values()}
            asked = " ".join(item.question for item in versions)
            for other in rng.permutation(len(keys)):
                donors = groups[kind][keys[other]]
                if any(donor.picture in own for donor in donors):
                    continue
                if kind == "yes_no":
                    fits = not any(name in asked for name in names[donors[0].picture])
                else:
                    fits = not any(donor.right in offered for donor in donors)
                if fits:
                    swapped.update({item.index: donors[0] for item in versions})
                    break
            else:
                raise DataError(
                    f"{versions[0].source}: no picture to swap in among {len(keys)} items of kind "
                    f"{kind!r}: every other one's answer is among the options; give more items"
                )
    return swapped


def limited(items: Sequence[Item], per_cell: int | Mapping[str, int] | None) -> list[Item]:
    """The first `per_cell` items of each language and kind, in the file's order.

    Args:
        per_cell: a number for every kind, or one by kind (kinds that it does not name: none).
    """
    if per_cell is None:
        return list(items)
    if isinstance(per_cell, int):
        per_cell = dict.fromkeys((item.category for item in items), per_cell)
    counts: Counter[tuple[str, str]] = Counter()
    kept = []
    for item in items:
        cell = (item.language, item.category)
        counts[cell] += 1
        if counts[cell] <= per_cell.get(item.category, 0):
            kept.append(item)
    return kept


def blind_accuracy(answers: Sequence[tuple[str, Sequence[str]]]) -> float:
    """Accuracy of the best guess without a picture: of the options the one most often right here.

    Above 1/k where some answers are right more often than others (many grey things): a model that
    knows how often each answer is right scores that much without looking. Each item is left out of
    its own count, so that answers which occur once count for nothing.

    Args:
        answers: (right option's text, options' texts) of each item.
    """
    counts = Counter(right for right, _ in answers)
    total = 0.0
    for right, options in answers:
        seen = [counts[option] - (option == right) for option in options]
        best = [option for option, n in zip(options, seen, strict=True) if n == max(seen)]
        total += (right in best) / len(best)
    return total / len(answers) if answers else float("nan")
