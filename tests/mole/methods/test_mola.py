"""MoLA against its formula: top-2 renormalised, a router per linear, experts per layer."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    load,
    router_parameters,
    save,
)
from tests.helpers import awaken, language_model
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

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": (2, 4), "r": 2, "lora_alpha": 4.0}
    return MoleConfig(method="mola", **{**small, **changes})


def probabilities(seen: Seen) -> np.ndarray:
    return softmax(seen.x @ array(seen.router.weight).T)


def test_a_token_adds_its_two_best_experts_by_renormalised_probability() -> None:
    for seen in see(model_with(config(num_experts=4))):
        p = probabilities(seen)
        chosen = p * top(p, 2)
        gates = chosen / chosen.sum(1, keepdims=True)
        assert_allclose(seen.delta, mixture(seen.x, seen.experts, gates, 4 / 2), **CLOSE)


def test_all_seven_projections_have_their_own_router() -> None:
    model = model_with(config())
    names = {name.split(".mole_router")[0] for name in router_parameters(model)}
    assert names == {
        f"model.layers.{layer}.{'self_attn' if p[0] in 'qkvo' else 'mlp'}.{p}"
        for layer in (0, 1)
        for p in PROJECTIONS
    }


def test_with_every_expert_chosen_it_is_a_dense_softmax() -> None:
    for seen in see(model_with(config(num_experts=3, top_k=3))):
        expected = mixture(seen.x, seen.experts, probabilities(seen), 4 / 2)
        assert_allclose(seen.delta, expected, **CLOSE)


def test_the_readmes_allocation_gives_each_quarter_of_the_layers_its_number() -> None:
    model = language_model("llama", num_hidden_layers=8)
    add_experts(model, MoleConfig(method="mola", r=1))
    banks = adapter_of(model).banks
    found = [banks[f"layers.{layer}.mlp.up_proj"].num_experts for layer in range(8)]
    assert found == [2, 2, 4, 4, 6, 6, 8, 8]


def test_a_constant_list_is_the_uniform_mixture() -> None:
    listed, uniform = (model_with(config(num_experts=n)) for n in ((3, 3), 3))
    assert_close(listed(IDS).logits, uniform(IDS).logits, rtol=0, atol=0)


def test_the_number_of_parameters_is_the_sum_over_layers() -> None:
    model = model_with(config(num_experts=(2, 5)))
    d, wide = 32, 48
    # Two key-value heads of four: k and v are half as wide.
    widths = [(d, d), (d, d // 2), (d, d // 2), (d, d), (d, wide), (d, wide), (wide, d)]
    per_expert = sum(2 * (i + o) for i, o in widths)
    per_choice = sum(i for i, _ in widths)
    assert sum(p.numel() for p in expert_parameters(model).values()) == (2 + 5) * per_expert
    assert sum(p.numel() for p in router_parameters(model).values()) == (2 + 5) * per_choice


def test_layers_of_different_size_save_and_load_to_identical_logits(tmp_path: Path) -> None:
    model = model_with(config(num_experts=(2, 5), top_k=(1, 3)))
    save(model, tmp_path)
    fresh = language_model("llama").double()
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_the_balance_loss_pools_the_linears_of_a_layer_and_sums_layers() -> None:
    model = model_with(config(balance_coef=0.5))
    layers: dict[str, list[Seen]] = {}
    for seen in see(model, attention_mask=PADDED):
        layers.setdefault(seen.name.split(".")[2], []).append(seen)
    expected = 0.0
    for linears in layers.values():
        rows = []
        for row in range(2):
            p = np.concatenate([per_sample(probabilities(s), PADDED)[row] for s in linears])
            shares = top(p, 2).sum(0) / (2 * len(p))
            rows.append(p.shape[1] * (shares * p.mean(0)).sum())
        expected += np.mean(rows)
    assert_allclose(array(auxiliary_losses(model)["balance"]), 0.5 * expected, **SINGLE)


def test_experts_added_to_a_model_in_eval_mode_drop_nothing() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(method="mola", num_experts=2, r=2, lora_dropout=0.5))
    awaken(model)
    assert_close(model(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="mola")
    assert (default.num_experts, default.top_k) == ((2, 4, 6, 8), 2)
    assert (default.r, default.lora_alpha, default.lora_dropout) == (8, 16.0, 0.05)
    assert default.balance_coef == 0.001
    assert (default.target_modules, default.scope) == ("all-linear", "linear")


@pytest.mark.parametrize(("key", "value"), [("top_k", 0), ("top_k", 1.5), ("balance_coef", -1)])
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}"):
        config(**{key: value})


def test_more_choices_than_a_layer_has_experts_are_refused_with_the_place() -> None:
    with pytest.raises(ConfigError, match=r"top_k=2 of num_experts=1 at layers\.0"):
        add_experts(language_model("llama"), config(num_experts=(1, 4)))


def test_more_numbers_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_experts=.*: 4 values for 2 layers .a default"):
        add_experts(language_model("llama"), MoleConfig(method="mola"))
