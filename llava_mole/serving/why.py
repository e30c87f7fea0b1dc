"""Why: which experts were on for an answer, token by token, and what Parrot's gate did.

One more pass over the conversation and its answer, as in training, with the routes kept: what the
model computed while it wrote, without slowing the writing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from llava_mole.errors import DataError
from llava_mole.languages import LANGUAGE_NAMES
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import IGNORE, Encoded, LlavaMoleProcessor, images_of

EVENLY = 1.4
"""Below so many times an even share, no expert is said to do most."""
PICTURE, WORDS, ANSWER = "picture", "words", "answer"


@dataclass(frozen=True)
class Token:
    """One token of the conversation.

    Attributes:
        text: as decoded alone; empty for a picture's.
        kind: "picture", "words" (questions, earlier turns, chat format) or "answer" (the last one).
        picture, place: which picture, and which of its visual tokens, in rows from the top left;
            both from 0.
        experts: of each router, the expert with the largest weight.
    """

    text: str
    kind: str
    picture: int | None
    place: int | None
    experts: tuple[int, ...]


@dataclass(frozen=True)
class Why:
    """What was on.

    Attributes:
        routers: names, from the first layer to the last; empty without experts.
        num_experts: E, of the layer with most.
        tokens: T, in order.
        grid: rows and columns of a picture's visual tokens; None where they form no grid.
        gates: per picture the weights of Parrot's language experts, which sum to 1; empty without.
        reads_question: whether the gate depends on the question at all.
        shared: beside them an expert works on every token.
    """

    routers: tuple[str, ...]
    num_experts: int
    tokens: tuple[Token, ...]
    grid: tuple[int, int] | None
    gates: tuple[tuple[float, ...], ...]
    reads_question: bool = True
    shared: bool = False

    def use(self, kind: str, router: int | None = None) -> list[float]:
        """Share of a kind's tokens by expert, E numbers, of one router or of all together."""
        chosen = range(len(self.routers)) if router is None else [router]
        found = Counter(
            token.experts[number]
            for token in self.tokens
            if token.kind == kind
            for number in chosen
        )
        total = sum(found.values())
        return [found[expert] / total if total else 0.0 for expert in range(self.num_experts)]

    def overlay(self, picture: int, router: int) -> list[list[int]] | None:
        """Which expert each of a picture's visual tokens used, in rows; None without a grid."""
        if self.grid is None or not self.routers:
            return None
        rows, columns = self.grid
        chosen = [t.experts[router] for t in self.tokens if t.picture == picture]
        return [chosen[row * columns : (row + 1) * columns] for row in range(rows)]

    def sentence(
        self, language: str | None = None, usual: Mapping[str, Sequence[float]] | None = None
    ) -> str:
        """What happened, in a sentence or two for somebody who has never heard of experts.

        Args:
            language: the question's, if known.
            usual: language -> Parrot's average gate, see `average_gates`.
        """
        said: list[str] = []
        if self.routers:
            parts = []
            for kind, name in (
                (PICTURE, "the picture"),
                (WORDS, "the question"),
                (ANSWER, "the answer"),
            ):
                use = self.use(kind)
                if sum(use):
                    best = max(range(len(use)), key=use.__getitem__)
                    if use[best] < EVENLY / self.num_experts:
                        parts.append(f"all about evenly for {name}")
                    else:
                        parts.append(f"mostly expert {best + 1} for {name} ({use[best]:.0%})")
            if not any(part.startswith("mostly") for part in parts):
                parts = ["all of them about evenly"]
            said.append(
                f"The model has {self.num_experts} experts, parts that share its work"
                + (" beside one that always works" if self.shared else "")
                + f"; it used {_listed(parts)}."
            )  # fmt: skip
        if self.gates:
            gate = self.gates[-1]
            best = max(range(len(gate)), key=gate.__getitem__)
            name = LANGUAGE_NAMES.get(language or "", "this language")
            if not self.reads_question:
                said.append(
                    f"Whatever the question, it reads this picture mostly by view {best + 1} of "
                    f"{len(gate)} ({gate[best]:.0%})."
                )
                return " ".join(said)
            text = (
                f"To read the picture for a question in {name}, it leaned on Parrot's view "
                f"{best + 1} of {len(gate)} ({gate[best]:.0%})"
            )
            if usual and language in usual:
                near = min(usual, key=lambda one: _distance(gate, usual[one]))
                text += (
                    ", as it usually does for that language" if near == language
                    else f", more as it does for {LANGUAGE_NAMES.get(near, near)}"
                )  # fmt: skip
            said.append(text + ".")
        return " ".join(said) or "This model has no experts: every part works on everything."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return math.dist(one, other)


