"""LoRAMoE against its formula: every expert by softmax, and the localised balance loss."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, auxiliary_losses, mole_context, router_parameters
from llava_mole.mole.methods.loramoe import dispersion
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
)

E = 4


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": E, "r": 2, "lora_alpha": 4.0}
    return MoleConfig(method="loramoe", **{**small, **changes})


def probabilities(seen: Seen) -> np.ndarray:
    return softmax(seen.x @ array(seen.router.weight).T)


def test_a_token_adds_every_expert_by_its_probability() -> None:
    for seen in see(model_with(config())):
        expected = mixture(seen.x, seen.experts, probabilities(seen), 4 / 2)
        assert_allclose(seen.delta, expected, **CLOSE)


def test_dispersion_is_the_squared_coefficient_of_variation() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # mean 3, squared distances 4 + 1 + 0 + 9
    assert_allclose(dispersion(values, "cv_squared").item(), (14 / 3) / 9, rtol=1e-6)
    assert_allclose(dispersion(values, "variance_over_mean").item(), (14 / 3) / 3, rtol=1e-6)


@pytest.mark.parametrize("kind", ["cv_squared", "variance_over_mean"])
@pytest.mark.parametrize("types", [None, [0, 1], [1, 1]])
def test_the_loss_is_the_dispersion_of_mass_times_type(kind: str, types: list[int] | None) -> None:
    model = model_with(config(balance_coef=0.5, balance_delta=0.25, dispersion=kind))
    if types is not None:
        mole_context(model)[0].provide(sample_types=torch.tensor(types))
    expected = 0.0
    for seen in see(model, attention_mask=PADDED):
        mass = np.array([p.mean(0) for p in per_sample(probabilities(seen), PADDED)])
        for row, kind_of_row in enumerate(types or []):
            # The released code: type 1 wants the first half of the experts, type 0 the second.
            own = np.array([1, 1, 0, 0]) == kind_of_row
            mass[row] *= np.where(own, 1.25, 0.75)
        expected += mass.var(ddof=1) / (mass.mean() ** (2 if kind == "cv_squared" else 1))
    assert_allclose(array(auxiliary_losses(model)["balance"]), 0.5 * expected, **SINGLE)


def test_types_are_of_one_pass() -> None:
    model = model_with(config(balance_coef=0.5, balance_delta=0.5))
    model(IDS)
    plain = auxiliary_losses(model)["balance"]
    mole_context(model)[0].provide(sample_types=torch.tensor([0, 1]))
    model(IDS)
    typed = auxiliary_losses(model)["balance"]
    model(IDS)
    assert_allclose(array(auxiliary_losses(model)["balance"]), array(plain), rtol=0)
    assert not np.isclose(array(typed), array(plain))


def test_types_for_another_number_of_samples_are_refused() -> None:
    model = model_with(config(balance_coef=0.5))
    mole_context(model)[0].provide(sample_types=torch.tensor([0, 1, 1]))
    model(IDS)
    with pytest.raises(ConfigError, match=r"sample_types of shape \(3,\) for 2 samples"):
        auxiliary_losses(model)


def test_the_task_and_the_loss_train_the_routers() -> None:
    for coefficient in (0.0, 1.0):
        model = model_with(config(balance_coef=coefficient))
        out = model(IDS, labels=IDS)
        loss = auxiliary_losses(model)["balance"] if coefficient else out.loss
        loss.backward()
        assert all(p.grad.abs().max() > 0 for p in router_parameters(model).values())


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="loramoe")
    assert (default.num_experts, default.r, default.lora_alpha) == (8, 4, 32.0)
    assert (default.balance_coef, default.dispersion) == (0.0, "cv_squared")
    assert (default.target_modules, default.scope) == ("mlp-linears", "linear")


@pytest.mark.parametrize(
    ("key", "value"),
    [("dispersion", "gini"), ("balance_coef", -1), ("balance_delta", 1.0), ("balance_delta", -0.1)],
)
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        config(**{key: value})
