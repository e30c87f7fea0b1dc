"""Explanation: everything that the page shows of why an answer is what it is, ready to be drawn.

Made once per answer (one pass of the model); moving the layer slider only draws anew.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from llava_mole.languages import LANGUAGE_NAMES, LANGUAGES
from llava_mole.serving import why_shown
from llava_mole.serving.chat import ChatEngine
from llava_mole.serving.limits import Limits
from llava_mole.serving.talk import WHAT_IS_THIS, Talk, messages_of
from llava_mole.serving.why import Why, seen


@dataclass(frozen=True)
class Explanation:
    """What was on for one answer, and what it was about.

    Attributes:
        why: experts and gates.
        pictures: as the tower saw them.
        language: that Parrot read the last picture for: of the question that it came with, or
            the chosen one.
        paths: pictures of the question, or of the last one before it that had some.
        usual: language -> Parrot's average gate over the example pictures.
        asked_in: language -> Parrot's gate for the last picture, asked what it is in that language.
    """

    why: Why
    pictures: tuple[Image.Image, ...]
    language: str | None
    usual: Mapping[str, Sequence[float]]
    asked_in: Mapping[str, Sequence[float]]
    paths: tuple[Path, ...]

    def sentence(self) -> str:
        return html.escape(self.why.sentence(self.language, self.usual))

    def maps(self, router: int) -> str:
        """Experts over each picture at one router, as HTML that needs no file."""
        shown = []
        for number, picture in enumerate(self.pictures):
            experts = self.why.overlay(number, router)
            drawn = picture.resize((448, 448)) if experts is None else why_shown.overlay(
                picture, experts
            )  # fmt: skip
            label = f"picture {number + 1}, its experts at {self.name(router)}"
            shown.append(f'<img class="why-map" src="{_data_url(drawn)}" alt="{label}">')
        if not shown:
            return ""
        return f'<div class="why-maps">{"".join(shown)}</div><small>{self._caption(router)}</small>'

    def _caption(self, router: int) -> str:
        if self.why.grid is None:
            return "as the tower saw it; its visual tokens are no grid of patches"
        rows, columns = self.why.grid
        many = f"{rows} × {columns} visual tokens" if rows * columns > 1 else "one visual token"
        coloured = f", by expert at layer {router + 1} ({self.name(router)})"
        coloured = coloured if self.why.routers else ""
        return f"as the tower saw it: {many}{coloured}"

    def words(self, router: int) -> str:
        return why_shown.words(self.why, router)

    @cached_property
    def legend(self) -> str:
        return why_shown.legend(self.why)

    @cached_property
    def gates(self) -> str:
        """Parrot's gate for the last picture, and how it moves with the language."""
        if not self.why.gates:
            return ""
        gate = self.why.gates[-1]
        many = len(self.pictures)
        which = "the picture" if many == 1 else f"the last of {many} pictures"
        name = LANGUAGE_NAMES.get(self.language or "")
        read_for = f", for a question in {name}" if name and self.why.reads_question else ""
        rows = [
            f"<h4>How Parrot read {which}{read_for}</h4>",
            why_shown.gate_bars(gate, self.language, self.usual),
        ]
        if self.asked_in:
            rows += [
                "<h4>The same picture, had it come with “What is this?” in …</h4>",
                self._by_language(),
            ]
        return "".join(rows)

    def name(self, router: int) -> str:
        return html.escape(self.why.routers[router]) if self.why.routers else "no layer"

    def _by_language(self) -> str:
        rows = []
        for language in LANGUAGES:
            gate = self.asked_in[language]
            bars = "".join(
                f'<i style="width:{100 * weight:.2f}%;background:{why_shown.colour(expert)}" '
                f'title="view {expert + 1}: {weight:.0%}"></i>'
                for expert, weight in enumerate(gate)
            )
            best = max(range(len(gate)), key=gate.__getitem__)
            rows.append(
                f"<tr><th>{LANGUAGE_NAMES[language]}</th><td><div class='why-stack'>{bars}</div>"
                f"</td><td>view {best + 1}, {gate[best]:.0%}</td></tr>"
            )
        return f'<table class="why-languages">{"".join(rows)}</table>'


def explanation_of(
    engine: ChatEngine,
    talk: Talk,
    number: int,
    model: int,
    limits: Limits,
    usual: Mapping[str, Sequence[float]],
) -> Explanation:
    """Why a model answered so.

    Args:
        engine: the model.
        talk: the conversation.
        number: which of its exchanges.
        model: which of its answers.
        usual: see `Explanation`.

    Raises:
        DataError: the conversation cannot be read again, or is too long to be explained.
    """
    exchange = talk[number]
    question = exchange.question
    messages = messages_of(talk[:number], question, model, limits)
    answer = exchange.answers[model].text
    pixels = engine.pixels_of(messages)
    why = engine.explain(messages, answer, steering=question.steering, pixels=pixels)
    asked_in: Mapping[str, Sequence[float]] = {}
    if why.gates and why.reads_question and pixels is not None:
        asked_in = engine.gates({code: [text] for code, text in WHAT_IS_THIS.items()}, pixels[-1:])
    asked = [one.question for one in talk[: number + 1]]
    holder = next((one for one in reversed(asked) if one.pictures), question)
    language = question.language if question.steering else holder.language
    shown = tuple(seen(engine.processor, one) for one in (() if pixels is None else pixels))
    return Explanation(why, shown, language, usual, asked_in, holder.pictures)


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


CSS = (
    why_shown.CSS
    + """
.why-maps { display: flex; flex-wrap: wrap; gap: 8px; }
.why-map { width: min(100%, 360px); border-radius: 8px; }
.why-languages { width: 100%; }
.why-languages th { text-align: start; font-weight: 400; padding-inline-end: 8px; }
.why-languages td:nth-child(2) { width: 60%; }
.why-languages td:nth-child(3) { padding-inline-start: 8px; white-space: nowrap; }
.why-stack { display: flex; height: 14px; border-radius: 3px; overflow: hidden; }
.why-stack i { display: block; height: 100%; }
"""
)
