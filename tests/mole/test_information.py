"""Mutual information of expert and label: its limits, its invariances, and an honest control."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava_mole.errors import ConfigError
from llava_mole.mole import mutual_information


def one_hot(experts: list[int], count: int) -> Tensor:
    """(S, 1, E): every token of a sample goes to one expert."""
    return torch.nn.functional.one_hot(torch.tensor(experts), count).double()[:, None]


def dirichlet(samples: int, experts: int, seed: int, routers: int = 1) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.dirichlet(np.ones(experts), size=(samples, routers)))


def bits(shares: Tensor, labels: list) -> float:
    return mutual_information(shares, labels, shuffles=1)[0].bits


labelled = st.lists(st.integers(0, 3), min_size=2, max_size=40)


def test_by_hand() -> None:
    """p(e | l) = (3/4, 1/4) and (1/4, 3/4): 1 - H(1/4) bits."""
    shares = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]])
    h = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert bits(shares, ["en", "ar"]) == pytest.approx(1 - h, abs=1e-12)


@given(labelled)
def test_routing_by_the_label_tells_all_of_it(labels) -> None:
    [found] = mutual_information(one_hot(labels, 4), labels, shuffles=20)
    shares = np.bincount(labels) / len(labels)
    entropy = -sum(share * math.log2(share) for share in shares if share)
    assert found.bits == pytest.approx(entropy, abs=1e-9)
    assert found.entropy == pytest.approx(entropy, abs=1e-9)
    assert found.corrected <= found.bits + 1e-12


@given(labelled, st.integers(0, 99))
def test_it_lies_between_0_and_what_can_be_known(labels, seed) -> None:
    shares = dirichlet(len(labels), 3, seed)
    [found] = mutual_information(shares, labels, shuffles=5)
    assert -1e-12 <= found.bits <= min(found.entropy, math.log2(3)) + 1e-9
    assert 0 < found.p <= 1


@given(labelled, st.integers(0, 99), st.permutations(range(4)), st.permutations(range(4)))
def test_names_of_experts_and_of_labels_do_not_matter(labels, seed, experts, names) -> None:
    shares = dirichlet(len(labels), 4, seed)
    renamed = [f"label {names[label]}" for label in labels]
    assert bits(shares[..., list(experts)], renamed) == pytest.approx(
        bits(shares, labels), abs=1e-9
    )


@given(labelled, st.integers(0, 99))
def test_an_expert_that_nobody_uses_adds_nothing(labels, seed) -> None:
    shares = dirichlet(len(labels), 3, seed)
    wider = torch.cat([shares, torch.zeros(len(labels), 1, 2)], dim=2)
    assert bits(wider, labels) == pytest.approx(bits(shares, labels), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_independent_labels_give_about_nothing_once_corrected(seed) -> None:
    """Few samples: the raw estimate is far from 0, the corrected one is not. In 300 draws it was
    at most a quarter of it."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 6).tolist()
    found = mutual_information(dirichlet(60, 4, seed, routers=30), labels, shuffles=100)
    raw = np.mean([one.bits for one in found])
    corrected = np.mean([one.corrected for one in found])
    assert raw > 0.01
    assert abs(corrected) < raw / 2


def test_p_is_even_where_labels_are_independent_and_small_where_not() -> None:
    labels = [number % 2 for number in range(40)]
    noise = mutual_information(dirichlet(40, 3, 0, routers=300), labels, shuffles=199)
    below = np.mean([one.p <= 0.05 for one in noise])
    assert 0.01 < below < 0.10  # 300 routers: 0.05 ± 0.0126 a standard deviation
    [known] = mutual_information(one_hot(labels, 2), labels, shuffles=199)
    assert known.p == pytest.approx(1 / 200, abs=0.006)
    assert known.control_95 < known.bits


def test_questions_about_one_picture_are_not_taken_for_evidence() -> None:
    """Eight questions a picture, each picture with experts of its own, domains drawn by lot."""
    rng = np.random.default_rng(3)
    below = {"samples": 0, "pictures": 0}
    for _ in range(40):
        pictures = np.repeat(np.arange(12), 8)
        shares = torch.tensor(rng.dirichlet(np.ones(3), size=12))[pictures][:, None]
        labels = rng.permutation(np.arange(12) % 2)[pictures].tolist()
        naive = mutual_information(shares, labels, shuffles=39)[0]
        fair = mutual_information(shares, labels, shuffles=39, units=pictures.tolist())[0]
        assert naive.bits == pytest.approx(fair.bits)
        below["samples"] += naive.p <= 0.05
        below["pictures"] += fair.p <= 0.05
    assert below["samples"] > 12  # "significant" a third of the time, about nothing
    assert below["pictures"] <= 6  # 2 expected of 40


def test_what_the_domain_already_tells_is_no_information_about_language() -> None:
    """Experts follow the domain, and each domain is mostly of one language."""
    domains = ["charts"] * 40 + ["flags"] * 40
    languages = (["en"] * 36 + ["ar"] * 4) + (["ar"] * 36 + ["en"] * 4)
    shares = one_hot([0] * 40 + [1] * 40, 2)
    plain = mutual_information(shares, languages)[0]
    inside = mutual_information(shares, languages, within=domains)[0]
    assert plain.corrected > 0.4
    assert inside.corrected == pytest.approx(0, abs=1e-9)
    assert inside.p == 1


def test_routers_meet_the_same_permutations_and_keep_their_order() -> None:
    labels = [number % 3 for number in range(30)]
    shares = torch.cat([dirichlet(30, 3, 1), one_hot(labels, 3)], dim=1)
    both = mutual_information(shares, labels, seed=7)
    for router in range(2):
        [alone] = mutual_information(shares[:, router : router + 1], labels, seed=7)
        assert vars(both[router]) == pytest.approx(vars(alone), rel=1e-9)  # sums in another order


def test_one_label_or_one_expert_tells_nothing() -> None:
    [found] = mutual_information(dirichlet(5, 3, 0), ["en"] * 5)
    assert (found.bits, found.entropy, found.normalised) == (0, 0, 0)
    [found] = mutual_information(torch.ones(4, 1, 1), ["en", "ar"] * 2)
    assert found.bits == pytest.approx(0, abs=1e-12)
    assert found.p == 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["en"], {}, r"shares of shape \(2, 1, 3\) for 1 labels"),
        (["en", "ar"], {"shuffles": 0}, "shuffles=0"),
        (["en", "ar"], {"units": ["a", "a"]}, "more than one label"),
        (["en", "en"], {"units": ["a", "a"], "within": [1, 2]}, "more than one group"),
        (["en", "en"], {"units": ["a"]}, "1 units for 2 samples"),
    ],
)
def test_what_does_not_fit_is_refused(labels, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        mutual_information(dirichlet(2, 3, 0), labels, **options)


def test_what_is_no_number_tells_nothing() -> None:
    shares = dirichlet(4, 3, 0)
    shares[1, 0, 2] = float("nan")
    with pytest.raises(ConfigError, match="shares hold nan or infinity"):
        mutual_information(shares, ["en", "en", "ar", "ar"])


def test_shares_as_a_pass_leaves_them_are_refused_with_how_to_stack_them() -> None:
    with pytest.raises(ConfigError, match=r"torch\.stack\(\[one\.shares for one in"):
        mutual_information([object()], ["a"])  # type: ignore[arg-type]
