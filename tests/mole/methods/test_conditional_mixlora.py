"""Conditional MixLoRA against its formula: factors of A and of B, chosen for a whole sequence."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    mole_context,
    router_parameters,
)
from tests.helpers import random_ids
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    Array,
    Seen,
    array,
    model_with,
    see,
    softmax,
)

E, R = 6, 3
PROMPT = 4
"""Tokens of each row of IDS before the answer, where there is one."""
LABELS = torch.where(torch.arange(7) < PROMPT, -100, IDS)
WEIGHTED = {"rtol": 1e-5, "atol": 1e-6}
"""Weights of factors are computed in float32."""


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": E, "r": R, "lora_alpha": 6.0}
    return MoleConfig(method="conditional_mixlora", **{**small, **changes})


def by_falling_score(scores: Array, k: int) -> Array:
    return np.argsort(-scores)[:k]


def factors_by_hand(
    seen: Seen, prompt: Array, gate: str = "none", ifs_weight: float = 1.0
) -> tuple[Array, Array, Array]:
    """Chosen factors of A and of B and their weights, for one prompt (tokens, d_in)."""
    h = prompt.mean(0)
    a = array(seen.bank.lora_A)
    score_a = softmax(array(seen.router.weight_A) @ h)
    chosen_a = by_falling_score(score_a, R)
    between = sum(
        softmax(array(seen.router.weight_AB)[j] @ a[factor]) for j, factor in enumerate(chosen_a)
    )
    score_b = softmax(array(seen.router.weight_B) @ h) + ifs_weight * softmax(between)
    chosen_b = by_falling_score(score_b, R)
    weights = np.ones(R)
    if gate == "scaled":
        both = score_a[chosen_a] * score_b[chosen_b]
        weights = R * both / both.sum()
    return chosen_a, chosen_b, weights


def expected_delta(seen: Seen, x: Array, chosen: tuple[Array, Array, Array]) -> Array:
    a, b = array(seen.bank.lora_A), array(seen.bank.lora_B)
    weight = sum(w * np.outer(b[j], a[i]) for i, j, w in zip(*chosen, strict=True))
    return (6 / R) * x @ weight.T


def rows(values: Array) -> Array:
    return values.reshape(2, 7, -1)


# ---------------------------------------------------------------------- the route


@pytest.mark.parametrize("gate", ["none", "straight_through", "scaled"])
def test_a_sequence_adds_its_chosen_factors_in_pairs(gate: str) -> None:
    choices = set()
    for seen in see(model_with(config(gate=gate))):
        for x, delta in zip(rows(seen.x), rows(seen.delta), strict=True):
            chosen = factors_by_hand(seen, x, gate)
            choices.add((seen.name, *chosen[0], *chosen[1]))
            assert_allclose(delta, expected_delta(seen, x, chosen), **WEIGHTED)
    assert len(choices) > len(adapter_of(model_with(config())).banks)  # rows differ


@pytest.mark.parametrize("ifs_weight", [0.0, 1.0, 25.0])
def test_the_conditional_term_has_its_weight(ifs_weight: float) -> None:
    for seen in see(model_with(config(ifs_weight=ifs_weight))):
        for x, delta in zip(rows(seen.x), rows(seen.delta), strict=True):
            chosen = factors_by_hand(seen, x, ifs_weight=ifs_weight)
            assert_allclose(delta, expected_delta(seen, x, chosen), **CLOSE)


def paired(sign: float) -> nn.Module:
    """All factors on; the order in B is that in A, or the reverse of it."""
    model = model_with(config(num_experts=R, ifs_weight=0.0))
    with torch.no_grad():
        for router in adapter_of(model).routers:
            router.weight_B.copy_(sign * router.weight_A)
    return model


def test_all_factors_in_one_order_are_a_lora() -> None:
    for seen in see(paired(1.0)):
        a, b = array(seen.bank.lora_A), array(seen.bank.lora_B)
        assert_allclose(seen.delta, (6 / R) * seen.x @ a.T @ b, **CLOSE)


def test_the_same_factors_in_another_order_are_another_lora() -> None:
    for seen in see(paired(-1.0)):
        a, b = array(seen.bank.lora_A), array(seen.bank.lora_B)
        for x, delta in zip(rows(seen.x), rows(seen.delta), strict=True):
            order = by_falling_score(array(seen.router.weight_A) @ x.mean(0), R)
            expected = (6 / R) * x @ a[order].T @ b[order[::-1]]
            assert_allclose(delta, expected, **CLOSE)
            assert not np.allclose(delta, (6 / R) * x @ a.T @ b, atol=1e-3)


# ---------------------------------------------------------------------- what is the prompt


def test_padding_is_no_part_of_the_prompt() -> None:
    for seen in see(model_with(config()), attention_mask=PADDED):
        for row, length in enumerate([7, 4]):
            x, delta = rows(seen.x)[row, :length], rows(seen.delta)[row, :length]
            assert_allclose(delta, expected_delta(seen, x, factors_by_hand(seen, x)), **CLOSE)


@pytest.mark.parametrize("given", ["labels", "prompt_mask", "both"])
def test_tokens_from_the_first_answer_on_are_no_part_of_the_prompt(given: str) -> None:
    model = model_with(config())
    wrong = torch.full_like(IDS, -100)
    if given != "labels":  # said directly, it wins
        mole_context(model)[0].provide(prompt_mask=torch.arange(7).expand(2, 7) < PROMPT)
    labels = {"labels": LABELS, "both": wrong}.get(given)
    for seen in see(model, labels=labels):
        for x, delta in zip(rows(seen.x), rows(seen.delta), strict=True):
            chosen = factors_by_hand(seen, x[:PROMPT])
            assert_allclose(delta, expected_delta(seen, x, chosen), **CLOSE)


def test_the_prompt_ends_at_the_first_of_several_answers() -> None:
    labels = LABELS.clone()
    labels[:, PROMPT + 1] = -100  # a second question
    for seen in see(model_with(config()), labels=labels):
        for x, delta in zip(rows(seen.x), rows(seen.delta), strict=True):
            chosen = factors_by_hand(seen, x[:PROMPT])
            assert_allclose(delta, expected_delta(seen, x, chosen), **CLOSE)


def test_training_routes_as_prefill_does_and_decoding_keeps_the_route() -> None:
    model = model_with(config(gate="scaled"))
    trained = model(IDS, labels=LABELS).logits
    out = model(IDS[:, :PROMPT], use_cache=True)
    logits = [out.logits]
    for position in range(PROMPT, 7):
        token = IDS[:, position : position + 1]
        out = model(token, cache=out.cache, use_cache=True)
        logits.append(out.logits)
    # Means of float32 over a row of another length.
    assert_close(torch.cat(logits, 1), trained, rtol=1e-4, atol=1e-4)


def test_decoding_another_batch_than_was_prefilled_is_refused() -> None:
    model = model_with(config())
    cache = model(IDS, use_cache=True).cache
    cache.batch_repeat_interleave(2)
    with pytest.raises(ConfigError, match=r"continues 4 sequences .* one of 2 sequences"):
        model(random_ids(4, 1), cache=cache)


def test_requests_that_take_turns_keep_each_its_own_route() -> None:
    model = model_with(config())
    first, second = IDS[:1], IDS[1:]
    with torch.no_grad():
        cache = model(first[:, :PROMPT], use_cache=True).cache
        expected = model(first[:, PROMPT:], cache=copy.deepcopy(cache)).logits
        other = model(second[:, :PROMPT], use_cache=True).cache
        found = model(first[:, PROMPT:], cache=cache).logits
        assert torch.equal(found, expected)
        assert not torch.equal(model(second[:, PROMPT:], cache=other).logits, found)


# ---------------------------------------------------------------------- several samples in a row

PACKED = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2]])


def test_packed_samples_are_routed_each_by_itself() -> None:
    model = model_with(config())
    mole_context(model)[0].provide(segment_ids=PACKED)
    for seen in see(model):
        for row in range(2):
            for sample in (1, 2):
                own = PACKED[row].numpy() == sample
                x, delta = rows(seen.x)[row, own], rows(seen.delta)[row, own]
                assert_allclose(delta, expected_delta(seen, x, factors_by_hand(seen, x)), **CLOSE)


def test_each_packed_samples_prompt_ends_at_its_own_answer() -> None:
    model = model_with(config())
    mole_context(model)[0].provide(segment_ids=PACKED[:1])
    labels = torch.tensor([[-100, 9, 9, -100, -100, 9, 9]])
    for seen in see(model, IDS[:1], labels=labels):
        for own, prompt in ((slice(0, 3), slice(0, 1)), (slice(3, 7), slice(3, 5))):
            chosen = factors_by_hand(seen, seen.x[prompt])
            assert_allclose(seen.delta[own], expected_delta(seen, seen.x[own], chosen), **CLOSE)


def test_a_prefix_and_its_only_branch_are_one_sequence_also_beside_packed_rows() -> None:
    model = model_with(config())
    tree = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 3, 3, -1]])
    mole_context(model)[0].provide(segment_ids=tree)
    for seen in see(model):
        x, delta = rows(seen.x)[0], rows(seen.delta)[0]
        assert_allclose(delta, expected_delta(seen, x, factors_by_hand(seen, x)), **CLOSE)


def test_a_prefix_that_several_questions_share_is_refused() -> None:
    model = model_with(config())
    mole_context(model)[0].provide(segment_ids=torch.tensor([[0, 0, 1, 1, 2, 2, 2]] * 2))
    with pytest.raises(ConfigError, match="several questions cannot share a prefix"):
        model(IDS)
    assert config().prefix_depends_on_question


# ---------------------------------------------------------------------- who learns


@pytest.mark.parametrize("gate", ["straight_through", "scaled"])
def test_with_a_gate_the_task_trains_all_three_selectors(gate: str) -> None:
    model = model_with(config(gate=gate))
    model(IDS, labels=LABELS).loss.backward()
    found = {name.rsplit(".", 1)[1] for name in router_parameters(model)}
    assert found == {"weight_A", "weight_B", "weight_AB"}
    # float64 gradients: what is exactly zero would be below 1e-12.
    assert all(p.grad.abs().max() > 1e-9 for p in router_parameters(model).values())
    assert config(gate=gate).routers_learn()


def test_without_a_gate_the_routers_learn_nothing_as_published() -> None:
    model = model_with(config())
    model(IDS, labels=LABELS).loss.backward()
    assert all(p.grad is None for p in router_parameters(model).values())
    assert auxiliary_losses(model) == {}
    assert not config().routers_learn()


# ---------------------------------------------------------------------- options


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="conditional_mixlora")
    assert (default.num_experts, default.r, default.lora_alpha) == (16, 4, 2 * 16)
    assert (default.gate, default.ifs_weight) == ("none", 1.0)
    assert (default.target_modules, default.scope) == ("all-linear", "linear")


@pytest.mark.parametrize(
    ("key", "value"),
    [("gate", "renormalised"), ("ifs_weight", -1), ("kernel", "grouped"), ("r", 7),
     ("expert_ranks", (1, 1, 1, 1, 1, 2))],
)  # fmt: skip
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        config(**{key: value})


def test_experts_outside_of_a_decoder_are_refused_where_they_would_route() -> None:
    tower = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
    add_experts(tower, config(root="1"))
    with pytest.raises(ConfigError, match="routes whole sequences and finds none here"):
        tower(torch.randn(2, 5, 8))
