"""Merging: exact where the route is constant, refused with the reason where it is not."""

from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    METHODS,
    MoleConfig,
    active_adapters,
    adapter_of,
    add_experts,
    append_task,
    disable_adapter,
    merge,
    set_adapter,
)
from tests.helpers import awaken, language_model, random_ids

IDS = random_ids(2, 9)
SAME = {"rtol": 1e-4, "atol": 1e-4}
"""One rounded float32 weight in place of a sum of products."""

ONE = {"num_experts": 1, "r": 2}
CONSTANT: list[dict[str, Any]] = [
    {"method": "multilora"},
    {"method": "multilora", "num_experts": 2, "expert_ranks": (1, 3)},
    {"method": "llava_mole", "num_experts": [1, 1], "r": 2},
    {"method": "loramoe", "num_experts": [1, 1], "r": 2},
    {"method": "hydralora", "num_experts": [1, 1], "r": 2},
    {"method": "llava_mole", **ONE},
    {"method": "llava_mole", **ONE, "gate": "straight_through"},
    {"method": "llava_mole", **ONE, "gate": "scaled"},
    {"method": "llava_mole", **ONE, "routing": "dense"},
    {"method": "mola", **ONE, "top_k": 1},
    {"method": "dynmole", **ONE, "keep_top_k": 1},
    {"method": "smora", "num_experts": 1, "r": 4, "top_k": 1},
    {"method": "loramoe", **ONE},
    {"method": "hydralora", **ONE},
    {"method": "malora", **ONE, "top_k": 1, "shared_r": 3},
    {"method": "amlora", **ONE},
]
ROUTED: list[tuple[dict[str, Any], str]] = [
    ({"method": "llava_mole"}, "each token uses its own expert"),
    ({"method": "mola", "num_experts": 2}, "each token uses its own expert"),
    ({"method": "dynmole"}, "each token uses its own expert"),
    ({"method": "smora"}, "each token uses its own expert"),
    ({"method": "malora"}, "each token uses its own expert"),
    ({"method": "loramoe"}, "each token weights the experts its own way"),
    ({"method": "hydralora"}, "each token weights the experts its own way"),
    ({"method": "amlora", "num_experts": 2}, "each token weights the experts its own way"),
    ({"method": "amlora", "mix": "sigmoid"}, "each token weights the experts its own way"),
    ({"method": "conditional_mixlora"}, "each sequence puts together its own LoRA"),
]


def model_with(name: str = "default", *, seed: int = 1, **values: Any) -> nn.Module:
    model = language_model("llama")
    add_experts(model, MoleConfig(**values), name)
    return awaken(model, seed)


@pytest.mark.parametrize("values", CONSTANT, ids=str)
def test_where_the_route_is_constant_merging_is_exact(values: dict[str, Any]) -> None:
    model = model_with(**values)
    base = language_model("llama")(IDS).logits
    before = model(IDS).logits
    merge(model)
    assert_close(model(IDS).logits, before, **SAME)
    assert not torch.allclose(before, base, atol=1e-2)


@pytest.mark.parametrize(("values", "reason"), ROUTED, ids=str)
def test_where_the_route_depends_on_the_input_merging_is_refused_with_the_reason(
    values: dict[str, Any], reason: str
) -> None:
    model = model_with(**{"r": 2, **values})
    before = model(IDS).logits
    with pytest.raises(ConfigError, match=f"cannot merge .* {values['method']}: {reason}"):
        merge(model)
    assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_every_method_is_proved_one_way_or_the_other() -> None:
    assert {v["method"] for v in CONSTANT} | {v["method"] for v, _ in ROUTED} == set(METHODS)


def test_what_refuses_routers_refuses_tasks_appended_later() -> None:
    model = model_with(method="amlora", num_experts=1, r=2)
    append_task(model)
    with pytest.raises(ConfigError, match="cannot merge 2 experts of amlora"):
        merge(model)


