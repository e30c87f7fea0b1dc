"""How likely is each option? log p(option, end of turn | picture, question), one pass a question.

A question and its k options are one tree row (`tree.py`): segment 0 is the prompt with its picture,
segments 1…k are the options. The options see the prompt and themselves, never each other, so each
gets the likelihood it would have alone, and the picture and the prompt are computed once instead of
k times. Where a family's masks are not known to be right for trees, every option is a row of its
own: same numbers, about k times the work.

The first token of an option is predicted at the prompt's last position, each later one at its
predecessor, and the last one is the end-of-turn token that the chat template puts after an answer:
an option that merely begins another ("red" of "red apple") has to be over to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole import heads, ranks, tree
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.conditions import NORMALIZATIONS as NORMALIZATIONS
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.inject import decoder_of
from llava_mole.processing import IGNORE, LlavaMoleProcessor, Message, pad

Picture = Path | bytes | Image.Image
"""A file, a file's bytes, or a decoded picture."""

Features = Callable[[Sequence[Any]], Tensor]
"""Pictures (paths or bytes) -> (N, 1 + P, D_v), e.g. `features.FeatureStore`."""


@dataclass(frozen=True)
class Query:
    """One question with its options.

    Attributes:
        question: the user's text; the picture comes before it.
        options: at least one; complete answers, or letters.
        image: None withholds the picture: the turn is text alone.
        language: of the question, for reports.
    """

    question: str
    options: tuple[str, ...]
    image: Picture | None
    language: str

    def messages(self, answer: str | None = None) -> list[Message]:
        """The conversation, with an assistant turn if `answer` is given."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": self.question}]
        if self.image is not None:
            parts.insert(0, {"type": "image", "image": self.image})
        turns: list[Message] = [{"role": "user", "content": parts}]
        return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class OptionScore:
    """Natural-log likelihood of one option.

    Attributes:
        logprob: summed over the option's tokens and the end of turn.
        tokens: how many that is, end of turn included.
        end_logprob: the end of turn's part of `logprob`.
    """

    logprob: float
    tokens: int
    end_logprob: float

    def value(self, normalization: str) -> float:
        """What is compared between options.

        Raises:
            ConfigError: unknown normalization.
        """
        if normalization not in NORMALIZATIONS:
            raise ConfigError(
                f"normalization={normalization!r}: allowed are {', '.join(NORMALIZATIONS)}"
            )
        total, tokens = self.logprob, self.tokens
        if normalization.endswith("without_end"):
            total, tokens = total - self.end_logprob, tokens - 1
        return total / tokens if normalization.startswith("mean") else total


def choose(scores: Sequence[OptionScore], normalization: str = NORMALIZATIONS[0]) -> int:
    """Index of the option the model prefers; of equal ones the first."""
    values = [score.value(normalization) for score in scores]
    return values.index(max(values))


@dataclass(frozen=True)
class ScoredRow:
    """A row of the batch and where in it each scored token is predicted.

    Attributes:
        input_ids, segment_ids: T each.
        image: of the prompt.
        question: tokens that steer the image.
        places: (position, token to be predicted, index of its option).
        query: index of the query in the caller's order.
    """

    input_ids: list[int]
    segment_ids: list[int]
    image: Picture | None
    question: list[int]
    places: list[tuple[int, int, int]]
    query: int


def score_options(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    queries: Sequence[Query],
    *,
    rows_per_batch: int = 16,
    features: Features | None = None,
    share_prompt: bool | None = None,
    progress: bool = True,
    together: bool = False,
) -> list[list[OptionScore]]:
    """Likelihoods of every option of every query.

    Args:
        model, processor: of one model folder.
        queries: in any order; results come back in it. Batches are made of rows of nearly equal
            length and depend on the queries alone.
        rows_per_batch: rows of one forward pass.
        features: the frozen tower's features by picture, so that a picture asked about many times
            is encoded once. None: encoded once per batch that shows it.
        share_prompt: options as branches of one row. None: where `tree.check_supported` allows, and
            no experts are routed by the whole prompt.
        progress: show a bar.
        together: each rank scores its share for all (see `ranks.py`); every rank must call this
            with the same queries.

    Raises:
        DataError: a query without options, an empty option, a prompt longer than the context, a
            broken picture.
        ConfigError: no row in a batch; `share_prompt=True` for a family whose trees are not
            verified, or for experts that are routed by the whole prompt; a chat template whose
            prompt changes with the answer.
    """
    if rows_per_batch < 1:
        raise ConfigError(f"rows_per_batch={rows_per_batch}: must be at least 1")
    if share_prompt is None:
        share_prompt = trees_supported(model) and not routed_by_prompts(model)
    elif share_prompt:
        tree.check_supported(model.config.text_config)
        if routed_by_prompts(model):
            raise ConfigError("share_prompt=True: its experts are routed by the whole prompt")
    context = model.config.text_config.max_position_embeddings
    rows: list[ScoredRow] = []
    for index, query in enumerate(queries):
        rows += plan_rows(processor, query, index, share_prompt, context)
    rows.sort(key=lambda row: (len(row.input_ids), row.query))
    # The longest first: a batch that does not fit in memory fails at once.
    todo = list(reversed(list(batches(rows, rows_per_batch))))
    if together:
        todo = todo[ranks.rank() :: ranks.size()]
    total = sum(len(batch) for batch in todo)

    sums = [[0.0] * len(query.options) for query in queries]
    ends = [[0.0] * len(query.options) for query in queries]
    counts = [[0] * len(query.options) for query in queries]
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode(),
            tqdm(total=total, desc="scoring", unit="row", disable=not progress) as bar,
        ):
            for batch in todo:
                logprobs = row_logprobs(model, processor, batch, features, share_prompt)
                at = 0
                for row in batch:
                    for _, _, option in row.places:
                        sums[row.query][option] += logprobs[at]
                        ends[row.query][option] = logprobs[at]  # the last one stays: the end
                        counts[row.query][option] += 1
                        at += 1
                bar.update(len(batch))
    finally:
        model.train(was_training)
    if together and ranks.size() > 1:
        # A rank has counted tokens of the options that it scored, and of no others.
        for other_sums, other_ends, other_counts in ranks.gather((sums, ends, counts)):
            for asked, row in enumerate(other_counts):
                for option, count in enumerate(row):
                    if count:
                        sums[asked][option] = other_sums[asked][option]
                        ends[asked][option] = other_ends[asked][option]
                        counts[asked][option] = count
    return [
        [OptionScore(*score) for score in zip(*parts, strict=True)]
        for parts in zip(sums, counts, ends, strict=True)
    ]


def routed_by_prompts(model: LlavaMoleForConditionalGeneration) -> bool:
    """Whether experts are chosen once a sequence, by its prompt."""
    experts = model.config.mole_part
    return experts is not None and experts.prefix_depends_on_question


def trees_supported(model: LlavaMoleForConditionalGeneration) -> bool:
    try:
        tree.check_supported(model.config.text_config)
    except ConfigError:
        return False
    return True


def plan_rows(
    processor: LlavaMoleProcessor, query: Query, index: int, share_prompt: bool, context: int
) -> Iterator[ScoredRow]:
    """One tree row, or a row per option.

    The tokens are those of the whole two-turn conversation, as in training; an option's are the
    supervised ones.
    """
    prompt, steer, answers = option_tokens(processor, query)
    longest = len(prompt) + max(len(answer) for answer in answers)
    if longest > context:
        raise DataError(
            f"question {query.question[:60]!r}: {longest} tokens with its longest option, the "
            f"context holds {context} (nothing is truncated)"
        )
    last = len(prompt) - 1
    ids, segments = list(prompt), [0] * len(prompt)
    places: list[tuple[int, int, int]] = []
    for option, answer in enumerate(answers):
        if not share_prompt:
            ids, segments, places = list(prompt), [0] * len(prompt), []
        places.append((last, answer[0], option))
        places += [(len(ids) + i, token, option) for i, token in enumerate(answer[1:])]
        ids += answer[:-1]  # the end of turn is predicted, never read
        segments += [option + 1 if share_prompt else 0] * (len(answer) - 1)
        if not share_prompt:
            yield ScoredRow(ids, segments, query.image, steer, places, index)
    if share_prompt:
        yield ScoredRow(ids, segments, query.image, steer, places, index)


def option_tokens(
    processor: LlavaMoleProcessor, query: Query
) -> tuple[list[int], list[int], list[list[int]]]:
    """The prompt's tokens, those that steer its picture, and each option's, end of turn included.

    The prompt is the generation prompt, and what else the template puts before every answer.
    """
    if not query.options or not all(option.strip() for option in query.options):
        raise DataError(f"question {query.question[:60]!r}: options {query.options} need text each")
    asked = processor.encode(query.messages(), add_generation_prompt=True)
    prompts, answers = [], []
    for option in query.options:
        whole = processor.encode(query.messages(option))
        supervised = [i for i, label in enumerate(whole.labels) if label != IGNORE]
        start, end = (supervised[0], supervised[-1] + 1) if supervised else (0, 0)
        prompts.append(whole.input_ids[:start])
        answers.append(whole.input_ids[start:end])
        if prompts[-1] != prompts[0] or prompts[-1][: len(asked.input_ids)] != asked.input_ids:
            raise ConfigError(
                f"option {option!r}: before its answer the conversation reads "
                f"{processor.decode(prompts[-1][-8:])!r}, the generation prompt ends in "
                f"{processor.decode(asked.input_ids[-8:])!r}. The chat template must render the "
                "same tokens before an answer in both, or its likelihood is not that of an answer"
            )
    return prompts[0], asked.questions[0] if asked.questions else [], answers


def batches(rows: Sequence[ScoredRow], size: int) -> Iterator[list[ScoredRow]]:
    """Neighbours in length; rows with and without a picture apart, so that no row needs a blank."""
    for with_image in (False, True):
        part = [row for row in rows if (row.image is not None) == with_image]
        for start in range(0, len(part), size):
            yield part[start : start + size]


def row_logprobs(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    rows: Sequence[ScoredRow],
    features: Features | None,
    share_prompt: bool,
) -> list[float]:
    """log p of every scored token, row by row in the order of `places`.

    Logits are computed at the predicting positions only, S of them; log-softmax in float32.
    """
    device = model.device
    input_ids = pad([row.input_ids for row in rows], processor.pad_id, left=False)[0].to(device)
    segment_ids = pad([row.segment_ids for row in rows], -1, left=False)[0].to(device)
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if share_prompt:
        inputs["segment_ids"] = segment_ids
    else:
        inputs["attention_mask"] = (segment_ids >= 0).long()
    if rows[0].image is not None:
        inputs["image_features"] = image_features(model, processor, rows, features)
        steering = processor.steering([row.question for row in rows])
        inputs.update({key: value.to(device) for key, value in steering.items()})

    if routed_by_prompts(model) and model.mole is not None:
        # by the question, as in training: not by the option after it
        prompt = torch.zeros_like(input_ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            prompt[number, : row.places[0][0] + 1] = True
        model.mole.provide(prompt_mask=prompt)
    keep = torch.zeros_like(input_ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        keep[number, sorted({position for position, _, _ in row.places})] = True
    with heads.only_at(decoder_of(model.language_model), keep):
        logits = model(**inputs, use_cache=False).logits
    if logits.shape[:2] != (1, int(keep.sum())):
        raise ConfigError(
            f"{type(model.language_model).__name__} returned logits of shape "
            f"{tuple(logits.shape)} for {int(keep.sum())} positions: this family computes its head "
            "in a way that logits at selected positions do not support"
        )
    # Where each kept position went: its rank among all kept ones, row by row.
    rank = keep.flatten().cumsum(0).view(keep.shape) - 1
    index = [(number, position) for number, row in enumerate(rows) for position, _, _ in row.places]
    at = rank[tuple(torch.tensor(index, device=device).T)]
    targets = torch.tensor([t for row in rows for _, t, _ in row.places], device=device)
    normalizer = heads.log_normalizers(logits[0])
    return (logits[0, at, targets].float() - normalizer[at]).tolist()


def image_features(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    rows: Sequence[ScoredRow],
    features: Features | None,
) -> Tensor:
    """(rows, 1 + P, D_v); a picture that several rows show is encoded once."""
    # PIL pictures have no hash; one object is one picture.
    keys = [id(row.image) if isinstance(row.image, Image.Image) else row.image for row in rows]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    order = {key: rank for rank, key in enumerate(first)}
    distinct = [rows[index].image for index in first.values()]
    if features is not None and not any(isinstance(item, Image.Image) for item in distinct):
        encoded = features(distinct).to(model.device)
    else:
        pixels = processor.image_processor(distinct)["pixel_values"]
        encoded = model.encode_images(pixels.to(model.device))
    return encoded[[order[key] for key in keys]]
