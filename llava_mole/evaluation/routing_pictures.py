"""Routing to look at: heat maps of layer by expert, information by layer, Parrot's gate as bars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from llava_mole.mole import Information

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito (2008)."""
NUMBERED = 120
"""Cells of a panel up to which each holds its number."""
TICKS = 40
"""About the most names along an axis."""
PANELS = 8
"""Of experts by domain and language."""
NUMBER = re.compile(r"\d+")


def router_names(routers: Sequence[str]) -> list[str]:
    """Short names for axes: the layer's number, and the linear's name where a layer has several."""
    layers = [found[0] if (found := NUMBER.search(name)) else name for name in routers]
    if len(set(layers)) == len(layers):
        return layers
    return [
        f"{layer} {name.rpartition('.')[2]}" for layer, name in zip(layers, routers, strict=True)
    ]


def heat_maps(
    means: Mapping[str, Tensor],
    experts: Sequence[int],
    routers: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """A panel for each label: routers from the first layer down, experts across.

    Args:
        means: label -> (L, E) shares; cells beyond a router's own experts stay empty.
        experts: (L,) of each router.
        path: where the PNG goes.
    """
    names = router_names(routers)
    widest = max(experts)
    columns = min(len(means), 6)
    lines = -(-len(means) // columns)
    height = 1.2 + max(1.6, min(0.22 * len(names), 14))
    width = 0.9 + min(max(1.2, 0.34 * widest), 7)
    figure = Figure(figsize=(width * columns + 1.2, height * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False, sharey=True)).reshape(-1)
    beyond = np.arange(widest)[None, :] >= np.asarray(experts)[:, None]
    highest = max(float(mean.max()) for mean in means.values())
    few = widest * len(names) <= NUMBERED
    image: Any = None
    for axis, (label, mean) in zip(axes, means.items(), strict=False):
        values = np.ma.masked_array(mean.numpy(), beyond)
        image = axis.imshow(values, vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        axis.set_title(label or "(none)")
        axis.set_xlabel("expert")
        axis.set_xticks(*ticks([str(expert + 1) for expert in range(widest)], 12))
        axis.set_yticks(*ticks(names, TICKS))
        if few:
            for row, column in np.ndindex(*values.shape):
                if not beyond[row, column]:
                    light = values[row, column] >= 0.6 * highest
                    axis.text(
                        column, row, f"{100 * values[row, column]:.0f}",
                        ha="center", va="center", fontsize=6, color="black" if light else "white",
                    )  # fmt: skip
    for axis in axes[len(means) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="share of the gates")
    figure.suptitle(title)
    save(figure, path)


def cell_maps(
    means: Mapping[tuple[str, str], Tensor],
    experts: Sequence[int],
    routers: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """A panel for each expert, of many the first `PANELS`: routers from the first layer down,
    languages across, domain by domain.

    Args:
        means: (domain, language) -> (L, E) shares; what was not asked stays empty.
        experts: (L,) of each router.
        path: where the PNG goes.
    """
    names = router_names(routers)
    domains = list(dict.fromkeys(domain for domain, _ in means))
    languages = list(dict.fromkeys(language for _, language in means))
    across = [(domain, language) for domain in domains for language in languages]
    panels = min(max(experts), PANELS)
    table = np.ma.masked_all((panels, len(names), len(across)))
    for place, cell in enumerate(across):
        if cell in means:
            table[:, :, place] = means[cell].numpy().T[:panels]
    beyond = np.arange(panels)[:, None] >= np.asarray(experts)[None, :]
    table = np.ma.masked_where(np.broadcast_to(beyond[:, :, None], table.shape), table)
    columns = min(panels, 2)
    lines = -(-panels // columns)
    width = 0.9 + max(2.4, 0.2 * len(across))
    height = 1.3 + max(1.6, min(0.16 * len(names), 14))
    figure = Figure(figsize=(width * columns + 1.2, height * lines), layout="constrained")
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=True).reshape(-1)
    image: Any = None
    for expert in range(panels):
        axis = axes[expert]
        image = axis.imshow(table[expert], vmin=0, vmax=table.max(), cmap="viridis", aspect="auto")
        axis.set_title(f"expert {expert + 1}", fontsize="medium", pad=16)
        axis.set_yticks(*ticks(names, TICKS), fontsize=7)
        labels = [language or "(none)" for _, language in across]
        axis.set_xticks(range(len(across)), labels, fontsize=6, rotation=90)
        for number, domain in enumerate(domains):
            axis.text((number + 0.5) * len(languages) - 0.5, -0.6, domain or "(none)",
                      fontsize=7, ha="center", va="bottom")  # fmt: skip
            if number:
                axis.axvline(number * len(languages) - 0.5, color="white", linewidth=1.5)
    for axis in axes[panels:]:
        axis.set_axis_off()
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="share of the gates")
    more = f", experts 1 to {panels} of {max(experts)}" if panels < max(experts) else ""
    figure.suptitle(title + more)
    save(figure, path)


def ticks(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Places and names of at most about `most` ticks."""
    step = -(-len(names) // most)
    places = list(range(0, len(names), step))
    return places, [names[place] for place in places]


def information_plot(
    found: Mapping[str, Sequence[Information]], routers: Sequence[str], path: Path, title: str
) -> None:
    """Bits by router, corrected, over what shuffled labels reach in 95 of 100 shuffles.

    Args:
        found: label kind ("domain", "language") -> one of each router.
    """
    names = router_names(routers)
    places = np.arange(len(names))
    wide = 0.8 / max(1, len(found))
    figure = Figure(figsize=(max(5.0, 2 + 0.3 * len(names)), 3.4), layout="constrained")
    axis: Any = figure.subplots()
    for number, (label, entries) in enumerate(found.items()):
        at = places + (number - (len(found) - 1) / 2) * wide
        colour = COLOURS[number % len(COLOURS)]
        axis.bar(at, [one.corrected for one in entries], 0.9 * wide, color=colour,
                 label=f"{label}, of {entries[0].entropy:.2f} bits")  # fmt: skip
        limit = [one.control_95 - one.control for one in entries]
        axis.hlines(limit, at - wide / 2, at + wide / 2, color="black", linewidth=1.2)
    axis.axhline(0, color="#888888", linewidth=0.6)
    axis.set_xticks(*ticks(names, TICKS))
    if max((len(name) for name in names), default=0) > 3:
        axis.tick_params(axis="x", rotation=90)
    axis.set_xlabel("layer")
    axis.set_ylabel("bits, corrected")
    axis.legend(title="line: 95 % of shuffles lie below", fontsize="small")
    axis.set_title(title)
    save(figure, path)


def gate_plot(gates: Mapping[str, tuple[Tensor, Tensor, int]], path: Path, title: str) -> None:
    """Parrot's mean weights by label, with one standard deviation between questions."""
    labels = list(gates)
    experts = len(next(iter(gates.values()))[0])
    wide = 0.8 / experts
    figure = Figure(figsize=(max(5.0, 1.5 + 0.9 * len(labels)), 3.4), layout="constrained")
    axis: Any = figure.subplots()
    for expert in range(experts):
        at = np.arange(len(labels)) + (expert - (experts - 1) / 2) * wide
        means = [float(gates[label][0][expert]) for label in labels]
        spread = [float(gates[label][1][expert]) for label in labels]
        axis.bar(at, means, 0.9 * wide, yerr=spread, color=COLOURS[expert % len(COLOURS)],
                 ecolor="#444444", error_kw={"linewidth": 0.8}, label=f"{expert + 1}")  # fmt: skip
    axis.axhline(1 / experts, color="#888888", linewidth=0.6, linestyle="--")
    axis.set_xticks(range(len(labels)), [label or "(none)" for label in labels])
    axis.set_ylabel("weight")
    axis.set_ylim(bottom=0)
    figure.legend(title="expert", fontsize="small", loc="outside right upper")  # over no bar
    axis.set_title(title)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format=path.suffix.lstrip(".").lower(), dpi=110)
    beside.replace(path)
