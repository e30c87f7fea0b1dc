"""Answers in the model's own words, greedy: for contact sheets, and as a check on likelihoods."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch

from llava_mole.evaluation.scoring import Query
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor


def generate_answers(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    queries: Sequence[Query],
    *,
    max_new_tokens: int = 24,
    rows_per_batch: int = 16,
) -> list[str]:
    """The greedy answer to each query, in the caller's order; options are not looked at."""
    answers = [""] * len(queries)
    lengths = [len(processor.encode(query.messages()).input_ids) for query in queries]
    order = sorted(range(len(queries)), key=lambda index: (lengths[index], index))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), rows_per_batch):
                part = order[start : start + rows_per_batch]
                inputs = processor.apply_chat_template(
                    [queries[index].messages() for index in part],
                    tokenize=True,
                    return_dict=True,
                    add_generation_prompt=True,
                ).to(model.device)
                out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
                said = out[:, inputs["input_ids"].shape[1] :]
                texts = processor.batch_decode(said, skip_special_tokens=True)
                for index, text in zip(part, texts, strict=True):
                    answers[index] = text.strip()
    finally:
        model.train(was_training)
    return answers


def same_answer(said: str, truth: str) -> bool:
    """Equal after Unicode NFC, case folding, and stripping of space and closing stops."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold().strip().rstrip(".。۔!").strip()

    return plain(said) == plain(truth)
