"""Projector: two shapes, and a scale that matches what the decoder receives."""

import pytest
import torch
from torch.testing import assert_close

from llava_mole.configuration import ProjectorConfig
from llava_mole.errors import ConfigError
from llava_mole.projector import Projector


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
