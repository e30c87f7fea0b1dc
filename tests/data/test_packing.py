"""Packed rows compute what separate rows compute, keep trees whole, and waste little."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from llava_mole.data.collator import Collator
from llava_mole.data.packing import Tree, packed
from llava_mole.data.rows import Row
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import ConfigError, DataError
from llava_mole.mole import MoleConfig, samples_by_expert
from tests.helpers import gradients, picture
from tests.test_tree import ATTENTIONS


def sample(question: str, answer: str, *images: str, language: str = "en") -> Sample:
    turns = (Turn("user", "<image>" * len(images) + question), Turn("assistant", answer))
    return Sample(turns, tuple(Path(i) for i in images), "d", language, f"data.json:{len(answer)}")


ROWS = [
    [
        sample("What is this thing here?", "a cat", "1"),
        sample("Colour?", "red", "1", language="tr"),
        sample("Is it an animal?", "yes", "1"),
    ],
    [sample("Name it.", "tree", "2"), sample("And its colour, please?", "green!", "2")],
    [sample("Which of these two is larger?", "the first", "1", "3", language="ru")],
    [sample("Two and two?", "four")],
]


def rows(processor: Any) -> list[Row]:
    return [
        Row(group[0].images, tuple(group), tuple(processor.encode(s.messages()) for s in group))
        for group in ROWS
    ]


def collator(processor: Any, **options: Any) -> Collator:
    def load(images: Any) -> Tensor:
        return processor.image_processor([picture(int(i.stem)) for i in images])["pixel_values"]

    settings = {"share_prefix": True, "parrot": False, "max_length": 512, "load_pixels": load}
    return Collator(processor, **{**settings, **options})


def run(model: Any, batch: dict[str, Any]) -> Any:
    return model(**{key: value for key, value in batch.items() if key != "languages"})


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize(("family", "attention"), ATTENTIONS)
def test_a_packed_row_equals_its_samples_alone(
    tiny_model: Callable[..., Any], family: str, attention: str, share_prefix: bool
) -> None:
    """Logits, losses and expert use; packed rows are longer than the sliding windows."""
    mole = MoleConfig(num_experts=3, r=2, balance_coef=0.5)
    model, processor = tiny_model(family, mole=mole, lora=True, attn_implementation=attention)
    build = collator(processor, share_prefix=share_prefix, packing=400)
    batch = build(rows(processor))
    trees = [tree for row in rows(processor) for tree in build.trees(row)]
    lines = packed(trees, 400)
    assert len(lines) < len(trees)
    out = run(model, batch)
    use = samples_by_expert(model)
    alone = collator(processor, share_prefix=share_prefix)
    logits, uses, balance = [], [], []
    by_tree = {id(tree): None for tree in trees}
    assert len(by_tree) == len(trees)
    for line in lines:
        for tree in line:
            one = run(model, batch_of(alone, tree))
            logits.append(one.logits)
            uses.append(samples_by_expert(model))
            balance += [one.losses["balance"]] * len(tree.languages)
    # Attention sums over masked entries in another order: float32 rounding of logits up to ~30.
    assert_close(out.logits, torch.cat(logits, dim=1), rtol=1e-4, atol=1e-4)
    assert_close(use, torch.cat(uses))
    assert_close(out.losses["balance"], torch.stack(balance).mean(), rtol=1e-5, atol=1e-5)
    assert batch["languages"] == [x for line in lines for tree in line for x in tree.languages]


def batch_of(build: Collator, tree: Tree) -> dict[str, Any]:
    """The batch of one tree, which a collator without packing makes of its row."""
    batch: dict[str, Any] = {
        "input_ids": torch.tensor([tree.input_ids]),
        "labels": torch.tensor([tree.labels]),
        "segment_ids": torch.tensor([tree.segments]),
    }
    if tree.images:
        assert build.load_pixels is not None
        batch["pixel_values"] = build.load_pixels(tree.images)
    return batch


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_packed_rows_have_the_gradients_of_separate_rows(
    tiny_model: Callable[..., Any], family: str
) -> None:
    found = []
    for packing in (None, 400):
        model, processor = tiny_model(family, mole=MoleConfig(num_experts=3, r=2, gate="scaled"))
        model.requires_grad_(True).train()
        run(model, collator(processor, packing=packing)(rows(processor))).loss.backward()
        found.append(gradients(model))
    for name, expected in found[0].items():
        # Float32 sums over the same tokens in another order.
        error = (found[1][name] - expected).norm()
        assert error <= 1e-4 * expected.norm() + 1e-6, name


def test_conditioned_pictures_are_packed_with_their_own_questions(
    tiny_model: Callable[..., Any],
) -> None:
    model, processor = tiny_model("llama", parrot=True)
    plain = collator(processor, share_prefix=False, parrot=True)(rows(processor))
    tight = collator(processor, share_prefix=False, parrot=True, packing=400)(rows(processor))
    assert tight["input_ids"].shape[0] < plain["input_ids"].shape[0]
    losses = [run(model, batch).losses["language"] for batch in (plain, tight)]
    assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_routes_of_whole_sequences_are_the_same_in_packed_rows(
    tiny_model: Callable[..., Any],
) -> None:
    from llava_mole.mole.methods import method_class

    mole = method_class("conditional_mixlora")(num_experts=8, r=4)
    model, processor = tiny_model("llama", mole=mole)
    plain = collator(processor, share_prefix=False)(rows(processor))
    tight = collator(processor, share_prefix=False, packing=400)(rows(processor))
    losses = [run(model, batch).losses["language"] for batch in (plain, tight)]
    assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_a_tree_boundary_is_no_predecessor(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(DataError, match="starts with a supervised token"):
        model(
            input_ids=torch.tensor([[5, 6, 7, 8]]),
            labels=torch.tensor([[-100, 6, 7, 8]]),
            segment_ids=torch.tensor([[0, 0, 0, 0]]),
            tree_ids=torch.tensor([[0, 0, 1, 1]]),
        )


def test_a_family_without_masks_of_our_own_names_the_key(tiny_model: Callable[..., Any]) -> None:
    from transformers import AutoConfig

    from llava_mole.tree import check_supported

    with pytest.raises(ConfigError, match=r"packing: .*set packing: null"):
        check_supported(AutoConfig.for_model("olmo2"), "packing")


# ---------------------------------------------------------------------- which tree goes where


def trees(lengths: list[int]) -> list[Tree]:
    return [Tree([0] * n, [0] * n, [0] * n, (), ()) for n in lengths]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 400))
def test_every_tree_is_in_one_row_and_rows_keep_the_capacity(
    lengths: list[int], capacity: int
) -> None:
    given_trees = trees(lengths)
    lines = packed(given_trees, capacity)
    assert sorted(id(t) for line in lines for t in line) == sorted(id(t) for t in given_trees)
    for line in lines:
        assert sum(len(t) for t in line) <= capacity or len(line) == 1 or max(lengths) > capacity


def test_packed_rows_are_nearly_full() -> None:
    lengths = [int(x) for x in torch.randint(20, 120, (64,), generator=torch.manual_seed(0))]
    lines = packed(trees(lengths), 512)
    sizes = [sum(len(t) for t in line) for line in lines]
    assert sum(sizes) / (len(sizes) * max(sizes)) > 0.97