def test_the_adapter_is_gone_and_another_may_be_added() -> None:
    model = model_with(**ONE)
    merge(model)
    assert set(model.state_dict()) == set(language_model("llama").state_dict())
    with pytest.raises(ConfigError, match="has no experts"):
        adapter_of(model)
    before = model(IDS).logits
    add_experts(model, MoleConfig(num_experts=3, r=2))
    assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_one_adapter_is_merged_and_the_other_stays() -> None:
    model = model_with("one", **ONE)
    add_experts(model, MoleConfig(num_experts=3, r=2), "three")
    awaken(model)
    before = model(IDS).logits
    with pytest.raises(ConfigError, match="several sets of experts"):
        merge(model)
    merge(model, "one")
    assert active_adapters(model) == ["three"]
    assert_close(model(IDS).logits, before, **SAME)


def test_the_adapter_that_is_on_is_the_one_merged() -> None:
    model = model_with("first", **ONE)
    add_experts(model, MoleConfig(method="multilora", r=2), "second")
    awaken(model, seed=5)
    set_adapter(model, "second")
    before = model(IDS).logits
    merge(model)
    disable_adapter(model)
    assert_close(model(IDS).logits, before, **SAME)


def test_experts_merge_into_the_base_below_a_lora_of_pefts() -> None:
    model = language_model("llama")
    lora = LoraConfig(r=2, lora_alpha=2, target_modules=["up_proj"])
    inject_adapter_in_model(lora, model)
    add_experts(model, MoleConfig(**ONE))
    awaken(model)  # both
    before = model(IDS).logits
    merge(model)
    assert_close(model(IDS).logits, before, **SAME)


def below_pefts(config: Any) -> Any:
    """Experts on linears that PEFT has wrapped, all weights random."""
    model = get_peft_model(language_model("llama"), config)
    add_experts(model, MoleConfig(method="multilora", r=2, target_modules=["up_proj"]))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "ia3_", "oft_")):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, use_dora=True, target_modules=["up_proj"]),
        IA3Config(target_modules=["up_proj"], feedforward_modules=[]),
        IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"]),
        OFTConfig(oft_block_size=8, target_modules=["up_proj"]),
    ],
    ids=["dora", "ia3 of outputs", "ia3 of inputs", "oft"],
)
def test_below_what_scales_or_turns_merging_is_refused_and_changes_nothing(config: Any) -> None:
    model = below_pefts(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"up_proj: PEFT's \w+ there does more than add"):
        merge(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_below_a_lora_that_only_adds_merging_is_exact() -> None:
    model = below_pefts(LoraConfig(r=2, target_modules=["up_proj"]))
    before = model(IDS).logits
    merge(model)
    assert_close(model(IDS).logits, before, **SAME)


def test_a_weight_that_two_linears_share_is_refused_and_stays() -> None:
    model = language_model("llama")
    first, second = (layer.mlp.up_proj for layer in model.model.layers)
    second.weight = first.weight
    add_experts(model, MoleConfig(**ONE))
    awaken(model)
    before = first.weight.clone()
    with pytest.raises(ConfigError, match=r"up_proj: another module shares its weight"):
        merge(model)
    assert torch.equal(first.weight, before)
    adapter_of(model)  # is still there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_keep_their_dtype_and_what_is_not_changed_its_bits(dtype: torch.dtype) -> None:
    model = language_model("llama").to(dtype)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1 / 3)  # float64 digits, where there are
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_experts(model, MoleConfig(**ONE))  # B is zero
    merge(model)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, before[name])


def test_quantised_weights_are_refused_before_any_other_is_changed() -> None:
    model = model_with(**ONE)
    layers = model.model.layers
    first = layers[0].mlp.gate_proj.weight.clone()
    packed = torch.zeros(32, 48, dtype=torch.uint8)
    layers[1].mlp.down_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj.*uint8.*quantised"):
        merge(model)
    assert torch.equal(layers[0].mlp.gate_proj.weight, first)
