"""Training, answering and evaluating on a CUDA device do what they do on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_mole.mole import MoleConfig, add_experts, mark_trainable
from llava_mole.serving.chat import ChatEngine
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from tests.evaluation.conftest import rows, write
from tests.evaluation.test_harness import run as evaluate
from tests.helpers import awaken, gradients, language_model, random_ids
from tests.training.conftest import data, recipe_file

pytestmark = pytest.mark.gpu
__all__ = ["data", "recipe_file"]  # fixtures
FLOAT32 = {"rtol": 1e-3, "atol": 1e-4}


def losses(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {(line["stage"], line["step"]): line["loss"] for line in lines if "loss" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((run / "model").rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(run)}:{name}"] = tensor.float()
    return found


def train(recipe_file: Path, out: Path, *changes: str) -> Any:
    return run_recipe(load_recipe(recipe_file, [f"output_dir={out}", *changes]))


def test_a_recipe_trains_as_on_the_cpu(recipe_file: Path, tmp_path: Path) -> None:
    result = train(recipe_file, tmp_path / "there")
    train(recipe_file, tmp_path / "here", "training.use_cpu=true")
    assert result.model.device.type == "cuda"
    found, expected = losses(tmp_path / "there"), losses(tmp_path / "here")
    assert found.keys() == expected.keys()
    assert len(found) >= 6
    for place, loss in expected.items():
        assert found[place] == pytest.approx(loss, rel=1e-3), place
    torch.testing.assert_close(
        weights(tmp_path / "there"), weights(tmp_path / "here"), rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("stages.instruct.packing=256",),
        ("stages.instruct.share_prefix=false", "training.activation_checkpointing=true"),
        ("data.feature_cache={}",),
    ],
    ids=["shared prefix", "packed", "recomputed", "cached features"],
)
@pytest.mark.parametrize("experts", [2, 64])
def test_in_bfloat16_the_loss_falls_as_in_float32(
    recipe_file: Path,
    tmp_path: Path,
    changes: tuple[str, ...],
    experts: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path / "cache"))
    changes = (*changes, f"model.experts.num_experts={experts}", "stages.instruct.steps=8")
    train(recipe_file, tmp_path / "half", "model.dtype=bfloat16", *changes)
    train(recipe_file, tmp_path / "full", "training.use_cpu=true", *changes)
    found, expected = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert found.keys() == expected.keys()
    for place, loss in expected.items():
        assert found[place] == pytest.approx(loss, rel=0.05), place


def test_a_run_that_was_cut_off_goes_on(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe_file, run)
    expected = weights(run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "stages" / "3-parrot")
    shutil.rmtree(run / "stages" / "2-instruct" / "model")
    shutil.rmtree(run / "stages" / "2-instruct" / "checkpoint-4")
    train(recipe_file, run)
    # Sums whose terms arrive in any order: not to the last bit.
    torch.testing.assert_close(weights(run), expected, rtol=1e-3, atol=1e-4)


def test_a_model_says_what_it_says_on_the_cpu(tiny_model_dir: Path) -> None:
    question = [{"role": "user", "content": "<image>\nWhat is it?"}]
    picture = Image.new("RGB", (32, 32), "red")
    said = [
        ChatEngine.from_folder(tiny_model_dir, device=device).answer(
            question, [picture], max_new_tokens=12, min_new_tokens=12
        )
        for device in ("cuda", "cpu")
    ]
    assert said[0] == said[1]


def test_a_model_loads_straight_onto_the_device(tiny_model_dir: Path) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, device_map="cuda")
    there = {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())}
    assert there == {"cuda"}
    ids = torch.tensor([[1, 70, 71, 72]])
    plain = AutoModelForImageTextToText.from_pretrained(tiny_model_dir)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids.cuda()).logits.cpu(), plain(ids).logits, **FLOAT32)


def test_an_evaluation_gives_the_answers_of_the_cpu(tiny_model_dir: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "eval_train.tsv", rows("train")[:36])
    found = []
    for number, device in enumerate(("cuda", "cpu")):
        evaluate(tiny_model_dir, table, tmp_path / str(number), "--device", device)
        lines = (tmp_path / str(number) / "predictions.jsonl").read_text().splitlines()
        found.append([json.loads(line)["reply"] for line in lines[1:]])
    assert len(found[0]) >= 36
    assert found[0] == found[1]


def test_recomputing_activations_changes_no_gradient_of_sorted_tokens() -> None:
    found = []
    for recomputed in (False, True):
        model = language_model("llama").to("cuda", torch.bfloat16)
        torch.manual_seed(2)
        add_experts(model, MoleConfig(num_experts=8, r=8, kernel="grouped", gate="scaled"))
        awaken(model)
        mark_trainable(model)
        if recomputed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        ids = random_ids(2, 40, 0).cuda()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("kernel", ["masked", "grouped"])
def test_a_compiled_model_has_the_gradients_of_a_plain_one(kernel: str) -> None:
    found = []
    for compiled in (False, True):
        model: Any = language_model("llama").to("cuda", torch.bfloat16)
        torch.manual_seed(2)
        add_experts(model, MoleConfig(num_experts=8, r=8, kernel=kernel, gate="scaled"))
        awaken(model)
        mark_trainable(model)
        block = model.train().model.layers[1].mlp
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 60, 32, generator=generator).to("cuda", torch.bfloat16)
        call = torch.compile(block) if compiled else block
        towards = torch.randn(x.shape, generator=generator).to(x)
        (call(x.requires_grad_()) * towards).float().sum().backward()
        found.append(gradients(model))
    for name, expected in found[0].items():
        error = (found[1][name] - expected).float().norm()
        assert error <= 0.03 * expected.float().norm() + 1e-3, name
