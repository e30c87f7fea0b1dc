"""Balance loss and statistics: per sample, blind to length, padding and how rows are cut."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    RouteContext,
    add_experts,
    auxiliary_losses,
    balance_loss,
    mole_context,
    samples_by_expert,
)
from llava_mole.mole.context import Record
from llava_mole.mole.route import Route
from tests.helpers import FAMILIES, awaken, language_model, random_ids

EXPERTS = 3


def routed(family: str = "llama", **mole: object) -> torch.nn.Module:
    model = language_model(family)
    add_experts(model, MoleConfig(**{"num_experts": EXPERTS, "r": 2, "balance_coef": 1.0, **mole}))
    return awaken(model)


def context_of(probs: Tensor, segment_ids: Tensor, layers: int = 1) -> RouteContext:
    """A context as a pass of `layers` routers leaves it; probs (layers * tokens, E)."""
    context = RouteContext()
    context.segment_ids = segment_ids
    for part in probs.chunk(layers):
        context.records.append(
            Record("", Route(part.argmax(dim=1, keepdim=True), None, part), EXPERTS)
        )
    return context


def random_probs(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, EXPERTS, generator=generator).softmax(dim=-1)


def by_hand(probs: list[Tensor]) -> Tensor:
    """mean over samples of sum_e mean_t(onehot) * mean_t(p); probs per sample (layers, T, E)."""
    losses = []
    for sample in probs:
        pooled = sample.reshape(-1, EXPERTS)
        chosen = torch.nn.functional.one_hot(pooled.argmax(1), EXPERTS).float()
        losses.append((pooled.mean(0) * chosen.mean(0)).sum())
    return torch.stack(losses).mean()


def test_balance_loss_is_the_published_formula() -> None:
    probs = random_probs(2 * 2 * 5).view(2, 2, 5, EXPERTS)  # layers, rows, tokens
    context = context_of(probs.reshape(-1, EXPERTS), torch.zeros(2, 5, dtype=torch.long), layers=2)
    assert_close(balance_loss(context), by_hand([probs[:, 0], probs[:, 1]]))


def test_perfect_balance_costs_one_over_the_number_of_experts() -> None:
    probs = torch.eye(EXPERTS) * 0.4 + 0.2  # each expert chosen once, mean probability equal
    context = context_of(probs, torch.zeros(1, EXPERTS, dtype=torch.long))
    assert_close(balance_loss(context), torch.tensor(1 / EXPERTS))


@pytest.mark.parametrize("times", [2, 7])
def test_balance_loss_does_not_depend_on_length_at_fixed_routing(times: int) -> None:
    probs = random_probs(6)
    short = context_of(probs, torch.zeros(1, 6, dtype=torch.long))
    long = context_of(probs.repeat(times, 1), torch.zeros(1, 6 * times, dtype=torch.long))
    assert_close(balance_loss(long), balance_loss(short))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_balance_loss_ignores_padding(family: str, side: str) -> None:
    model = routed(family)
    rows = [random_ids(1, 9, seed=1), random_ids(1, 5, seed=2)]
    alone = []
    for row in rows:
        model(row, attention_mask=torch.ones_like(row))
        alone.append(auxiliary_losses(model)["balance"])
    padding = torch.zeros(1, 4, dtype=torch.long)
    order = [padding, rows[1]] if side == "left" else [rows[1], padding]
    ids = torch.cat([rows[0], torch.cat(order, dim=1)])
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(ids, attention_mask=mask, position_ids=positions)
    # Softmax of float32 sums over a row that is longer by masked zeros.
    assert_close(
        auxiliary_losses(model)["balance"], torch.stack(alone).mean(), rtol=1e-5, atol=1e-6
    )


def test_micro_batches_add_up_to_the_loss_of_the_whole_batch() -> None:
    model = routed()
    ids = random_ids(4, 8)
    model(ids)
    whole = auxiliary_losses(model)["balance"]
    parts = torch.zeros(())
    for rows in ids.split([1, 3]):
        model(rows)
        parts = parts + auxiliary_losses(model, num_samples=4)["balance"]
    assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_row_that_is_all_padding_is_no_sample() -> None:
    probs = random_probs(8)
    segments = torch.tensor([[0, 0, 0, 0], [-1, -1, -1, -1]])
    alone = context_of(probs[:4], segments[:1])
    assert_close(balance_loss(context_of(probs, segments)), balance_loss(alone))


def test_what_is_at_padding_reaches_no_loss() -> None:
    context = RouteContext()
    context.begin(2, 3, torch.tensor([[1, 1, 1], [0, 0, 0]]), "cpu")
    probs = torch.cat([random_probs(3), torch.full((3, EXPERTS), torch.nan)])
    route = Route(probs.nan_to_num().argmax(1, keepdim=True), None, probs)
    context.records.append(Record("", route, EXPERTS))
    assert context.rows_are_samples(context.segment_ids)  # type: ignore[arg-type]
    assert_close(balance_loss(context), by_hand([probs[:3].unsqueeze(0)]))


def test_rows_that_are_samples_are_known_without_reading_and_count_as_those_that_are_read() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    known, read = RouteContext(), context_of(random_probs(8), mask - 1)
    known.begin(2, 4, mask, "cpu")
    known.records = read.records
    assert known.rows_are_samples(known.segment_ids)  # type: ignore[arg-type]
    assert not read.rows_are_samples(read.segment_ids)  # type: ignore[arg-type]
    assert_close(balance_loss(known), balance_loss(read))
    # Said otherwise afterwards: it is read.
    known.segment_ids = read.segment_ids = torch.tensor([[1, 1, 2, -1], [-1, 1, 2, 2]])
    assert_close(balance_loss(known), balance_loss(read))
    assert balance_loss(known) != balance_loss(context_of(random_probs(8), mask - 1))


def test_each_branch_of_a_shared_picture_is_a_sample_with_its_prefix() -> None:
    probs = random_probs(7)
    tree = torch.tensor([[0, 0, 1, 1, 2, 2, -1]])
    expected = by_hand([probs[[0, 1, 2, 3]][None], probs[[0, 1, 4, 5]][None]])
    assert_close(balance_loss(context_of(probs, tree)), expected)


def test_a_single_expert_has_no_balance_loss() -> None:
    model = routed(num_experts=1)
    model(random_ids(1, 5))
    assert auxiliary_losses(model) == {}


def test_the_coefficient_weights_the_loss() -> None:
    ids = random_ids(1, 6)
    found = []
    for coefficient in (1.0, 0.25):
        model = routed(balance_coef=coefficient)
        model(ids)
        found.append(auxiliary_losses(model)["balance"])
    assert_close(found[1], found[0] / 4)


def test_statistics_count_each_samples_attended_tokens() -> None:
    model = routed()
    ids = torch.cat([random_ids(1, 6), random_ids(1, 6, seed=3)])
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4])
    model(ids, attention_mask=mask)
    both = samples_by_expert(model)
    model(ids[1:, :2])
    assert both.shape == (2, EXPERTS)
    assert_close(both.sum(1), torch.ones(2))
    assert_close(both[1:], samples_by_expert(model))


def test_checkpointed_layers_are_not_counted_twice() -> None:
    model = routed()
    ids = random_ids(1, 6)
    model.train()
    model(ids)
    expected = samples_by_expert(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(ids, labels=ids).loss.backward()
    assert_close(samples_by_expert(model), expected)
    assert len(mole_context(model)[0].records) == model.config.num_hidden_layers


@pytest.mark.parametrize("number", [0, -1, "b"])
def test_a_number_of_samples_that_is_none_is_refused(number: Any) -> None:
    model = routed()
    model(random_ids(1, 6))
    with pytest.raises(ConfigError, match=r"num_samples=.*all adapters that are on"):
        auxiliary_losses(model, number)
