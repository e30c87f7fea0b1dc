"""The routing report: index.html with its pictures, and routing.json with every figure in it.

shares.safetensors holds each probe's shares ("all", "picture", "words", "answer": (S, L, E)) and
Parrot's gates, in the order of `probes` in routing.json, for figures of one's own.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from llava_mole.evaluation.routing import LABELS, PARTS, Routing, cells, shuffled_within
from llava_mole.evaluation.routing_pictures import (
    cell_maps,
    gate_plot,
    heat_maps,
    information_plot,
    router_names,
)
from llava_mole.mole import Information

EXPLAINED = """\
<p>An expert counts by its share of a token's gates (1 / k where experts have none); a question is
the mean of its tokens; questions weigh alike. <b>picture</b> are visual tokens, <b>words</b> the
question and the chat format, <b>answer</b> the right answer, read as in training.</p>
<p><b>Information</b> is what the expert of a token tells about the question's domain or language,
in bits; 0 where experts do not care. The estimate is never negative, so the mean of shuffles is
taken off: domains are shuffled over pictures, languages over the questions of a {within}. p is the
share of shuffles that reach the estimate; of twenty routers one has p &lt; 0.05 by chance. Words of
a language are other tokens than another's, so a router that tells tokens apart tells languages
apart as well. Of picture tokens it can know the language only where Parrot's module put it there,
as they come before the question.</p>
"""
CSS = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; } table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, th:first-child { text-align: left; }
.example { display: flex; gap: 1em; flex-wrap: wrap; align-items: flex-start; }
.example > div { flex: 1 1 420px; } .example img { width: 260px; }
"""


def figures(routing: Routing, *, shuffles: int, seed: int) -> dict[str, Any]:
    """Everything that the page shows, for JSON."""
    found: dict[str, Any] = {
        "missing": list(routing.missing),
        "cells": [
            {"domain": domain, "language": language, "probes": count}
            for (domain, language), count in cells(routing.probes).items()
        ],
        "routers": list(routing.routers),
        "experts": list(routing.experts),
        "shuffles": shuffles,
        "seed": seed,
        "languages_shuffled_within": shuffled_within(routing.probes),
        "use": {},
        "information": {},
    }
    for part in PARTS:
        if not routing.routers or not routing.counted(part):
            continue
        found["use"][part] = [
            {
                **dict.fromkeys(LABELS),
                **dict(zip(by, key, strict=True)),
                "share": [row[:n] for row, n in zip(mean.tolist(), routing.experts, strict=True)],
            }
            for by in ((), ("domain",), ("language",), LABELS)
            for key, mean in routing.means(part, *by).items()
        ]
        found["information"][part] = {
            label: [
                as_dict(one)
                for one in routing.information(part, label, shuffles=shuffles, seed=seed)
            ]
            for label in LABELS
        }
    if routing.gates is not None:
        found["gate"] = {
            by: {
                label: {"mean": mean.tolist(), "sd": spread.tolist(), "n": count}
                for label, (mean, spread, count) in routing.gate_means(by).items()
            }
            for by in LABELS
        }
        for by in LABELS:
            known = routing.gate_information(by, shuffles=shuffles, seed=seed)
            found["gate"][f"information_{by}"] = None if known is None else as_dict(known)
    pictures: dict[Hashable, int] = {}
    found["probes"] = [
        {
            "source": probe.source,
            "domain": probe.domain,
            "language": probe.language,
            "picture": pictures.setdefault(probe.picture, len(pictures)),
        }
        for probe in routing.probes
    ]
    return found


def as_dict(one: Information) -> dict[str, float]:
    return {**vars(one), "corrected": one.corrected, "normalised": one.normalised}


