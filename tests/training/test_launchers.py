"""accelerate launch, torchrun and `workers:` start the same run: the same rows in every step.

Each test starts real processes through the command line, as a user does. Those that train run with
`make test-all`: test_run.py has `workers:`, test_published_recipes.py `accelerate launch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_mole.cli import main
from llava_mole.errors import ConfigError
from llava_mole.ranks import free_port
from llava_mole.training.resume import prepare_folder
from llava_mole.training.schema import load_recipe
from tests.processes import REPOSITORY, environment

ACCELERATE = REPOSITORY / "configs" / "accelerate"


def launched(launcher: str, port: int) -> list[str]:
    """What stands before the command."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    accelerate = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
    accelerate += ["--main_process_port", str(port)]
    return {
        "workers": [],
        "torchrun": torchrun,
        "accelerate, DDP": [*accelerate, "--config_file", str(ACCELERATE / "ddp.yaml")],
        "accelerate, FSDP2": [*accelerate, "--config_file", str(ACCELERATE / "fsdp2.yaml")],
    }[launcher]


def run(launcher: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launched(launcher, free_port()), "-m", "llava_mole.cli", *arguments]
    if launcher == "workers":
        command.append("workers=2")
    return subprocess.run(
        command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )


@pytest.fixture
def mixed(recipe_file: Path, data: Path) -> Path:
    """The recipe with rows of text beside those with pictures, from its first step."""
    texts = [
        {
            "conversations": [
                {"from": "human", "value": f"Say {word}"},
                {"from": "gpt", "value": word},
            ],
            "language": "en",
            "kind": "text",
        }
        for word in ("one", "two words", "three or more")
    ]
    (data / "text.json").write_text(json.dumps(texts), encoding="utf-8")
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe["data"]["sources"].append({"path": str(data / "text.json"), "domain": "text"})
    recipe["stages"][1]["pictures_per_step"] = 4
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return recipe_file


def log_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    "launcher",
    ["workers", "torchrun", "accelerate, DDP", "accelerate, FSDP2"],
)
def test_every_launcher_trains_what_one_process_trains(
    launcher: str, mixed: Path, tmp_path: Path
) -> None:
    """Warm start, experts with LoRA, Parrot; rows of text and rows with pictures. AdamW turns the
    last bits of small gradients into steps, so losses agree to 2e-3 and weights to a part of a
    step's length."""
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(["train", "--config", str(mixed), f"output_dir={alone}"]) == 0
    done = run(launcher, "train", "--config", str(mixed), f"output_dir={out}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("model: ") == 1
    first, second = log_lines(alone), log_lines(out)
    assert [line.get("step") for line in second] == [line.get("step") for line in first]
    for one, two in zip(first, second, strict=True):
        for name in ("loss", "loss_language", "loss_balance", "loss_contrastive", "grad_norm"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), (name, one)
    files = sorted(p.relative_to(alone) for p in (alone / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        expected, found = load_file(alone / file), load_file(out / file)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0.02, msg=key)
            assert (found[key] - value).norm() <= 0.05 * value.norm() + 1e-3, key


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["workers", "torchrun"])
def test_an_error_on_one_rank_ends_all_with_one_message(
    launcher: str, recipe_file: Path, data: Path
) -> None:
    """The second rank computes the features of pictures 1, 3, …; the first one only misses it."""
    (data / "images" / "3.png").write_bytes(b"not a picture")
    done = run(launcher, "train", "--config", str(recipe_file))
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert said.count("llava-mole train: ") == 1
    assert "3.png" in said
    assert "llava_mole/cli.py" not in said  # no traceback of ours


def test_a_run_may_go_on_with_another_number_of_processes(
    recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    prepare_folder(load_recipe(recipe_file), "auto")
    (out / "stages").mkdir()
    prepare_folder(load_recipe(recipe_file, ["workers=2", "threads=3"]), "auto")
    with pytest.raises(ConfigError, match="another recipe"):
        prepare_folder(load_recipe(recipe_file, ["seed=1"]), "auto")
