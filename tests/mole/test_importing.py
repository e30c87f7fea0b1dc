"""Plain PEFT LoRAs become experts that do exactly what they were trained to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole import MoleConfig, adapter_of, import_loras, router_parameters
from tests.helpers import FAMILIES, MLP_LINEARS, language_model, random_ids

IDS = random_ids(2, 9)
MLP = ["gate_proj", "up_proj", "down_proj"]
SAME = {"rtol": 1e-5, "atol": 2e-5}
"""PEFT scales after B, we scale B: a few ulp of logits of order 10."""

Make = Callable[..., tuple[Path, Tensor]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Factory of a saved LoRA: (family, seed, base changes, LoraConfig options) -> folder, logits
    as PEFT computes them from the folder."""

    def make(
        family: str = "llama", *, seed: int = 0, base: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Path, Tensor]:
        values = {"r": 4, "lora_alpha": 6, "target_modules": MLP, "task_type": "CAUSAL_LM"}
        model = get_peft_model(
            language_model(family, **(base or {})), LoraConfig(**values | options)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "lora_A" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(language_model(family, **(base or {})), folder)
        return folder, loaded(IDS).logits

    return make


def change(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@torch.no_grad()
def always(model: nn.Module, expert: int) -> None:
    """Send every token to one expert."""
    for name, parameter in router_parameters(model).items():
        parameter.zero_()
        if name.endswith("bias"):
            parameter[expert] = 1.0


# ---------------------------------------------------------------------- what is imported


@pytest.mark.parametrize("family", FAMILIES)
def test_one_lora_as_a_mixture_of_one_is_pefts_model(family: str, make: Make) -> None:
    folder, expected = make(family, target_modules=MLP_LINEARS[family])
    model = language_model(family)
    before = model(IDS).logits
    import_loras(model, [folder])
    assert_close(model(IDS).logits, expected, **SAME)
    assert not torch.allclose(expected, before, atol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"up_proj": 40}},
        {"alpha_pattern": {"model.layers.1.mlp.up_proj": 40}},
        {"alpha_pattern": {r"layers\.[1-9].*\.(up|down)_proj": 40}},
        {"alpha_pattern": {"down_proj": 40, "mlp.down_proj": 1}},
        {"target_modules": ["q_proj", "o_proj", "up_proj"]},
        {"target_modules": r".*\.1\..*_proj"},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"lora_dropout": 0.5},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_every_option_that_leaves_it_a_plain_lora_is_kept(
    options: dict[str, Any], make: Make
) -> None:
    folder, expected = make(**options)
    model = language_model("llama")
    import_loras(model, [folder])
    assert_close(model(IDS).logits, expected, **SAME)


def test_a_shared_expert_beside_imported_loras_adds_nothing_yet(make: Make) -> None:
    folder, expected = make(r=4)
    model = language_model("llama")
    import_loras(model, [folder], MoleConfig(shared_expert_r=3))
    assert_close(model(IDS).logits, expected, **SAME)
    assert adapter_of(model).banks["layers.0.mlp.up_proj"].shared_rank == 3


def test_each_of_several_experts_is_its_own_lora_whatever_its_rank_and_scale(make: Make) -> None:
    loras = [
        make(seed=1, r=4, lora_alpha=6),
        make(seed=2, r=1, lora_alpha=5),
        make(seed=3, r=8, lora_alpha=2, use_rslora=True),
    ]
    model = language_model("llama")
    import_loras(model, [folder for folder, _ in loras])
    assert adapter_of(model).banks["layers.0.mlp.up_proj"].ranks == (4, 1, 8)
    for expert, (_, expected) in enumerate(loras):
        always(model, expert)
        assert_close(model(IDS).logits, expected, **SAME)


@pytest.mark.parametrize(
    "config",
    [{"method": "mola", "top_k": 1}, {"method": "dynmole", "entropy_threshold": 1, "top_p": 1}],
    ids=str,
)
def test_another_methods_router_may_mix_them(config: dict[str, Any], make: Make) -> None:
    folder, expected = make()
    model = language_model("llama")
    import_loras(model, [folder, folder], MoleConfig(**config))
    assert adapter_of(model).config.method == config["method"]
    # Two equal experts whose weights sum to 1.
    assert_close(model(IDS).logits, expected, **SAME)


def test_the_configs_options_are_kept_and_its_shape_is_the_folders(make: Make) -> None:
    folder, _ = make(r=3)
    model = language_model("llama")
    wanted = MoleConfig(num_experts=9, r=7, gate="scaled", kernel="reference", balance_coef=0.5)
    import_loras(model, [folder, folder], wanted, adapter_name="mixed")
    config = adapter_of(model, "mixed").config
    assert (config.num_experts, config.r) == (2, 3)
    assert (config.gate, config.kernel, config.balance_coef) == ("scaled", "reference", 0.5)


def test_onto_a_model_that_peft_wrapped_as_onto_the_plain_one(make: Make) -> None:
    folder, expected = make()
    wrapped = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    import_loras(wrapped, [folder])  # PEFT's own LoRA starts at zero
    plain = language_model("llama")
    import_loras(plain, [folder])
    found = wrapped.eval()(IDS).logits
    assert_close(found, plain(IDS).logits, rtol=0, atol=0)
    assert_close(found, expected, **SAME)


# ---------------------------------------------------------------------- what is refused


