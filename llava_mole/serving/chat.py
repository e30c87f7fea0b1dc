"""ChatEngine: a model folder that answers conversations about pictures, word by word.

Conversations that come at the same time are written together (`batching.py`); each gets the answer
it would get alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole.errors import CheckpointError, DataError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import images_of
from llava_mole.serving.batching import Batcher
from llava_mole.serving.generation import Generation, Sampling
from llava_mole.serving.pictures import one_at_a_time
from llava_mole.serving.why import Why, average_gates, explain, steered

Message = dict[str, Any]
PLACEHOLDER = "<image>"


class ChatEngine:
    """One loaded model and its processor, and the queue of those who ask.

    Args:
        model: anything that `AutoModelForImageTextToText` gives for a folder of ours.
        processor: the one from the same folder.
        max_rows, max_waiting: conversations written together, and waiting beside them.
    """

    def __init__(
        self, model: Any, processor: Any, *, max_rows: int = 16, max_waiting: int = 64
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self._tokenizer = threading.Lock()
        self.batcher = Batcher(model, processor, max_rows=max_rows, max_waiting=max_waiting)

    @classmethod
    def from_folder(
        cls, folder: Path | str, *, device: str | None = None, **queue: int
    ) -> ChatEngine:
        """Load a model folder in the dtype it was saved in.

        Args:
            folder: what `save_pretrained` or `llava-mole train` wrote.
            device: "cpu", "cuda:0" …; None: the first CUDA device if there is one.
            queue: max_rows, max_waiting.

        Raises:
            CheckpointError: no such folder, or it is incomplete.
        """
        check_is_model(folder)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").to(chosen)
            processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
        if not isinstance(model, LlavaMoleForConditionalGeneration):
            raise CheckpointError(
                f"{folder} holds a {type(model).__name__}; a folder of this project is needed "
                "(`llava-mole convert` makes one of a LLaVA)"
            )
        return cls(model, processor, **queue)

    def submit(
        self,
        messages: Sequence[Message],
        images: Sequence[Any] = (),
        sampling: Sampling | None = None,
        listener: Callable[[str | None], None] | None = None,
        *,
        steering: str | None = None,
    ) -> Generation:
        """Queue a conversation; iterate over what is returned for the answer.

        Args:
            messages: Hugging Face chat messages that end with the user's; content is text with
                `<image>` where a picture goes, or typed parts.
            images: pictures (PIL, path or bytes) for the placeholders, in order; parts that hold
                their picture already need none.
            sampling: how it is written; by default the most likely tokens, at most 256.
            listener: see `Generation`.
            steering: a text that Parrot reads the pictures for, in place of the words around them:
                "Что это?" gives an English question the pictures as a Russian one sees them.

        Raises:
            DataError: pictures and placeholders differ in number, a picture cannot be read, or the
                conversation is longer than the model's context.
            QueueFullError: as many wait as may.
        """
        sampling = sampling or Sampling()
        filled = fill_pictures(messages, images)
        with self._tokenizer:
            encoded = self.processor.encode(filled, add_generation_prompt=True)
            if steering is not None:
                encoded = steered(encoded, self.processor.question_ids(steering))
        length = len(encoded.input_ids)
        limit = self.model.config.get_text_config().max_position_embeddings
        if length >= limit:
            raise DataError(
                f"the conversation is {length} tokens long, the model's context {limit}: "
                "start a new conversation or shorten the question"
            )
        most = min(sampling.max_new_tokens, limit - length)
        least = min(sampling.min_new_tokens, most)
        pixels = self.pixels_of(filled)
        one = Generation(
            encoded,
            pixels,
            replace(sampling, max_new_tokens=most, min_new_tokens=least),
            lambda tokens: self.processor.tokenizer.decode(tokens, skip_special_tokens=True),
            self.batcher.position,
            listener,
        )
        self.batcher.submit(one)
        return one

    def stream(
        self, messages: Sequence[Message], images: Sequence[Any] = (), **sampling: Any
    ) -> Iterator[str]:
        """The answer in pieces of text, as they are written. Closing the iterator stops it.

        Args:
            messages, images: see `submit`.
            sampling: fields of `Sampling`, e.g. max_new_tokens, temperature.

        Raises:
            DataError, QueueFullError: see `submit`.
        """
        return iter(self.submit(messages, images, Sampling(**sampling)))

    def answer(
        self, messages: Sequence[Message], images: Sequence[Any] = (), **sampling: Any
    ) -> str:
        """The whole answer; arguments and errors as in `stream`."""
        return "".join(self.stream(messages, images, **sampling)).strip()

    def pixels_of(self, messages: Sequence[Message]) -> torch.Tensor | None:
        """(N, 3, H, W) of a conversation's pictures as the tower takes them; None without any.

        Raises:
            DataError: one cannot be read.
        """
        pictures = images_of(messages)
        if not pictures:
            return None
        return one_at_a_time(lambda: self.processor.image_processor(pictures)["pixel_values"])

    def explain(
        self,
        messages: Sequence[Message],
        answer: str,
        images: Sequence[Any] = (),
        *,
        steering: str | None = None,
        pixels: torch.Tensor | None = None,
    ) -> Why:
        """Which experts were on for an answer; see `why.py`.

        Args:
            messages, images, steering: see `submit`.
            pixels: from `pixels_of`, where they are there already.

        Raises:
            DataError: see `submit`; or conversation and answer are longer than the context.
        """
        filled = fill_pictures(messages, images)
        seen = self.pixels_of(filled) if pixels is None else pixels
        return self.batcher.call(
            lambda: explain(
                self.model, self.processor, filled, answer, steering=steering, pixels=seen
            )
        )

    def gates(
        self, questions: Mapping[str, Sequence[str]], pixels: torch.Tensor
    ) -> dict[str, list[float]]:
        """Parrot's mean gate by language; see `why.average_gates`."""
        return self.batcher.call(
            lambda: average_gates(self.model, self.processor, questions, pixels)
        )

    def close(self) -> None:
        """End what is being written, and the thread that does it."""
        self.batcher.close()


def check_is_model(folder: Path | str) -> None:
    """Raises CheckpointError where there is no model folder, before anything is loaded."""
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(
            f"no model in {folder} (config.json not found). "
            "`make quickstart` writes one to runs/quickstart/model"
        )


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
