"""Supervised-only logits are the model's own logits, for every family's own way of making them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from llava_mole import heads
from llava_mole.errors import ConfigError, DataError
from llava_mole.heads import predecessors
from tests.helpers import FAMILIES, assistant, picture, random_ids, training_batch, user


@pytest.mark.parametrize("family", FAMILIES)
def test_supervised_only_logits_equal_the_models_own_full_logits(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, processor = tiny_model(family, mole=True)
    batch = training_batch(
        processor,
        [[user("What?", picture()), assistant("a cat")], [user("Why so?"), assistant("no")]],
    )
    out = model(**batch)
    labels = batch.pop("labels")
    full = model(**batch).logits
    keep = F.pad(labels[:, 1:] != -100, (0, 1))
    assert out.logits.shape == (1, int(keep.sum()), full.shape[-1])
    # The same matmul over fewer rows may block differently: an ulp or two.
    assert_close(out.logits[0], full[keep], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_logits_and_loss_are_those_of_the_language_model_alone(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, _ = tiny_model(family)
    ids = random_ids(2, 20)
    expected = model.language_model(input_ids=ids, labels=ids)
    assert_close(model(input_ids=ids).logits, expected.logits, rtol=0, atol=0)
    assert_close(model(input_ids=ids, labels=ids).loss, expected.loss, rtol=1e-5, atol=1e-5)


def test_soft_cap_and_logit_scale_are_in_play() -> None:
    """Otherwise the parametrised tests above would prove nothing about them."""
    assert FAMILIES["gemma2"]["final_logit_softcapping"] == 3.0
    assert FAMILIES["granite"]["logits_scaling"] == 4.0


def test_the_soft_cap_bounds_supervised_logits(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("gemma2")
    logits = model(input_ids=random_ids(1, 9), labels=random_ids(1, 9)).logits
    assert 1 < logits.abs().max() <= 3.0


def test_a_family_with_another_head_is_refused(tiny_model: Callable[..., Any]) -> None:
    class Flattening(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.flatten(0, 1).unsqueeze(1)
            return out

    model, _ = tiny_model("llama")
    model.language_model.__class__ = Flattening
    with pytest.raises(ConfigError, match="Flattening returned logits of shape"):
        model(input_ids=random_ids(1, 9), labels=random_ids(1, 9))


def test_predecessors_are_the_positions_before_supervised_tokens() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [5, -100, -100, -100], [-100, 6, -100, 9]])
    assert predecessors(labels).int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


def test_a_batch_without_supervised_token_is_refused() -> None:
    with pytest.raises(DataError, match="no supervised token"):
        predecessors(torch.full((2, 4), -100))


def test_a_branch_that_starts_with_its_answer_is_refused_by_place() -> None:
    labels = torch.tensor([[-100, -100, -100, 5, 6]])
    with pytest.raises(DataError, match="row 0: the branch that starts at token 3"):
        predecessors(labels, torch.tensor([[0, 0, 0, 1, 1]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_cross_entropy_equals_torchs_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(19, 101, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, 101, (19,), generator=generator)
    twin = logits.detach().clone().requires_grad_()
    loss = heads.supervised_cross_entropy(logits, targets)
    expected = F.cross_entropy(twin.float(), targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    # Both round the same float32 gradient to the logits' dtype once.
    torch.testing.assert_close(
        logits.grad, twin.grad, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
    )
