"""Pictures of a report: the claims as a forest, the arms against the domains as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from llava_mole.evaluation.results import points, printable
from llava_mole.folders import writing_file
from llava_mole.sweeping.claims import (
    EXPLORATORY,
    NOT_DECIDABLE,
    NOT_SUPPORTED,
    SUPPORTED,
    Verdict,
)
from llava_mole.sweeping.tables import ALL, Mark

COLOURS = {
    SUPPORTED: "tab:green",
    NOT_SUPPORTED: "tab:red",
    NOT_DECIDABLE: "grey",
    EXPLORATORY: "tab:blue",
}

PLAIN = "#444444"
"""Of a domain, which has no verdict of its own."""
WIDE = 60
"""Characters of a claim in a line."""


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    with writing_file(path, binary=True) as file:
        figure.savefig(file, dpi=120, format="png")
    pyplot().close(figure)


def draw_claims(verdicts: Sequence[Verdict], path: Path) -> None:
    """A line a claim in its verdict's colour, its domains smaller below it where it is no
    exploratory one, points on the axis. Two claims about one difference share its domains. Names
    are drawn as they are: `$` starts no formula."""
    rows: list[tuple[str, float, float, float, str, bool]] = []
    drawn = []
    for one in verdicts:
        if one.mean is None or one.low is None or one.high is None:
            continue
        colour = COLOURS[one.verdict]
        label = "\n".join(wrap(one.about or one.claim, WIDE))
        rows.append((label, one.mean, one.low, one.high, colour, True))
        domains = one.domains or {}
        if len(domains) > 1 and one.verdict != EXPLORATORY and domains not in drawn:
            rows += [(name, *three, PLAIN, False) for name, three in domains.items()]
            drawn.append(domains)
    if not rows:
        return
    figure, axes = pyplot().subplots(figsize=(9, 1.2 + 0.28 * len(rows)), layout="constrained")
    for place, (_, mean, low, high, colour, whole) in enumerate(reversed(rows)):
        width, size = (2.5, 7) if whole else (1, 4)
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=width)
        axes.plot(100 * mean, place, "o", color=colour, markersize=size)
    axes.axvline(0, color="black", linewidth=0.8)
    for verdict in dict.fromkeys(one.verdict for one in verdicts if one.mean is not None):
        axes.plot([], [], color=COLOURS[verdict], linewidth=2.5, label=verdict)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    labels = [
        "\n".join(map(printable, row[0].split("\n"))) if row[5] else f"   {printable(row[0])}"
        for row in reversed(rows)
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
    axes.set_xlabel("first less second, points (95 % interval over seeds and pictures)")
    save(figure, path)


def draw_marks(marks: Sequence[Mark], by: str, path: Path) -> None:
    """Accuracy in percent, arms against domains or languages; colours are the distance to the
    column's mean, so that easy columns do not hide the arms."""
    own = [mark for mark in marks if mark.by in (by, ALL)]
    arms = list(dict.fromkeys(mark.arm for mark in own))
    names = [*dict.fromkeys(mark.name for mark in own if mark.by == by), ALL]
    if not arms:
        return
    table = np.full((len(arms), len(names)), np.nan)
    for mark in own:
        table[arms.index(mark.arm), names.index(mark.name)] = 100 * mark.mean
    asked = ~np.isnan(table)
    means = np.where(asked, table, 0).sum(0) / np.maximum(asked.sum(0), 1)
    apart = table - means
    figure, axes = pyplot().subplots(
        figsize=(2 + 1.1 * len(names), 1.2 + 0.4 * len(arms)), layout="constrained"
    )
    most = max(1.0, float(np.abs(apart[asked]).max()))
    image = axes.imshow(apart, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            dark = abs(apart[row, column]) > 0.6 * most
            axes.text(column, row, points(value / 100), ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    shown = [printable(name) if name != ALL else "mean" for name in names]
    axes.set_xticks(range(len(names)), shown, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(arms)), [printable(a) for a in arms], fontsize=8, parse_math=False)
    figure.colorbar(image, label="points")
    save(figure, path)
