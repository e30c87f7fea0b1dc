"""MultiLoRA against its formula: several LoRAs, each times a learnt output scale, no router."""

import math

import numpy as np
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    mark_trainable,
    merge,
    router_parameters,
)
from tests.helpers import language_model
from tests.mole.methods.by_hand import CLOSE, IDS, array, model_with, see


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": 3, "r": 2, "lora_alpha": 4.0}
    return MoleConfig(method="multilora", **{**small, **changes})


def test_the_experts_add_up_each_times_its_output_scale() -> None:
    for seen in see(model_with(config())):
        c = array(seen.bank.output_scale)
        weight = sum(2 * np.diag(c[e]) @ B @ A for e, (A, B) in enumerate(seen.experts))
        assert_allclose(seen.delta, seen.x @ weight.T, **CLOSE)


def test_experts_of_different_ranks_add_up() -> None:
    for seen in see(model_with(config(expert_ranks=(1, 4, 2)))):
        c = array(seen.bank.output_scale)
        weight = sum(2 * np.diag(c[e]) @ B @ A for e, (A, B) in enumerate(seen.experts))
        assert_allclose(seen.delta, seen.x @ weight.T, **CLOSE)


def test_at_step_0_only_the_output_scales_have_a_gradient() -> None:
    model = language_model("llama")
    before = model(IDS).logits
    add_experts(model, config())
    mark_trainable(model)
    out = model(IDS, labels=IDS)
    assert_close(out.logits, before, rtol=0, atol=0)
    out.loss.backward()
    for name, parameter in expert_parameters(model).items():
        learns = name.endswith("output_scale")
        assert bool(parameter.grad.any()) is learns, name


def test_b_starts_uniform_with_the_bound_of_a_matrix_that_reads_r_units() -> None:
    model = language_model("llama", hidden_size=64)
    add_experts(model, config(r=4))
    for bank in adapter_of(model).banks.values():
        # kaiming, a = sqrt(5): uniform within 1 / sqrt(fan in).
        assert 0.9 / math.sqrt(4) < bank.lora_B.abs().max() <= 1 / math.sqrt(4)
        width = bank.in_features
        assert 0.9 / math.sqrt(width) < bank.lora_A.abs().max() <= 1 / math.sqrt(width)


def test_merging_is_exact_whatever_the_number_of_experts() -> None:
    model = model_with(config())
    before = model(IDS).logits
    merge(model)
    # The experts' weights are summed in float32.
    assert_close(model(IDS).logits, before, rtol=1e-5, atol=1e-5)


def test_there_is_no_router_to_train_and_no_loss() -> None:
    model = model_with(config())
    model(IDS)
    assert router_parameters(model) == {}
    assert auxiliary_losses(model) == {}


def test_what_a_linear_gains_has_at_most_the_rank_of_all_experts() -> None:
    for bank in adapter_of(model_with(config())).banks.values():
        assert np.linalg.matrix_rank(array(bank.delta_weight()), tol=1e-5) == 3 * 2


def test_published_choices_are_the_defaults() -> None:
    default = MoleConfig(method="multilora")
    assert (default.num_experts, default.target_modules) == (3, "all-linear")
    bank = adapter_of(model_with(default)).banks["layers.0.mlp.up_proj"]
    assert bank.output_scale.shape == (3, 48)  # a vector for each expert


def test_it_learns_once_the_scales_have_moved() -> None:
    model = model_with(config())
    mark_trainable(model)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in expert_parameters(model).values())
    assert torch.isfinite(model(IDS).logits).all()
