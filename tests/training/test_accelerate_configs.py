"""The launch configs that ship, read by accelerate's own parser and by ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import TrainingArguments

from llava_mole.errors import ConfigError
from llava_mole.training.parallel import Sharding, check_deepspeed, sharding_asked
from tests.processes import REPOSITORY

CONFIGS = REPOSITORY / "configs" / "accelerate"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def launch_environment(config: Path, *options: str) -> dict[str, str]:
    """What `accelerate launch` would set for its processes."""
    arguments = ["--config_file", str(config), *options, "-m", "llava_mole.cli", "env"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return prepare_multi_gpu_env(parsed)


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def asked(
    config: Path, arguments: TrainingArguments, monkeypatch: pytest.MonkeyPatch, *options: str
) -> Sharding | None:
    before = dict(os.environ)
    for key, value in launch_environment(config, *options).items():
        if before.get(key) != value:
            monkeypatch.setenv(key, value)
    return sharding_asked(arguments)


def test_every_config_that_ships_is_known_here() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_config(name: str) -> None:
    """Unknown keys are an error there."""
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 8
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[:4]
    assert f"configs/accelerate/{name}.yaml" in first[0]
    assert any("not run on GPUs" in line for line in first)


def test_the_fsdp2_config_says_what_is_cut_up(
    arguments: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(CONFIGS / "fsdp2.yaml", arguments, monkeypatch) == Sharding()
    bf16 = asked(CONFIGS / "fsdp2.yaml", arguments, monkeypatch, "--fsdp_offload_params", "true")
    assert bf16 == Sharding(cpu_offload=True)


def test_the_ddp_config_asks_for_no_pieces(
    arguments: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(CONFIGS / "ddp.yaml", arguments, monkeypatch) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version=1; only 2"),
        ({"fsdp_activation_checkpointing": True}, "gradient_checkpointing: true"),
        (
            {"fsdp_cpu_ram_efficient_loading": True, "fsdp_sync_module_states": True},
            "cpu_ram_efficient_loading=true",
        ),
    ],
)
def test_what_would_not_be_followed_is_refused(
    change: dict[str, Any],
    message: str,
    arguments: TrainingArguments,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    values = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())
    values["fsdp_config"].update(change)
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        asked(tmp_path / "changed.yaml", arguments, monkeypatch)


def test_a_recipe_may_ask_for_pieces_itself(tmp_path: Path) -> None:
    options = {"fsdp": True, "fsdp_config": {"reshard_after_forward": False}, "bf16": True}
    own = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **options)
    expected = Sharding(reshard_after_forward=False, param_dtype=torch.bfloat16)
    assert sharding_asked(own) == expected


@pytest.mark.parametrize("stage", [2, 3])
def test_the_zero_configs_leave_optimizer_and_rates_to_the_recipe(
    stage: int, arguments: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    values = yaml.safe_load((CONFIGS / f"zero{stage}.yaml").read_text())["deepspeed_config"]
    path = values["deepspeed_config_file"]
    plugin = DeepSpeedPlugin(hf_ds_config=path, zero3_init_flag=values["zero3_init_flag"])
    assert plugin.zero_stage == stage
    arguments.deepspeed_plugin = plugin
    check_deepspeed(arguments)
    for section in ("optimizer", "scheduler"):
        config = {**json.loads(Path(path).read_text()), section: {"type": "AdamW"}}
        arguments.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
        with pytest.raises(ConfigError, match=f"a section '{section}'.*rates per part"):
            check_deepspeed(arguments)
    if stage == 3:
        arguments.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=path, zero3_init_flag=True)
        with pytest.raises(ConfigError, match="zero3_init_flag=true"):
            check_deepspeed(arguments)
