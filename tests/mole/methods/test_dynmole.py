"""DynMoLE against its formula: entropy decides between all experts and a top-p few."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, RouteContext, auxiliary_losses, router_parameters
from llava_mole.mole.methods.dynmole import EntropyRouter
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    SINGLE,
    array,
    mixture,
    model_with,
    per_sample,
    see,
    softmax,
)

EXAMPLE = [0.3, 0.25, 0.25, 0.1, 0.06, 0.04]


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": 6, "r": 2, "lora_alpha": 4.0}
    return MoleConfig(method="dynmole", **{**small, **changes})


def tsallis(p: np.ndarray, q: float = 1.1, eps: float = 1e-5) -> np.ndarray:
    experts = p.shape[-1]
    entropy = (1 - ((p + eps) ** q).sum(-1)) / (q - 1)
    return entropy / ((1 - experts ** (1 - q)) / (q - 1))


def shannon(p: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return -((p + eps) * np.log(p + eps)).sum(-1) / np.log(p.shape[-1])


def weights_by_hand(
    p: np.ndarray, entropy: np.ndarray, *, H: float = 0.9, top_p: float = 0.75, keep: int = 2
) -> np.ndarray:
    weights = np.zeros_like(p)
    for t, row in enumerate(p):
        mass = 0.0
        for rank, expert in enumerate(np.argsort(-row)):
            mass += row[expert]
            if entropy[t] > H or rank < keep or mass <= top_p:
                weights[t, expert] = row[expert]
    return weights


def route(p: list[float], **changes: object) -> tuple[Tensor, Tensor]:
    """Weights and entropy of a token with these probabilities."""
    options = {"entropy": "tsallis", "index": 1.1, "threshold": 0.9, "eps": 1e-5}
    options |= {"top_p": 0.75, "keep_top_k": 2, **changes}
    router = EntropyRouter(len(p), len(p), context=RouteContext(), **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(len(p)))
        out = router(torch.tensor([p], dtype=torch.float64).log())
    return out.weights[0], out.extras["entropy"][0]


def spread(first: float, experts: int = 6) -> list[float]:
    """One expert with this probability, the others alike."""
    return [first] + [(1 - first) / (experts - 1)] * (experts - 1)


# ---------------------------------------------------------------------- the route


def test_a_token_adds_the_experts_that_entropy_and_top_p_leave() -> None:
    dense, sparse = 0, 0
    for seen in see(model_with(config())):
        p = softmax(seen.x @ array(seen.router.weight).T)
        weights = weights_by_hand(p, tsallis(p))
        dense += (weights > 0).all(1).sum()
        sparse += (weights == 0).any(1).sum()
        assert_allclose(seen.delta, mixture(seen.x, seen.experts, weights, 4 / 2), **CLOSE)
    assert dense > 0
    assert sparse > 0


def test_the_expert_that_crosses_top_p_is_left_out_and_nothing_is_renormalised() -> None:
    weights, _ = route(EXAMPLE, threshold=1.0)
    # .3 + .25 = .55; another .25 would make .8 > .75. Ties go to one of the two equal experts.
    assert_allclose(sorted(array(weights)), [0, 0, 0, 0, 0.25, 0.3], **CLOSE)


@pytest.mark.parametrize(
    ("first", "entropy", "experts_on"), [(0.4, 0.912, 6), (0.5, 0.831, 3)]
)  # .5 + .1 + .1 = .7 stays within .75, the next .1 does not
def test_a_peaked_token_is_sparse_and_a_flat_one_dense(
    first: float, entropy: float, experts_on: int
) -> None:
    weights, found = route(spread(first))
    assert_allclose(array(found), entropy, atol=5e-4)
    assert int((weights > 0).sum()) == experts_on


@pytest.mark.parametrize("index", [0.5, 1.0, 1.1])
@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_a_threshold_of_one_is_top_p_even_for_the_flattest_token(
    threshold: float, index: float
) -> None:
    weights, _ = route(spread(1 / 6), threshold=threshold, index=index)
    assert int((weights > 0).sum()) == 4  # 4 / 6 stays within .75, 5 / 6 does not


def test_a_threshold_of_zero_is_the_dense_softmax_of_loramoe() -> None:
    ours = model_with(config(entropy_threshold=0))
    other = model_with(MoleConfig(method="loramoe", num_experts=6, r=2, lora_alpha=4.0))
    other.load_state_dict(ours.state_dict())
    assert_close(ours(IDS).logits, other(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_top_p_of_zero_is_top_k_by_probability_as_it_is(keep: int) -> None:
    p = [0.05, 0.4, 0.1, 0.3, 0.12, 0.03]
    weights, _ = route(p, threshold=1.0, top_p=0.0, keep_top_k=keep)
    expected = np.zeros(6)
    for expert in [1, 3, 4][:keep]:
        expected[expert] = p[expert]
    assert_allclose(array(weights), expected, **CLOSE)


# ---------------------------------------------------------------------- entropies


@pytest.mark.parametrize(("p", "published"), [(spread(1 / 6), 0.99966), (spread(1.0), -1.6e-4)])
def test_tsallis_entropy_is_1_at_uniform_and_0_at_one_hot_up_to_eps(
    p: list[float], published: float
) -> None:
    clipped = [max(value, 1e-300) for value in p]  # log 0 is no logit
    found = array(route(clipped)[1])
    assert_allclose(found, published, atol=6e-6)
    assert_allclose(found, tsallis(np.array(p)), **CLOSE)


def test_tsallis_entropy_of_index_one_is_shannons_and_its_limit() -> None:
    exact = array(route(EXAMPLE, index=1.0)[1])
    assert_allclose(exact, shannon(np.array(EXAMPLE)), **CLOSE)
    # With eps the sum of p is not 1, and the limit would be infinite.
    near = {"eps": 1e-12, "index": 1 + 1e-6}
    assert_allclose(array(route(EXAMPLE, **near)[1]), shannon(np.array(EXAMPLE), 0), atol=5e-5)


@pytest.mark.parametrize("index", [0.5, 2.0])
def test_renyi_entropy_is_the_log_of_the_sum_of_powers(index: float) -> None:
    found = array(route(EXAMPLE, entropy="renyi", index=index)[1])
    powers = ((np.array(EXAMPLE) + 1e-5) ** index).sum()
    assert_allclose(found, np.log(powers) / (1 - index) / np.log(6), **CLOSE)


def test_renyi_entropy_of_index_one_is_shannons() -> None:
    found = array(route(EXAMPLE, entropy="renyi", index=1.0)[1])
    assert_allclose(found, shannon(np.array(EXAMPLE)), **CLOSE)


def test_the_entropy_that_is_named_decides() -> None:
    p = spread(0.4)
    renyi = np.log(((np.array(p) + 1e-5) ** 1.1).sum()) / (1 - 1.1) / np.log(6)
    threshold = (renyi + tsallis(np.array(p))) / 2
    on = {
        name: int((route(p, entropy=name, threshold=threshold)[0] > 0).sum())
        for name in ("tsallis", "renyi")
    }
    assert on == ({"tsallis": 6, "renyi": 3} if renyi < threshold else {"tsallis": 3, "renyi": 6})


# ---------------------------------------------------------------------- the losses


def test_both_losses_pool_all_routers_and_ignore_padding() -> None:
    model = model_with(config(entropy_coef=0.5, balance_coef=0.25))
    seen = see(model, attention_mask=PADDED)
    entropy, balance = [], []
    for row in range(2):
        p = np.concatenate(
            [per_sample(softmax(s.x @ array(s.router.weight).T), PADDED)[row] for s in seen]
        )
        entropy.append(tsallis(p).mean())
        balance.append(6 * (weights_by_hand(p, tsallis(p)).mean(0) * p.mean(0)).sum())
    losses = auxiliary_losses(model)
    assert losses.keys() == {"entropy", "balance"}
    assert_allclose(array(losses["entropy"]), 0.5 * np.mean(entropy), **SINGLE)
    assert_allclose(array(losses["balance"]), 0.25 * np.mean(balance), **SINGLE)


@pytest.mark.parametrize("key", ["entropy_coef", "balance_coef"])
def test_a_loss_of_weight_zero_is_not_computed(key: str) -> None:
    model = model_with(config(**{key: 0}))
    model(IDS)
    assert auxiliary_losses(model).keys() == {"entropy", "balance"} - {key.removesuffix("_coef")}


@pytest.mark.parametrize("entropy", ["tsallis", "renyi"])
def test_each_loss_trains_the_routers(entropy: str) -> None:
    for name in ("entropy", "balance"):
        model = model_with(config(entropy=entropy))
        model(IDS)
        auxiliary_losses(model)[name].backward()
        assert all(p.grad.abs().max() > 0 for p in router_parameters(model).values())


# ---------------------------------------------------------------------- options


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="dynmole")
    assert (default.num_experts, default.r, default.lora_alpha) == (6, 24, 48.0)
    assert (default.lora_dropout, default.entropy, default.entropy_index) == (0.05, "tsallis", 1.1)
    assert (default.entropy_threshold, default.entropy_eps) == (0.9, 1e-5)
    assert (default.top_p, default.keep_top_k) == (0.75, 2)
    assert (default.entropy_coef, default.balance_coef) == (0.01, 0.001)
    assert (default.target_modules, default.scope) == ("mlp-linears", "linear")


@pytest.mark.parametrize(
    ("key", "value"),
    [("entropy", "gini"), ("entropy_index", 0), ("entropy_eps", 0), ("entropy_threshold", -0.1),
     ("top_p", -0.5), ("keep_top_k", 0), ("keep_top_k", 7), ("entropy_coef", -1),
     ("balance_coef", -1)],
)  # fmt: skip
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        config(**{key: value})
