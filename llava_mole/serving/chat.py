"""ChatEngine: a model folder that answers a conversation about pictures, word by word."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llava_mole.errors import CheckpointError, DataError

Message = dict[str, Any]
PLACEHOLDER = "<image>"
MAX_NEW_TOKENS = 256


class ChatEngine:
    """One loaded model and its processor. Answers one conversation at a time; others wait.

    Args:
        model: anything that `AutoModelForImageTextToText` gives.
        processor: the one from the same folder.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        # One at a time: the expert layers keep the routes of the pass in hand.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chat")

    @classmethod
    def from_folder(cls, folder: Path | str, *, device: str | None = None) -> ChatEngine:
        """Load a model folder in the dtype it was saved in.

        Args:
            folder: what `save_pretrained` or `llava-mole train` wrote.
            device: "cpu", "cuda:0" …; None: the first CUDA device if there is one.

        Raises:
            CheckpointError: no such folder, or it is incomplete.
        """
        if not (Path(folder) / "config.json").is_file():
            raise CheckpointError(
                f"no model in {folder} (config.json not found). "
                "`make quickstart` writes one to runs/quickstart/model"
            )
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(chosen), AutoProcessor.from_pretrained(folder))

    def stream(
        self, messages: Sequence[Message], images: Sequence[Any] = (), **generation: Any
    ) -> Iterator[str]:
        """The answer to a conversation in pieces of text, as they are generated.

        Closing the iterator stops the generation.

        Args:
            messages: Hugging Face chat messages that end with the user's; content is text with
                `<image>` where a picture goes, or typed parts.
            images: pictures (PIL, path or bytes) for the placeholders, in order; parts that hold
                their picture already need none.
            generation: keyword arguments of `generate`, e.g. max_new_tokens (256 unless given),
                do_sample, temperature.

        Raises:
            DataError: pictures and placeholders differ in number, a picture cannot be read, or the
                conversation is longer than the model's context.
        """
        inputs = self._inputs(fill_pictures(messages, images))
        room = self._room(inputs)
        generation["max_new_tokens"] = min(generation.get("max_new_tokens", MAX_NEW_TOKENS), room)
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = _StopWhenSet()
        answer = self._worker.submit(
            self.model.generate,
            **inputs,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([stop]),
            **generation,
        )
        # Also after an error, or the reader below would wait for ever.
        answer.add_done_callback(lambda _: streamer.end())
        try:
            yield from streamer
            answer.result()
        finally:
            stop.event.set()

    def answer(
        self, messages: Sequence[Message], images: Sequence[Any] = (), **generation: Any
    ) -> str:
        """The whole answer; arguments and errors as in `stream`."""
        return "".join(self.stream(messages, images, **generation)).strip()

    def _inputs(self, messages: list[Message]) -> dict[str, Any]:
        features = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        return dict(features.to(self.model.device))

    def _room(self, inputs: dict[str, Any]) -> int:
        """Tokens that the context still holds after the prompt."""
        length = inputs["input_ids"].shape[1]
        limit = self.model.config.get_text_config().max_position_embeddings
        if length >= limit:
            raise DataError(
                f"the conversation is {length} tokens long, the model's context {limit}: "
                "start a new conversation or shorten the question"
            )
        return limit - length


class _StopWhenSet(StoppingCriteria):
    """Ends a generation from another thread."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        rows = input_ids.shape[0]
        return torch.full((rows,), self.event.is_set(), device=input_ids.device)


def fill_pictures(messages: Sequence[Message], images: Sequence[Any]) -> list[Message]:
    """Messages in typed parts, each empty image part holding the next picture.

    Raises:
        DataError: more or fewer pictures than places for them.
    """
    waiting = list(images)
    filled: list[Message] = []
    places = 0
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in _parts(message["content"]):
            if part["type"] == "image" and not any(key in part for key in ("image", "path", "url")):
                places += 1
                part = {"type": "image", "image": waiting.pop(0) if waiting else None}
            parts.append(part)
        filled.append({"role": message["role"], "content": parts})
    if places != len(images):
        raise DataError(f"{places} {PLACEHOLDER} placeholders in the text but {len(images)} images")
    return filled


def _parts(content: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(content, str):
        return list(content)
    parts: list[dict[str, Any]] = []
    for index, text in enumerate(content.split(PLACEHOLDER)):
        if index:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text})
    return parts
