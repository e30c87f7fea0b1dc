"""Experts on a base of 4 or 8 bits (bitsandbytes): the base stays packed, experts learn in floating
point, and nothing is ever folded into packed weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    AuxiliaryLossMixin,
    MoleConfig,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    load,
    mark_trainable,
    merge,
    router_parameters,
    save,
)
from tests.helpers import awaken, gradients, language_model, random_ids, write_language_model

bnb = pytest.importorskip("bitsandbytes")

IDS = random_ids(2, 12)
# bitsandbytes packs in blocks of 64.
WIDTHS = {"hidden_size": 64, "intermediate_size": 128}
BITS = pytest.mark.parametrize("bits", [4, 8])


def packed(linear: nn.Linear, bits: int) -> nn.Module:
    sizes = linear.in_features, linear.out_features
    if bits == 4:
        new = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        new.weight = bnb.nn.Params4bit(
            linear.weight.data.clone(), requires_grad=False, quant_type="nf4"
        )
    else:
        new = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(
            linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False
        )
    return new.to("cpu")  # where bitsandbytes packs


def unpacked(linear: Any, bits: int) -> nn.Linear:
    """A plain linear with the numbers that the packed one stands for."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False)
    if bits == 4:
        weight = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    else:
        weight = linear.weight.CB.float() * linear.weight.SCB.unsqueeze(1) / 127
    plain.weight = nn.Parameter(weight.view_as(plain.weight).float(), requires_grad=False)
    return plain


def quantised(bits: int) -> nn.Module:
    """A llama whose MLPs are packed."""
    model = language_model("llama", **WIDTHS)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".mlp." in name:
            model.set_submodule(name, packed(module, bits))
    return model


def dequantised(model: nn.Module, bits: int) -> nn.Module:
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear) and ".mlp." in name:
            twin.set_submodule(name, unpacked(module, bits))
    return twin


def routed(model: nn.Module, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = {"num_experts": 3, "r": 2, "gate": "scaled", "balance_coef": 1.0, **changes}
    add_experts(model, MoleConfig(**config))
    awaken(model)
    mark_trainable(model)
    return model


def learn(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(IDS, labels=IDS)
    (out.loss + auxiliary_losses(model)["balance"]).backward()
    return out.logits.detach(), gradients(model)


@BITS
def test_at_step_0_the_routed_model_equals_its_packed_base(bits: int) -> None:
    model = quantised(bits)
    before = model(IDS).logits
    add_experts(model, MoleConfig(num_experts=3, r=2))
    assert_close(model(IDS).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", ["masked", "tiled", "reference"])
def test_experts_on_4_bits_learn_as_on_the_numbers_that_the_bits_stand_for(kernel: str) -> None:
    model = quantised(4)
    twin = dequantised(model, 4)
    logits, found = learn(routed(model, kernel=kernel))
    expected_logits, expected = learn(routed(twin, kernel=kernel))
    # The same float32 numbers, unpacked for each product: sums in another order.
    assert_close(logits, expected_logits, rtol=1e-3, atol=1e-4)
    assert found.keys() == expected.keys() == {*expert_parameters(twin), *router_parameters(twin)}
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_experts_on_8_bits_learn_nearly_as_on_the_numbers_that_the_bits_stand_for() -> None:
    model = quantised(8)
    twin = dequantised(model, 8)
    logits, found = learn(routed(model))
    expected_logits, expected = learn(routed(twin))
    # Inputs are rounded to 8 bits too, which a plain linear does not do: some 1 % of each product,
    # and now and then another expert for a token.
    assert (logits - expected_logits).norm() < 0.1 * expected_logits.norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if "lora_B" in name:
            cosine = torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
            assert cosine > 0.9, name


@BITS
def test_training_leaves_the_packed_weights_alone(bits: int) -> None:
    model = routed(quantised(bits))
    before = model.model.layers[0].mlp.gate_proj.weight.data.clone()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trained, 0.1).step(lambda: learn(model)[0].sum())
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight.data, before)
    assert before.dtype == (torch.uint8 if bits == 4 else torch.int8)


@BITS
def test_saved_experts_load_onto_a_packed_base(bits: int, tmp_path: Path) -> None:
    model = routed(quantised(bits))
    save(model, tmp_path)
    fresh = quantised(bits)
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@BITS
def test_merging_into_packed_weights_is_refused_and_changes_nothing(bits: int) -> None:
    model = routed(quantised(bits), num_experts=1, gate="none")
    before = model(IDS).logits
    with pytest.raises(ConfigError, match=r"gate_proj.*quantised; load the base in a floating"):
        merge(model)
    assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_pefts_qlora_on_the_same_linears_adds_up() -> None:
    model = get_peft_model(quantised(4), LoraConfig(r=2, target_modules=["gate_proj", "q_proj"]))
    before = model(IDS).logits
    add_experts(model, MoleConfig(num_experts=3, r=2))
    assert_close(model(IDS).logits, before, rtol=0, atol=0)
    awaken(model)
    assert not torch.allclose(model(IDS).logits, before, atol=1e-3)


def test_transformers_trains_experts_on_a_base_that_it_loaded_in_4_bits(tmp_path: Path) -> None:
    class MoleTrainer(AuxiliaryLossMixin, Trainer):
        pass

    folder = write_language_model(tmp_path / "base", "llama", **WIDTHS)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    assert isinstance(model.model.layers[0].mlp.gate_proj, bnb.nn.Linear4bit)
    add_experts(model, MoleConfig(num_experts=3, r=2))
    mark_trainable(model)
    before = {name: value.detach().clone() for name, value in expert_parameters(model).items()}
    rows = [{"input_ids": line, "labels": line} for line in random_ids(4, 9)]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, save_strategy="no",
        report_to="none", use_cpu=True, disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = MoleTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    after = expert_parameters(model)
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    trainer.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "model.safetensors").exists()
