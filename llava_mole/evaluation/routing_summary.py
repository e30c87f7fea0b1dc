"""Routing of several models side by side: a small file a model, a table and a picture of all.

The routing report's JSON holds every probe and every mean; what a page about trained arms needs is
kept in some tens of kilobytes, one file for each arm and seed, ARM-seed-N.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from llava_mole.errors import DataError
from llava_mole.evaluation.routing import LABELS, PARTS
from llava_mole.evaluation.routing_pictures import (
    COLOURS,
    cell_maps,
    heat_maps,
    router_names,
    save,
    ticks,
)
from llava_mole.folders import writing_file

NAME = re.compile(r"(?P<arm>.+)-seed-(?P<seed>\d+)\.json")
SURE = 0.05
ASKED = ("data", "cells", "shuffles", "seed", "languages_shuffled_within")
"""What all models of a table share."""
SHOWN = ("picture", "words", "answer")
Summaries = dict[str, dict[int, dict[str, Any]]]
"""arm -> seed -> what `summary` kept."""


@dataclass(frozen=True)
class Told:
    """What a choice of experts tells about a label, over the seeds of an arm.

    Attributes:
        part: which tokens, of `PARTS`; "gate" for Parrot's.
        bits: (seeds, L) corrected.
        limit: (seeds, L) what 95 of 100 shuffles stay below.
        p: (seeds, L).
        entropy: of the label.
    """

    arm: str
    part: str
    label: str
    bits: np.ndarray
    limit: np.ndarray
    p: np.ndarray
    entropy: float


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `routing_report.write_report` found, without probes.

    Args:
        found: what routing.json holds.
    """
    kept: dict[str, Any] = {
        key: found[key]
        for key in ("cells", "routers", "experts", "shuffles", "seed", "languages_shuffled_within")
    }
    kept["data"] = found["about"]["data"]
    kept["run"] = found["about"].get("run")
    kept["information"] = {
        part: {label: columns(entries) for label, entries in known.items()}
        for part, known in found["information"].items()
    }
    kept["use"] = {
        part: {
            label: {
                one[label]: np.round(one["share"], 4).tolist()
                for one in uses
                if [by for by in LABELS if one[by] is not None] == [label]
            }
            for label in LABELS
        }
        for part, uses in found["use"].items()
        if len(set(found["experts"])) == 1
    }
    kept["use_of_cells"] = {
        part: [
            {by: one[by] for by in LABELS} | {"share": np.round(one["share"], 3).tolist()}
            for one in found["use"][part]
            if None not in [one[by] for by in LABELS]
        ]
        for part in kept["use"]
        if part in SHOWN
    }
    if "gate" in found:
        kept["gate"] = found["gate"]
        known = {label: found["gate"][f"information_{label}"] for label in LABELS}
        if None not in known.values():
            kept["information"]["gate"] = {label: columns([known[label]]) for label in LABELS}
    return kept


def columns(entries: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """A list a figure, routers along it."""
    return {
        "entropy": entries[0]["entropy"],
        "bits": [round(one["corrected"], 6) for one in entries],
        "limit": [round(one["control_95"] - one["control"], 6) for one in entries],
        "p": [round(one["p"], 6) for one in entries],
    }


def check_name(path: Path) -> re.Match[str]:
    """
    Raises:
        DataError: the file's name does not say arm and seed.
    """
    match = NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path}: its name says which model it is, ARM-seed-N.json")
    return match


