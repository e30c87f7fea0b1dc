"""The published recipes: at published shape without weights, and two steps of them in miniature."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llava_mole.ranks import free_port
from llava_mole.structure import PUBLISHED, model_without_weights
from llava_mole.training.parts import count_parameters
from llava_mole.training.recipe import Recipe
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from tests import published
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "published-recipes.md").read_text(encoding="utf-8")
STARTED = "llava-mole-7b-from-llava-1.5"
NAMES = [
    path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))
    if not path.stem.startswith(("starter", "own-data")) and path.stem != STARTED
]  # fmt: skip
TOKENS = {"ViT-L-14-336-quickgelu": (336 // 14) ** 2, "ViT-SO400M-16-SigLIP2-384": (384 // 16) ** 2}


def section(name: str) -> str:
    """What the page says about a recipe."""
    return PAGE.split(f"### `configs/{name}.yaml`")[1].split("\n### ")[0].split("\n## ")[0]


def worked_out(name: str) -> dict[str, int]:
    """Part -> parameters, from the arithmetic on the page, each checked against its own result."""
    rows = re.findall(r"^\| (\w+) \| `([^`]+)` \| ([\d,]+) \|", section(name), re.MULTILINE)
    found = {}
    for part, formula, said in rows:
        assert re.fullmatch(r"[\d ×+²()]+", formula), formula
        found[part] = int(eval(formula.replace("×", "*").replace("²", "**2"), {"__builtins__": {}}))
        assert f"{found[part]:,}" == said
    return found


def parts(model: Any) -> dict[str, int]:
    return {part: total for part, total, _ in count_parameters(model)}


@pytest.mark.parametrize("name", NAMES)
def test_at_published_shape_the_parts_are_as_large_as_the_page_works_out(name: str) -> None:
    recipe = load_recipe(ROOT / f"configs/{name}.yaml")
    model = model_without_weights(recipe.model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert parts(model) == worked_out(name)
    expected = TOKENS[recipe.model.vision_model] + (recipe.model.vision_select == "cls_patch")
    assert model.config.vision_part.tokens_per_image == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as their model cards have them, in 10^9
        ("lmsys/vicuna-7b-v1.5", 6.74),
        ("lmsys/vicuna-13b-v1.5", 13.02),
        ("Qwen/Qwen1.5-7B-Chat", 7.72),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02),
    ],
)
def test_shapes_that_are_known_give_the_published_number_of_parameters(
    name: str, parameters: float, tiny_parts: Any
) -> None:
    recipe = tiny_parts.recipe(language_model=Path(name))
    total = parts(model_without_weights(recipe))["language_model"]
    assert round(total / 1e9, 2) == parameters
    assert name in PUBLISHED


@pytest.mark.parametrize("name", [*NAMES, STARTED])
def test_the_first_line_is_the_command_and_the_next_say_what_was_checked(name: str) -> None:
    lines = (ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(
        line.lstrip("# ") for line in lines[: lines.index("output_dir: runs/" + name)]
    )
    assert re.match(
        rf"# (accelerate launch .*|llava-mole )train --config configs/{name}.yaml$", lines[0]
    )
    assert "Checked: " in comment
    assert "Not checked: " in comment
    assert lines[0].removeprefix("# ") in section(name), "the page gives another command"


def steps_in_miniature(recipe: Recipe, path: Path, tmp_path: Path) -> Any:
    data = published.write_data(tmp_path / "data")
    small = load_recipe(path, published.overrides(recipe, tmp_path, data))
    return small, run_recipe(small)


def check_run(small: Recipe, result: Any) -> None:
    log = [
        json.loads(line)
        for line in (Path(small.output_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for stage in small.stages:
        losses = [entry for entry in log if entry["stage"] == stage.name and "loss" in entry]
        assert [entry["step"] for entry in losses] == [1, 2]
        assert all(0 < entry["loss_language"] < 30 for entry in losses)
        balanced = small.model.experts is not None and "routers" in stage.learning_rates
        assert balanced <= ("loss_balance" in losses[0])
        assert all(entry["grad_norm"] > 0 for entry in losses)
    trained = {part for part, _, count in count_parameters(result.model) if count}
    assert trained == set(small.stages[-1].learning_rates)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_every_stage_in_miniature(name: str, tmp_path: Path) -> None:
    path = ROOT / f"configs/{name}.yaml"
    recipe = load_recipe(path)
    small, result = steps_in_miniature(recipe, path, tmp_path)
    check_run(small, result)
    published_tokens = TOKENS[recipe.model.vision_model]
    assert result.model.config.vision_part.num_patches == published_tokens
    padded = result.processor.image_processor.preprocess["resize_mode"]
    assert padded == (recipe.model.vision_resize or "squash")
    # The recipe's own: nothing but width, depth, data and length was changed.
    for key in ("chat_template", "vision_layer", "vision_select", "dtype", "lora"):
        assert getattr(small.model, key) == getattr(recipe.model, key)
    assert small.model.experts == recipe.model.experts
    for ours, theirs in zip(small.stages, recipe.stages, strict=True):
        assert ours.learning_rates == theirs.learning_rates
        assert ours.training == theirs.training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param("llava-mole-7b", "ddp", marks=pytest.mark.thorough),
        ("parrot-7b", "fsdp2"),
    ],
)
def test_two_steps_as_the_first_line_launches_them(name: str, engine: str, tmp_path: Path) -> None:
    """Its own accelerate config, on two CPU processes."""
    path = ROOT / f"configs/{name}.yaml"
    words = shlex.split(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    launch = words[words.index("launch") + 1 : words.index("-m")]
    assert f"configs/accelerate/{engine}.yaml" in launch
    data = published.write_data(tmp_path / "data")
    changes = published.overrides(load_recipe(path), tmp_path, data)
    run = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", *launch, "--num_processes", "2",
            "--main_process_port", str(free_port()), "-m", "llava_mole.cli", "train",
            "--config", str(path), *changes,
        ],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in log]
    for stage in load_recipe(path).stages:
        steps = [line["step"] for line in lines if line["stage"] == stage.name and "loss" in line]
        assert steps == [1, 2]
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_pictures_that_are_padded_keep_what_a_crop_would_lose(tmp_path: Path) -> None:
    """CLIP's own preprocessing cuts the ends off; padding is the mean colour: zero, normalised."""
    from PIL import Image

    from llava_mole.processing import LlavaMoleImageProcessor
    from llava_mole.vision import plan_vision

    wide = Image.new("RGB", (200, 100), (255, 255, 255))
    wide.paste((0, 0, 0), (0, 0, 20, 100))  # a dark left edge
    seen = {}
    for resize in ("shortest", "longest"):
        vision = plan_vision("ViT-L-14-336-quickgelu", "openai", resize=resize)
        processor = LlavaMoleImageProcessor(vision.preprocess)
        seen[resize] = processor(wide)["pixel_values"][0]
    assert (seen["shortest"] < 0).float().mean() == 0
    left, top = seen["longest"][:, 168, 5], seen["longest"][:, 5, 168]
    assert (left < -1).all()
    # A colour of 8 bits: half a step of 1/255, over the smallest deviation of 0.26.
    assert top.abs().max() < 1 / 255 / 0.26


def test_experts_on_a_converted_llava_in_miniature(tmp_path: Path, tiny_model: Any) -> None:
    model, processor = tiny_model(awake=False, chat_template="vicuna_v1")
    folder = tmp_path / "llava"
    model.save_pretrained(folder, processor=processor, include_frozen=True)
    path = ROOT / f"configs/{STARTED}.yaml"
    values: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values["model"]["start_from"] == "checkpoints/llava-1.5-7b"
    recipe = load_recipe(path, [f"model.start_from={folder}"])
    data = published.write_data(tmp_path / "data")
    changes = published.overrides(recipe, tmp_path, data)
    small = load_recipe(
        path, [*changes, f"model.start_from={folder}", "model.vision_dtype=float32"]
    )
    result = run_recipe(small)
    check_run(small, result)
    assert torch.equal(
        result.model.language_model.get_input_embeddings().weight,
        model.language_model.get_input_embeddings().weight.to(
            result.model.language_model.get_input_embeddings().weight.dtype
        ),
    )
