"""LlavaMoleProcessor: conversation + images -> ids, pixels, label mask, and what steers each image.

The label mask is the chat template's own assistant mask (the text between its generation marks), so
no turn is tokenized twice and no length is guessed. Each image comes with the text that its
language-conditioned experts see: the user turn that holds it, and nothing else, in training and
inference alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.chat_template_utils import render_jinja_template

from llava_mole.control_tokens import (
    ControlTokens,
    control_tokens,
    joined_texts,
    skeleton,
    structure,
    texts_of,
    with_texts,
)
from llava_mole.data.images import load_image
from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.preprocess import image_transform

IGNORE = -100
Message = dict[str, Any]


class LlavaMoleImageProcessor(ImageProcessingMixin):
    """The tower's preprocessing, from the config that its weights came with.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict, and what `preprocess.py` adds.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(self, preprocess: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preprocess = preprocess or {}

    def __call__(self, images: Any, return_tensors: str = "pt", **_: Any) -> BatchFeature:
        """One image or a list (PIL, path, bytes) -> {"pixel_values": (N, 3, H, W) float32}.

        Raises:
            DataError: an image is missing, broken or too large.
        """
        items = images if isinstance(images, list | tuple) else [images]
        transform = image_transform(self.preprocess)
        pixels = [transform(as_image(item)) for item in items]
        return BatchFeature({"pixel_values": torch.stack(pixels)})


def as_image(item: Any) -> Image.Image:
    """A PIL image as RGB on white; a path, bytes or file object through `load_image`."""
    return load_image(item)