def refused(folders: list[Path], message: str, config: MoleConfig | None = None) -> PreTrainedModel:
    """Import, see the message, and see that the model is the base it was."""
    model = language_model("llama")
    names, before = set(model.state_dict()), model(IDS).logits
    with pytest.raises((CheckpointError, ConfigError), match=message):
        import_loras(model, folders, config)
    assert set(model.state_dict()) == names
    assert_close(model(IDS).logits, before, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="has no experts"):
        adapter_of(model)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"rank_pattern": {"up_proj": 2}}, "rank_pattern is set"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
        ({"target_modules": ["up_proj", "lm_head"]}, "lm_head.* belongs to no LoRA"),
        ({"target_modules": ["up_proj", "embed_tokens"]}, "embed_tokens.* belongs to no LoRA"),
        ({"base": {"intermediate_size": 64}}, "another base model"),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_of_this_base_is_refused(
    options: dict[str, Any], message: str, make: Make
) -> None:
    refused([make(**options)[0]], message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5, 6]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"gamma": 1}),
        ("monteclora_config", {"num_samples": 2}),
        ("target_parameters", ["experts.up"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
    ],
)
def test_a_lora_that_is_more_than_its_matrices_is_refused_by_key(
    key: str, value: object, make: Make
) -> None:
    refused([change(make()[0], **{key: value})], key)


NO_NUMBER = [None, 0, -1, "x", True, float("nan"), float("inf")]


@pytest.mark.parametrize(
    ("key", "value"), [(key, v) for key in ("r", "lora_alpha") for v in NO_NUMBER] + [("r", 4.7)]
)
def test_a_rank_or_alpha_that_is_no_number_is_refused_by_key(
    key: str, value: object, make: Make
) -> None:
    what = "no whole number" if value == 4.7 else "not a positive number"
    refused([change(make()[0], **{key: value})], rf"adapter_config\.json: {key}=.* is {what}")


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_rank_or_alpha_that_is_missing_is_refused_by_key(key: str, make: Make) -> None:
    folder, _ = make()
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    del values[key]
    file.write_text(json.dumps(values))
    refused([folder], rf"adapter_config\.json: {key}=None is not a positive number")


def test_an_alpha_of_some_linears_that_is_no_number_is_refused_by_its_pattern(make: Make) -> None:
    folder = change(make()[0], alpha_pattern={"up_proj": 40, "down_proj": None})
    refused([folder], "down_proj=None is not a positive number")


def test_loras_of_different_linears_are_refused_with_the_first_of_them(make: Make) -> None:
    one, other = make()[0], make(target_modules=["up_proj"])[0]
    refused([one, other], r"adapt different linears, first model\.layers\.0\.mlp\.down_proj")


def test_linears_that_the_model_does_not_have_are_refused(make: Make) -> None:
    refused([make("phi3", target_modules=["gate_up_proj"])[0]], "gate_up_proj")


def test_a_base_of_fewer_layers_is_told_the_first_linear_that_it_lacks(make: Make) -> None:
    folder, _ = make(base={"num_hidden_layers": 3})
    refused([folder], r"adapts model\.layers\.2\.mlp\.down_proj, which LlamaForCausalLM has not")


def test_a_bare_decoder_is_not_the_model_that_the_lora_was_trained_on(make: Make) -> None:
    decoder = language_model("llama").model
    names = set(decoder.state_dict())
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj, .* LlamaModel"):
        import_loras(decoder, [make()[0]])
    assert set(decoder.state_dict()) == names


def test_half_a_lora_is_refused(make: Make) -> None:
    folder, _ = make()
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith("up_proj.lora_B.weight"))
    del tensors[gone]
    save_file(tensors, file)
    refused([folder], r"up_proj\.lora_B\.weight is missing")


def test_a_lora_of_another_part_than_the_decoder_is_refused(make: Make) -> None:
    folder, _ = make()
    file = folder / "adapter_model.safetensors"
    renamed = {name.replace(".layers.", ".tower."): t for name, t in load_file(file).items()}
    save_file({name.replace("model.model.tower", "tower"): t for name, t in renamed.items()}, file)
    refused([folder], r"adapts .*tower\.0\.mlp\.down_proj, outside of the decoder 'model'")


@pytest.mark.parametrize("method", ["hydralora", "malora", "multilora", "amlora"])
def test_a_method_whose_experts_are_no_loras_is_refused(method: str, make: Make) -> None:
    folder, _ = make()
    refused(
        [folder, folder], "experts of this method are no plain LoRAs", MoleConfig(method=method)
    )


def test_a_method_of_rank_1_factors_is_refused(make: Make) -> None:
    folder, _ = make(r=2)
    config = MoleConfig(method="conditional_mixlora")
    refused([folder] * 3, "experts of this method are no plain LoRAs", config)


def test_a_method_of_one_rank_is_refused_loras_of_several(make: Make) -> None:
    folders = [make(r=2)[0], make(r=3)[0]]
    refused(folders, "expert_ranks", MoleConfig(method="malora"))


def test_no_folder_at_all_is_refused() -> None:
    refused([], "no folder given")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    refused([tmp_path / "gone"], "gone.*is missing")


def test_after_a_refusal_the_model_takes_other_loras(make: Make) -> None:
    model = refused([make(base={"intermediate_size": 64})[0]], "another base model")
    folder, expected = make()
    import_loras(model, [folder])
    assert_close(model(IDS).logits, expected, **SAME)
