"""HydraLoRA against its formula: one A, a B for each expert, all of them by softmax."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, auxiliary_losses, expert_parameters, router_parameters
from tests.mole.methods.by_hand import CLOSE, IDS, Seen, array, model_with, see, softmax


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": 3, "r": 2, "lora_alpha": 8.0}
    return MoleConfig(method="hydralora", **{**small, **changes})


def heads(seen: Seen) -> list[np.ndarray]:
    """B_e, (d_out, r)."""
    return [rows.T for rows in array(seen.bank.lora_B).reshape(3, 2, -1)]


def test_a_token_adds_the_mixed_b_of_the_common_a() -> None:
    for seen in see(model_with(config())):
        A = array(seen.bank.shared_A)
        p = softmax(seen.x @ array(seen.router.weight).T)
        expected = [
            (8 / 2) * sum(g * B for g, B in zip(gates, heads(seen), strict=True)) @ A @ token
            for gates, token in zip(p, seen.x, strict=True)
        ]
        assert_allclose(seen.delta, expected, **CLOSE)


def test_the_experts_own_no_a() -> None:
    model = model_with(config())
    kinds = {name.rsplit(".", 1)[1] for name in expert_parameters(model)}
    assert kinds == {"shared_A", "lora_B"}
    up = sum(p.numel() for n, p in expert_parameters(model).items() if "layers.0.mlp.up" in n)
    assert up == 2 * 32 + 3 * 2 * 48


def test_the_task_trains_the_routers_and_there_is_no_other_loss() -> None:
    model = model_with(config())
    model(IDS, labels=IDS).loss.backward()
    assert auxiliary_losses(model) == {}
    assert all(p.grad.abs().max() > 1e-6 for p in router_parameters(model).values())


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="hydralora")
    assert (default.num_experts, default.r, default.lora_alpha) == (4, 4, 32.0)
    assert (default.target_modules, default.scope) == ("mlp-linears", "linear")


def test_experts_of_different_ranks_cannot_share_a() -> None:
    with pytest.raises(ConfigError, match="expert_ranks"):
        config(expert_ranks=(2, 2, 4))
