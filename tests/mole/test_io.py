"""An expert folder: PEFT's shape, the same outputs after loading, and every damage by name."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from llava_mole.errors import CheckpointError
from llava_mole.mole import MoleConfig, add_experts, load, save
from tests.helpers import FAMILIES, awaken, language_model, random_ids

IDS = random_ids(2, 9)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = language_model("llama")
    add_experts(model, MoleConfig(num_experts=2, r=2))
    save(awaken(model), tmp_path / "experts", base="some/base")
    return tmp_path / "experts"


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_save_and_load_to_identical_logits(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    add_experts(model, MoleConfig(num_experts=3, r=2, gate="scaled", lora_alpha=3.0))
    awaken(model)
    save(model, tmp_path)
    fresh = language_model(family)
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_the_folder_has_pefts_shape(folder: Path) -> None:
    described = json.loads((folder / CONFIG).read_text())
    assert described["peft_type"] == "LLAVA_MOLE"
    assert described["base_model_name_or_path"] == "some/base"
    assert all(name.startswith("base_model.model.") for name in load_file(folder / WEIGHTS))


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load(language_model("llama"), folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=gone.removeprefix("base_model.model.")):
        load(language_model("llama"), folder)


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.layers.9.stray"] = tensors[sorted(tensors)[0]].clone()
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"layers\.9\.stray"):
        load(language_model("llama"), folder)


def test_another_bases_shapes_are_named(folder: Path) -> None:
    other = language_model("llama", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"another shape.*\(48, 4\).*\(64, 4\)|down_proj"):
        load(other, folder)


def test_half_a_file_is_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(language_model("llama"), folder)


def test_a_plain_lora_is_not_an_expert_folder(tmp_path: Path) -> None:
    lora = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="open plain LoRAs with PEFT"):
        load(language_model("llama"), tmp_path)


def test_an_unknown_key_of_a_later_version_is_refused(folder: Path) -> None:
    described = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**described, "shared_A": True}))
    with pytest.raises(CheckpointError, match="shared_A"):
        load(language_model("llama"), folder)
