"""An expert folder: PEFT's shape, the same outputs after loading, and every damage by name."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from llava_mole.errors import CheckpointError, ConfigError
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


def with_experts(seed: int = 1, **changes: Any) -> Any:
    """A tiny Llama with two experts, random weights."""
    model = language_model("llama")
    add_experts(model, MoleConfig(**{"num_experts": 2, "r": 2, **changes}))
    return awaken(model, seed)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


# ---------------------------------------------------------------------- the folder's two files


def test_a_config_of_other_experts_is_refused(folder: Path, tmp_path: Path) -> None:
    save(with_experts(lora_alpha=5.0), tmp_path / "other")
    (tmp_path / "other" / CONFIG).replace(folder / CONFIG)
    with pytest.raises(CheckpointError, match=f"{CONFIG} is not the one that {WEIGHTS}"):
        load(language_model("llama"), folder)


def test_a_folder_older_than_a_field_loads_with_its_default(folder: Path) -> None:
    described = json.loads((folder / CONFIG).read_text())
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    saved = json.loads(metadata["mole_config"])
    for values in (described, saved):
        del values["exclude_modules"], values["gate"]
    (folder / CONFIG).write_text(json.dumps(described))
    metadata["mole_config"] = json.dumps(saved)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=metadata)
    load(language_model("llama"), folder)


def stop_at_rename(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the count-th rename fail, as where the machine stops between two."""
    rename, done = Path.replace, []

    def stopping(self: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == count:
            raise OSError("stopped")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stopping)


def test_a_save_that_stopped_between_its_two_files_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at_rename(patch, 2)
        with pytest.raises(OSError, match="stopped"):
            save(with_experts(lora_alpha=5.0), folder)
    with pytest.raises(CheckpointError, match="was saving interrupted"):
        load(language_model("llama"), folder)


@pytest.mark.parametrize("count", [1, 2])
def test_a_save_that_fails_leaves_nothing_half_written(
    count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_rename(monkeypatch, count)
    with pytest.raises(OSError, match="stopped"):
        save(with_experts(seed=2), folder)
    assert files(folder) == {CONFIG, WEIGHTS}


def test_a_save_leaves_its_two_files_and_nothing_else(folder: Path) -> None:
    save(with_experts(seed=2), folder)  # over what is there
    assert files(folder) == {CONFIG, WEIGHTS}


def test_several_may_save_to_one_folder_at_once(tmp_path: Path) -> None:
    model = with_experts()

    def save_often(_: int) -> None:
        for _ in range(5):
            save(model, tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save_often, range(4)))
    assert files(tmp_path) == {CONFIG, WEIGHTS}
    fresh = language_model("llama")
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)


def test_a_file_is_no_folder_to_save_into(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a letter")
    with pytest.raises(CheckpointError, match=r"taken is a file; name a folder"):
        save(with_experts(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a letter"


# ---------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("key", ["method", "num_experts", "r", "lora_alpha", "target_modules"])
def test_a_key_that_shapes_the_experts_is_never_guessed(folder: Path, key: str) -> None:
    described = json.loads((folder / CONFIG).read_text())
    del described[key]
    (folder / CONFIG).write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=rf"{CONFIG}: {key} is missing"):
        load(language_model("llama"), folder)


def test_json_that_is_too_deep_to_read_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=f"{CONFIG} is not JSON"):
        load(language_model("llama"), folder)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensor: tensor.to(torch.int32), r"holds torch\.int32"),
        (lambda tensor: tensor * torch.nan, "is not finite"),
        (lambda tensor: tensor + torch.inf, "is not finite"),
    ],
    ids=["int32", "nan", "inf"],
)
def test_numbers_that_are_no_weights_are_refused_by_tensor(
    damage: Any, said: str, folder: Path
) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[3]
    save_file({**tensors, name: damage(tensors[name])}, folder / WEIGHTS)
    model = language_model("llama")
    with pytest.raises(CheckpointError, match=f"{name.removeprefix('base_model.model.')} {said}"):
        load(model, folder)
    assert set(model.state_dict()) == set(language_model("llama").state_dict())


def test_a_base_of_other_layers_is_told_both_numbers(folder: Path) -> None:
    other = language_model("llama", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="file is of 2 layers, the model of 3"):
        load(other, folder)


def test_the_base_is_named_as_its_config_names_it(tmp_path: Path) -> None:
    model = with_experts()
    model.config._name_or_path = "some/where"
    save(model, tmp_path / "named")
    assert described_base(tmp_path / "named") == "some/where"
    model.config._name_or_path = ""
    save(model, tmp_path / "unnamed")
    assert described_base(tmp_path / "unnamed") is None


def described_base(folder: Path) -> str | None:
    return json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", ["mole_bank", "mole_router", "a.b", "", None, 5])
def test_a_name_that_no_folder_could_hold_is_refused(folder: Path, name: Any) -> None:
    with pytest.raises(ConfigError, match="adapter name"):
        load(language_model("llama"), folder, name)


def test_a_model_without_weights_is_not_loaded_onto(folder: Path) -> None:
    with torch.device("meta"):
        model = language_model("llama")
    with pytest.raises(ConfigError, match="meta device"):
        load(model, folder)


def test_experts_that_were_lost_with_their_linears_are_not_saved_without_a_word(
    tmp_path: Path,
) -> None:
    wrapped = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules=["up_proj"]))
    add_experts(wrapped, MoleConfig(num_experts=2, r=2))
    model = wrapped.merge_and_unload()
    with pytest.raises(ConfigError, match="2 of 6 linears have lost the experts of 'default'"):
        save(model, tmp_path)
    assert not files(tmp_path)


def test_a_root_named_for_the_plain_base_is_found_where_peft_wrapped_it(tmp_path: Path) -> None:
    model = with_experts(root="model")
    save(model, tmp_path)
    wrapped = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    load(wrapped, tmp_path)  # its LoRA starts at zero
    assert_close(wrapped.eval()(IDS).logits, model(IDS).logits, rtol=0, atol=0)