@dataclass(frozen=True)
class Encoded:
    """One conversation in tokens; images are P placeholders each.

    Attributes:
        input_ids: T tokens.
        labels: T, the token where supervised, else -100.
        questions: per image, the tokens of the text that steers it.
    """

    input_ids: list[int]
    labels: list[int]
    questions: list[list[int]]

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def load_tokenizer(source: Any, **options: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder or the hub; Python files that lie beside it are not run.

    Raises:
        CheckpointError: there is none, or it would need them.
    """
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer in {source} cannot be loaded: {error}") from error


class LlavaMoleProcessor(ProcessorMixin):
    """Tokenizer and image processor of one model.

    Args:
        image_processor: open_clip preprocessing.
        tokenizer: of the language model; must be a fast one (offsets give the label mask).
        tokens_per_image: P, placeholders that one image becomes.
        image_token: a single token of the vocabulary that never occurs in text.
        condition_on: "unlabelled", or the turn that holds the picture; see
            `ParrotConfig.condition_on`, whose controls read neither.
        chat_template: Jinja source with generation marks.
    """

    def __init__(
        self,
        image_processor: LlavaMoleImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_image: int = 0,
        image_token: str = "<image>",
        condition_on: str = "turn",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.tokens_per_image = tokens_per_image
        self.image_token = image_token
        self.condition_on = condition_on
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        unknown = self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id
        if unknown and image_token != tokenizer.unk_token:
            raise ConfigError(f"image_token={image_token!r} is not a token of the vocabulary")

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """transformers looks classes up by name in itself; ours are not there."""
        expected = {
            "image_processor": LlavaMoleImageProcessor,
            "tokenizer": PreTrainedTokenizerBase,
        }[argument_name]
        if not isinstance(argument, expected):
            raise TypeError(f"{argument_name} is a {type(argument).__name__}, not {expected}")
        return expected

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Same reason: both parts are read by their own class."""
        described = (processor_dict or {}).get("image_processor")
        if described is None:
            raise CheckpointError(
                f"{pretrained_model_name_or_path}/processor_config.json has no image_processor"
            )
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        tokenizer = load_tokenizer(pretrained_model_name_or_path, **hub)
        return [LlavaMoleImageProcessor(described["preprocess"]), tokenizer]

    # ------------------------------------------------------------------ text to tokens

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The conversation as text, and the spans of characters the assistant says.

        The text holds the words as they are: where they may spell a token of the chat format,
        tokenize with `encode`.

        Raises:
            DataError: the conversation is empty, or the template does not take it.
            ConfigError: the processor has no chat template.
        """
        if not messages:
            raise DataError("empty conversation: it has no turn")
        if self.chat_template is None:
            raise ConfigError("no chat template: name one, e.g. chat_template: qa in the recipe")
        try:
            texts, spans = render_jinja_template(
                [joined_texts(messages)],
                chat_template=self.chat_template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token or "",
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        return texts[0], spans[0]

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> Encoded:
        """Tokens, labels and steering text of one conversation.

        Words that spell a token of the chat format (`<|im_end|>`, `</s>`) are tokenized as plain
        characters; only the template writes turns, ends and placeholders.

        Args:
            messages: Hugging Face chat messages; content is text or typed parts.
            add_generation_prompt: end with the marks after which the assistant speaks.

        Raises:
            DataError: the conversation is empty, the template does not take it, its text holds the
                placeholder token itself, or forms tokens of the chat format in some other way.
        """
        control = self.control
        messages = joined_texts(messages)
        marked, marker = control.marked(texts_of(messages))
        said = with_texts(messages, marked) if marker else messages
        text, spans = self.render(said, add_generation_prompt)
        images = count_images(messages)
        if text.count(self.image_token) != images:
            raise DataError(
                f"conversation with {images} images renders {text.count(self.image_token)} "
                f"{self.image_token!r} placeholders; does its text contain that token?"
            )
        tokens, inside = control.tokenize(text, spans, marker)
        self._check_marks(messages, tokens, add_generation_prompt)
        input_ids: list[int] = []
        labels: list[int] = []
        for token, supervised in zip(tokens, inside, strict=True):
            repeat = self.tokens_per_image if token == self.image_token_id else 1
            label = token if supervised and token != self.image_token_id else IGNORE
            input_ids += [token] * repeat
            labels += [label] * repeat
        return Encoded(input_ids, labels, self.questions(messages, input_ids, labels))

    @property
    def control(self) -> ControlTokens:
        """Tokens that only the template may write."""
        return control_tokens(
            self.tokenizer, self.chat_template or "", self.image_token, len(self.tokenizer)
        )

    def _check_marks(
        self, messages: Sequence[Message], tokens: Sequence[int], prompt: bool
    ) -> None:
        """Raises DataError unless the control tokens are those that the template writes alone."""
        control = self.control
        key = structure(messages, prompt)
        expected = control.skeletons.get(key)
        if expected is None:
            text, _ = self.render(skeleton(messages), prompt)
            expected = [token for token in control.tokenize(text)[0] if token in control.ids]
            control.skeletons[key] = expected
        found = [token for token in tokens if token in control.ids]
        if found != expected:
            names = self.tokenizer.convert_ids_to_tokens
            raise DataError(
                "the words of the conversation change the tokens of the chat format: found "
                f"{names(found)}, the template writes {names(expected)}"
            )

    def questions(
        self, messages: Sequence[Message], input_ids: list[int], labels: list[int]
    ) -> list[list[int]]:
        """Per image, the tokens that steer it."""
        per_image: list[list[int]] = []
        for message in messages:
            images = count_images([message])
            if images:
                per_image += [self.question_ids(message_text(message))] * images
        if self.condition_on == "unlabelled" and per_image:
            unlabelled = [
                token
                for token, label in zip(input_ids, labels, strict=True)
                if label == IGNORE and token != self.image_token_id
            ]
            return [unlabelled] * len(per_image)
        return per_image

    def question_ids(self, text: str) -> list[int]:
        """Tokens of a turn's words, as plain characters throughout."""
        (marked,), marker = self.control.marked([text])
        return self.control.tokenize(marked, marker=marker)[0]

    # ------------------------------------------------------------------ batches

    def batch(
        self,
        encoded: Sequence[Encoded],
        images: Sequence[Any] = (),
        *,
        labels: bool = False,
        padding_side: str = "right",
    ) -> BatchFeature:
        """Pad conversations into one batch.

        Args:
            encoded: B conversations.
            images: N images of the batch, in order.
            labels: include them.
            padding_side: "right" to train, "left" to generate.

        Returns:
            input_ids, attention_mask (B, T); with images pixel_values (N, 3, H, W), question_ids
            and question_mask (N, Q); labels (B, T) if asked.

        Raises:
            DataError: the number of images differs from the number of placeholders.
        """
        questions = [question for item in encoded for question in item.questions]
        if len(questions) != len(images):
            raise DataError(
                f"{len(questions)} <image> placeholders in the text but {len(images)} images"
            )
        left = padding_side == "left"
        ids, mask = pad([item.input_ids for item in encoded], self.pad_id, left)
        out = {"input_ids": ids, "attention_mask": mask}
        if labels:
            out["labels"] = pad([item.labels for item in encoded], IGNORE, left)[0]
        if images:
            out["pixel_values"] = self.image_processor(list(images))["pixel_values"]
            out.update(self.steering(questions))
        return BatchFeature(out)

    def steering(self, questions: Sequence[list[int]]) -> dict[str, Tensor]:
        """question_ids and question_mask, (N, Q)."""
        ids, mask = pad(list(questions), self.pad_id, left=False)
        return {"question_ids": ids, "question_mask": mask.bool()}

    @property
    def pad_id(self) -> int:
        """What fills rows up; never the placeholder, which Vicuna's vocabulary also pads with."""
        token = self.tokenizer.pad_token_id
        if token is None or token == self.image_token_id:
            return self.tokenizer.eos_token_id
        return token

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        padding_side: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Ready-made text with `<image>` (or the placeholder token) where pictures go.

        The whole text of a row counts as the turn that steers its images; for conversations of
        several turns use `apply_chat_template`, which knows the turns.

        Args:
            images: one, a list for the whole batch in order, or a list per row.
            text: one row or several, already in the model's chat format.
            padding_side: "left" unless given (rows to be continued).

        Raises:
            DataError: no text, or counts of images and placeholders differ.
        """
        if text is None:
            raise DataError("no text: a picture alone has no question; pass text=")
        rows = [text] if isinstance(text, str) else list(text)
        flat: list[Any] = []
        for item in [] if images is None else images if isinstance(images, list) else [images]:
            flat += item if isinstance(item, list) else [item]
        encoded = []
        for row in rows:
            row = row.replace("<image>", self.image_token)
            tokens = self.tokenizer(row, add_special_tokens=False)["input_ids"]
            question = self.question_ids(row.replace(self.image_token, "").strip())
            ids: list[int] = []
            count = 0
            for token in tokens:
                is_image = token == self.image_token_id
                ids += [token] * (self.tokens_per_image if is_image else 1)
                count += is_image
            encoded.append(Encoded(ids, [IGNORE] * len(ids), [question] * count))
        return self.batch(encoded, flat, padding_side=padding_side or "left")

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        padding_side: str | None = None,
        **_: Any,
    ) -> Any:
        """As in any Hugging Face processor; image parts hold the picture under "image" or "path".

        Args:
            conversation: messages, or a list of conversations.
            tokenize: False returns text.
            add_generation_prompt: end where the assistant speaks.
            return_dict: with tokenize, a BatchFeature; else only input_ids.
            return_assistant_tokens_mask: add assistant_masks (B, T), 1 where supervised.
            padding_side: "left" with a generation prompt, else "right", unless given.

        Raises:
            DataError: see `encode` and `batch`; a remote URL as picture (nothing is fetched).
        """
        single = bool(conversation) and isinstance(conversation[0], dict)
        chats: list[Any] = [conversation] if single or not conversation else list(conversation)
        if not tokenize:
            texts = [self.render(chat, add_generation_prompt)[0] for chat in chats]
            return texts[0] if single else texts
        encoded = [self.encode(c, add_generation_prompt=add_generation_prompt) for c in chats]
        images = [image for chat in chats for image in images_of(chat)]
        side = padding_side or ("left" if add_generation_prompt else "right")
        out = self.batch(encoded, images, labels=return_assistant_tokens_mask, padding_side=side)
        if return_assistant_tokens_mask:
            out["assistant_masks"] = (out.pop("labels") != IGNORE).long()
        return out if return_dict else out["input_ids"]

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.batch_decode(*args, **kwargs)


def pad(rows: list[list[int]], value: int, left: bool) -> tuple[Tensor, Tensor]:
    """(B, T) values and (B, T) mask, 1 at real entries."""
    longest = max((len(row) for row in rows), default=0)
    values = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        values[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return values, mask


def count_images(messages: Sequence[Message]) -> int:
    return sum(
        part["type"] == "image"
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    )


def images_of(messages: Sequence[Message]) -> list[Any]:
    """The pictures of a conversation, in order.

    Raises:
        DataError: an image part without a picture, or with a remote address.
    """
    found = []
    for message in messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] != "image":
                continue
            picture = next((part[k] for k in ("image", "path", "url") if part.get(k)), None)
            if picture is None:
                raise DataError("an image part without a picture: give it under 'image'")
            if isinstance(picture, str) and "://" in picture:
                raise DataError(f"{picture!r}: remote pictures are not fetched; download it first")
            found.append(Path(picture) if isinstance(picture, str) else picture)
    return found


def message_text(message: Message) -> str:
    """The words of one message, its images left out."""
    content = message["content"]
    if isinstance(content, str):
        return content.strip()
    return "".join(part["text"].strip() for part in content if part["type"] != "image")
