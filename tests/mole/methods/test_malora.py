"""MALoRA against its formula: a shared first projection, a small P and a B for each expert."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    router_parameters,
)
from tests.helpers import language_model
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    SINGLE,
    Seen,
    array,
    mixture,
    model_with,
    per_sample,
    see,
    softmax,
    top,
)

E, R, SHARED = 4, 3, 5


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": E, "r": R, "shared_r": SHARED, "lora_alpha": 6.0}
    return MoleConfig(method="malora", **{**small, **changes})


def gates(seen: Seen) -> np.ndarray:
    p = softmax(seen.x @ array(seen.router.weight).T)
    chosen = p * top(p, 2)
    return chosen / chosen.sum(1, keepdims=True)


def test_a_token_adds_b_p_s_of_its_two_best_experts() -> None:
    for seen in see(model_with(config())):
        S = array(seen.bank.shared_A)
        experts = [(P @ S, B) for P, B in seen.experts]
        assert_allclose(seen.delta, mixture(seen.x, experts, gates(seen), 6 / R), **CLOSE)


@pytest.mark.parametrize(("r", "shared_r"), [(2, 5), (5, 2)])
def test_an_experts_rank_is_at_most_the_smaller_of_the_two(r: int, shared_r: int) -> None:
    for bank in adapter_of(model_with(config(r=r, shared_r=shared_r))).banks.values():
        S, P, B = array(bank.shared_A), array(bank.lora_A)[:r], array(bank.lora_B)[:r].T
        assert np.linalg.matrix_rank(B @ P @ S, tol=1e-6) == 2


def test_with_p_the_identity_it_is_hydralora_with_the_same_gates() -> None:
    ours = model_with(config(r=3, shared_r=3, top_k=E, target_modules="mlp-linears"))
    hydra = model_with(MoleConfig(method="hydralora", num_experts=E, r=3, lora_alpha=6.0))
    with torch.no_grad():
        for bank in adapter_of(ours).banks.values():
            bank.lora_A.copy_(torch.eye(3).repeat(E, 1))
        copied = dict(ours.named_parameters())
        for group in (expert_parameters(hydra), router_parameters(hydra)):
            for name, parameter in group.items():
                parameter.copy_(copied[name])
    assert_close(ours(IDS).logits, hydra(IDS).logits, rtol=1e-9, atol=1e-9)


def test_with_s_the_identity_it_is_an_ordinary_mixture_of_loras() -> None:
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    model = model_with(config(shared_r=32, target_modules=attention))
    for seen in see(model):
        with torch.no_grad():
            seen.bank.shared_A.copy_(torch.eye(32))
    for seen in see(model):
        assert_allclose(seen.delta, mixture(seen.x, seen.experts, gates(seen), 6 / R), **CLOSE)


class ProductsWith(TorchDispatchMode):
    """Counts matrix products that read a tensor's memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.memory, self.count = tensor.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "linear", "matmul"):
            read = [a for a in args if isinstance(a, torch.Tensor)]
            self.count += any(a.untyped_storage().data_ptr() == self.memory for a in read)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["auto", "masked", "gathered", "grouped", "reference"])
def test_s_x_is_computed_once_for_all_experts(kernel: str) -> None:
    model = language_model("llama")  # float32: what is not cast keeps its memory
    add_experts(model, config(kernel=kernel, r=4, shared_r=8))  # grouped wants multiples of 4
    S = adapter_of(model).banks["layers.1.mlp.up_proj"].shared_A
    with torch.no_grad(), ProductsWith(S) as products:
        model(IDS)
    assert products.count == 1


def test_the_number_of_parameters_is_that_of_s_p_and_b() -> None:
    model = model_with(config(target_modules=("up_proj",)))
    d, out = 32, 48
    assert sum(p.numel() for p in expert_parameters(model).values()) == 2 * (
        SHARED * d + E * (R * SHARED + out * R)
    )
    assert sum(p.numel() for p in router_parameters(model).values()) == 2 * E * d


def test_the_balance_loss_is_the_mean_over_routers() -> None:
    model = model_with(config(balance_coef=0.5))
    expected = []
    for seen in see(model, attention_mask=PADDED):
        for p in per_sample(softmax(seen.x @ array(seen.router.weight).T), PADDED):
            expected.append(E * (top(p, 2).sum(0) / (2 * len(p)) * p.mean(0)).sum())
    assert_allclose(array(auxiliary_losses(model)["balance"]), 0.5 * np.mean(expected), **SINGLE)


def test_the_documented_choices_are_the_defaults() -> None:
    default = MoleConfig(method="malora")
    assert (default.num_experts, default.top_k) == (8, 2)
    assert (default.r, default.shared_r, default.balance_coef) == (16, 32, 0.001)
    assert (default.target_modules, default.scope) == ("all-linear", "linear")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shared_r", 0), ("top_k", 0), ("balance_coef", -1), ("expert_ranks", (2, 2, 2, 4))],
)
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        config(**{key: value})
