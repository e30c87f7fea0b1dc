"""Parts: every parameter belongs to exactly one, and only named ones train."""

from collections.abc import Callable
from typing import Any

import pytest

from llava_mole.errors import ConfigError
from llava_mole.training.parts import PARTS, count_parameters, parameters_by_part, set_trainable

EVERYTHING = {"mole": True, "lora": True, "parrot": True}


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_every_parameter_belongs_to_exactly_one_part(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, _ = tiny_model(family, **EVERYTHING)
    groups = parameters_by_part(model)
    assert tuple(groups) == PARTS
    assert all(groups.values())
    names = [name for parameters in groups.values() for name in parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("part", PARTS)
def test_exactly_the_named_part_trains(tiny_model: Callable[..., Any], part: str) -> None:
    model, _ = tiny_model("llama", **EVERYTHING)
    set_trainable(model, {part: 1e-3})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    own = set(parameters_by_part(model)[part])
    assert trained <= own if part == "vision" else trained == own
    assert trained


@pytest.mark.parametrize(("layer", "blocks"), [(None, {"0", "1", "2"}), (-2, {"0", "1"})])
def test_of_the_tower_what_is_read_trains(
    tiny_model: Callable[..., Any], layer: int | None, blocks: set[str]
) -> None:
    """Not its head, and not the blocks after the layer that is read."""
    model, _ = tiny_model("llama", vision_layer=layer)
    set_trainable(model, {"vision": 1e-3})
    trained = {name for name, p in model.vision_tower.named_parameters() if p.requires_grad}
    mark = "transformer.resblocks."
    assert {name.partition(mark)[2].split(".")[0] for name in trained if mark in name} == blocks
    assert "visual.proj" not in trained
    model.train()
    model.encode_images(model.blank_picture(model.projector.input_scale)).sum().backward()
    assert {n for n, p in model.vision_tower.named_parameters() if p.grad is not None} == trained


def test_a_fresh_model_trains_its_adapters_only(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama", awake=False, **EVERYTHING)
    trained = {part for part, _, count in count_parameters(model) if count}
    assert trained <= {"experts", "routers", "lora"}


def test_a_part_the_model_lacks_is_refused_by_name(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    with pytest.raises(ConfigError, match=r"learning_rates.parrot: this model has no parrot"):
        set_trainable(model, {"parrot": 1e-3})


def test_counts_add_up(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama", **EVERYTHING)
    set_trainable(model, {"projector": 1e-3})
    rows = count_parameters(model)
    assert sum(total for _, total, _ in rows) == sum(p.numel() for p in model.parameters())
    by_name = {part: (total, trained) for part, total, trained in rows}
    assert by_name["projector"][0] == by_name["projector"][1] > 0
    assert by_name["experts"][1] == 0
