"""The demo: chat about one picture in the browser. This file is the page; the answers come from
`llava_mole.serving.chat`.

    python app.py --model runs/quickstart/model

The same process answers programs: OpenAI's chat completions under /v1 (docs/serving.md).
"""

import argparse
import html
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
except ImportError:
    sys.exit('app.py needs Gradio: run `make demo`, or pip install -e ".[starter,demo]"')

from llava_mole.errors import CheckpointError
from llava_mole.serving.chat import PLACEHOLDER, ChatEngine
from llava_mole.serving.generation import QueueFullError
from llava_mole.serving.openai_api import make_api

logger = logging.getLogger(__name__)

DEFAULT_MODEL = Path("runs/quickstart/model")
ERROR_TITLE = "⚠ Error"
QUESTIONS = {
    "English": "What is in the picture?",
    "中文": "图片里是什么？",
    "Português": "O que há na imagem?",
    "العربية": "ماذا يوجد في الصورة؟",
    "Türkçe": "Resimde ne var?",
    "Русский": "Что изображено на картинке?",
}
# Each paragraph takes its direction from its own first letter: an Arabic answer under an English
# question is right either way.
CSS = """
.message p, .message li, textarea, .gallery-item, .example button {
    unicode-bidi: plaintext; text-align: start;
}
"""


def as_messages(message: str, history: list[dict[str, Any]], picture: Any) -> list[dict[str, Any]]:
    """The conversation so far, with the picture in its first turn, as the processor wants it.

    A question that ended in an error is left out together with the error.
    """
    turns: list[dict[str, Any]] = []
    for turn in history:
        if is_error(turn):
            turns.pop()
        else:
            turns.append({"role": turn["role"], "content": text_of(turn["content"])})
    turns.append({"role": "user", "content": message})
    if picture is not None:
        turns[0]["content"] = f"{PLACEHOLDER}\n{turns[0]['content']}"
    return turns


def as_error(error: Exception) -> dict[str, Any]:
    """An error as a turn of the conversation, in its own words (`<image>` must not become HTML)."""
    content = html.escape(str(error))
    return {"role": "assistant", "content": content, "metadata": {"title": ERROR_TITLE}}


def is_error(turn: dict[str, Any]) -> bool:
    return (turn.get("metadata") or {}).get("title") == ERROR_TITLE


def text_of(content: str | list[dict[str, Any]]) -> str:
    """Gradio keeps a turn as a list of typed parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def build_app(engine: ChatEngine, *, title: str, pictures: list[Path]) -> gr.Blocks:
    """The page. `pictures` are offered as examples under the picture box."""

    def respond(
        message: str, history: list[dict[str, Any]], picture: str | None
    ) -> Iterator[str | dict[str, Any]]:
        answer = ""
        images = [] if picture is None else [Path(picture)]
        try:
            for piece in engine.stream(as_messages(message, history, picture), images):
                answer += piece
                yield answer
        except (ValueError, RuntimeError, QueueFullError) as error:
            # Ours, torch's and transformers'. Raised further, the page would stay locked.
            logger.exception("no answer")
            yield as_error(error)

    with gr.Blocks(title="LLaVA-MoLE", fill_height=True, analytics_enabled=False) as app:
        gr.Markdown(f"## LLaVA-MoLE\n{title}")
        with gr.Row(equal_height=True):
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(
                    type="filepath", label="Picture", sources=["upload", "clipboard"], height=320
                )
                if pictures:
                    gr.Examples([[str(path)] for path in pictures], picture, label="Pictures")
            with gr.Column(scale=2):
                chat = gr.ChatInterface(
                    respond,
                    additional_inputs=[picture],
                    chatbot=gr.Chatbot(label="Answers", height=420),
                    textbox=gr.Textbox(
                        placeholder="Ask in any of the six languages",
                        submit_btn=True,
                        stop_btn=True,
                    ),
                    api_name="chat",
                    fill_height=True,
                )
                gr.Examples(
                    [[question] for question in QUESTIONS.values()],
                    chat.textbox,
                    label="Questions",
                    example_labels=[f"{name}: {text}" for name, text in QUESTIONS.items()],
                )
        # Another picture is another conversation: its tokens stand in the first turn.
        picture.change(lambda: ([], []), None, [chat.chatbot, chat.chatbot_state], api_name=False)
    return app


def example_pictures(folder: Path, count: int = 8) -> list[Path]:
    """Evenly spaced pictures of a folder, in the order of their names; none if it is not there."""
    found = sorted(folder.glob("*.png"))
    return found[:: max(1, len(found) // count)][:count]


def with_api(engine: ChatEngine, page: gr.Blocks, *, name: str) -> FastAPI:
    """The page and OpenAI's API in one application, over one queue."""
    return gr.mount_gradio_app(
        make_api(engine, name=name),
        page,
        path="/",
        # The theme's own fonts would be downloaded.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
        show_error=True,
        max_file_size="32mb",
    )


def free_port(host: str, first: int = 7860, tries: int = 100) -> int:
    """The first port from `first` that nobody listens on.

    Raises:
        OSError: none.
    """
    for port in range(first, first + tries):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} to {first + tries - 1}; name one with --port")


def main(arguments: list[str] | None = None) -> int:
    """Load the model and serve the page until interrupted."""
    parser = argparse.ArgumentParser(description="Chat about a picture in the browser.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder")
    parser.add_argument(
        "--pictures",
        type=Path,
        help="folder of PNG files offered as examples; the quickstart's own if it is there",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="port; the first free one from 7860 if not given")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 …; the first GPU if there is one")
    options = parser.parse_args(arguments)
    try:
        engine = ChatEngine.from_folder(options.model, device=options.device)
    except CheckpointError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    pictures = options.pictures or options.model.parent / "data" / "images"
    page = build_app(engine, title=f"`{options.model}`", pictures=example_pictures(pictures))
    app = with_api(engine, page, name=options.model.resolve().parent.name)
    try:
        port = options.port or free_port(options.host)
    except OSError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    address = f"http://{'localhost' if options.host == '127.0.0.1' else options.host}:{port}"
    print(f"page: {address}\nfor programs: {address}/v1   (Ctrl-C ends it)", flush=True)
    uvicorn.run(app, host=options.host, port=port, log_level="warning")
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