def write_report(
    routing: Routing,
    out: Path,
    *,
    title: str,
    about: Mapping[str, str],
    shuffles: int = 200,
    seed: int = 0,
    examples: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Write the folder; returns what routing.json holds.

    Args:
        title: plain text.
        about: name -> plain text, for the head of the page ("model", "data").
        examples: the figures -> HTML to stand at the end, its texts escaped.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {"about": dict(about), **figures(routing, shuffles=shuffles, seed=seed)}
    body = [f"<h1>{html.escape(title)}</h1>", definition_list(about), sizes(found)]
    body += [f"<p>{html.escape(sentence)}</p>" for sentence in routing.missing]
    if routing.routers:
        explained = EXPLAINED.format(within=found["languages_shuffled_within"])
        body += ["<h2>Information</h2>", explained]
        for part, known in found["information"].items():
            entries = {label: [information(one) for one in known[label]] for label in LABELS}
            name = f"information-{part}.png"
            information_plot(entries, routing.routers, out / name, f"tokens: {part}")
            body += [picture(name), information_table(entries, routing.routers, part)]
        for by in LABELS:
            body.append(f"<h2>Use of experts by {by}</h2>")
            for part in found["use"]:
                means = {key[0]: mean for key, mean in routing.means(part, by).items()}
                name = f"use-{by}-{part}.png"
                heat_maps(means, routing.experts, routing.routers, out / name, f"tokens: {part}")
                body.append(picture(name))
        body.append("<h2>Use of experts by domain and language</h2>")
        for part in found["use"]:
            cell = {(key[0], key[1]): mean for key, mean in routing.means(part, *LABELS).items()}
            name = f"use-cells-{part}.png"
            cell_maps(cell, routing.experts, routing.routers, out / name, f"tokens: {part}")
            body.append(picture(name))
    if routing.gates is not None:
        body.append("<h2>Parrot's gate</h2>")
        for by in LABELS:
            known = found["gate"][f"information_{by}"]
            gates = routing.gate_means(by)
            if not gates or known is None:
                continue
            gate_plot(gates, out / f"gate-{by}.png", f"mean weights by {by}, ± SD over questions")
            body += [picture(f"gate-{by}.png"), gate_sentence(known, by)]
    if examples is not None:
        body += ["<h2>Token by token</h2>", examples(found)]
    tensors = {part: shares.contiguous() for part, shares in routing.shares.items()}
    if routing.gates is not None:
        tensors["gates"] = routing.gates
    save_file(tensors, out / "shares.safetensors")
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (out / "routing.json").write_text(text + "\n", "utf-8")
    page = "\n".join(body)
    (out / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{CSS}</style>\n{page}\n",
        "utf-8",
    )
    return found


def information(values: Mapping[str, float]) -> Information:
    """From what `as_dict` made."""
    kept = ("bits", "control", "control_95", "p", "entropy")
    return Information(**{key: values[key] for key in kept})


def information_table(
    entries: Mapping[str, Sequence[Information]], routers: Sequence[str], part: str
) -> str:
    """A line a router."""
    head = "".join(
        f"<th>{label}, bits</th><th>shuffled</th><th>corrected</th><th>of H</th><th>p</th>"
        for label in entries
    )
    lines = []
    for number, name in enumerate(router_names(routers)):
        columns = "".join(
            f"<td>{one.bits:.4f}</td><td>{one.control:.4f}</td><td>{one.corrected:.4f}</td>"
            f"<td>{one.normalised:.1%}</td><td>{one.p:.3f}</td>"
            for one in (entries[label][number] for label in entries)
        )
        lines.append(f"<tr><td>{html.escape(name)}</td>{columns}</tr>")
    return (
        f"<details><summary>tokens: {part}, by layer</summary><table><tr><th>layer</th>{head}</tr>"
        f"{''.join(lines)}</table></details>"
    )


def gate_sentence(known: Mapping[str, float], by: str) -> str:
    return (
        f"<p>The gate tells {known['corrected']:.4f} of {known['entropy']:.2f} bits about the {by} "
        f"({known['normalised']:.1%}; shuffled {known['control']:.4f}, p = {known['p']:.3f}).</p>"
    )


def definition_list(about: Mapping[str, str]) -> str:
    return "".join(
        f"<p><b>{html.escape(name)}</b>: {html.escape(text)}</p>" for name, text in about.items()
    )


def sizes(found: Mapping[str, Any]) -> str:
    """Probes by domain and language."""
    counts = {(one["domain"], one["language"]): one["probes"] for one in found["cells"]}
    domains = list(dict.fromkeys(domain for domain, _ in counts))
    languages = list(dict.fromkeys(language for _, language in counts))
    head = "".join(f"<th>{html.escape(language) or '(none)'}</th>" for language in languages)
    lines = "".join(
        f"<tr><td>{html.escape(domain)}</td>"
        + "".join(f"<td>{counts.get((domain, language), 0)}</td>" for language in languages)
        + "</tr>"
        for domain in domains
    )
    return f"<table><tr><th>questions</th>{head}</tr>{lines}</table>"


def picture(name: str) -> str:
    return f'<p><img src="{html.escape(name)}" alt="{html.escape(name)}"></p>'
