"""model.quantization: a frozen base of 4 or 8 bits; what is trained stays in floating point, and a
saved folder packs its base again and gives the same logits."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from llava_mole.building import ModelRecipe, build_model
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.quantization import KEYS, keep_layout, numbers, problems, resolved
from llava_mole.training.parts import count_parameters
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from tests.helpers import assistant, awaken, picture, training_batch, user

bnb = pytest.importorskip("bitsandbytes")

# bitsandbytes packs in blocks of 64.
WIDTHS = {"hidden_size": 64, "intermediate_size": 128}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
BOTH = pytest.mark.parametrize("bits", [NF4, INT8], ids=["4-bit", "8-bit"])


@pytest.fixture
def recipe(tiny_parts: Any) -> Callable[..., ModelRecipe]:
    def make(bits: dict[str, Any], **options: Any) -> ModelRecipe:
        base = tiny_parts.language_model("llama", **WIDTHS)
        lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj"]}
        return tiny_parts.recipe(
            language_model=base, mole=True, lora=lora, quantization=bits, **options
        )

    return make


def batch_of(processor: Any) -> dict[str, Any]:
    chat = [user("What is this?", picture(1)), assistant("a cat")]
    return training_batch(processor, [chat])


@BOTH
def test_the_language_models_linears_are_packed_and_nothing_else(
    recipe: Callable[..., ModelRecipe], bits: dict[str, Any]
) -> None:
    model, _ = build_model(recipe(bits))
    kind = bnb.nn.Linear4bit if bits is NF4 else bnb.nn.Linear8bitLt
    packed = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert len(packed) == 2 * 7  # q, k, v, o, gate, up and down of two layers
    assert all(name.startswith("language_model.model.layers") for name in packed)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            assert name.startswith("language_model.model.layers"), name
    assert type(model.language_model.lm_head) is nn.Linear


@BOTH
def test_at_step_0_the_model_equals_its_packed_base(
    recipe: Callable[..., ModelRecipe], bits: dict[str, Any]
) -> None:
    chosen = recipe(bits)
    model, processor = build_model(chosen)
    keys = resolved(bits, chosen.dtype)
    base = AutoModelForCausalLM.from_pretrained(
        chosen.language_model, quantization_config=BitsAndBytesConfig(**keys), dtype=torch.float32
    )
    keep_layout(base)
    ids = torch.tensor([processor.encode([user("Hello"), assistant("you")]).input_ids])
    with torch.no_grad():
        assert_close(model(input_ids=ids).logits, base(ids).logits, rtol=0, atol=0)


def test_a_model_that_was_evaluated_still_trains_through_its_base(
    recipe: Callable[..., ModelRecipe],
) -> None:
    """bitsandbytes' layout for inference on some CPUs has no backward pass."""
    found = []
    for evaluate_first in (False, True):
        torch.manual_seed(0)
        model, processor = build_model(recipe(NF4))
        awaken(model)
        batch = batch_of(processor)
        if evaluate_first:
            with torch.no_grad():
                model.eval()(**batch)
        for parameter in model.projector.parameters():
            parameter.requires_grad_(True)
        model.train()(**batch).loss.backward()  # reaches the projector through every layer
        found.append([p.grad for p in model.projector.parameters()])
    for before, after in zip(*found, strict=True):
        assert before.abs().sum() > 0
        assert_close(before, after, rtol=0, atol=0)


