"""Experts on vision-language models that are not ours: they land in the language model, and there
everything holds that holds for a language model alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    expert_parameters,
    load,
    mark_trainable,
    mole_context,
    route_statistics,
    router_parameters,
    samples_by_expert,
    save,
)
from tests.helpers import SMALL, WINDOW, awaken, gradients, random_ids

IMAGE, VIDEO, START, END = 3, 4, 5, 6
IMAGE_TOKENS = 4
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
               "patch_size": 4, "out_hidden_size": 32, "initializer_range": 0.2}  # fmt: skip
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
               "vision_end_token_id": END}  # fmt: skip
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "image_size": 16}  # fmt: skip


def qwen2_5_vl() -> nn.Module:
    """Its vision blocks have gate_proj, up_proj and down_proj, as the language model's."""
    vision = {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config={**SMALL, "rope_parameters": MROPE}, vision_config=vision, **QWEN_TOKENS
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> nn.Module:
    vision = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text = {**SMALL, "head_dim": 8, "rope_parameters": MROPE}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)
    )


def gemma3() -> nn.Module:
    """Hands its decoder ready-made attention masks."""
    text = {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    config = Gemma3Config(
        text_config=text,
        vision_config={**TOWER, "patch_size": 4},
        mm_tokens_per_image=IMAGE_TOKENS,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    model = Gemma3ForConditionalGeneration(config)
    # transformers leaves it at zero, and pictures would all look alike.
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


def llava() -> nn.Module:
    vision = CLIPVisionConfig(**TOWER, patch_size=8, projection_dim=16)
    config = LlavaConfig(
        text_config=LlamaConfig(**SMALL), vision_config=vision, image_token_index=IMAGE
    )
    return LlavaForConditionalGeneration(config)


FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "gemma3": gemma3, "llava": llava}
TOWERS = {
    "qwen2_5_vl": "model.visual",
    "qwen3_vl": "model.visual",
    "gemma3": "model.vision_tower",
    "llava": "model.vision_tower",
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def vision_language_model(family: str) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def routed(family: str, **changes: Any) -> nn.Module:
    model = vision_language_model(family)
    add_experts(model, MoleConfig(**{"num_experts": 3, "r": 2, **changes}))
    return awaken(model)


def pixels(family: str, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """One picture per row."""
    generator = torch.Generator().manual_seed(seed)
    if family.startswith("qwen"):
        grid = torch.tensor([[1, 4, 4]]).repeat(rows, 1)
        patches = torch.randn(rows * 16, 3 * 2 * 4 * 4, generator=generator)
        return {"pixel_values": patches, "image_grid_thw": grid}
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}


def batch(family: str, texts: list[Tensor], *, side: str = "right") -> dict[str, Any]:
    """Rows of a picture and a text each, padded on one side; texts: (T,)."""
    length = max(len(text) for text in texts) + 3 + IMAGE_TOKENS
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        picture = torch.tensor([1, START, *[IMAGE] * IMAGE_TOKENS, END])
        line = torch.cat([picture, text])
        place = slice(0, len(line)) if side == "right" else slice(length - len(line), length)
        ids[row, place], mask[row, place] = line, 1
    kinds = (ids == IMAGE).long()
    inputs = {"input_ids": ids, "attention_mask": mask, **pixels(family, len(texts))}
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = kinds
    if family == "gemma3":
        inputs["token_type_ids"] = kinds
    return inputs


def supervised(inputs: dict[str, Any]) -> dict[str, Any]:
    """The text after each picture is the answer."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    after = (inputs["input_ids"] == END).long().cumsum(1) > 0
    return {**inputs, "labels": labels.masked_fill(~after, -100)}


def two_rows(family: str) -> dict[str, Any]:
    return batch(family, [random_ids(1, 9, seed=1)[0], random_ids(1, 5, seed=2)[0]])


# ---------------------------------------------------------------------- where experts land


@EVERY_FAMILY
def test_experts_land_in_the_language_model_only(family: str) -> None:
    model = routed(family)
    names = {name.rsplit(".mole_bank", 1)[0] for name in expert_parameters(model)}
    assert names == {
        f"model.language_model.layers.{layer}.mlp.{name}"
        for layer in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
    }


@EVERY_FAMILY
def test_names_of_the_base_do_not_change(family: str) -> None:
    before = set(vision_language_model(family).state_dict())
    assert before <= set(routed(family).state_dict())


@EVERY_FAMILY
def test_root_places_experts_in_the_tower_and_they_change_what_is_seen(family: str) -> None:
    tower = TOWERS[family]
    model = vision_language_model(family)
    inputs = two_rows(family)
    before = model(**inputs).logits
    add_experts(model, MoleConfig(num_experts=3, r=2, root=tower))
    assert_close(model(**inputs).logits, before, rtol=0, atol=0)
    assert all(name.startswith(f"{tower}.") for name in expert_parameters(model))
    awaken(model)
    assert not torch.allclose(model(**inputs).logits, before, atol=1e-3)
    assert auxiliary_losses(model)["balance"] > 0


def test_experts_of_tower_and_language_model_have_names_and_losses_of_their_own() -> None:
    model = routed("qwen2_5_vl")
    add_experts(model, MoleConfig(num_experts=2, r=2, root="model.visual"), "seeing")
    awaken(model)
    model(**two_rows("qwen2_5_vl"))
    assert {use.name for use in route_statistics(model, "seeing")} == {
        "blocks.0.mlp",
        "blocks.1.mlp",
        "merger.mlp",
    }
    assert {use.name for use in route_statistics(model, "default")} == {
        "layers.0.mlp",
        "layers.1.mlp",
    }
    both = auxiliary_losses(model)["balance"]
    mole_context(model, "seeing")[0].enabled = False
    model(**two_rows("qwen2_5_vl"))
    assert both > auxiliary_losses(model)["balance"] > 0


@pytest.mark.parametrize(
    "method",
    [
        {"method": "llava_mole"},
        {"method": "mola", "num_experts": 3},
        {"method": "dynmole", "num_experts": 3},
        {"method": "loramoe", "balance_coef": 0.1},
        {"method": "amlora", "num_experts": 2},
    ],
    ids=lambda method: method["method"],
)
def test_losses_of_a_tower_whose_layers_see_different_numbers_of_tokens(
    method: dict[str, Any],
) -> None:
    """Qwen's merger reads four patches at once: a quarter of the blocks' tokens."""
    model = vision_language_model("qwen2_5_vl")
    add_experts(
        model, MoleConfig(**method, r=2, target_modules="all-linear", root="model.visual"), "seeing"
    )
    awaken(model)
    mark_trainable(model)
    model(**two_rows("qwen2_5_vl"))
    counts = {len(record.probs) for record in mole_context(model, "seeing")[0].records}
    assert len(counts) == 2
    sum(auxiliary_losses(model).values()).backward()
    routers = adapter_of(model, "seeing").routers
    assert any("merger" in router.name for router in routers)
    for router in routers:
        trained = [p for p in router.parameters() if p.requires_grad]
        assert trained
        assert any(p.grad is not None and bool(p.grad.any()) for p in trained), router.name


def test_a_projector_may_be_the_root() -> None:
    model = vision_language_model("llava")
    config = MoleConfig(
        num_experts=2, r=2, root="model.multi_modal_projector", target_modules="all-linear"
    )
    add_experts(model, config)
    awaken(model)
    model(**two_rows("llava"))
    # The root is the router's scope itself, and its decision is recorded all the same.
    assert len(route_statistics(model)) == 1
    assert auxiliary_losses(model)["balance"] > 0


# ---------------------------------------------------------------------- what they compute


@EVERY_FAMILY
def test_at_step_0_the_routed_model_equals_its_base(family: str) -> None:
    model, inputs = vision_language_model(family), two_rows(family)
    before = model(**inputs).logits
    add_experts(model, MoleConfig(num_experts=3, r=2))
    assert_close(model(**inputs).logits, before, rtol=0, atol=0)


@EVERY_FAMILY
def test_every_expert_and_router_learns_from_pictures_and_text(family: str) -> None:
    model, inputs = routed(family), supervised(two_rows(family))
    mark_trainable(model)
    out = model(**inputs)
    losses = auxiliary_losses(model)
    assert set(losses) == {"balance"}
    (out.loss + losses["balance"]).backward()
    learnt = {**expert_parameters(model), **router_parameters(model)}
    found = gradients(model)
    assert found.keys() == learnt.keys()
    assert all(gradient.abs().max() > 0 for gradient in found.values())


@EVERY_FAMILY
def test_picture_tokens_are_routed_too(family: str) -> None:
    model, inputs = routed(family), two_rows(family)
    model(**inputs)
    before = mole_context(model)[0].records[1].probs
    model(**{**inputs, "pixel_values": -inputs["pixel_values"]})
    after = mole_context(model)[0].records[1].probs
    at_picture = (inputs["input_ids"] == IMAGE).reshape(-1)
    assert not torch.allclose(before[at_picture], after[at_picture], atol=1e-4)


@EVERY_FAMILY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_loss_nor_statistics(family: str, side: str) -> None:
    model = routed(family, balance_coef=1.0)
    texts = [random_ids(1, 9, seed=1)[0], random_ids(1, 4, seed=2)[0]]
    together = batch(family, texts, side=side)
    model(**together)
    loss, uses = auxiliary_losses(model)["balance"], samples_by_expert(model)
    losses, alone = [], []
    for row, text in enumerate(texts):
        inputs = batch(family, [text])
        for key in ("pixel_values", "image_grid_thw"):
            if key in together:
                inputs[key] = together[key].chunk(2)[row]
        model(**inputs)
        losses.append(auxiliary_losses(model)["balance"])
        alone.append(samples_by_expert(model))
    # The same float32 sums, over padded and unpadded rows.
    assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert_close(uses, torch.cat(alone), rtol=1e-4, atol=1e-5)


@EVERY_FAMILY
def test_activation_checkpointing_changes_neither_losses_nor_gradients(family: str) -> None:
    model, inputs = routed(family).train(), supervised(two_rows(family))
    mark_trainable(model)
    found = []
    for _ in range(2):
        model.zero_grad()
        out = model(**inputs)
        loss = out.loss + auxiliary_losses(model)["balance"]
        loss.backward()
        found.append((loss.detach(), gradients(model)))
        model.gradient_checkpointing_enable({"use_reentrant": False})
    (plain, expected), (checkpointed, recomputed) = found
    assert_close(checkpointed, plain, rtol=0, atol=0)
    assert recomputed.keys() == expected.keys()
    for name, gradient in expected.items():
        # The same operations on the same numbers; sums may be taken in another order.
        assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@EVERY_FAMILY
def test_generating_with_a_cache_gives_what_full_passes_give(family: str) -> None:
    model = routed(family)
    inputs = batch(family, [random_ids(1, 5, seed=3)[0]])
    new = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ids = inputs["input_ids"]
    assert new.shape[1] == ids.shape[1] + 6
    for position in range(ids.shape[1], new.shape[1]):
        text = new[0, 3 + IMAGE_TOKENS : position]
        logits = model(**batch(family, [text])).logits[0, -1]
        assert new[0, position] == logits.argmax()


def test_prompts_are_pooled_without_their_padding_where_the_decoder_sees_none() -> None:
    model = vision_language_model("gemma3")
    config = MoleConfig(method="conditional_mixlora", num_experts=4, r=2, gate="scaled")
    add_experts(model, config)
    awaken(model)
    texts = [random_ids(1, 9, seed=1)[0], random_ids(1, 4, seed=2)[0]]
    together = batch("gemma3", texts, side="left")
    logits = model(**together).logits[1, -1]
    alone = batch("gemma3", texts[1:]) | {"pixel_values": together["pixel_values"][1:]}
    # Left padding moves positions, which rotary attention does not see beyond rounding.
    assert_close(logits, model(**alone).logits[0, -1], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- beside the base


@EVERY_FAMILY
def test_saved_experts_load_into_a_fresh_base(family: str, tmp_path: Path) -> None:
    model, inputs = routed(family, gate="scaled"), two_rows(family)
    save(model, tmp_path)
    fresh = vision_language_model(family)
    load(fresh, tmp_path)
    assert_close(fresh(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@EVERY_FAMILY
def test_pefts_lora_on_attention_works_beside_and_saves_its_own(
    family: str, tmp_path: Path
) -> None:
    inputs = two_rows(family)
    base = vision_language_model(family)
    target = r".*language_model.*\.(q|v)_proj"
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=target))
    add_experts(model, MoleConfig(num_experts=3, r=2))
    awaken(model)
    model.save_pretrained(tmp_path / "lora")
    save(model, tmp_path / "experts")
    # Each folder loads into a model of its own, and both into one.
    again = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=target))
    again.load_adapter(tmp_path / "lora", "default")
    load(again, tmp_path / "experts")
    expected = model(**inputs).logits
    assert_close(again(**inputs).logits, expected, rtol=0, atol=0)
    assert not torch.allclose(base(**inputs).logits, expected, atol=1e-3)


@EVERY_FAMILY
def test_experts_made_before_pefts_lora_keep_working(family: str) -> None:
    inputs = two_rows(family)
    model = routed(family)
    expected = model(**inputs).logits
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    # LoRA's B starts at zero.
    assert_close(wrapped(**inputs).logits, expected, rtol=0, atol=0)
    assert auxiliary_losses(wrapped)["balance"] > 0
