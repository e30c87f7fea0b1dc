"""An expert that every token uses: a plain LoRA on the same linears, in the experts' products."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import ExpertBank, MoleConfig, add_experts, load, merge, save
from llava_mole.mole.adapters import adapter_of
from tests.helpers import awaken, language_model, random_ids

IDS = random_ids(2, 9)


def config(**changes: Any) -> MoleConfig:
    same = {"num_experts": 3, "r": 2, "lora_alpha": 6.0, "gate": "straight_through"}
    return MoleConfig(**(same | changes))


def shared(**changes: Any) -> Any:
    model = language_model("llama")
    add_experts(model, config(shared_expert_r=4, **changes))
    return awaken(model)


def beside_lora(model: nn.Module) -> Any:
    """PEFT's LoRA on the MLPs and experts on it, with the same weights."""
    twin = language_model("llama")
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=["gate_proj", "up_proj", "down_proj"])
    inject_adapter_in_model(lora, twin)
    add_experts(twin, config())
    theirs = adapter_of(model).banks
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, bank in adapter_of(twin).banks.items():
            whole = theirs[name]
            assert whole.lora_A is not None
            assert bank.lora_A is not None
            bank.lora_A.copy_(whole.lora_A[4:])
            bank.lora_B.copy_(whole.lora_B[4:])
            layer: Any = adapter_of(twin).root.get_submodule(name)
            layer.lora_A["default"].weight.copy_(whole.lora_A[:4])
            layer.lora_B["default"].weight.copy_(whole.lora_B[:4].T)
        for name, parameter in twin.named_parameters():
            if "router" in name:
                parameter.copy_(state[name])
    return twin


def test_it_is_a_plain_lora_of_the_same_linears_beside_the_experts() -> None:
    model = shared()
    twin = beside_lora(model)
    assert_close(model(IDS).logits, twin(IDS).logits, rtol=1e-4, atol=1e-4)
    for one in (model, twin):
        one(IDS, labels=IDS).loss.backward()
    for name, bank in adapter_of(twin).banks.items():
        whole, layer = adapter_of(model).banks[name], adapter_of(twin).root.get_submodule(name)
        for found, lora, expert in (
            (whole.lora_A.grad, layer.lora_A["default"].weight.grad, bank.lora_A.grad),
            (whole.lora_B.grad, layer.lora_B["default"].weight.grad.T, bank.lora_B.grad),
        ):
            assert_close(found[:4], lora, rtol=1e-3, atol=1e-5)
            assert_close(found[4:], expert, rtol=1e-3, atol=1e-5)


def test_it_is_saved_with_the_experts(tmp_path: Path) -> None:
    model = shared()
    save(model, tmp_path)
    fresh = language_model("llama")
    load(fresh, tmp_path)
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    assert all(bank.shared_rank == 4 for bank in adapter_of(fresh).banks.values())


def test_a_single_expert_is_merged_with_it() -> None:
    model = shared(num_experts=1)
    expected = model(IDS).logits
    merge(model)
    assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [-1, 1.5, True, "4"])
def test_a_rank_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"shared_expert_r=.*a whole number, 0 or more"):
        config(shared_expert_r=value)


def test_it_does_not_go_beside_frozen_experts() -> None:
    with pytest.raises(ConfigError, match="not with frozen= or down_features="):
        ExpertBank(8, 8, [2, 2], scaling=1.0, frozen=1, shared_rank=2)
