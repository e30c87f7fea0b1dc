"""Visits: what happens on the page when somebody asks, stops, goes back, or wants to know why.

Every method is a handler of Gradio's: it takes values of components, and gives their new ones. A
visitor's conversation and explanation come in and go out with each call; nothing of them stays
here.
"""

from __future__ import annotations

import html
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from llava_mole.errors import DataError
from llava_mole.inspection.language import likeliest
from llava_mole.languages import LANGUAGES
from llava_mole.serving.chat import fill_pictures
from llava_mole.serving.generation import QueueFullError, Sampling
from llava_mole.serving.room import Room
from llava_mole.serving.shown import shown, status_line
from llava_mole.serving.talk import (
    WHAT_IS_THIS,
    Exchange,
    Question,
    Talk,
    language_line,
    question_of,
    without_folders,
)
from llava_mole.serving.why_panel import Explanation, explanation_of

Updates = tuple[Any, ...]


class Visits:
    """See the module's docstring.

    Args:
        room: the models.
        names: what they are called, in the same order.
        pictures: Parrot's average gate is taken over them.
    """

    def __init__(self, room: Room, names: Sequence[str], pictures: Sequence[Path]) -> None:
        self.room, self.names, self.pictures = room, tuple(names), tuple(pictures)
        self._usual: dict[int, Mapping[str, Sequence[float]]] = {}
        self._explaining: list[str] = []
        self._lock = threading.Lock()
        likeliest("warm")  # its model takes half a second to load: not while somebody types

    # ------------------------------------------------------------------ asking
    # These give (text box, conversation, status, language, a Chatbot per model).

    async def ask(
        self,
        message: dict[str, Any] | None,
        talk: Talk,
        language: str,
        temperature: float,
        top_p: float,
        longest: float,
        seed: str | None,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        """What was typed, with the pictures beside it."""
        message = message or {}
        pictures = message.get("files") or ()
        question = question_of(message.get("text") or "", pictures, language or None)
        sampling = sampling_of(temperature, top_p, longest, seed)
        async for update in self._answers(request, talk, question, sampling):
            yield update

    async def ask_again(
        self,
        talk: Talk,
        temperature: float,
        top_p: float,
        longest: float,
        seed: str | None,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        """The last question once more, its answer forgotten."""
        question = talk[-1].question if talk else None
        sampling = sampling_of(temperature, top_p, longest, seed)
        await self.room.drop(visitor_of(request))
        async for update in self._answers(request, talk[:-1], question, sampling):
            yield update

    def ask_in(self, language: str) -> Callable[..., AsyncIterator[Updates]]:
        """What the explained pictures are, asked in a language, as a new conversation."""

        async def ask(
            talk: Talk,
            found: Explanation | None,
            temperature: float,
            top_p: float,
            longest: float,
            seed: str | None,
            request: gr.Request,
        ) -> AsyncIterator[Updates]:
            pictures = found.paths if found and found.paths else last_pictures(talk)
            question = question_of(WHAT_IS_THIS[language], pictures, None) if pictures else None
            sampling = sampling_of(temperature, top_p, longest, seed)
            if question is not None:
                await self.room.drop(visitor_of(request))
            async for update in self._answers(request, (), question, sampling):
                yield update

        return ask

    async def _answers(
        self, request: gr.Request, talk: Talk, question: Question | None, sampling: Sampling
    ) -> AsyncIterator[Updates]:
        visitor, limits = visitor_of(request), self.room.limits
        problem = None
        if question is None:
            problem = "Add a picture or type a question first."
        elif len(question.text) > limits.characters:
            problem = (
                f"{len(question.text):,} characters: at most {limits.characters:,} are read. "
                "Shorten the question."
            )
        elif len(talk) >= limits.turns:
            problem = "This conversation is as long as one may be: start a new one."
        elif self.room.is_answering(visitor):
            problem = "Your last question is still being answered: stop it, or wait."
        if problem is not None or question is None:
            gr.Warning(str(problem))
            yield tuple(gr.skip() for _ in range(4 + len(self.names)))
            return
        box: Any = gr.MultimodalTextbox(
            value={"text": "", "files": []}, submit_btn=False, stop_btn=True
        )
        label: Any = gr.Dropdown(label=language_line(question))
        async for answers in self.room.answers(visitor, talk, question, sampling):
            now = (*talk, Exchange(question, answers))
            yield (box, now, status_line(answers, self.names), label, *self._chats(now))
            box = label = gr.skip()

    def unlock(self, request: gr.Request) -> Any:
        """The text box, after an answer; locked as it is while another one is written."""
        if self.room.is_answering(visitor_of(request)):
            return gr.skip()
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def stop(self, request: gr.Request) -> None:
        """The button, or a tab that was closed."""
        self.room.stop(visitor_of(request))

    async def undo(self, talk: Talk, request: gr.Request) -> Updates:
        """The last question back into the text box."""
        await self.room.drop(visitor_of(request))
        question = talk[-1].question if talk else Question("")
        files = [str(path) for path in question.pictures]
        box, left = {"text": question.text, "files": files}, talk[:-1]
        return (box, left, "", gr.skip(), *self._chats(left))

    async def clear(self, request: gr.Request) -> Updates:
        """A new conversation."""
        await self.room.drop(visitor_of(request))
        label = gr.Dropdown(label=language_line(None))
        return ({"text": "", "files": []}, (), "", label, *self._chats(()))

    def _chats(self, talk: Talk) -> list[list[dict[str, Any]]]:
        return [shown(talk, model) for model in range(len(self.names))]

    # ------------------------------------------------------------------ while typing

    def typed(self, message: dict[str, Any] | None, language: str) -> Any:
        """The language's label; that of the last question while nothing is typed."""
        text = (message or {}).get("text") or ""
        if not text.strip():
            return gr.skip()
        return gr.Dropdown(label=language_line(question_of(text, (), language or None)))

    def chosen(self, message: dict[str, Any] | None, language: str) -> Any:
        """The language's label, after one was chosen."""
        text = (message or {}).get("text") or ""
        question = question_of(text, (), language or None) or Question("", chosen=language or None)
        return gr.Dropdown(label=language_line(question))

    def with_photo(self, message: dict[str, Any] | None, photo: str | None) -> Updates:
        """(text box, camera): a photo taken goes to the other pictures."""
        if photo is None:
            return gr.skip(), gr.skip()
        message = message or {}
        files = [*(message.get("files") or []), photo]
        return {"text": message.get("text") or "", "files": files}, None

    # ------------------------------------------------------------------ why
    # These give (explanation, slider, sentence, maps, words, legend, gates).

    def explain_last(
        self,
        talk: Talk,
        model: int | None,
        before: Explanation | None,
        layer: float | None,
        request: gr.Request,
    ) -> Updates:
        return self.explain(talk, len(talk) - 1, model or 0, before, layer, request)

    def explain_selected(self, model: int) -> Callable[..., Updates]:
        """Of a message that was selected in a model's Chatbot; the model's number comes first."""

        def explain(
            talk: Talk,
            before: Explanation | None,
            layer: float | None,
            event: gr.SelectData,
            request: gr.Request,
        ) -> Updates:
            index = event.index
            place = int(index[0] if isinstance(index, list | tuple) else index)
            return (model, *self.explain(talk, place // 2, model, before, layer, request))

        return explain

    def explain(
        self,
        talk: Talk,
        number: int,
        model: int,
        before: Explanation | None,
        layer: float | None,
        request: gr.Request,
    ) -> Updates:
        """Of one answer; empty where there is none. A few are made at a time, two a visitor.

        Args:
            before, layer: what is shown now; the slider stays there if it can.
        """
        if not 0 <= number < len(talk):
            return told("")
        said = talk[number].answers[model]
        if said.state == "error" or not said.over or not said.text.strip():
            return told("")
        visitor = visitor_of(request)
        with self._lock:
            full = len(self._explaining) >= self.room.limits.explanations
            if full or self._explaining.count(visitor) > 1:
                return told("Other explanations are being made: select the answer in a moment.")
            self._explaining.append(visitor)
        try:
            found = explanation_of(
                self.room.engines[model], talk, number, model, self.room.limits,
                self._usual_gates(model),
            )  # fmt: skip
        except (DataError, QueueFullError, RuntimeError) as error:
            pictures = [path for one in talk for path in one.question.pictures]
            return told(f"Not explained: {without_folders(str(error), pictures)}")
        finally:
            with self._lock:
                self._explaining.remove(visitor)
        layers = len(found.why.routers)
        router = max(0, layers - 1) // 2
        if before is not None and layer is not None and len(before.why.routers) == layers:
            router = round(min(max(layer, 1), max(1, layers))) - 1
        label = f"Layer, 1 to {layers}"
        slider = gr.Slider(
            maximum=max(2, layers),
            value=router + 1,
            visible=layers > 1,
            label=label,
        )
        sentence = f'<div class="why-sentence">{found.sentence()}</div>'
        drawn = (found.maps(router), found.words(router), found.legend, found.gates)
        return (found, slider, sentence, *drawn)

    def redraw(self, found: Explanation | None, layer: float) -> Updates:
        """(maps, words) at another layer."""
        if found is None or not found.why.routers:
            return gr.skip(), gr.skip()
        router = round(min(max(layer, 1), len(found.why.routers))) - 1
        return found.maps(router), found.words(router)

    def _usual_gates(self, model: int) -> Mapping[str, Sequence[float]]:
        """Language -> average gate over the example pictures; taken once."""
        if model not in self._usual:
            engine = self.room.engines[model]
            asked = [{"role": "user", "content": "<image>"}] * len(self.pictures)
            pixels = engine.pixels_of(fill_pictures(asked, self.pictures))
            questions = {code: [WHAT_IS_THIS[code]] for code in LANGUAGES}
            self._usual[model] = {} if pixels is None else engine.gates(questions, pixels)
        return self._usual[model]


def told(why_not: str) -> Updates:
    """In place of an explanation."""
    return (None, gr.Slider(visible=False), html.escape(why_not), "", "", "", "")


def visitor_of(request: gr.Request) -> str:
    return str(request.session_hash)


def last_pictures(talk: Talk) -> tuple[Path, ...]:
    """Of the last question that came with some."""
    return next((one.question.pictures for one in reversed(talk) if one.question.pictures), ())


def sampling_of(temperature: float, top_p: float, longest: float, seed: str | None) -> Sampling:
    """The settings of the page.

    Raises:
        gr.Error: what no slider gives, or a seed that is no whole number.
    """
    try:
        return Sampling(
            max_new_tokens=int(longest),
            temperature=float(temperature),
            top_p=float(top_p),
            seed=int(seed) if seed and seed.strip() else None,
        )
    except (DataError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise gr.Error(f"Settings: {error}") from error