def write_summary(found: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all.

    Raises:
        DataError: the file's name does not say arm and seed.
    """
    check_name(path)
    with writing_file(path) as file:
        file.write(json.dumps(summary(found), ensure_ascii=False) + "\n")


def read_summaries(folder: Path) -> Summaries:
    """arm -> seed -> what `write_summary` kept, seeds in order.

    Raises:
        DataError: a file that is none of these; models that were not asked the same questions, or
            models of an arm that do not have the same routers or the same gate.
    """
    found: Summaries = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for path in sorted(folder.glob("[!.]*.json")):
        match = check_name(path)
        try:
            kept = json.loads(path.read_text("utf-8"))
            parts = {part: sorted(known) for part, known in kept["information"].items()}
            if any(labels != sorted(LABELS) for labels in parts.values()):
                raise KeyError("domain or language")
            first = first or (path, kept)
            same_as(*first, path, kept, ASKED)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no summary of routing ({error!r}); write it anew") from error
        own = found.setdefault(match["arm"], {})
        for seed, one in own.items():
            other = path.with_name(f"{match['arm']}-seed-{seed}.json")
            same_as(other, one, path, kept, ("routers", "experts"))
            if parts.keys() != one["information"].keys():
                raise DataError(f"{path}: other parts than {other.name}; summarise both anew")
        own[int(match["seed"])] = kept
    return {arm: dict(sorted(own.items())) for arm, own in found.items()}


def same_as(
    first: Path, one: Mapping[str, Any], path: Path, other: Mapping[str, Any], keys: Sequence[str]
) -> None:
    """
    Raises:
        DataError: they differ in one of the keys.
    """
    for key in keys:
        if one[key] != other[key]:
            raise DataError(f"{path}: other {key} than {first.name}; summarise both anew")


def told(summaries: Summaries) -> list[Told]:
    """By arm, then part, then label."""
    found = []
    for arm, seeds in summaries.items():
        every = [one["information"] for one in seeds.values()]
        for part in (*PARTS, "gate"):
            if part not in every[0]:
                continue
            for label in LABELS:
                own = [one[part][label] for one in every]
                bits, limit, p = (
                    np.array([one[key] for one in own]) for key in ("bits", "limit", "p")
                )
                found.append(Told(arm, part, label, bits, limit, p, own[0]["entropy"]))
    return found


def information_rows(found: Sequence[Told]) -> str:
    """Markdown: a line for each arm and kind of token.

    Bits are means over seeds: of all layers, and of the layer that tells most of them; "p < 0.05"
    is the share of layers and seeds of which that is true, by chance alone one in twenty.
    """
    entropy = {one.label: one.entropy for one in found}
    head = "".join(
        f" {label}, of {entropy[label]:.2f} bits | highest layer | p < 0.05 |" for label in LABELS
    )
    lines = [f"| arm | tokens | seeds |{head}", "|---|---|---:|" + "---:|---:|---:|" * len(LABELS)]
    for arm, part in dict.fromkeys((one.arm, one.part) for one in found):
        own = {one.label: one for one in found if (one.arm, one.part) == (arm, part)}
        cells = [arm, part, str(len(own[LABELS[0]].bits))]
        for label in LABELS:
            bits = own[label].bits
            sure = float((own[label].p < SURE).mean())
            cells += [f"{bits.mean():.3f}", f"{bits.mean(0).max():.3f}", f"{100 * sure:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_information(summaries: Summaries, path: Path, label: str) -> None:
    """A panel an arm with experts: bits by layer, a line a part, shaded from the least seed to the
    most; dotted, in the part's colour, what 95 of 100 shuffles stay below."""
    every = [one for one in told(summaries) if one.label == label and one.part in SHOWN]
    arms = list(dict.fromkeys(one.arm for one in every))
    if not arms:
        raise DataError(f"{path.name}: no arm has experts to draw")
    figure = Figure(figsize=(max(4.5, 3.6 * len(arms)), 3.4), layout="constrained")
    axes: Any = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    lines: dict[str, Any] = {}
    for one in every:
        axis = axes[arms.index(one.arm)]
        names = router_names(next(iter(summaries[one.arm].values()))["routers"])
        places, colour = np.arange(len(names)), COLOURS[SHOWN.index(one.part)]
        [lines[one.part]] = axis.plot(places, one.bits.mean(0), color=colour)
        low, high = one.bits.min(0), one.bits.max(0)
        axis.fill_between(places, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(places, one.limit.mean(0), color=colour, linewidth=0.9, linestyle=":")
        axis.set_title(one.arm, fontsize="medium")
        axis.set_xticks(*ticks(names, 12))
        axis.set_xlabel("layer")
    axes[0].set_ylabel(f"bits about the {label}, of {every[0].entropy:.2f}")
    figure.legend(
        lines.values(), lines, title="tokens", fontsize="small", loc="outside right upper"
    )
    save(figure, path)


def draw_gates(summaries: Summaries, path: Path, by: str = "language") -> None:
    """Parrot's mean weights: a panel an arm, labels down, experts across, the first seed's."""
    arms = {arm: next(iter(seeds.values())) for arm, seeds in summaries.items()}
    arms = {arm: one for arm, one in arms.items() if one.get("gate")}
    if not arms:
        raise DataError(f"{path.name}: no arm has Parrot's gate to draw")
    labels = [
        label
        for label in next(iter(arms.values()))["gate"][by]
        if all(label in one["gate"][by] for one in arms.values())
    ]
    figure = Figure(figsize=(1.2 + 2.6 * len(arms), 1.2 + 0.34 * len(labels)), layout="constrained")
    axes: Any = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    weights = {
        arm: np.array([one["gate"][by][label]["mean"] for label in labels])
        for arm, one in arms.items()
    }
    most = max(float(one.max()) for one in weights.values())
    for axis, (arm, values) in zip(axes, weights.items(), strict=True):
        axis.imshow(values, vmin=0, vmax=most, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                      color="black" if value >= 0.6 * most else "white")  # fmt: skip
        axis.set_title(f"{arm}, seed {next(iter(summaries[arm]))}", fontsize="medium")
        axis.set_xlabel("expert")
        axis.set_xticks(range(values.shape[1]), [str(n + 1) for n in range(values.shape[1])])
    axes[0].set_yticks(range(len(labels)), labels)
    save(figure, path)


def draw_use(summaries: Summaries, path: Path, part: str, by: str) -> None:
    """Which experts a part's tokens use: routers down, experts across, a panel a label; of the
    first arm that has them, its first seed."""
    for arm, seeds in summaries.items():
        seed, one = next(iter(seeds.items()))
        if part in one["use"]:
            means = {label: torch.tensor(rows) for label, rows in one["use"][part][by].items()}
            title = f"{arm}, seed {seed}, tokens: {part}"
            heat_maps(means, one["experts"], one["routers"], path, title)
            return
    raise DataError(f"{path.name}: no arm has experts to draw")


def draw_cells(summaries: Summaries, path: Path, part: str) -> None:
    """Which experts a part's tokens use, by layer, domain and language: of the first arm that has
    them, its first seed."""
    for arm, seeds in summaries.items():
        seed, one = next(iter(seeds.items()))
        if cells := one.get("use_of_cells", {}).get(part):
            means = {(cell["domain"], cell["language"]): torch.tensor(cell["share"])
                     for cell in cells}  # fmt: skip
            title = f"{arm}, seed {seed}, tokens: {part}"
            cell_maps(means, one["experts"], one["routers"], path, title)
            return
    raise DataError(f"{path.name}: no arm has experts by domain and language to draw")
