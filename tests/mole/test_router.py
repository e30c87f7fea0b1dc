"""Routers: who learns from the task, and routes that do not depend on mode or precision."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from llava_mole.mole import (
    LinearRouter,
    MoleConfig,
    RouteContext,
    add_experts,
    auxiliary_losses,
    router_parameters,
)
from llava_mole.mole.router import _Float32Linear, _SplitLinear, is_split
from tests.helpers import FAMILIES, awaken, language_model, last_context, random_ids

IDS = random_ids(2, 12)


def router_gradients(*, with_balance: bool, family: str = "llama", **mole: object) -> list[Tensor]:
    model = language_model(family)
    config = MoleConfig(num_experts=3, r=2, balance_coef=0.5 if with_balance else 0.0, **mole)
    add_experts(model, config)
    awaken(model)
    loss = model(IDS, labels=IDS).loss
    losses = auxiliary_losses(model)
    assert bool(losses) is with_balance
    (loss + sum(losses.values())).backward()
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in router_parameters(model).values()
    ]


def test_without_gate_and_balance_loss_the_router_learns_nothing() -> None:
    assert all(not bool(grad.any()) for grad in router_gradients(with_balance=False, gate="none"))


def test_without_gate_the_balance_loss_trains_every_router() -> None:
    for grad in router_gradients(with_balance=True, gate="none"):
        assert grad.abs().max() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "mole", [{"gate": "scaled"}, {"gate": "straight_through"}, {"routing": "dense"}], ids=str
)
def test_with_a_gate_the_task_itself_trains_every_router(family: str, mole: dict[str, str]) -> None:
    for grad in router_gradients(with_balance=False, family=family, **mole):
        assert grad.abs().max() > 1e-6


def test_straight_through_computes_what_no_gate_computes() -> None:
    outputs = []
    for gate in ("none", "straight_through"):
        model = language_model("llama")
        add_experts(model, MoleConfig(num_experts=3, r=2, gate=gate))
        awaken(model)
        outputs.append(model(IDS).logits)
    # 1 + p - p rounds to 1 within an ulp.
    assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_the_scaled_gate_is_the_probability_itself() -> None:
    router = LinearRouter(4, 3, top_k=1, gate="scaled", context=RouteContext())
    route = router(torch.randn(5, 4))
    assert_close(route.weights, route.probs.max(dim=1, keepdim=True).values)
    assert_close(route.gates(3, route.probs).sum(1), route.weights[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("routing", ["top1", "dense"])
def test_training_and_eval_mode_choose_the_same_routes(family: str, routing: str) -> None:
    model = language_model(family)
    add_experts(model, MoleConfig(num_experts=3, r=2, routing=routing))
    awaken(model)
    records = []
    for training in (True, False):
        model.train(training)
        model(IDS)
        records.append(list(last_context(model).records))
    assert len(records[0]) == model.config.num_hidden_layers
    for train, evaluate in zip(*records, strict=True):
        assert torch.equal(train.chosen(), evaluate.chosen())
        assert_close(train.probs, evaluate.probs, rtol=0, atol=0)


def test_one_router_decides_for_every_linear_of_its_block() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=3, r=2))
    assert len(router_parameters(model)) == 2 * model.config.num_hidden_layers


@pytest.mark.parametrize("autocast", [False, True])
def test_routes_are_decided_in_float32_whatever_the_model_computes_in(autocast: bool) -> None:
    router = LinearRouter(64, 4, top_k=1, gate="none", context=RouteContext())
    x = torch.randn(200, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        route = router(x)
    exact = (x.double() @ router.weight.double().T).softmax(-1)
    assert route.probs.dtype == torch.float32
    # 64 float32 products: 64 * 2^-24 at most, far below bfloat16's 2^-8.
    assert_close(route.probs, exact.float(), rtol=1e-5, atol=1e-6)


def test_a_route_does_not_outlive_its_pass() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=3, r=2))
    model(IDS)
    routers = [module for module in model.modules() if isinstance(module, LinearRouter)]
    assert routers
    assert all(router.current is None for router in routers)


@pytest.mark.parametrize("experts", [3, 4, 64])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_split_products_are_as_exact_as_float32s(experts: int, device: str) -> None:
    tokens, width = (500, 640) if device == "cpu" else (2048, 2048)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).bfloat16()
    weight, bias = torch.randn(experts, width, generator=generator), torch.randn(experts)
    grad = 1e-3 * torch.randn(tokens, experts, generator=generator)
    assert is_split(x.to(device)) is (device == "cuda")

    def run(function: Any, dtype: torch.dtype, about: torch.dtype = torch.float32) -> list[Tensor]:
        inputs = [x.to(device, dtype), weight.to(device, about), bias.to(device, about)]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        out = function(*inputs)
        out.backward(grad.to(device, about))
        return [out.detach(), *(tensor.grad for tensor in inputs)]

    exact = run(F.linear, torch.float64, torch.float64)
    found = run(_SplitLinear.apply, torch.bfloat16)
    plain = run(_Float32Linear.apply, torch.bfloat16)
    assert found[0].dtype == torch.float32
    for value, other, expected in zip(found, plain, exact, strict=True):
        error = (value.double() - expected).norm() / expected.norm()
        plain_error = (other.double() - expected).norm() / expected.norm()
        # A GPU's matrix units round sums in a way of their own.
        assert error <= (1.5 if device == "cpu" else 8) * plain_error
