"""Token lengths: how long samples get, and which answers would be cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoProcessor, AutoTokenizer

from llava_mole.data.collator import check_supervised
from llava_mole.data.sample import Sample
from llava_mole.errors import ConfigError
from llava_mole.inspection.findings import Finding
from llava_mole.processing import IGNORE, LlavaMoleImageProcessor, LlavaMoleProcessor

ENDLESS = 10**9
"""What tokenizers without a limit claim as their limit, or more."""


@dataclass(frozen=True)
class Measure:
    """How samples become tokens.

    Attributes:
        processor: renders and tokenizes; pictures are its `tokens_per_image` each.
        max_length: tokens of context; None: no limit is known.
        described: for the report.
    """

    processor: LlavaMoleProcessor
    max_length: int | None
    described: str

    def tokens(self, sample: Sample) -> tuple[int, Finding | None]:
        """(tokens of the sample, what does not fit).

        Raises:
            DataError: the text holds the placeholder token itself, the chat template refuses the
                turns, or learns nothing of them.
        """
        encoded = self.processor.encode(sample.messages())
        check_supervised(sample.source, encoded)
        length = len(encoded.input_ids)
        if self.max_length is None or length <= self.max_length:
            return length, None
        lost = sum(label != IGNORE for label in encoded.labels[self.max_length :])
        message = (
            f"{length:,} tokens, {self.max_length:,} fit: {lost} of {encoded.supervised} tokens of "
            "the answers lie beyond; nothing is cut: training refuses it, or leaves it out"
        )
        return length, Finding("warning", "too-long", sample.source, message, length)


def measure_of(
    *,
    config: Path | None = None,
    tokenizer: Path | None = None,
    max_length: int | None = None,
    tokens_per_image: int | None = None,
) -> Measure | None:
    """The measure that a recipe or a folder names; None if neither is given.

    Args:
        config: a recipe: its tokenizer, chat template and tower.
        tokenizer: a folder of a model of ours, or of a tokenizer alone.
        max_length: instead of the language model's or the tokenizer's own limit.
        tokens_per_image: needed with a tokenizer alone: what a picture becomes.

    Raises:
        ConfigError: both are given; the recipe is wrong; the tokenizer cannot be loaded, or has no
            token to stand for a picture.
        CheckpointError: a part of the recipe is missing.
    """
    if config is not None and tokenizer is not None:
        raise ConfigError("--config and --tokenizer: give one of them")
    if config is not None:
        processor, limit = _of_recipe(config)
        described = f"tokens as {config} makes them"
    elif tokenizer is not None:
        processor, limit = _of_folder(tokenizer, tokens_per_image or 1)
        described = f"tokens of {tokenizer}"
    else:
        if max_length is not None:
            raise ConfigError(
                "--max-length: in tokens of which model? Give --config or --tokenizer"
            )
        return None
    described += f", {processor.tokens_per_image} per picture"
    return Measure(processor, max_length or limit, described)


def _of_recipe(path: Path) -> tuple[LlavaMoleProcessor, int | None]:
    from llava_mole.building import build_processor, context_length
    from llava_mole.training.schema import load_recipe

    recipe = load_recipe(path).model
    return build_processor(recipe)[0], context_length(recipe)


def _of_folder(folder: Path, tokens_per_image: int) -> tuple[LlavaMoleProcessor, int | None]:
    from llava_mole.placeholder import placeholder
    from llava_mole.templates import chat_template
    from llava_mole.templates.choosing import template_source

    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {folder}: no such folder")
    try:
        if (folder / "processor_config.json").is_file():
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            if isinstance(processor, LlavaMoleProcessor):
                return processor, _limit(processor.tokenizer.model_max_length)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--tokenizer {folder}: no tokenizer that can be loaded ({str(error).splitlines()[0]})"
        ) from error
    image_token = placeholder(tokenizer, len(tokenizer) + 1)  # lengths only: no model will see it
    try:
        source = template_source("tokenizer", tokenizer, image_token)
    except ConfigError:
        source = chat_template("qa", image_token=image_token)
    processor = LlavaMoleProcessor(
        LlavaMoleImageProcessor({}),
        tokenizer,
        tokens_per_image=tokens_per_image,
        image_token=image_token,
        chat_template=source,
    )
    return processor, _limit(tokenizer.model_max_length)


def _limit(claimed: int) -> int | None:
    return int(claimed) if claimed < ENDLESS else None
