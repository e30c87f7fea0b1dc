"""The page: conversations with one model, or the same one with two side by side, and why they
answer so. What its parts do is in `visits.py`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from llava_mole.languages import LANGUAGES
from llava_mole.serving import why_panel
from llava_mole.serving.generation import Sampling
from llava_mole.serving.guard import Guard, is_upload
from llava_mole.serving.openai_api import make_api
from llava_mole.serving.room import Room
from llava_mole.serving.talk import language_line
from llava_mole.serving.visits import Visits

OWN_NAMES = {
    "en": "English",
    "zh": "中文",
    "pt": "Português",
    "ar": "العربية",
    "tr": "Türkçe",
    "ru": "Русский",
}
EXAMPLES = {
    "en": "What is this?",
    "zh": "这是什么？",
    "pt": "Que tipo de coisa é esta?",
    "ar": "ما هذا؟",
    "tr": "Bu nedir?",
    "ru": "Что это?",
}
VISITORS = 500
"""Conversations that are remembered; the one unused for longest is forgotten first."""
WELCOME = "Add a picture below and ask about it."
# Each paragraph takes its direction from its own first letter: an Arabic answer under an English
# question is right either way.
CSS = (
    why_panel.CSS
    + """
.message p, .message li, textarea, .gallery-item, .example button, .why-words {
    unicode-bidi: plaintext; text-align: start; overflow-wrap: anywhere;
}
.why-sentence { font-size: 1.1em; }
.message-buttons [aria-label="Share"] { display: none !important; }
.gradio-container { max-width: 1280px !important; margin: auto; }
"""
)


def build_page(room: Room, *, names: Sequence[str], pictures: Sequence[Path] = ()) -> gr.Blocks:
    """The page, to be mounted or launched.

    Args:
        room: the models, one or two.
        names: what they are called, in the same order.
        pictures: offered as examples, one a language; Parrot's average gate is taken over them.
    """
    visits = Visits(room, names, pictures)
    numbers = range(len(names))
    with gr.Blocks(
        title="LLaVA-MoLE", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
    ) as page:
        gr.Markdown(
            "# LLaVA-MoLE\nAsk about pictures in English, 中文, Português, العربية, Türkçe or "
            "Русский, and see which experts answered. Programs ask at `/v1`, as they ask OpenAI."
        )
        talk, found = gr.State(()), gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    chats = [_chatbot(names[number], number) for number in numbers]
                box = gr.MultimodalTextbox(
                    sources=["upload"],
                    file_types=["image"],
                    file_count="multiple",
                    placeholder="Ask in any language; paste, drop or add pictures",
                    show_label=False,
                    max_plain_text_length=room.limits.characters,
                    elem_id="question",
                )
                status = gr.Markdown("", elem_id="status")
                language = gr.Dropdown(
                    [("Detect", ""), *((OWN_NAMES[code], code) for code in LANGUAGES)],
                    value="",
                    label=language_line(None),
                    info="Choose one, and Parrot reads the pictures as for a question in it.",
                    elem_id="language",
                )
                if pictures:
                    gr.Examples(
                        [
                            [{"text": EXAMPLES[code], "files": [str(path)]}]
                            for code, path in zip(LANGUAGES, pictures, strict=False)
                        ],
                        box,
                        label="Examples",
                        elem_id="examples",
                    )
                new = gr.Button("New conversation", size="sm", elem_id="new")
                with gr.Accordion("Camera", open=False):
                    camera = gr.Image(
                        sources=["webcam"], type="filepath", show_label=False, height=240
                    )
                settings = _settings(room.limits.tokens)
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("### Why this answer?\nThe last one's; select another to see its own.")
                which = gr.Radio(
                    [(names[number], number) for number in numbers],
                    value=0,
                    show_label=False,
                    visible=len(names) > 1,
                    elem_id="which",
                )
                sentence = gr.HTML(elem_id="why-sentence")
                layer = gr.Slider(
                    1, 2, value=1, step=1, visible=False, label="Layer", elem_id="why-layer"
                )
                maps = gr.HTML(elem_id="why-maps")
                words = gr.HTML(elem_id="why-words")
                legend = gr.HTML(elem_id="why-legend")
                gates = gr.HTML(elem_id="why-gates")
                gr.Markdown("**A new conversation about the same picture, in**")
                with gr.Row():
                    same = {
                        code: gr.Button(
                            OWN_NAMES[code], size="sm", min_width=50, elem_id=f"same-{code}"
                        )
                        for code in LANGUAGES
                    }

        answered = [box, talk, status, language, *chats]
        explained = [found, layer, sentence, maps, words, legend, gates]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        newest: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}

        def then(event: Any) -> None:
            """After an answer: a free text box, and why."""
            free = event.then(visits.unlock, None, box, **quiet)
            free.then(visits.explain_last, [talk, which, found, layer], explained, **quiet)

        then(
            box.submit(
                visits.ask,
                [box, talk, language, *settings],
                answered,
                api_name="chat",
                show_progress="hidden",
            )
        )
        for code, button in same.items():
            then(button.click(visits.ask_in(code), [talk, found, *settings], answered, **quiet))
        for number, chat in zip(numbers, chats, strict=True):
            then(chat.retry(visits.ask_again, [talk, *settings], answered, **quiet))
            then(chat.undo(visits.undo, talk, answered, **quiet))
            then(chat.clear(visits.clear, None, answered, **quiet))
            shown = [which, *explained]
            chat.select(visits.explain_selected(number), [talk, found, layer], shown, **quiet)
        then(new.click(visits.clear, None, answered, **quiet))
        which.input(visits.explain_last, [talk, which, found, layer], explained, **quiet)
        layer.input(visits.redraw, [found, layer], [maps, words], **newest)
        box.stop(visits.stop, None, None, **quiet)
        box.change(visits.typed, [box, language], language, **newest)
        language.input(visits.chosen, [box, language], language, **newest)
        camera.change(visits.with_photo, [box, camera], [box, camera], **quiet)
        page.unload(visits.stop)
    for block in page.blocks.values():
        uploads_only(block)
    return page


def with_api(
    room: Room,
    page: gr.Blocks,
    *,
    names: Sequence[str],
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The page and OpenAI's API in one application, over one queue a model.

    Args:
        names: as given to `build_page`.
        hosts: see `Guard`.
    """
    page.state_session_capacity = VISITORS
    page.queue(default_concurrency_limit=None, max_size=256)  # the models have queues of their own
    app = gr.mount_gradio_app(
        make_api(dict(zip(names, room.engines, strict=True)), limits=room.limits),
        page,
        path="/",
        # The theme's own fonts would be downloaded.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
        footer_links=[],  # Gradio's own API and settings; programs speak to /v1
        run_history=False,  # nothing of a conversation is kept
        show_error=True,
        max_file_size=room.limits.body_bytes,
    )
    app.add_middleware(Guard, events=frozenset(page.fns), limits=room.limits, hosts=hosts)
    return app