@torch.inference_mode()
def explain(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    messages: Sequence[dict[str, Any]],
    answer: str,
    *,
    steering: str | None = None,
    pixels: torch.Tensor | None = None,
) -> Why:
    """What was on while `answer` was written to the conversation.

    Args:
        messages: typed parts with their pictures, ending with the user's turn.
        answer: what the model said.
        steering: the text that Parrot read the pictures for, where it was not the words around.
        pixels: (N, 3, H, W) of the pictures, where they are there already.

    Raises:
        DataError: the conversation cannot be encoded, or is longer than the context.
    """
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    encoded = processor.encode([*messages, said])
    if steering is not None:
        encoded = steered(encoded, processor.question_ids(steering))
    limit = model.config.get_text_config().max_position_embeddings
    if len(encoded.input_ids) > limit:
        raise DataError(
            f"conversation and answer are {len(encoded.input_ids)} tokens, the context is {limit}"
        )
    pictures = images_of(messages)
    if pixels is None and pictures:
        pixels = processor.image_processor(pictures)["pixel_values"]
    ids = torch.tensor([encoded.input_ids], device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    gates: list[list[float]] = []
    if pixels is not None:
        features = model.encode_images(pixels.to(model.device))
        steered_by = processor.steering(encoded.questions)
        asked = {name: value.to(model.device) for name, value in steered_by.items()}
        inputs |= {"image_features": features, **asked}
        gates = gates_of(model, features, asked["question_ids"], asked["question_mask"])
    model(**inputs, logits_to_keep=1, use_cache=False)
    records = [] if model.mole is None else model.mole.records
    records = [r for r in records if r.route.probs is not None]
    count = len(encoded.input_ids)
    records = [r for r in records if len(r.chosen()) == count]
    chosen = [record.shares().argmax(dim=-1).tolist() for record in records]
    first = last_answer(encoded.labels)
    tokens, place = [], 0
    per_image = processor.tokens_per_image
    for number, token in enumerate(encoded.input_ids):
        experts = tuple(one[number] for one in chosen)
        if token == processor.image_token_id:
            tokens.append(Token("", PICTURE, place // per_image, place % per_image, experts))
            place += 1
        else:
            kind = ANSWER if number >= first and encoded.labels[number] != IGNORE else WORDS
            tokens.append(Token(processor.decode([token]), kind, None, None, experts))
    return Why(
        tuple(record.name for record in records),
        max((record.num_experts for record in records), default=0),
        tuple(tokens),
        grid_of(model),
        tuple(tuple(gate) for gate in gates),
        model.parrot is None or model.parrot.config.reads_question,
        bool(getattr(model.config.mole_part, "shared_expert_r", 0)),
    )


def steered(encoded: Encoded, question: list[int]) -> Encoded:
    """The same conversation, each of its pictures read for another question.

    Args:
        question: its tokens, from `processor.question_ids`.
    """
    return replace(encoded, questions=[question] * len(encoded.questions))


def last_answer(labels: Sequence[int]) -> int:
    """Where the last run of supervised tokens begins."""
    number = len(labels)
    while number and labels[number - 1] == IGNORE:
        number -= 1
    while number and labels[number - 1] != IGNORE:
        number -= 1
    return number


def grid_of(model: LlavaMoleForConditionalGeneration) -> tuple[int, int] | None:
    """Rows and columns of a picture's visual tokens, where they are a square of patches."""
    part = model.config.vision_part
    side = math.isqrt(part.num_patches)
    square = side * side == part.num_patches and part.select == "patch"
    return (side, side) if square else None


def seen(processor: LlavaMoleProcessor, pixels: torch.Tensor) -> Image.Image:
    """A picture as the tower sees it: cropped, padded and scaled by its preprocessing.

    Args:
        pixels: (3, H, W), what its preprocessing made of the picture.
    """
    described = processor.image_processor.preprocess
    spread, middle = (torch.tensor(described[key]).view(3, 1, 1) for key in ("std", "mean"))
    return to_pil_image((pixels * spread + middle).clamp(0, 1))


def gates_of(
    model: LlavaMoleForConditionalGeneration, features: Any, ids: Any, mask: Any
) -> list[list[float]]:
    """Parrot's weights per picture, (N, language experts); empty where it is off.

    Args:
        features: (N, 1 + P, D_v).
        ids, mask: (N, Q), as `visual_tokens` takes them.
    """
    gates = model.language_gate(features, ids, mask)
    return [] if gates is None else gates.tolist()


@torch.inference_mode()
def average_gates(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    questions: Mapping[str, Sequence[str]],
    pixels: torch.Tensor,
) -> dict[str, list[float]]:
    """Language -> Parrot's mean gate over questions in it and pictures; empty where it is off.

    Args:
        questions: language -> texts.
        pixels: (N, 3, H, W) of the pictures.
    """
    if model.parrot is None:
        return {}
    features = model.encode_images(pixels.to(model.device))
    averages = {}
    for language, texts in questions.items():
        asked = [processor.question_ids(text) for text in texts for _ in pixels]
        steering = {
            name: value.to(model.device) for name, value in processor.steering(asked).items()
        }
        every = features.repeat(len(texts), *[1] * (features.dim() - 1))
        gates = gates_of(model, every, steering["question_ids"], steering["question_mask"])
        averages[language] = [sum(column) / len(gates) for column in zip(*gates, strict=True)]
    return averages
