"""LLaVA-MoLE against its formula: one router per MLP, one expert per token, three gates."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    LinearRouter,
    MoleConfig,
    RouteContext,
    auxiliary_losses,
    expert_parameters,
    router_parameters,
)
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    SINGLE,
    array,
    experts_of,
    mixture,
    model_with,
    per_sample,
    see,
    softmax,
)

E = 3
ROUTINGS = [("top1", "none"), ("top1", "straight_through"), ("top1", "scaled"), ("dense", "none")]


def config(**changes: object) -> MoleConfig:
    return MoleConfig(**{"num_experts": E, "r": 2, "lora_alpha": 4.0, **changes})


def probabilities(h: np.ndarray, router: LinearRouter) -> np.ndarray:
    return softmax(h @ array(router.weight).T + array(router.bias))


@pytest.mark.parametrize(("routing", "gate"), ROUTINGS)
def test_a_token_adds_its_experts_lora_times_the_gate(routing: str, gate: str) -> None:
    for gate_proj, up_proj, down_proj in zip(
        *[iter(see(model_with(config(routing=routing, gate=gate))))] * 3, strict=True
    ):
        p = probabilities(gate_proj.x, gate_proj.router)  # of the MLP's input, for all three
        gates = np.eye(E)[p.argmax(1)] if routing == "top1" else p
        if gate == "scaled":
            gates = gates * p
        assert len(set(p.argmax(1))) > 1
        for seen in (gate_proj, up_proj, down_proj):
            assert_allclose(seen.delta, mixture(seen.x, seen.experts, gates, 4 / 2), **CLOSE)


def test_identical_experts_are_one_lora_whatever_the_route() -> None:
    model = model_with(config())
    with torch.no_grad():
        for parameter in expert_parameters(model).values():
            parameter.copy_(parameter[:2].repeat(E, 1))
    for seen in see(model):
        A, B = seen.experts[0]
        assert_allclose(seen.delta, 2 * seen.x @ A.T @ B.T, **CLOSE)


@pytest.mark.parametrize("gate", ["none", "straight_through", "scaled"])
def test_the_tasks_gradient_of_the_router_is_that_of_the_gate(gate: str) -> None:
    torch.manual_seed(0)
    bank = model_with(config()).model.layers[0].mlp.up_proj.mole_bank["default"]
    router = LinearRouter(32, E, top_k=1, gate=gate, context=RouteContext())
    x = torch.randn(9, 32)
    c = torch.randn(9, 48)
    (bank(x, router(x)) * c).sum().backward()
    if gate == "none":
        assert router.weight.grad is None
        return
    # L = sum_t p_k(t) q_t with q_t = c_t . s B_k A_k x_t, and dp_k/dlogit_j = p_k (1[j=k] - p_j).
    p = probabilities(array(x), router)
    slope = np.zeros((9, E))
    for t in range(9):
        k = p[t].argmax()
        A, B = experts_of(bank)[k]
        q = array(c)[t] @ (2 * B @ (A @ array(x)[t]))
        slope[t] = q * p[t, k] * (np.eye(E)[k] - p[t])
    assert_allclose(array(router.weight.grad), slope.T @ array(x), rtol=1e-4, atol=1e-4)
    assert_allclose(array(router.bias.grad), slope.sum(0), rtol=1e-4, atol=1e-4)


def test_with_no_gate_and_no_loss_the_router_learns_nothing() -> None:
    model = model_with(config(balance_coef=0))
    model(IDS, labels=IDS).loss.backward()
    assert auxiliary_losses(model) == {}
    assert all(p.grad is None for p in router_parameters(model).values())
    assert not config(balance_coef=0).routers_learn()


def test_the_balance_loss_is_equation_7_as_means_over_attended_tokens_of_all_layers() -> None:
    model = model_with(config(balance_coef=0.25))
    inputs = [seen for seen in see(model, attention_mask=PADDED) if "gate_proj" in seen.name]
    p = [per_sample(probabilities(seen.x, seen.router), PADDED) for seen in inputs]
    expected = []
    for row in range(2):
        pooled = np.concatenate([layer[row] for layer in p])
        expected.append((pooled.mean(0) * np.eye(E)[pooled.argmax(1)].mean(0)).sum())
    loss = auxiliary_losses(model)
    assert loss.keys() == {"balance"}
    assert_allclose(array(loss["balance"]), 0.25 * np.mean(expected), **SINGLE)


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig()
    assert (default.method, default.routing, default.gate) == ("llava_mole", "top1", "none")
    assert (default.r, default.lora_alpha) == (16, 32.0)  # of the released checkpoint's name
    assert default.balance_coef == 0.01
    assert (default.target_modules, default.scope) == ("mlp-linears", "block")


@pytest.mark.parametrize(
    ("key", "value"), [("routing", "top2"), ("gate", "renormalised"), ("balance_coef", -0.1)]
)
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        config(**{key: value})
