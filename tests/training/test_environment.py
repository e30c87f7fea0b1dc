"""What a recipe asks of a machine, and what it may say of reports and of the hub."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava_mole.errors import ConfigError
from llava_mole.training.environment import REPORTERS
from llava_mole.training.hub_push import KEYS, Push, push_of
from llava_mole.training.run import run_recipe, training_arguments
from llava_mole.training.schema import load_recipe


def test_every_reporter_of_transformers_has_its_package() -> None:
    assert set(REPORTERS) == set(INTEGRATION_TO_CALLBACK)


def test_packages_and_devices_that_lack_are_told_together_before_anything_is_read(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    hidden = {"wandb", "trackio", "bitsandbytes"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in hidden else found(name, *a)
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    recipe = load_recipe(
        recipe_file,
        [
            "training.report_to=[wandb, trackio]",
            "model.quantization={load_in_4bit: true}",
            "model.attn_implementation=flex_attention",
            "data.sources.train.path=no/such/file.json",
        ],
    )
    with pytest.raises(ConfigError) as refused:
        run_recipe(recipe)
    for said in (
        "wandb is not installed here: pip install wandb",
        "trackio is not installed here: pip install trackio",
        "model.quantization needs bitsandbytes, which is not installed",
        "no backward pass of it for CPUs",
    ):
        assert said in str(refused.value)
    assert not Path(recipe.output_dir).exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.report_to=wandbb", "training.report_to='wandbb': unknown; did you mean 'wandb'"),
        ("training.hub_model_id=me/x", "training.hub_model_id: not read without push_to_hub"),
        ("training={push_to_hub: true, hub_strategy: checkpoint}",
         "training.hub_strategy='checkpoint': allowed are end, every_save"),
        ("training={push_to_hub: true, hub_token: hf_x}", "training.hub_token: no secrets in a"),
        ("stages.instruct.training={push_to_hub: true}",
         "stages.1 (instruct).training.push_to_hub: say it in the recipe's own training:"),
        ("training.optm=sgd", "training.optm: no argument of TrainingArguments; did you mean"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_by_key(recipe_file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe(recipe_file, [override])
    assert said in str(refused.value)


def test_a_stages_trainer_never_pushes_but_reports(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["training={push_to_hub: true, hub_model_id: me/x, report_to: tensorboard}"]
    )
    arguments = training_arguments(recipe, recipe.stages[1], tmp_path)
    assert arguments.push_to_hub is False
    assert arguments.hub_model_id is None
    assert arguments.report_to == ["tensorboard"]


def test_the_hub_options_are_transformers_own() -> None:
    values: dict[str, Any] = {"push_to_hub": True, "hub_private_repo": True}
    assert push_of(values, "runs/mine") == Push("mine", private=True)
    assert push_of({}, "runs/mine") is None
    from transformers import TrainingArguments

    assert set(KEYS) <= set(TrainingArguments.__dataclass_fields__)
