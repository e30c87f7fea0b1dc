"""Questions in a Hugging Face processor's chat format: as text, as tokens, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.evaluation.models import decoding

TRIED = "What is shown?"


@dataclass(frozen=True)
class Row:
    """One question as one row of a batch.

    Attributes:
        prompt: the user's text.
        picture: decoded; None withholds it.
        tokens: of the conversation up to the reply, the picture as its bare placeholder. They are
            fewer than the model reads, but end in the same ones.
        option: an answer to be scored, or None.
        rest: tokens that the template puts behind `tokens` for that answer.
        scored: those of `rest` that count, end of turn included; see `Chat.answered`.
    """

    prompt: str
    picture: Image.Image | None
    tokens: list[int]
    option: str | None = None
    rest: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()

    @property
    def conversation(self) -> list[dict[str, Any]]:
        return messages(self.prompt, self.picture, self.option)


def messages(prompt: str, picture: Any, answer: str | None = None) -> list[dict[str, Any]]:
    """A user turn in typed parts, its picture first, and an assistant turn for an answer."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    if picture is not None:
        parts.insert(0, {"type": "image", "image": picture})
    turns = [{"role": "user", "content": parts}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def check_parts(processor: Any, name: str) -> None:
    """Raises CheckpointError for a processor without pictures, tokens or chat template."""
    for part in ("image_processor", "tokenizer"):
        if part not in vars(processor):
            raise CheckpointError(
                f"{name}: its {type(processor).__name__} has no {part}; is this the processor of "
                "an image-text-to-text model, with its preprocessor_config.json?"
            )
    if not processor.chat_template:
        raise CheckpointError(
            f"{name}: no chat template (chat_template.jinja). A benchmark is asked as a "
            "conversation; take the instruction-tuned model of that family"
        )


class Chat:
    """A processor's conversations.

    Args:
        processor: one that `check_parts` lets through.
        ends: tokens that end a reply.
        picture: False withholds pictures.
        name: of the model, for errors.

    Raises:
        CheckpointError: the template shows no picture.
    """

    def __init__(self, processor: Any, ends: frozenset[int], picture: bool, name: str) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.picture = picture
        self.name = name
        self.closing = ends | frozenset(self.tokenizer.all_special_ids)
        self.end = min(ends)
        self._known: dict[str, list[int]] = {}
        bare = set(self.tokens(self.text(TRIED, picture=False)))
        # Placeholder and what frames it; a line break around it may also stand in a question.
        shown = set(self.tokens(self.text(TRIED, picture=True)))
        self.marks = (shown - bare) & set(self.tokenizer.added_tokens_decoder)
        if not self.marks:
            raise CheckpointError(
                f"{name}: its chat template writes the same prompt with a picture as without: it "
                "does not know typed parts ({'type': 'image'})"
            )

    def text(self, prompt: str, *, picture: bool, answer: str | None = None) -> str:
        """The conversation as the template renders it; without an answer it asks for one."""
        rendered: str = self.processor.apply_chat_template(
            messages(prompt, "" if picture else None, answer),
            tokenize=False,
            add_generation_prompt=answer is None,
        )
        return rendered

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def row(self, prompt: str, picture: Image.Image | None) -> Row:
        return Row(prompt, picture, self.prompt_tokens(prompt))

    def prompt_tokens(self, prompt: str) -> list[int]:
        """T tokens of a question, its picture as a bare placeholder."""
        if prompt not in self._known:
            self._known[prompt] = self.tokens(self.text(prompt, picture=self.picture))
        return self._known[prompt]

    def answered(self, row: Row, option: str) -> Row:
        """The row with an option as its answer.

        What counts are the answer's tokens up to its end of turn. Where a template puts no such
        token behind an answer, the model's own end token stands for it: that is how a reply ends.

        Raises:
            ConfigError: with an answer behind it, the template renders the question differently.
        """
        whole = self.tokens(self.text(row.prompt, picture=self.picture, answer=option))
        asked = row.tokens
        rest = tuple(whole[len(asked) :])
        if whole[: len(asked)] != asked or not rest:
            raise ConfigError(
                f"{self.name}: option {option!r}: with an answer the chat template writes "
                f"{self.tokenizer.decode(whole[-len(rest) - 8 :])!r}, the prompt of a reply ends "
                f"in {self.tokenizer.decode(asked[-8:])!r}. Unless the prompt stays as it is, the "
                "option's likelihood is not that of a reply; ask with answer=generate"
            )
        scored = list(rest)
        closed = next((n for n, token in enumerate(rest) if token in self.closing), None)
        if closed is not None:
            scored = scored[: closed + 1]
        else:
            while len(scored) > 1 and not self.tokenizer.decode(scored[-1:]).strip():
                scored.pop()
            scored.append(self.end)
        return Row(row.prompt, row.picture, asked, option, rest, tuple(scored))

    def beginning(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many of `Row.tokens` all prompts begin with; 0 if the picture is not among them."""
        return decoding.common_beginning(prompts, self.marks if self.picture else ())

    def encode(self, rows: Sequence[Row], side: str = "right") -> dict[str, Any]:
        """A batch as the model takes it; rows of one length need no padding, others get it."""
        return dict(
            self.processor.apply_chat_template(
                [row.conversation for row in rows],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=rows[0].option is None,
                processor_kwargs={
                    "return_tensors": "pt",
                    "text_kwargs": {"padding": True, "padding_side": side},
                },
            )
        )