@BOTH
def test_a_saved_folder_packs_its_base_again_and_gives_the_same_logits(
    recipe: Callable[..., ModelRecipe], bits: dict[str, Any], tmp_path: Path
) -> None:
    model, processor = build_model(recipe(bits))
    awaken(model)
    model.save_pretrained(tmp_path / "model", processor=processor)
    written = {p.name for p in (tmp_path / "model").rglob("*.safetensors")}
    assert written == {"model.safetensors", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["quantization"].items() >= bits.items()
    assert "quantization_config" not in config["text_config"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    batch = batch_of(processor)
    # The same weights give the same bits, and the same operations follow.
    with torch.no_grad():
        assert_close(again(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)


@BOTH
def test_a_packed_base_is_not_saved_in_full(
    recipe: Callable[..., ModelRecipe], bits: dict[str, Any], tmp_path: Path
) -> None:
    model, _ = build_model(recipe(bits))
    with pytest.raises(CheckpointError, match="saved by reference only"):
        model.save_pretrained(tmp_path / "model", include_frozen=True)
    assert not (tmp_path / "model").exists()


def test_parameters_are_counted_as_numbers_not_as_bytes(
    recipe: Callable[..., ModelRecipe],
) -> None:
    model, _ = build_model(recipe(NF4))
    plain, _ = build_model(recipe(None))
    assert count_parameters(model) == count_parameters(plain)
    linear = model.language_model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert numbers(linear) == 64 * 64 == 2 * linear.numel()


def test_a_base_that_is_packed_already_is_not_packed_twice(
    recipe: Callable[..., ModelRecipe], tmp_path: Path
) -> None:
    chosen = recipe(NF4)
    packed = AutoModelForCausalLM.from_pretrained(
        chosen.language_model, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    packed.save_pretrained(tmp_path / "packed")
    from llava_mole.language_model import load_language_model

    with pytest.raises(ConfigError, match="quantised already"):
        load_language_model(tmp_path / "packed", quantization=NF4)


# ---------------------------------------------------------------------- a run


@pytest.mark.parametrize("method", ["llava_mole", "mola"])
def test_a_recipe_trains_experts_and_lora_on_4_bits_and_reloads_equal(
    recipe_file: Path, tiny_parts: Any, tmp_path: Path, method: str
) -> None:
    values = yaml.safe_load(recipe_file.read_text())
    values["model"] |= {
        "language_model": str(tiny_parts.language_model("llama", **WIDTHS)),
        "quantization": NF4,
        "experts": {"method": method, "num_experts": 2, "r": 2},
    }
    del values["model"]["parrot"]
    stage = values["stages"][1]
    values["stages"] = [{**stage, "steps": 2}]
    recipe_file.write_text(yaml.safe_dump(values))
    recipe = load_recipe(recipe_file)
    before: dict[str, torch.Tensor] = {}

    def look(model: Any, *_: Any) -> None:
        before.update({n: p.detach().clone() for n, p in model.named_parameters()})

    done = run_recipe(recipe, before_training=look)
    changed = {n for n, p in done.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora" in n or "mole" in n or n.startswith("projector") for n in changed), changed
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    batch = batch_of(done.processor)
    with torch.no_grad():
        assert_close(again(**batch).logits, done.model(**batch).logits, rtol=0, atol=0)


# ---------------------------------------------------------------------- the keys


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"load_in_4bits": True}, "load_in_4bits: no argument of BitsAndBytesConfig; did you mean"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "not both"),
        ({}, "or leave the section out"),
        ({"load_in_4bit": "yes"}, "load_in_4bit='yes': allowed are true, false"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "allowed are nf4, fp4"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf16"}, "allowed are bfloat16"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "nf4"}, "not read with load_in_8bit"),
        ({"load_in_4bit": True, "llm_int8_threshold": 5.0}, "not read with load_in_4bit"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "stays frozen here"),
    ],
)
def test_a_wrong_key_is_told_with_what_is_allowed(values: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(values)), problems(values)


def test_good_keys_are_no_problem_and_are_all_bitsandbytes_own() -> None:
    assert problems(NF4) == problems(INT8) == []
    assert {"load_in_4bit", "bnb_4bit_quant_type", "llm_int8_skip_modules"} <= set(KEYS)
    for key in KEYS:
        assert hasattr(BitsAndBytesConfig(load_in_8bit=True), key), key


def test_a_schema_problem_names_the_dotted_key(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.quantization\.bnb_4bit_quant_type='nf5'"):
        load_recipe(
            recipe_file,
            ["model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf5}"],
        )


def test_a_packed_language_model_cannot_be_trained(recipe_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rates\.language_model: .*quantization"):
        load_recipe(
            recipe_file,
            [
                "model.quantization={load_in_4bit: true}",
                "stages.instruct.learning_rates.language_model=1e-5",
            ],
        )


def test_without_the_package_it_is_an_error_before_weights_are_read(
    recipe: Callable[..., ModelRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == "bitsandbytes" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(ConfigError, match=r"bitsandbytes, which is not installed: pip install"):
        build_model(recipe(NF4))


def test_4_bit_products_are_computed_in_the_models_dtype_unless_said_otherwise() -> None:
    assert resolved(NF4, "bfloat16")["bnb_4bit_compute_dtype"] == "bfloat16"
    said = {**NF4, "bnb_4bit_compute_dtype": "float32"}
    assert resolved(said, "bfloat16") == said
    assert resolved(INT8, "bfloat16") == INT8
