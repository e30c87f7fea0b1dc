"""Projectors: their shapes, and a scale that matches what the decoder receives."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from llava_mole.configuration import ProjectorConfig
from llava_mole.errors import ConfigError
from llava_mole.projector import Projector, RadialBasisProjector, root


def test_linear_is_one_matrix_and_mlp2x_gelu_is_two_with_a_gelu() -> None:
    x = torch.randn(2, 3, 5)
    linear = Projector(5, 4, ProjectorConfig(type="linear"))
    assert_close(linear(x), torch.nn.functional.linear(x, *linear.layers[0].parameters()))
    two = Projector(5, 4, ProjectorConfig())
    first, _, last = two.layers
    assert_close(two(x), last(torch.nn.functional.gelu(first(x))))


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("feature_scale", [0.01, 30.0])
def test_match_scale_gives_the_mean_and_spread_of_the_embeddings(
    kind: str, feature_scale: float
) -> None:
    torch.manual_seed(0)
    projector = Projector(16, 12, ProjectorConfig(type=kind))
    features = feature_scale * (torch.randn(8, 4, 16) + 0.5)
    mean = torch.randn(12)
    projector.match_scale(features, mean, 2.5)
    out = projector(features)
    assert_close(out.mean((0, 1)), mean, rtol=1e-4, atol=1e-4)
    # The last matrix is scaled before the mean is removed: what the mean held of the spread, more
    # with features that are far from zero, is missing after.
    assert 1.5 < (out - mean).std() < 2.6


def test_match_scale_is_kept_in_the_weights() -> None:
    projector = Projector(16, 12, ProjectorConfig())
    features = 7 * torch.randn(8, 4, 16)
    projector.match_scale(features, torch.zeros(12), 1.0)
    fresh = Projector(16, 12, ProjectorConfig())
    fresh.load_state_dict(projector.state_dict())
    assert fresh.input_scale != 1
    assert_close(fresh(features), projector(features), rtol=0, atol=0)


def test_dropout_acts_in_training_only() -> None:
    projector = Projector(16, 12, ProjectorConfig(dropout=0.5))
    x = torch.randn(1, 4, 16)
    projector.eval()
    assert_close(projector(x), projector(x), rtol=0, atol=0)
    projector.train()
    assert not torch.allclose(projector(x), projector(x))


def test_an_unknown_type_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mlp2x_gelu'"):
        ProjectorConfig(type="mlp2_gelu")
    with pytest.raises(ConfigError, match=r"projector.dropout"):
        ProjectorConfig(dropout=1.0)


def known(dropout: float = 0.0) -> RadialBasisProjector:
    """Three units in 16 dimensions, with values of their own."""
    torch.manual_seed(0)
    projector = RadialBasisProjector(
        16, 12, ProjectorConfig(type="rbf", units=3, width=0.1, dropout=dropout)
    )
    projector.mean.copy_(torch.randn(16))
    projector.centres.copy_(torch.nn.functional.normalize(torch.randn(3, 16), dim=-1))
    projector.scale.fill_(5.0)
    return projector


def test_rbf_answers_with_what_the_nearest_units_stand_for() -> None:
    projector = known()
    rooted = projector.mean + 7 * projector.centres[1]
    at_a_centre = (rooted.sign() * rooted.square()).view(1, 1, 16)
    assert_close(root(at_a_centre), rooted.view(1, 1, 16), rtol=1e-2, atol=1e-2)
    kernel = projector.kernel(at_a_centre)[0, 0]
    others = [float(projector.centres[1] @ projector.centres[other]) for other in (0, 2)]
    assert kernel[1].item() == pytest.approx(1, abs=1e-3)
    for other, cosine in zip((0, 2), others, strict=True):
        assert kernel[other].item() == pytest.approx(math.exp((cosine - 1) / 0.1), rel=2e-2)
    mixed = projector.values.weight @ kernel
    expected = projector.offset + 5 * mixed / mixed.norm()
    assert_close(projector(at_a_centre)[0, 0], expected)


def test_rbf_passes_a_finite_gradient_on_to_a_trained_tower() -> None:
    features = torch.relu(torch.randn(2, 4, 16)).requires_grad_()  # exact zeros, as after a ReLU
    out = known()(features)
    (out * torch.randn_like(out)).sum().backward()  # the length of a token is fixed
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() > 1e-3


def test_rbf_trains_its_values_and_keeps_its_centres() -> None:
    projector = known()
    trained = {name for name, _ in projector.named_parameters()}
    assert trained == {"values.weight", "offset"}
    out = projector(torch.randn(2, 4, 16))
    (out * torch.randn_like(out)).sum().backward()
    assert projector.offset.grad is not None
    assert projector.values.weight.grad is not None
    fresh = RadialBasisProjector(16, 12, ProjectorConfig(type="rbf", units=3, width=0.1))
    fresh.load_state_dict(projector.state_dict())
    x = torch.randn(2, 4, 16)
    assert_close(fresh(x), projector(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 7}, "only type 'rbf' has it"),
        ({"type": "linear", "width": 0.1}, "only type 'rbf' has it"),
        ({"type": "rbf", "units": 0}, "projector.units=0: must be at least 1"),
        ({"type": "rbf", "width": -0.1}, "projector.width=-0.1"),
    ],
)
def test_keys_of_rbf_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProjectorConfig(**options)
