"""An explanation to look at: experts over the picture, coloured words, Parrot's gate as bars.

Colours are those of Okabe and Ito (2008), told apart by most colour-blind people; every coloured
thing also says its expert in words. All text is escaped: what a user typed never becomes HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from llava_mole.languages import LANGUAGE_NAMES
from llava_mole.serving.why import ANSWER, PICTURE, WORDS, Why

MARK = re.compile(r"\s*<\S+>\s*|\s*\[\S+\]\s*")
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def colour(expert: int) -> str:
    return COLOURS[expert % len(COLOURS)]


def overlay(picture: Image.Image, experts: Sequence[Sequence[int]], side: int = 448) -> Image.Image:
    """The picture with each of its visual tokens tinted by its expert, a square of `side` pixels.

    Args:
        picture: as the tower saw it, see `why.seen`.
        experts: rows of expert numbers, from `Why.overlay`.
    """
    shown = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    tint = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(tint)
    rows, columns = len(experts), len(experts[0])
    for row, line in enumerate(experts):
        for column, expert in enumerate(line):
            left, right = column * side // columns, (column + 1) * side // columns
            top, bottom = row * side // rows, (row + 1) * side // rows
            box = (left, top, right - 1, bottom - 1)
            draw.rectangle(box, fill=colour(expert) + "70", outline="#ffffff90")
            if (right - left) >= 24:
                draw.text((left + 4, top + 2), str(expert + 1), fill="#000000")
    return Image.alpha_composite(shown.convert("RGBA"), tint).convert("RGB")


def words(why: Why, router: int) -> str:
    """Question and answer as HTML, each token on the colour of its expert at a router."""
    parts = ['<div dir="auto" class="why-words">']
    for token in why.tokens:
        if token.kind == PICTURE:
            continue
        text = html.escape(token.text).replace("\n", "↵<br>")
        if MARK.fullmatch(token.text):
            text = f"<bdi>{text}</bdi>"  # has no say in which way the line runs
        if not why.routers:
            parts.append(text)
            continue
        expert = token.experts[router]
        weight = "700" if token.kind == ANSWER else "400"
        parts.append(
            f'<span title="expert {expert + 1}" style="background:{colour(expert)}66;'
            f'font-weight:{weight}">{text}</span>'
        )
    return "".join([*parts, "</div>"])


def legend(why: Why) -> str:
    """Experts with their colours and their share of picture, words and answer."""
    if not why.routers:
        return ""
    uses = {kind: why.use(kind) for kind in (PICTURE, WORDS, ANSWER)}
    rows = [
        "<tr>"
        f'<td style="background:{colour(expert)}66">expert {expert + 1}</td>'
        + "".join(f"<td>{uses[kind][expert]:.0%}</td>" for kind in uses)
        + "</tr>"
        for expert in range(why.num_experts)
    ]
    head = "<tr><th></th>" + "".join(f"<th>{kind}</th>" for kind in uses) + "</tr>"
    return f'<table class="why-legend">{head}{"".join(rows)}</table>'


def gate_bars(
    gate: Sequence[float], language: str | None, usual: Mapping[str, Sequence[float]]
) -> str:
    """Parrot's gate as bars, each beside the mark of the language's average.

    Args:
        gate: one picture's weights.
        language: the question's; its average is marked.
        usual: language -> average, from `average_gates`.
    """
    average = usual.get(language or "")
    name = LANGUAGE_NAMES.get(language or "", "")
    rows = []
    for expert, weight in enumerate(gate):
        mark = ""
        if average is not None:
            mark = (
                f'<i title="{name} on average: {average[expert]:.0%}" '
                f'style="left:{100 * average[expert]:.1f}%"></i>'
            )
        rows.append(
            f'<div class="why-gate"><b>view {expert + 1}</b><span><em style="width:'
            f'{100 * weight:.1f}%;background:{colour(expert)}"></em>{mark}</span>'
            f"<code>{weight:.0%}</code></div>"
        )
    note = f"<small>| marks the average of questions in {name}</small>" if average else ""
    return "".join(rows) + note


CSS = """
.why-words { line-height: 1.9; font-size: 1.05em; }
.why-words span { border-radius: 3px; padding: 1px 0; color: inherit; }
.why-legend td, .why-legend th { padding: 2px 10px; text-align: start; }
.why-gate { display: flex; align-items: center; gap: 8px; margin: 3px 0; }
.why-gate b { width: 4.5em; font-weight: 400; }
.why-gate span { position: relative; flex: 1; height: 14px; background: #88888822; }
.why-gate em { display: block; height: 100%; }
.why-gate i { position: absolute; top: -3px; bottom: -3px; width: 2px; background: currentColor; }
.why-gate code { width: 3.5em; text-align: end; }
"""