def _chatbot(name: str, number: int) -> gr.Chatbot:
    return gr.Chatbot(
        label=name,
        height=440,
        min_width=280,
        buttons=["copy"],
        allow_file_downloads=False,
        allow_tags=False,
        feedback_options=None,
        placeholder=WELCOME,
        elem_id=f"chat-{number}",
    )


def _settings(most: int) -> list[Any]:
    """Temperature, top-p, longest answer, seed; in a fold."""
    usual = Sampling()
    with gr.Accordion("Settings", open=False):
        return [
            gr.Slider(
                0,
                2,
                value=usual.temperature,
                step=0.05,
                label="Temperature",
                info="0 takes the likeliest word each time",
            ),
            gr.Slider(
                0.05,
                1,
                value=usual.top_p,
                step=0.05,
                label="Top-p",
                info="draws among the likeliest words that hold this share",
            ),
            gr.Slider(
                1,
                most,
                value=min(usual.max_new_tokens, most),
                step=1,
                label="Longest answer, in tokens",
            ),
            gr.Textbox("", label="Seed of the draws", placeholder="none: other words each time"),
        ]


def uploads_only(block: Any) -> None:
    """A file in a request is one that was uploaded here: no other path and no address is followed.

    Gradio checks paths only in an app that it has launched itself, not in a mounted one.
    """
    move = getattr(block, "async_move_resource_to_block_cache", None)
    if move is None:
        return

    async def uploaded(path: Any) -> Any:
        if not is_upload(path):
            raise gr.Error("That picture was not uploaded here: add it to the question again.")
        return await move(path)

    block.async_move_resource_to_block_cache = uploaded
