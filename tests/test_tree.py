"""Shared pictures: a tree of questions computes exactly what separate rows compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, samples_by_expert
from llava_mole.tree import (
    MASK_BY_LAYER_TYPE,
    ONE_MASK,
    check_supported,
    tree_masks,
    tree_positions,
    visibility,
)
from tests.helpers import FAMILIES, WINDOW, assistant, gradients, picture, user

TREE = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1]])


def test_positions_restart_at_each_branch_after_the_prefix() -> None:
    assert tree_positions(TREE).tolist() == [[0, 1, 2, 3, 4, 2, 3, 0]]


def test_a_branch_sees_the_prefix_and_itself_and_never_another_branch() -> None:
    seen = visibility(TREE, tree_positions(TREE))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_a_window_is_measured_in_positions_not_in_indices() -> None:
    """By index the second branch would lose the prefix: index 5 is four tokens after index 1."""
    seen = visibility(TREE, tree_positions(TREE), window=3)[0]
    assert seen[5].nonzero().squeeze(1).tolist() == [0, 1, 5]
    assert seen[6].nonzero().squeeze(1).tolist() == [1, 5, 6]


# ---------------------------------------------------------------------- a tree and its rows


def conversations() -> tuple[list[list[Any]], list[Any]]:
    """Two pictures: the first with three questions of different lengths, the second with two."""
    first, second = picture(1), picture(2)
    asked = [
        [("What is this thing here?", "a cat"), ("Colour?", "red"), ("Is it an animal?", "yes")],
        [("Name it.", "tree"), ("And its colour, please?", "green!")],
    ]
    rows = [
        [[user(question, image), assistant(answer)] for question, answer in questions]
        for image, questions in zip((first, second), asked, strict=True)
    ]
    return rows, [first, second]


def as_tree(processor: Any, groups: list[list[Any]], pictures: list[Any]) -> dict[str, Tensor]:
    """One row per picture, its questions as branches."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for chats in groups:
        encoded = [processor.encode(chat) for chat in chats]
        places = [i for i, t in enumerate(encoded[0].input_ids) if t == processor.image_token_id]
        prefix = places[-1] + 1
        ids, labels = list(encoded[0].input_ids[:prefix]), [-100] * prefix
        segments = [0] * prefix
        for number, item in enumerate(encoded, start=1):
            ids += item.input_ids[prefix:]
            labels += item.labels[prefix:]
            segments += [number] * (len(item.input_ids) - prefix)
        rows.append((ids, labels, segments))
    longest = max(len(ids) for ids, _, _ in rows)

    def padded(column: int, value: int) -> Tensor:
        return torch.tensor([row[column] + [value] * (longest - len(row[0])) for row in rows])

    pixels = processor.image_processor(pictures)["pixel_values"]
    return {
        "input_ids": padded(0, 0),
        "labels": padded(1, -100),
        "segment_ids": padded(2, -1),
        "pixel_values": pixels,
    }


def as_rows(processor: Any, groups: list[list[Any]], pictures: list[Any]) -> dict[str, Tensor]:
    encoded = [processor.encode(chat) for chats in groups for chat in chats]
    images = [image for chats, image in zip(groups, pictures, strict=True) for _ in chats]
    batch = dict(processor.batch(encoded, images, labels=True))
    return {k: v for k, v in batch.items() if not k.startswith("question")}


ATTENTIONS = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if not (family == "gemma2" and attention == "sdpa")  # transformers has no sdpa for its soft cap
]


@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_a_tree_row_equals_separate_rows(
    tiny_model: Callable[..., Any], family: str, attention: str
) -> None:
    """Logits, language loss, balance loss and expert statistics; rows longer than the windows."""
    mole = MoleConfig(num_experts=3, r=2, balance_coef=0.5)
    model, processor = tiny_model(family, mole=mole, lora=True, attn_implementation=attention)
    groups, pictures = conversations()
    tree, rows = as_tree(processor, groups, pictures), as_rows(processor, groups, pictures)
    assert tree["segment_ids"].max() == 3
    assert rows["input_ids"].shape[1] > 3 * WINDOW
    branched = model(**tree)
    use = samples_by_expert(model)
    separate = model(**rows)
    # Attention sums over masked entries in another order: float32 rounding of logits up to ~30.
    assert_close(branched.logits, separate.logits, rtol=1e-4, atol=1e-4)
    assert set(branched.losses) == {"language", "balance"}
    for name, value in separate.losses.items():
        assert_close(branched.losses[name], value, rtol=1e-5, atol=1e-5)
    assert_close(use, samples_by_expert(model))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_a_tree_row_has_the_gradients_of_separate_rows(
    tiny_model: Callable[..., Any], family: str
) -> None:
    found = []
    for build in (as_tree, as_rows):
        model, processor = tiny_model(family, mole=MoleConfig(num_experts=3, r=2, gate="scaled"))
        model.requires_grad_(True).train()
        model(**build(processor, *conversations())).loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        # Float32 sums of five rows, of which a tree computes the prefix once.
        error = (found[0][name] - expected).norm()
        assert error <= 1e-4 * expected.norm() + 1e-6, name


def test_one_branch_does_not_read_another(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("gemma3_text", mole=True)
    groups, pictures = conversations()
    before = as_tree(processor, groups, pictures)
    after = {key: value.clone() for key, value in before.items()}
    other = (before["segment_ids"] == 1) & (before["labels"] == -100)
    after["input_ids"][other] = 40
    changed = before["segment_ids"] == 1
    outputs = [model(**batch).logits for batch in (before, after)]
    keep = before["labels"][:, 1:] != -100
    untouched = ~changed[:, 1:][keep]
    assert_close(outputs[0][0, untouched], outputs[1][0, untouched], rtol=0, atol=0)
    assert not torch.allclose(outputs[0][0, ~untouched], outputs[1][0, ~untouched])


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("family", ["cohere", "olmo2", "gpt_neox", "gemma3n_text"])
def test_an_unproved_family_is_refused_naming_the_option(family: str) -> None:
    with pytest.raises(ConfigError, match=rf"share_prefix.*{family}.*share_prefix: false"):
        check_supported(AutoConfig.for_model(family))


def test_every_family_that_is_allowed_is_proved_here() -> None:
    assert set(FAMILIES) == ONE_MASK | MASK_BY_LAYER_TYPE


def test_an_unknown_layer_type_is_refused() -> None:
    config = AutoConfig.for_model("qwen3", num_hidden_layers=1, layer_types=["chunked_attention"])
    with pytest.raises(ConfigError, match="chunked_attention"):
        tree_masks(config, TREE, tree_positions(TREE), torch.float32)
