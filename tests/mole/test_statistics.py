"""Who uses which expert: per sample and per router, padding left out, by hand in NumPy."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    METHODS,
    MoleConfig,
    mole_context,
    route_statistics,
    samples_by_expert,
    shares_by_sample,
)
from tests.mole.methods.by_hand import (
    IDS,
    PADDED,
    SINGLE,
    Array,
    Seen,
    array,
    model_with,
    per_sample,
    see,
    softmax,
    top,
)

E = 3


def config(method: str = "llava_mole", **changes: object) -> MoleConfig:
    return MoleConfig(method=method, **{"num_experts": E, "r": 2, **changes})


def probabilities(seen: Seen) -> Array:
    bias = getattr(seen.router, "bias", None)
    return softmax(seen.x @ array(seen.router.weight).T + (0 if bias is None else array(bias)))


# ---------------------------------------------------------------------- per router


def test_load_and_importance_of_a_router_are_shares_of_its_attended_tokens() -> None:
    model = model_with(config())
    seen = [s for s in see(model, attention_mask=PADDED) if "gate_proj" in s.name]
    uses = route_statistics(model)
    assert [use.name for use in uses] == ["layers.0.mlp", "layers.1.mlp"]
    for use, linear in zip(uses, seen, strict=True):
        p = np.concatenate(per_sample(probabilities(linear), PADDED))
        load = np.eye(E)[p.argmax(1)].mean(0)
        assert_allclose(array(use.load), load, **SINGLE)
        assert_allclose(array(use.importance), p.mean(0), **SINGLE)
        entropy = -sum(share * math.log(share) for share in load if share) / math.log(E)
        assert_allclose(use.entropy, entropy, **SINGLE)


def test_a_choice_among_k_is_shared_by_the_k() -> None:
    model = model_with(config("mola", num_experts=4))
    seen = see(model)
    for use, linear in zip(route_statistics(model), seen, strict=True):
        assert use.name == linear.name.removeprefix("model.")
        assert_allclose(array(use.load), top(probabilities(linear), 2).mean(0) / 2, **SINGLE)


def test_experts_that_are_always_on_are_used_alike() -> None:
    model = model_with(config("loramoe"))
    model(IDS)
    for use in route_statistics(model):
        assert_allclose(array(use.load), np.full(E, 1 / E), **SINGLE)
        assert use.entropy == pytest.approx(1.0)


def test_a_router_that_sends_everything_to_one_expert_has_no_entropy() -> None:
    model = model_with(config())
    with torch.no_grad():
        for seen in see(model):
            seen.router.weight.zero_()
            seen.router.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    model(IDS)
    for use in route_statistics(model):
        assert_allclose(array(use.load), [0, 1, 0])
        assert use.entropy == pytest.approx(0, abs=1e-6)


def test_a_single_expert_has_all_the_load() -> None:
    model = model_with(config(num_experts=1))
    model(IDS)
    assert [(use.load.tolist(), use.entropy) for use in route_statistics(model)] == [([1.0], 0)] * 2


def test_sequence_routes_count_by_tokens_and_leave_empty_sequences_out() -> None:
    model = model_with(config("conditional_mixlora", num_experts=6, r=2))
    packed = torch.tensor([[1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, -1]])
    mole_context(model)[0].provide(segment_ids=packed)
    model(IDS)
    record = mole_context(model)[0].records[0]
    route = record.route
    load, importance = np.zeros(6), np.zeros(6)
    for segment, sequence in zip(packed.flatten(), route.sequence, strict=True):
        if segment > 0:
            load[route.units_b[sequence].numpy()] += 1 / 2 / 13
            importance += array(route.probs[sequence]) / 13
    use = route_statistics(model)[0]
    assert_allclose(array(use.load), load, **SINGLE)
    assert_allclose(array(use.importance), importance, **SINGLE)
    assert_allclose(importance.sum(), 1, **SINGLE)


# ---------------------------------------------------------------------- per sample


def test_a_samples_use_pools_layers_and_leaves_out_padding() -> None:
    model = model_with(config())
    seen = [s for s in see(model, attention_mask=PADDED) if "gate_proj" in s.name]
    expected = np.zeros((2, E))
    for linear in seen:
        for row, p in enumerate(per_sample(probabilities(linear), PADDED)):
            expected[row] += np.eye(E)[p.argmax(1)].mean(0) / len(seen)
    assert_allclose(array(samples_by_expert(model)), expected, **SINGLE)


def test_a_layer_with_fewer_experts_adds_nothing_to_the_others() -> None:
    model = model_with(config("mola", num_experts=(2, 4)))
    seen = see(model, attention_mask=PADDED)
    expected = np.zeros((2, 4))
    for linear in seen:
        p = probabilities(linear)
        for row, chosen in enumerate(per_sample(top(p, 2), PADDED)):
            expected[row, : p.shape[1]] += chosen.mean(0) / 2 / len(seen)
    found = array(samples_by_expert(model))
    assert_allclose(found, expected, **SINGLE)
    assert_allclose(found.sum(1), 1, **SINGLE)
    assert (found[:, 2:] < 0.5).all()


def test_a_branch_counts_the_prefix_that_it_shares() -> None:
    model = model_with(config())
    tree = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, -1, -1]])
    mole_context(model)[0].provide(segment_ids=tree)
    seen = [s for s in see(model) if "gate_proj" in s.name]
    parts = [[0, 1, 2, 3], [0, 1, 4, 5, 6], [7, 8, 9, 10, 11]]  # flattened tokens
    chosen = sum(np.eye(E)[probabilities(s).argmax(1)] for s in seen) / len(seen)
    expected = [chosen[part].mean(0) for part in parts]
    assert_allclose(array(samples_by_expert(model)), expected, **SINGLE)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_who_uses_what_of_each_sample(method: str) -> None:
    small = {"mola": {"num_experts": 3}, "smora": {"top_k": 2, "num_experts": 3}}
    small |= {"conditional_mixlora": {"num_experts": 3, "r": 2}}
    model = model_with(MoleConfig(method=method, **small.get(method, {})))
    model(IDS, attention_mask=PADDED)
    found = array(samples_by_expert(model))
    assert len(found) == 2
    assert_allclose(found.sum(1), 1, **SINGLE)


def test_where_nothing_chooses_all_experts_are_used_alike_and_no_router_is_listed() -> None:
    model = model_with(config("multilora"))
    model(IDS)
    assert_allclose(array(samples_by_expert(model)), np.full((2, E), 1 / E), **SINGLE)
    assert route_statistics(model) == []
    assert shares_by_sample(model) == []


def test_before_any_pass_there_is_nothing_to_tell() -> None:
    model = model_with(config())
    assert samples_by_expert(model).shape == (0, 0)
    assert route_statistics(model) == []
    assert shares_by_sample(model) == []


# ---------------------------------------------------------------------- shares, by gate


def test_without_gates_a_sample_is_shared_out_by_choice() -> None:
    model = model_with(config())
    seen = [s for s in see(model, attention_mask=PADDED) if "gate_proj" in s.name]
    for found, linear in zip(shares_by_sample(model), seen, strict=True):
        assert found.tokens.tolist() == PADDED.sum(1).tolist()
        for row, p in enumerate(per_sample(probabilities(linear), PADDED)):
            assert_allclose(array(found.shares[row]), np.eye(E)[p.argmax(1)].mean(0), **SINGLE)


def test_dense_experts_count_by_their_weight_not_alike() -> None:
    model = model_with(config("loramoe"))
    seen = see(model, attention_mask=PADDED)
    for found, linear in zip(shares_by_sample(model), seen, strict=True):
        for row, p in enumerate(per_sample(probabilities(linear), PADDED)):
            assert_allclose(array(found.shares[row]), p.mean(0), **SINGLE)


def test_of_the_k_that_are_on_the_stronger_counts_more() -> None:
    model = model_with(config("mola", num_experts=4))
    seen = see(model, attention_mask=PADDED)
    for found, linear in zip(shares_by_sample(model), seen, strict=True):
        p = probabilities(linear)
        gates = p * top(p, 2)
        gates /= gates.sum(1, keepdims=True)
        for row, own in enumerate(per_sample(gates, PADDED)):
            assert_allclose(array(found.shares[row]), own.mean(0), **SINGLE)


def test_some_tokens_of_a_sample_can_be_counted_alone() -> None:
    model = model_with(config())
    seen = [s for s in see(model, attention_mask=PADDED) if "gate_proj" in s.name]
    where = torch.zeros(2, 7, dtype=torch.bool)
    where[0, 1:4] = True
    for found, linear in zip(shares_by_sample(model, where), seen, strict=True):
        chosen = np.eye(E)[probabilities(linear).argmax(1)]
        assert found.tokens.tolist() == [3, 0]
        assert_allclose(array(found.shares[0]), chosen[1:4].mean(0), **SINGLE)
        assert_allclose(array(found.shares[1]), 0)
    with pytest.raises(ConfigError, match=r"where of shape \(2, 3\) for the 2 x 7 tokens"):
        shares_by_sample(model, where[:, :3])
    with pytest.raises(ConfigError, match=r"where of shape \(7, 2\) for the 2 x 7 tokens"):
        shares_by_sample(model, where.T)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "multilora"])
def test_shares_of_every_method_add_up_and_are_none_of_what_is_off(method: str) -> None:
    small = {"mola": {"num_experts": 3}, "smora": {"top_k": 2, "num_experts": 3}}
    small |= {"conditional_mixlora": {"num_experts": 3, "r": 2}}
    model = model_with(MoleConfig(method=method, **small.get(method, {})))
    model(IDS, attention_mask=PADDED)
    for record in mole_context(model)[0].records:
        shares, chosen = record.shares(), record.chosen()
        assert_allclose(array(shares.sum(1)), 1, **SINGLE)
        assert bool((shares[chosen == 0] == 0).all())
    for found in shares_by_sample(model):
        assert_allclose(array(found.shares.sum(1)), 1, **SINGLE)
