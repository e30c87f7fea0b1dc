"""Experts on any Hugging Face model: names stay, step 0 is the base, one expert is PEFT's LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    add_experts,
    auxiliary_losses,
    disabled_experts,
    expert_parameters,
    merge,
    mole_context,
    router_parameters,
)
from llava_mole.mole.io import as_in_file
from tests.helpers import FAMILIES, MLP_LINEARS, awaken, language_model, random_ids

IDS = random_ids(2, 12)
GATES = [("top1", "none"), ("top1", "straight_through"), ("top1", "scaled"), ("dense", "none")]


@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_the_routed_model_equals_its_base(family: str) -> None:
    base = language_model(family)
    before = base(IDS).logits
    add_experts(base, MoleConfig(num_experts=3, r=2))
    # B is zero, so what is added is exactly zero.
    assert_close(base(IDS).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize(("routing", "gate"), GATES)
def test_at_step_0_every_gate_leaves_the_base_unchanged(routing: str, gate: str) -> None:
    base = language_model("llama")
    before = base(IDS).logits
    add_experts(base, MoleConfig(num_experts=3, r=2, routing=routing, gate=gate))
    assert_close(base(IDS).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", ["reference", "masked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_equals_peft_lora_forward_and_gradients(family: str, kernel: str) -> None:
    ours, theirs = language_model(family), language_model(family)
    add_experts(ours, MoleConfig(num_experts=1, r=4, lora_alpha=6.0, kernel=kernel))
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=MLP_LINEARS[family])
    inject_adapter_in_model(lora, theirs)
    awaken(ours)
    banks = dict(expert_parameters(ours))
    twins = {}
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            twin = name.replace(".lora_A.default.weight", ".mole_bank.default.lora_A")
            twin = twin.replace(".lora_B.default.weight", ".mole_bank.default.lora_B")
            parameter.data.copy_(as_in_file(twin, banks[twin].data))
            twins[twin] = parameter
    assert twins.keys() == banks.keys()

    out, expected = ours(IDS, labels=IDS), theirs(IDS, labels=IDS)
    # The same float32 products, the scaling applied on the other side of B: a few ulp of logits
    # of order 10, and of gradients summed over 24 tokens.
    assert_close(out.logits, expected.logits, rtol=1e-5, atol=2e-5)
    out.loss.backward()
    expected.loss.backward()
    for name, parameter in banks.items():
        assert twins[name].grad.abs().max() > 0
        assert_close(as_in_file(name, parameter.grad), twins[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_base_do_not_change(family: str) -> None:
    model = language_model(family)
    before = set(model.state_dict())
    add_experts(model, MoleConfig(num_experts=2, r=2))
    assert before <= set(model.state_dict())


def test_experts_and_plain_lora_add_up_on_the_same_linear() -> None:
    torch.manual_seed(0)
    base = language_model("llama")
    both = copy.deepcopy(base)
    lora = LoraConfig(r=2, lora_alpha=2, target_modules=["gate_proj", "up_proj", "down_proj"])
    inject_adapter_in_model(lora, both)
    add_experts(both, MoleConfig(num_experts=1, r=2, lora_alpha=2.0))
    awaken(both)
    with torch.no_grad():
        for name, module in base.named_modules():
            if name.endswith("_proj") and ".mlp." in name:
                twin = both.get_submodule(name)
                module.weight += twin.lora_B["default"].weight @ twin.lora_A["default"].weight
                module.weight += twin.mole_bank.default.lora_B.T @ twin.mole_bank.default.lora_A
    # Weights merged in float32 against three products added: rounding only.
    assert_close(both(IDS).logits, base(IDS).logits, rtol=1e-4, atol=1e-4)


def test_disabled_experts_are_the_base_model() -> None:
    model = language_model("llama")
    before = model(IDS).logits
    add_experts(model, MoleConfig(num_experts=3, r=2))
    awaken(model)
    with disabled_experts(model):
        assert_close(model(IDS).logits, before, rtol=0, atol=0)
        assert auxiliary_losses(model) == {}
    assert not torch.allclose(model(IDS).logits, before)


def test_a_copied_model_routes_for_itself() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=3, r=2))
    awaken(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in router_parameters(twin).values():
            parameter.zero_()
    before = model(IDS).logits
    twin(IDS)
    assert mole_context(twin)[0] is not mole_context(model)[0]
    assert_close(model(IDS).logits, before, rtol=0, atol=0)
    assert not torch.allclose(twin(IDS).logits, before)


def test_named_linears_get_experts_and_no_other() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=2, r=2, target_modules=("down_proj",)))
    names = {name.rsplit(".mole_bank", 1)[0].rsplit(".", 1)[1] for name in expert_parameters(model)}
    assert names == {"down_proj"}


def test_a_linear_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"gate_prj.*nearest.*gate_proj"):
        add_experts(language_model("llama"), MoleConfig(target_modules=("gate_prj",)))


def test_experts_twice_are_refused() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=2, r=2))
    with pytest.raises(ConfigError, match="has experts already"):
        add_experts(model, MoleConfig(num_experts=2, r=2))


def test_merging_one_expert_gives_the_same_dense_model() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=1, r=2))
    awaken(model)
    before = model(IDS).logits
    merge(model)
    # One rounded weight in place of a sum of products.
    assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-4)


def test_merging_several_experts_is_refused_with_the_reason() -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=2, r=2))
    with pytest.raises(ConfigError, match="each token uses its own expert"):
        merge(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [("routing", "top-1"), ("gate", "hard"), ("num_experts", 0), ("r", 1.5), ("lora_alpha", 0),
     ("lora_dropout", 1.0), ("balance_coef", -1), ("target_modules", ())],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        MoleConfig(**{key: value})


def test_every_bad_value_is_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"num_experts=.*lora_dropout=.*gate="):
        MoleConfig(gate="x", num_experts=0, lora_dropout=2)
