"""`model.start_from`: experts on a LLaVA that others trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_mole.building import ModelRecipe, build_model, build_processor, context_length
from llava_mole.cli import main
from llava_mole.configuration import ParrotConfig
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.mole import MoleConfig
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from tests.conversion.tiny import ROOT, convert, ids_with, load, logits, pixels_of
from tests.helpers import picture

EXPERTS = {"num_experts": 2, "r": 2, "lora_alpha": 4}


@pytest.fixture
def converted(tiny_llava: Callable[..., Path], tmp_path: Path) -> Path:
    return convert(tiny_llava(), tmp_path / "converted")


@pytest.fixture
def recipe_file(converted: Path, tmp_path: Path) -> Path:
    """Two steps of experts and LoRA on a converted LLaVA."""
    rows = []
    for index in range(4):
        picture(index).save(tmp_path / f"{index}.png")
        turns = [("human", "<image>\nWhat is it?"), ("gpt", f"thing {index}")]
        rows.append(
            {
                "image": f"{index}.png",
                "conversations": [{"from": who, "value": text} for who, text in turns],
                "domain": "tiny",
                "language": "en",
            }
        )
    (tmp_path / "train.json").write_text(json.dumps(rows))
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "start_from": str(converted),
            "dtype": "float32",
            "experts": EXPERTS,
            "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
        },
        "data": {"sources": [{"path": str(tmp_path / "train.json")}]},
        "training": {"logging_steps": 1},
        "stages": [
            {
                "name": "instruct",
                "steps": 2,
                "pictures_per_step": 2,
                "questions_per_picture": 1,
                "learning_rates": {"experts": 0.01, "routers": 0.01, "lora": 0.01},
            }
        ],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_model_starts_as_the_folder_it_starts_from(converted: Path) -> None:
    model, processor = build_model(
        ModelRecipe(
            start_from=str(converted),
            dtype="float32",
            experts=MoleConfig(**EXPERTS),
            parrot=ParrotConfig(num_experts=2, hidden_size=8),
        )
    )
    plain, _ = load(converted)
    ids = ids_with(processor, 1)
    question = {"question_ids": torch.tensor([[7, 8]])}
    with torch.inference_mode():
        found = model(input_ids=ids, pixel_values=pixels_of(1), **question).logits
    torch.testing.assert_close(found, logits(plain, ids, pixels_of(1)), rtol=0, atol=0)
    assert model.mole is not None
    assert model.parrot is not None


def test_two_steps_change_the_adapters_and_nothing_else(
    recipe_file: Path, converted: Path, tmp_path: Path
) -> None:
    result = run_recipe(load_recipe(recipe_file))
    run = tmp_path / "run" / "model"
    lines = [json.loads(li) for li in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert not (run / "language_model").exists()  # by reference to the converted folder
    before, after = (load_file(f / "model.safetensors") for f in (converted, run))
    assert not any(name.startswith("vision_tower") for name in after)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    experts = load_file(run / "adapters" / "experts" / "adapter_model.safetensors")
    ups = [t for name, t in experts.items() if "lora_B" in name]
    assert ups
    assert all(bool(tensor.any()) for tensor in ups)  # they began at zero
    ids, pixels = ids_with(result.processor, 1), pixels_of(1)
    with torch.inference_mode():
        expected = result.model(input_ids=ids, pixel_values=pixels).logits
    torch.save({"ids": ids, "pixels": pixels, "logits": expected}, tmp_path / "said.pt")
    program = (
        "import llava_mole, torch\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"said = torch.load({str(tmp_path / 'said.pt')!r})\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(run)!r})\n"
        f"AutoProcessor.from_pretrained({str(run)!r})\n"
        "with torch.inference_mode():\n"
        "    out = model(input_ids=said['ids'], pixel_values=said['pixels']).logits\n"
        "print('differs by', (out - said['logits']).abs().max().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "differs by 0.0"


def test_the_licence_and_the_source_travel_on(recipe_file: Path, tmp_path: Path) -> None:
    run_recipe(load_recipe(recipe_file, ["stages.instruct.steps=1"]))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "converted with `llava-mole convert`" in card
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["origin"]["sha256"]


def test_a_trained_folder_can_be_started_from_again(recipe_file: Path, tmp_path: Path) -> None:
    first = run_recipe(load_recipe(recipe_file))
    again = [
        f"model.start_from={tmp_path / 'run' / 'model'}",
        f"output_dir={tmp_path / 'again'}",
        "model.experts=null",
        "model.lora=null",
    ]
    recipe = load_recipe(recipe_file, again)
    assert recipe.model.experts == MoleConfig(**EXPERTS)  # the folder's
    model, processor = build_model(recipe.model)
    ids, pixels = ids_with(processor, 1), pixels_of(1)
    torch.testing.assert_close(
        logits(model, ids, pixels), logits(first.model, ids, pixels), rtol=0, atol=0
    )
    second = run_recipe(recipe)
    assert not torch.equal(logits(second.model, ids, pixels), logits(first.model, ids, pixels))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "again" / "model")
    torch.testing.assert_close(
        logits(loaded, ids, pixels), logits(second.model, ids, pixels), rtol=0, atol=0
    )


def test_a_trained_tower_and_language_model_are_saved_in_full(
    recipe_file: Path, converted: Path, tmp_path: Path
) -> None:
    rates = "stages.instruct.learning_rates={vision: 0.001, language_model: 0.001}"
    result = run_recipe(load_recipe(recipe_file, [rates, "stages.instruct.steps=1"]))
    shutil.rmtree(converted)
    loaded, processor = load(tmp_path / "run" / "model")
    ids, pixels = ids_with(processor, 1), pixels_of(1)
    torch.testing.assert_close(
        logits(loaded, ids, pixels), logits(result.model, ids, pixels), rtol=0, atol=0
    )


def test_a_half_precision_tower_is_referred_to_as_it_is(converted: Path, tmp_path: Path) -> None:
    """Its hash is of what is stored, not of what is computed in."""
    values = json.loads((converted / "config.json").read_text())
    tensors = load_file(converted / "model.safetensors")
    half = {n: t.half() if n.startswith("vision_tower") else t for n, t in tensors.items()}
    save_file(half, converted / "model.safetensors")
    values["vision"]["dtype"] = "float16"
    (converted / "config.json").write_text(json.dumps(values))
    model, processor = build_model(ModelRecipe(start_from=str(converted), dtype="float32"))
    assert next(model.vision_tower.parameters()).dtype == torch.float32
    model.save_pretrained(tmp_path / "m", processor=processor)
    loaded, _ = load(tmp_path / "m")
    ids = ids_with(processor, 1)
    torch.testing.assert_close(
        logits(loaded, ids, pixels_of(1)), logits(model, ids, pixels_of(1)), rtol=0, atol=0
    )


def test_a_moved_start_folder_is_named(converted: Path, tmp_path: Path) -> None:
    model, processor = build_model(ModelRecipe(start_from=str(converted), dtype="float32"))
    model.save_pretrained(tmp_path / "m", processor=processor)
    converted.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=str(converted)):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "m")


def test_another_tower_in_the_start_folder_is_refused(converted: Path, tmp_path: Path) -> None:
    model, processor = build_model(ModelRecipe(start_from=str(converted), dtype="float32"))
    model.save_pretrained(tmp_path / "m", processor=processor)
    tensors = load_file(converted / "model.safetensors")
    tensors["vision_tower.visual.conv1.weight"] *= 2
    save_file(tensors, converted / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"vision tower in .*has sha256"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "m")


def test_the_processor_and_the_context_need_no_language_model(converted: Path) -> None:
    recipe = ModelRecipe(start_from=str(converted))
    processor, tower, vision = build_processor(recipe)
    assert processor.tokens_per_image == vision.tokens_per_image == 16
    assert tower(pixels_of(1)).shape == (1, 17, 64)
    assert context_length(recipe) == 1024


def test_another_chat_template_may_be_named(converted: Path) -> None:
    kept = build_processor(ModelRecipe(start_from=str(converted)))[0]
    assert "ASSISTANT:" in kept.chat_template
    other = build_processor(ModelRecipe(start_from=str(converted), chat_template="chatml"))[0]
    assert "<|im_start|>" in other.chat_template
    qa = build_processor(ModelRecipe(start_from=str(converted), chat_template="qa"))[0]
    assert "ASSISTANT:" not in qa.chat_template  # the default of a recipe that names its parts


def test_a_dry_run_shows_what_the_folder_brings(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(recipe_file), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "starter" not in told
    assert "chat_template" not in told
    assert "language_model: language_model" in told
    assert main(["train", "--config", str(recipe_file), "--dry-run", "model.chat_template=qa"]) == 0
    assert "chat_template: qa" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["model.language_model=elsewhere", "model.vision_layer=-3", "model.image_token='</s>'"],
            [r"language_model='elsewhere'.*has 'language_model'", r"vision_layer=-3.*has -2",
             r"image_token='</s>'.*has '<image>'"],
        ),
        (["model.projector={type: linear}"], [r"model\.projector=.*'linear'.*'mlp2x_gelu'"]),
        (["stages.instruct.kind=warm_start"], ["drop the stage"]),
        (["model.start_from=nowhere"], ["no folder nowhere"]),
        (["stages.instruct.parrot=true"], ["model.parrot is empty"]),
    ],
    ids=str,
)  # fmt: skip
def test_clashes_are_listed_before_any_weight_is_loaded(
    recipe_file: Path, overrides: list[str], messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file, overrides)
    for message in messages:
        assert caught.match(message)


def test_keys_that_agree_are_accepted(recipe_file: Path) -> None:
    load_recipe(recipe_file, ["model.vision_layer=-2", "model.projector={type: mlp2x_gelu}"])


def test_other_experts_than_the_folders_are_refused(recipe_file: Path, tmp_path: Path) -> None:
    run_recipe(load_recipe(recipe_file, ["stages.instruct.steps=1"]))
    start = [f"model.start_from={tmp_path / 'run' / 'model'}", f"output_dir={tmp_path / 'b'}"]
    with pytest.raises(ConfigError, match=r"model\.experts: .* has its own"):
        load_recipe(recipe_file, [*start, "model.experts.num_experts=3"])
    load_recipe(recipe_file, start)  # the same ones agree


def test_a_folder_that_is_no_model_of_ours_is_told_about_convert(
    tiny_llava: Callable[..., Path], recipe_file: Path
) -> None:
    with pytest.raises(ConfigError, match="llava-mole convert"):
        load_recipe(recipe_file, [f"model.start_from={tiny_llava()}"])


def test_a_dry_run_shows_what_is_inherited(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(recipe_file), "--dry-run"]) == 0
    said: Any = capsys.readouterr().out
    for expected in ("start_from", "routers", "tokens are supervised", "ASSISTANT"):
        assert expected in said.replace("·", "")


def test_features_can_be_cached_ahead(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    assert main(["cache", "--config", str(recipe_file), "--folder", str(folder)]) == 0
    assert any(folder.rglob("*"))


def test_the_recipe_in_the_documentation_is_a_recipe(converted: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    path = tmp_path / "documented.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    recipe = load_recipe(path, [f"model.start_from={converted}"])
    assert recipe.model.experts is not None


def test_a_run_goes_on_where_it_was_with_parrot_in_a_later_stage(
    recipe_file: Path, tmp_path: Path
) -> None:
    values = yaml.safe_load(recipe_file.read_text())
    values["model"]["parrot"] = {"num_experts": 2, "hidden_size": 8}
    values["stages"].append(
        {
            "name": "parrot",
            "parrot": True,
            "share_prefix": False,
            "steps": 2,
            "pictures_per_step": 2,
            "questions_per_picture": 1,
            "learning_rates": {"parrot": 0.01},
        }
    )
    recipe_file.write_text(yaml.safe_dump(values))
    first = run_recipe(load_recipe(recipe_file))
    shutil.rmtree(tmp_path / "run" / "stages" / "2-parrot" / "model")
    second = run_recipe(load_recipe(recipe_file))
    assert second.seconds.keys() == {"parrot"}
    before, after = first.model.state_dict(), second.model.state_dict()
    assert before.keys() == after.keys()
    assert any(name.startswith("parrot.") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # A folder with Parrot on has it on from the first stage.
    start = [f"model.start_from={tmp_path / 'run' / 'model'}", f"output_dir={tmp_path / 'b'}"]
    with pytest.raises(ConfigError, match="share_prefix=true: with Parrot on"):
        load_recipe(recipe_file, start)
