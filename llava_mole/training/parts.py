"""Which parameters belong to which trainable part, so that each has its own learning rate."""

from __future__ import annotations

import torch
from torch import nn

from llava_mole.errors import ConfigError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole.hooks import BANK, ROUTER
from llava_mole.quantization import numbers

PARTS = ("vision", "projector", "parrot", "experts", "routers", "lora", "language_model")


def part_of(name: str) -> str:
    """The part a parameter of the whole model belongs to, by its name."""
    root = name.split(".", 1)[0]
    if root == "vision_tower":
        return "vision"
    if root in ("projector", "parrot"):
        return root
    if f".{BANK}." in name:
        return "experts"
    if f".{ROUTER}." in name:
        return "routers"
    if ".lora_" in name:
        return "lora"
    return "language_model"


def parameters_by_part(
    model: LlavaMoleForConditionalGeneration,
) -> dict[str, dict[str, nn.Parameter]]:
    """Part -> {name: parameter}; every parameter is in exactly one."""
    groups: dict[str, dict[str, nn.Parameter]] = {part: {} for part in PARTS}
    for name, parameter in model.named_parameters():
        groups[part_of(name)][name] = parameter
    return groups


def set_trainable(model: LlavaMoleForConditionalGeneration, rates: dict[str, float]) -> None:
    """Train exactly the named parts; of the tower, what its features come from.

    Raises:
        ConfigError: a named part has no parameters in this model.
    """
    for part, parameters in parameters_by_part(model).items():
        if part in rates and not parameters:
            raise ConfigError(
                f"learning_rates.{part}: this model has no {part}; add it under model:, or leave "
                "the rate out"
            )
        for parameter in parameters.values():
            parameter.requires_grad_(part in rates)
    if "vision" in rates:
        freeze_what_is_not_read(model)


def freeze_what_is_not_read(model: LlavaMoleForConditionalGeneration) -> None:
    """A tower's own head, and the blocks after the layer that is read, never get a gradient: marked
    as trained they would be counted, and data-parallel training would wait for them."""
    tower = model.vision_tower
    parameters = [p for p in tower.parameters() if p.requires_grad]
    training = tower.training
    tower.eval()  # a blank picture must not move batch statistics
    with torch.enable_grad():
        features = tower(model.blank_picture(parameters[0]))
    tower.train(training)
    found = torch.autograd.grad(features.float().sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is not None)


def mark_trained(model: LlavaMoleForConditionalGeneration, rates: dict[str, float]) -> None:
    """From here on the named parts are the model's own: a reference to where they once came from
    would lose what was learnt, also when a later stage freezes them."""
    if "vision" in rates:
        model.config.vision = {**model.config.vision_part.to_dict(), "source": None}
    if "language_model" in rates:
        model.config.text_source = None


def count_parameters(model: LlavaMoleForConditionalGeneration) -> list[tuple[str, int, int]]:
    """(part, total, trainable) per part that the model has."""
    rows = []
    for part, parameters in parameters_by_part(model).items():
        total = sum(numbers(p) for p in parameters.values())
        trained = sum(numbers(p) for p in parameters.values() if p.requires_grad)
        if total:
            rows.append((part, total, trained))
    return rows
