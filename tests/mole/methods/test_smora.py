"""SMoRA against its formula: rank units are experts, sigmoid top-k, a bias balances them."""

from pathlib import Path

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
    load,
    router_parameters,
    router_step,
    save,
)
from tests.helpers import language_model
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    Seen,
    array,
    mixture,
    model_with,
    per_sample,
    see,
    sigmoid,
    top,
)

UNITS, K = 8, 3


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": UNITS, "top_k": K, "lora_alpha": 6.0}
    return MoleConfig(method="smora", **{**small, **changes})


def smora(**changes: object) -> nn.Module:
    """With balancing biases that matter."""
    model = model_with(config(**changes))
    generator = torch.Generator().manual_seed(0)
    for router in adapter_of(model).routers:
        router.balance_bias += 0.2 * torch.randn(UNITS, generator=generator)
    return model


def gates_by_hand(seen: Seen, bias_in: str) -> np.ndarray:
    z = sigmoid(seen.x @ array(seen.router.weight).T)
    biased = z + array(seen.router.balance_bias)
    chosen = top(biased, K)
    values = chosen * (biased if bias_in == "gates" else z)
    return K * values / values.sum(1, keepdims=True)


# ---------------------------------------------------------------------- the route


@pytest.mark.parametrize("bias_in", ["gates", "selection"])
def test_a_token_adds_its_k_best_units_and_the_bias_acts_where_it_is_named(bias_in: str) -> None:
    other = {"gates": "selection", "selection": "gates"}[bias_in]
    for seen in see(smora(bias_in=bias_in)):
        gates = gates_by_hand(seen, bias_in)
        assert_allclose(seen.delta, mixture(seen.x, seen.experts, gates, 6 / K), **CLOSE)
        wrong = mixture(seen.x, seen.experts, gates_by_hand(seen, other), 6 / K)
        assert not np.allclose(seen.delta, wrong, rtol=1e-3, atol=1e-3)


def test_the_sum_over_units_is_b_diagonal_a() -> None:
    for seen in see(smora()):
        A, B = array(seen.bank.lora_A), array(seen.bank.lora_B).T
        gates = gates_by_hand(seen, "gates")
        for g, x, delta in zip(gates, seen.x, seen.delta, strict=True):
            assert_allclose(delta, (6 / K) * B @ np.diag(g) @ A @ x, **CLOSE)


def test_all_units_with_equal_gates_are_one_lora_scaled_by_alpha_over_k() -> None:
    model = model_with(config(top_k=UNITS))
    with torch.no_grad():
        for weight in router_parameters(model).values():
            weight.zero_()
    for seen in see(model):
        A, B = array(seen.bank.lora_A), array(seen.bank.lora_B).T
        assert_allclose(seen.delta, (6 / UNITS) * seen.x @ A.T @ B.T, **CLOSE)


def test_blocks_of_units_share_a_gate_and_the_scale_counts_units() -> None:
    for seen in see(smora(r=2)):
        gates = np.repeat(gates_by_hand(seen, "gates"), 2, axis=1)  # one for each unit
        A, B = array(seen.bank.lora_A), array(seen.bank.lora_B).T
        expected = (6 / (K * 2)) * (gates * (seen.x @ A.T)) @ B.T
        assert len(A) == 2 * UNITS
        assert_allclose(seen.delta, expected, **CLOSE)


@pytest.mark.parametrize("bias_in", ["gates", "selection"])
def test_the_task_trains_the_routers(bias_in: str) -> None:
    model = smora(bias_in=bias_in)
    model(IDS, labels=IDS).loss.backward()
    assert auxiliary_losses(model) == {}
    assert all(p.grad.abs().max() > 1e-6 for p in router_parameters(model).values())


# ---------------------------------------------------------------------- balancing


def counts_by_hand(model: nn.Module, mask: torch.Tensor = PADDED) -> list[np.ndarray]:
    """Choices of each unit by attended tokens, per router."""
    counts = []
    for seen in see(model, attention_mask=mask):
        z = sigmoid(seen.x @ array(seen.router.weight).T) + array(seen.router.balance_bias)
        counts.append(sum(rows.sum(0) for rows in per_sample(top(z, K), mask)))
    return counts


def biases(model: nn.Module) -> list[np.ndarray]:
    return [array(router.balance_bias) for router in adapter_of(model).routers]


def steps(model: nn.Module, counts: list[np.ndarray], u: float) -> list[np.ndarray]:
    return [
        bias + u * np.sign(count.mean() - count)
        for bias, count in zip(biases(model), counts, strict=True)
    ]


def test_a_step_lifts_units_used_less_than_the_mean_and_lowers_the_others() -> None:
    model = smora(bias_update=0.5)
    expected = steps(model, counts_by_hand(model), 0.5)  # padding is not counted
    model.train()
    model(IDS, attention_mask=PADDED)
    router_step(model)
    assert_allclose(biases(model), expected, rtol=1e-6, atol=1e-6)  # float32 buffers


def test_micro_batches_count_towards_one_step() -> None:
    model = smora(bias_update=0.5)
    expected = steps(model, counts_by_hand(model), 0.5)
    model.train()
    for row in range(2):
        model(IDS[row : row + 1], attention_mask=PADDED[row : row + 1])
    router_step(model)
    assert_allclose(biases(model), expected, rtol=1e-6, atol=1e-6)


def test_a_layer_that_is_computed_again_for_backward_is_counted_once() -> None:
    model = smora(bias_update=0.5)
    expected = counts_by_hand(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(IDS, attention_mask=PADDED, labels=IDS).loss.backward()
    assert_allclose([array(router.counts) for router in adapter_of(model).routers], expected)


def test_each_step_counts_from_zero() -> None:
    model = smora(bias_update=0.5)
    model.train()
    model(IDS)
    router_step(model)
    before = biases(model)
    router_step(model)  # nothing was chosen since: every count equals the mean
    assert_allclose(biases(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("reason", ["evaluating", "switched off"])
def test_nothing_is_counted_when(reason: str) -> None:
    model = smora(bias_update=0.0 if reason == "switched off" else 0.5)
    before = biases(model)
    model.train(reason == "switched off")
    model(IDS)
    router_step(model)
    assert_allclose(biases(model), before, rtol=0, atol=0)


def test_the_bias_is_saved_and_no_optimizer_sees_it(tmp_path: Path) -> None:
    model = smora()
    assert not any("balance_bias" in name for name, _ in model.named_parameters())
    save(model, tmp_path)
    fresh = language_model("llama").double()
    load(fresh, tmp_path)
    assert_allclose(biases(fresh), biases(model), rtol=0, atol=0)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)


# ---------------------------------------------------------------------- options


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="smora")
    assert (default.num_experts, default.r, default.top_k) == (64, 1, 8)
    assert (default.lora_alpha, default.bias_in, default.bias_update) == (16.0, "gates", 1e-5)
    assert (default.target_modules, default.scope) == ("all-linear", "linear")


@pytest.mark.parametrize(
    ("key", "value"), [("top_k", 0), ("bias_in", "loss"), ("bias_update", -1e-5)]
)
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        config(**{key: value})


def test_more_choices_than_units_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"top_k=9: more than num_experts={UNITS}"):
        add_experts(language_model("llama"), config(top_k=9))
