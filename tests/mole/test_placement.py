"""Which linears get experts, and how many: targets, layers, lists, roots; and every refusal, which
leaves the model as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    mark_trainable,
)
from llava_mole.mole.hooks import is_plain_and_frozen
from tests.helpers import SMALL, awaken, language_model, random_ids

LAYERS = 4
EXPERTS = {"num_experts": 2, "r": 2}
MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    # Its `mlp` holds a plain linear too: the gate of a shared expert.
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    # Layer 0 is dense.
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    # Its own router derives from torch's linear.
    "phimoe": {"num_local_experts": 4},
}


def llama(**changes: Any) -> nn.Module:
    return language_model("llama", num_hidden_layers=LAYERS, **changes)


def causal(family: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **changes}))


def gpt2() -> nn.Module:
    return causal("gpt2", n_embd=32, n_layer=2, n_head=4)


def places(model: nn.Module, **config: Any) -> set[str]:
    """Names below the decoder of the linears that get experts."""
    add_experts(model, MoleConfig(**{**EXPERTS, **config}))
    return set(adapter_of(model).banks)


def anatomy(model: nn.Module) -> list[Any]:
    """All that add_experts touches: modules, hooks, attributes and what learns."""
    found: list[Any] = [(n, p.requires_grad) for n, p in model.named_parameters()]
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        found.append((name, type(module), hooks, sorted(vars(module))))
    return found


def refuses(model: nn.Module, match: str, adapter_name: str = "default", **config: Any) -> None:
    before = anatomy(model)
    with pytest.raises(ConfigError, match=match):
        add_experts(model, MoleConfig(**{**EXPERTS, **config}), adapter_name)
    assert anatomy(model) == before


# ---------------------------------------------------------------------- which linears


def test_by_default_the_mlps_get_experts() -> None:
    assert places(llama()) == {
        f"layers.{layer}.mlp.{name}"
        for layer in range(LAYERS)
        for name in ("gate_proj", "up_proj", "down_proj")
    }


def test_a_name_may_say_where_it_stands() -> None:
    assert places(llama(), target_modules=("1.mlp.up_proj", "q_proj")) == {
        "layers.1.mlp.up_proj",
        *(f"layers.{layer}.self_attn.q_proj" for layer in range(LAYERS)),
    }


@pytest.mark.parametrize("prefix", [r"model\.", ""])
def test_a_regular_expression_matches_whole_names(prefix: str) -> None:
    pattern = prefix + r"layers\.[02]\.self_attn\.(q|v)_proj"
    assert places(llama(), method="mola", num_experts=2, target_modules=pattern) == {
        f"layers.{layer}.self_attn.{name}" for layer in (0, 2) for name in ("q_proj", "v_proj")
    }


def test_all_linears_leave_the_head_out() -> None:
    found = places(llama(), target_modules="all-linear")
    assert {name.rsplit(".", 1)[-1] for name in found} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


@pytest.mark.parametrize(
    "exclude", [("down_proj", "0.mlp.up_proj"), r".*(down_proj|0\.mlp\.up_proj)"]
)
def test_excluded_linears_get_none(exclude: Any) -> None:
    found = places(llama(), exclude_modules=exclude)
    assert not any(name.endswith("down_proj") for name in found)
    assert {name for name in found if name.endswith("up_proj")} == {
        f"layers.{layer}.mlp.up_proj" for layer in (1, 2, 3)
    }


def test_chosen_layers_get_experts_and_no_other() -> None:
    found = places(llama(), layers_to_transform=(1, 3))
    assert {name.split(".")[1] for name in found} == {"1", "3"}


def test_dense_layers_of_a_mixture_may_be_chosen() -> None:
    model = causal("qwen3_moe", **MIXTURES["qwen3_moe"])
    assert {name.split(".")[1] for name in places(model, layers_to_transform=(0,))} == {"0"}


def test_a_root_inside_the_decoder_narrows_it() -> None:
    model = llama()
    add_experts(model, MoleConfig(**EXPERTS, root="model.layers.2"))
    names = {name.rsplit(".mole_bank", 1)[0] for name in expert_parameters(model)}
    assert names == {f"model.layers.2.mlp.{name}_proj" for name in ("gate", "up", "down")}


def test_padding_is_known_at_a_root_inside_the_decoder() -> None:
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 4:] = 0
    losses = []
    for where in ({"root": "model.layers.2"}, {"layers_to_transform": (2,)}):
        model = llama()
        torch.manual_seed(0)
        add_experts(model, MoleConfig(**EXPERTS, **where))
        awaken(model)
        model(input_ids=ids, attention_mask=mask)
        losses.append(auxiliary_losses(model)["balance"])
    assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_adapters_whose_name_says_frozen_learn_all_the_same() -> None:
    model = llama()
    add_experts(model, MoleConfig(**EXPERTS), "frozen_one")
    mark_trainable(model)
    assert all(parameter.requires_grad for parameter in expert_parameters(model).values())


# ---------------------------------------------------------------------- how many in which layer


@pytest.mark.parametrize(
    ("numbers", "by_layer"),
    [((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 5), (2, 2, 5, 5)), ((3,), (3, 3, 3, 3)), (3, (3, 3, 3, 3))],
)
@pytest.mark.parametrize("key", ["num_experts", "r", "top_k"])
def test_each_layer_gets_its_own_number(key: str, numbers: Any, by_layer: tuple[int, ...]) -> None:
    model = llama()
    config = {"method": "mola", "num_experts": 6, "r": 2, "top_k": 2, key: numbers}
    add_experts(model, MoleConfig(**config))
    adapter = adapter_of(model)
    for name, bank in adapter.banks.items():
        expected = by_layer[int(name.split(".")[1])]
        if key == "num_experts":
            assert bank.num_experts == expected
        if key == "r":
            assert set(bank.ranks) == {expected}
            assert bank.scaling == adapter.config.lora_alpha / expected
    if key == "top_k":
        model(random_ids(1, 5))
        for record in adapter.context.records:
            assert record.route.top_k == by_layer[int(record.name.split(".")[1])]


def test_a_list_counts_layers_of_the_model_where_only_some_are_chosen() -> None:
    model = llama()
    add_experts(model, MoleConfig(num_experts=(2, 3, 4, 5), r=2, layers_to_transform=(1, 3)))
    found = {int(n.split(".")[1]): b.num_experts for n, b in adapter_of(model).banks.items()}
    assert found == {1: 3, 3: 5}


@pytest.mark.parametrize("key", ["num_experts", "r"])
def test_a_list_longer_than_the_layers_is_refused(key: str) -> None:
    refuses(llama(), rf"{key}=.*: 5 values for 4 layers", **{key: (2,) * 5})


def test_a_list_where_no_layer_has_a_number_is_refused() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    refuses(model, "a list needs numbered layers", num_experts=(2, 3), target_modules=("linear1",))


def test_more_experts_per_token_than_a_layer_has_are_refused_where_it_happens() -> None:
    refuses(
        llama(),
        r"top_k=3 of num_experts=2 at layers\.1\.",
        method="mola",
        num_experts=(4, 2, 4, 4),
        top_k=3,
    )


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"target_modules": ("gate_prj",)}, r"\['gate_prj'\].*nearest.*gate_proj"),
        ({"target_modules": "up_porj"}, r"\['up_porj'\].*nearest.*up_proj"),
        ({"target_modules": ("gate_proj", "fc1")}, r"no linear for \['fc1'\]"),
        ({"target_modules": r".*\.attention\..*"}, r"matches no linear for any module.*q_proj"),
        ({"target_modules": r"layers\.(\d"}, "no regular expression"),
        ({"exclude_modules": ("dwon_proj",)}, r"'dwon_proj' matches no module.*down_proj"),
        ({"exclude_modules": r".*\.attention\..*"}, "matches no module"),
        ({"exclude_modules": ("mlp.gate_proj", "up_proj", "down_proj")}, "excluded were"),
        (
            {"layers_to_transform": (1, 9)},
            r"no targets in layers \[9\]; they are in \[0, 1, 2, 3\]",
        ),
        ({"root": "model.layer"}, r"names no module.*nearest.*model\.layers"),
        ({"root": "visual"}, r"names no module.*it has: \['model', 'lm_head'\]"),
        ({"root": "model.layers"}, r"ModuleList, which is never called"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_is_there(
    config: dict[str, Any], match: str
) -> None:
    refuses(llama(), match, **config)


@pytest.mark.parametrize("target", ["mlp-linears", "all-linear", ("c_fc",), r".*\.c_fc"])
def test_gpt2s_conv1d_is_refused_by_its_class(target: Any) -> None:
    refuses(gpt2(), r"c_(fc|attn) is a transformers\.pytorch_utils\.Conv1D", target_modules=target)


@pytest.mark.parametrize("family", MIXTURES)
def test_mlps_that_are_mixtures_already_are_refused_by_their_tensor(family: str) -> None:
    model = causal(family, **MIXTURES[family])
    refuses(model, r"layers\.[01]\.mlp is a mixture of experts already: gate_up_proj of \w+Experts")


def test_a_fused_tensor_named_as_a_target_is_refused_by_its_shape() -> None:
    model = causal("mixtral", **MIXTURES["mixtral"])
    refuses(model, r"gate_up_proj is a bare parameter \(4, 96, 32\)", target_modules="gate_up_proj")


def test_attention_of_a_mixture_may_still_get_experts() -> None:
    model = causal("mixtral", **MIXTURES["mixtral"])
    found = places(model, method="mola", num_experts=2, target_modules=("q_proj", "v_proj"))
    assert len(found) == 2 * 2


def test_a_linear_that_torchs_attention_never_calls_is_refused() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    refuses(encoder, r"out_proj is a .*never run.*exclude_modules", target_modules="all-linear",
            method="mola")  # fmt: skip
    assert places(encoder, method="mola", num_experts=2, target_modules="all-linear",
                  exclude_modules=("out_proj",)) == {"linear1", "linear2"}  # fmt: skip


def test_a_block_that_is_only_a_list_is_refused_for_routers_of_blocks() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            for linear in self.mlp:
                x = linear(x)
            return x

    refuses(Listed(), "mlp is a ModuleList, which is never called itself")


def test_torchs_own_quantised_linears_are_refused_by_their_class() -> None:
    with pytest.warns(DeprecationWarning, match="quantization"):
        model = torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear})
    refuses(model, r"gate_proj is a torch\.ao\.nn\.quantized\.dynamic\.modules\.linear\.Linear")


@pytest.mark.parametrize(
    "name", ["", "a.b", "my experts", "ä/b", "keys", "training", "routers", "shapes"]
)
def test_an_adapter_name_that_cannot_be_a_modules_is_refused(name: str) -> None:
    refuses(llama(), "adapter name", adapter_name=name)


def test_a_name_that_is_taken_is_refused() -> None:
    model = llama()
    add_experts(model, MoleConfig(**EXPERTS), "one")
    refuses(model, r"experts already, named 'one'", adapter_name="one")


def test_a_name_that_is_taken_at_another_root_is_refused() -> None:
    model = llama()
    add_experts(model, MoleConfig(**EXPERTS), "one")
    refuses(model, r"experts already, named 'one'", adapter_name="one", root="model.layers.0")


# ---------------------------------------------------------------------- what is computed in one go


def test_only_torchs_own_frozen_linears_are_taken_for_plain() -> None:
    class Derived(nn.Linear):
        pass

    class Packed(Tensor):
        """As quantised weights that keep torch's linear are."""

    x = torch.zeros(1, 4)
    plain, derived, packed, learning = (
        nn.Linear(4, 4),
        Derived(4, 4),
        nn.Linear(4, 4),
        nn.Linear(4, 4),
    )
    for linear in (plain, derived, packed):
        linear.requires_grad_(False)
    packed.weight = nn.Parameter(packed.weight.data.as_subclass(Packed), requires_grad=False)
    assert is_plain_and_frozen(plain, x)
    assert not is_plain_and_frozen(derived, x)
    assert not is_plain_and_frozen(packed, x)
    assert not is_plain_and_frozen(learning, x)


def test_a_mapping_in_place_of_a_config_is_refused_with_how_to_make_one() -> None:
    with pytest.raises(ConfigError, match=r"a dict, expected a MoleConfig.*\*\*mapping"):
        add_experts(llama(), {"method": "mola"})  # type: ignore[arg-type]
