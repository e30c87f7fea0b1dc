"""The estimate against what real training steps hold, on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava_mole.building import ModelRecipe, build_model
from llava_mole.configuration import ParrotConfig
from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig
from llava_mole.training.alive import AliveBytes
from llava_mole.training.estimate import DEVICES, GIB, estimate_stage
from llava_mole.training.parts import set_trainable
from llava_mole.training.probes import Probes, Rows
from llava_mole.training.recipe import DataRecipe, Recipe, SourceRecipe, StageRecipe

WIDE = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 5, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
ADAPTERS = {"projector": 1e-3, "experts": 1e-3, "routers": 1e-3, "lora": 1e-3}
CASES: dict[str, tuple[dict[str, Any], dict[str, float], dict[str, Any]]] = {
    "adapters": ({}, ADAPTERS, {}),
    "adapters, checkpointing": ({}, ADAPTERS, {"gradient_checkpointing": True}),
    "adapters, bfloat16": ({"dtype": "bfloat16"}, ADAPTERS, {"gradient_checkpointing": True}),
    "projector": ({}, {"projector": 1e-3}, {"gradient_checkpointing": True}),
    "everything": (
        {"parrot": ParrotConfig(num_experts=2), "experts": None, "lora": None},
        {"projector": 1e-3, "parrot": 1e-3, "language_model": 1e-3},
        {"gradient_checkpointing": True},
    ),
    "eager": ({"attn_implementation": "eager"}, ADAPTERS, {}),
}
ROWS = Rows(rows=4, tokens=96, supervised=24, images=1, question=8)


def recipe_of(tiny_parts: Any, case: str, **changes: Any) -> tuple[Recipe, StageRecipe]:
    options, rates, training = CASES[case]
    values: dict[str, Any] = {
        "language_model": str(tiny_parts.language_model("llama", **WIDE)),
        "vision_model": f"local-dir:{tiny_parts.tower('vit')}",
        "experts": MoleConfig(num_experts=3, r=8, lora_dropout=0.05),
        "lora": {
            "r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.05,
            "target_modules": ["q_proj", "o_proj"],
        },
        "dtype": "float32",
        **options,
        **changes,
    }
    stage = StageRecipe(
        "instruct", learning_rates=rates, parrot=values.get("parrot") is not None,
        training=training, share_prefix=False,
    )  # fmt: skip
    return Recipe(
        "run", ModelRecipe(**values), DataRecipe([SourceRecipe("x.json")]), [stage]
    ), stage


def one_step(recipe: Recipe, stage: StageRecipe, rows: Rows) -> Any:
    """A model, and a closure that runs one micro-batch of it, all gradients there before."""
    torch.manual_seed(0)
    model, processor = build_model(recipe.model)
    set_trainable(model, stage.learning_rates)
    if stage.training.get("gradient_checkpointing"):
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    picture = processor.tokens_per_image
    ids = torch.randint(10, 200, (rows.rows, rows.tokens))
    ids[:, 1 : 1 + picture] = processor.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -rows.supervised :] = ids[:, -rows.supervised :]
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0  # as in nearly every batch; sdpa then gets a mask in place of its causal flag
    vision = model.config.vision_part
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "image_features": torch.randn(rows.rows, 1 + vision.num_patches, vision.width),
    }
    if model.parrot is not None:
        inputs["question_ids"] = ids[:, -rows.question :].contiguous()
        inputs["question_mask"] = torch.ones(rows.rows, rows.question, dtype=torch.bool)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model, inputs, lambda: model(**inputs).loss.backward()


@pytest.mark.parametrize("case", CASES)
def test_activations_are_those_of_a_real_step(case: str, tiny_parts: Any) -> None:
    recipe, stage = recipe_of(tiny_parts, case)
    model, inputs, step = one_step(recipe, stage, ROWS)
    alive = AliveBytes()
    alive.leave_out(*model.parameters(), *model.buffers(), *inputs.values())
    alive.leave_out(*(p.grad for p in model.parameters() if p.grad is not None))
    with alive:
        step()
    probes = Probes(recipe, stage)
    found = probes.activations(ROWS, bool(stage.training), on_gpu=False, cast=False, tower=False)
    # Measured differences: 0.3 to 2.5 %, in bfloat16 9 %. Left out are ids and the loss's own rows;
    # layers beyond the third are extrapolated.
    assert sum(found.values()) == pytest.approx(alive.peak, rel=0.1), (found, alive.peak)


def test_weights_gradients_and_optimizer_state_are_exact(tiny_parts: Any) -> None:
    recipe, stage = recipe_of(tiny_parts, "adapters")
    model, _, step = one_step(recipe, stage, ROWS)
    step()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    optimizer.step()
    moments = sum(
        tensor.nbytes for state in optimizer.state.values()
        for key, tensor in state.items() if key != "step"
    )  # fmt: skip
    memory = estimate_stage(recipe, stage, longest=ROWS, features_kept=1, on_gpu=False).memory
    weights = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert memory["weights, frozen"] + memory["weights, trained"] == weights
    assert memory["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert memory["optimizer state"] == moments


def test_pieces_shrink_with_the_number_of_devices(tiny_parts: Any) -> None:
    recipe, stage = recipe_of(tiny_parts, "everything")
    probes = Probes(recipe, stage)

    def memory(sharding: str, processes: int) -> dict[str, float]:
        return estimate_stage(
            recipe, stage, longest=ROWS, processes=processes, sharding=sharding, probes=probes
        ).memory

    alone = memory("ddp", 1)
    for sharding, in_pieces in (
        ("ddp", ()),
        ("zero2", ("gradients", "optimizer state")),
        ("zero3", ("weights, trained", "gradients", "optimizer state")),
        ("fsdp2", ("weights, trained", "gradients", "optimizer state")),
    ):
        shared = memory(sharding, 8)
        for part in ("weights, trained", "gradients", "optimizer state"):
            assert shared[part] == pytest.approx(alone[part] / (8 if part in in_pieces else 1))
        assert ("weights, gathered" in shared) is (sharding in ("zero3", "fsdp2"))
        assert "gradient buckets" in shared or sharding == "fsdp2"
    with pytest.raises(ConfigError, match=r"sharding='zero9': known are ddp"):
        memory("zero9", 8)


def test_a_base_in_four_bits_weighs_its_linears_at_half_a_byte(tiny_parts: Any) -> None:
    recipe, stage = recipe_of(tiny_parts, "adapters, bfloat16")
    plain = estimate_stage(recipe, stage, longest=ROWS).memory["weights, frozen"]
    recipe.model.quantization = {"load_in_4bit": True}
    packed = estimate_stage(recipe, stage, longest=ROWS).memory["weights, frozen"]
    linears = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)  # q o, k v, the MLP
    assert plain - packed == linears * (2 - 0.5 - 4 / 64)


def test_operations_of_plain_layers_are_two_a_weight_and_token(tiny_parts: Any) -> None:
    """Frozen weights: forward, and the gradient of the input; trained ones a third time."""
    recipe, stage = recipe_of(tiny_parts, "projector", experts=None, lora=None)
    stage.training = {}
    probes = Probes(recipe, stage)
    found = probes.flops(ROWS, False, tower=False)
    tokens = ROWS.rows * ROWS.tokens
    layers = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)
    head = 2 * 2 * ROWS.rows * ROWS.supervised * 64 * 512
    attention = 3.5 * 0.5 * 4 * ROWS.rows * ROWS.tokens**2 * 64 * 5
    # The projector reads 5 features a picture, so that its part is small.
    projector = 3 * 2 * ROWS.rows * 5 * (16 * 64 + 64 * 64)
    assert found == pytest.approx(4 * tokens * layers + head + attention + projector, rel=0.01)
    made = estimate_stage(recipe, stage, longest=ROWS, probes=probes, features_kept=1)
    device = DEVICES["h100"]
    assert made.step_seconds(device, 0.5) == pytest.approx(found / (989e12 * 0.5))
    assert made.hours(device, 4000, 0.5) == pytest.approx(
        1000 * made.step_seconds(device, 0.5) / 3600
    )


def test_devices_are_those_of_the_data_sheets() -> None:
    assert {name: (d.gib, d.tflops) for name, d in DEVICES.items()} == {
        "a100-80g": (80, 312), "h100": (80, 989), "rtx-4090": (24, 165),
    }  # fmt: skip
    assert GIB == 2**30


@pytest.mark.parametrize("experts", [4, 64])
def test_experts_whose_tokens_would_be_sorted_are_estimated_too(
    tiny_parts: Any, experts: int
) -> None:
    """On a CPU four of rank 16 are; how many tokens go to each is not known here."""
    found = []
    for number in (1, experts):
        config = MoleConfig(num_experts=number, r=16)
        recipe, stage = recipe_of(tiny_parts, "adapters", experts=config)
        rows = Rows(rows=4, tokens=160, supervised=24, images=1, question=8)
        probes = Probes(recipe, stage)
        activations = probes.activations(rows, False, on_gpu=True, cast=False, tower=False)
        found.append(sum(activations.values()))
    assert found[1] > found[0]
