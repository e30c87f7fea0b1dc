"""A model folder from a stranger: reading it runs nothing and follows nothing out of it.

Model folders are passed on and loaded by people who did not make them. Weights are safetensors;
pickles and Python files that lie about are not read; relative names stay inside; links are followed
only where the hub's own cache is made of them.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole import LlavaMoleForConditionalGeneration, LlavaMoleProcessor
from llava_mole.building import build_model
from llava_mole.errors import CheckpointError
from llava_mole.folders import replacing_folder
from llava_mole.provenance import copy_licence_files
from tests.helpers import (
    assistant,
    picture,
    training_batch,
    user,
    write_language_model,
    write_tower,
)

CHAT = [user("What is it?", picture(1)), assistant("a cat")]


class Trap:
    """Something that, if anything in a folder is executed, says so."""

    def __init__(self, root: Path) -> None:
        self.sprung = root / "sprung"

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.sprung}",)

    def pickle(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self))

    def python(self, folder: Path) -> None:
        (folder / "trap.py").write_text(
            f"import pathlib\npathlib.Path({str(self.sprung)!r}).touch()\nclass Trap: pass\n"
        )


@pytest.fixture
def trap(tmp_path: Path) -> Any:
    made = Trap(tmp_path)
    yield made
    assert not made.sprung.exists(), "something in the folder was executed"


@pytest.fixture
def whole(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with everything in it, frozen parts in full."""
    model, processor = tiny_model("llama", mole=True, lora=True, parrot=True)
    model.save_pretrained(tmp_path / "model", processor=processor, include_frozen=True)
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**training_batch(processor, [CHAT])).logits


# ---------------------------------------------------------------------- pickles


PICKLES = [
    "pytorch_model.bin", "open_clip_pytorch_model.bin", "training_args.bin", "tokenizer.pkl",
    "model.pt", "optimizer.pt", "language_model/pytorch_model.bin",
    "adapters/lora/adapter_model.bin", "adapters/experts/adapter_model.bin",
]  # fmt: skip


def test_the_trap_works(trap: Trap) -> None:
    pickle.loads(pickle.dumps(trap))
    assert trap.sprung.exists()
    trap.sprung.unlink()


def test_pickles_beside_the_weights_are_not_read(whole: Path, trap: Trap) -> None:
    expected = logits(whole)
    for name in PICKLES:
        trap.pickle(whole / name)
    assert_close(logits(whole), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("safe", "pickled"),
    [
        ("model.safetensors", "pytorch_model.bin"),
        ("language_model/model.safetensors", "language_model/pytorch_model.bin"),
        ("adapters/lora/adapter_model.safetensors", "adapters/lora/adapter_model.bin"),
        ("adapters/experts/adapter_model.safetensors", "adapters/experts/adapter_model.bin"),
    ],
)
def test_a_pickle_in_place_of_the_weights_is_refused(
    whole: Path, trap: Trap, safe: str, pickled: str
) -> None:
    (whole / safe).unlink()
    trap.pickle(whole / pickled)
    with pytest.raises(CheckpointError):
        LlavaMoleForConditionalGeneration.from_pretrained(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "language_model/model.safetensors"])
def test_a_pickle_under_the_name_of_the_weights_is_refused(
    whole: Path, trap: Trap, name: str
) -> None:
    trap.pickle(whole / name)
    change(whole / "config.json", text_source={"name": "language_model"})
    with pytest.raises(CheckpointError):
        LlavaMoleForConditionalGeneration.from_pretrained(whole)


def test_a_pickled_tower_is_refused_by_name(tiny_parts: Any, tmp_path: Path, trap: Trap) -> None:
    tower = write_tower(tmp_path / "tower", "vit")
    (tower / "open_clip_model.safetensors").unlink()
    trap.pickle(tower / "open_clip_pytorch_model.bin")
    recipe = tiny_parts.recipe("llama")
    recipe.vision_model = f"local-dir:{tower}"
    with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors.*pickled weights"):
        build_model(recipe)


def test_a_pickle_beside_a_towers_weights_is_not_read(
    tiny_parts: Any, tmp_path: Path, trap: Trap
) -> None:
    tower = write_tower(tmp_path / "tower", "vit")
    for name in ("open_clip_pytorch_model.bin", "pytorch_model.bin", "model.pth"):
        trap.pickle(tower / name)
    recipe = tiny_parts.recipe("llama")
    recipe.vision_model = f"local-dir:{tower}"
    build_model(recipe)


# ---------------------------------------------------------------------- code


def test_code_that_a_folder_names_for_itself_is_not_run(whole: Path, trap: Trap) -> None:
    expected = logits(whole)
    for folder in (whole, whole / "language_model"):
        trap.python(folder)
    named = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "trap.Trap")
    change(whole / "config.json", auto_map=named)
    change(whole / "tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.Trap", None]})
    change(whole / "processor_config.json", auto_map={"AutoProcessor": "trap.Trap"})
    change(
        whole / "language_model" / "config.json",
        auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"},
    )
    assert_close(logits(whole), expected, rtol=0, atol=0)


def test_a_language_model_that_needs_its_own_code_is_refused_without_a_question(
    whole: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap.python(whole / "language_model")
    change(
        whole / "language_model" / "config.json", model_type="trap",
        auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"},
    )  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    with pytest.raises(CheckpointError, match="language model in"):
        LlavaMoleForConditionalGeneration.from_pretrained(whole)


def test_a_tokenizer_that_needs_its_own_code_is_refused_without_a_question(
    tiny_parts: Any, tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_language_model(tmp_path / "base", "llama")
    trap.python(base)
    change(
        base / "tokenizer_config.json", tokenizer_class="TrapTokenizer",
        auto_map={"AutoTokenizer": ["trap.Trap", None]},
    )  # fmt: skip
    for name in ("tokenizer.json",):
        (base / name).unlink()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    with pytest.raises(CheckpointError, match="tokenizer in"):
        build_model(tiny_parts.recipe("llama", language_model=base))


def test_a_chat_template_cannot_reach_python(whole: Path, trap: Trap) -> None:
    (whole / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.system('touch " + str(trap.sprung) + "') }}"
    )
    processor = LlavaMoleProcessor.from_pretrained(whole)
    with pytest.raises(Exception, match=r"unsafe|undefined|has no attribute"):
        processor.encode([user("hi"), assistant("there")])


# ---------------------------------------------------------------------- out of the folder


@pytest.mark.parametrize("name", ["../elsewhere", "language_model/../../elsewhere"])
def test_a_relative_name_that_leads_out_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "language_model", tmp_path / "elsewhere")
    change(whole / "config.json", text_source={"name": name})
    with pytest.raises(CheckpointError, match="must stay inside the model folder"):
        LlavaMoleForConditionalGeneration.from_pretrained(whole)


def test_a_shard_outside_of_its_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    weights = whole / "language_model" / "model.safetensors"
    shutil.copy(weights, whole / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (whole / "language_model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names the shard '\.\./outside\.safetensors'"):
        LlavaMoleForConditionalGeneration.from_pretrained(whole)


def test_links_are_followed_to_read_as_the_hubs_cache_needs(whole: Path, tmp_path: Path) -> None:
    """A snapshot of the hub is a folder of links to blobs; hashes are checked all the same."""
    expected = logits(whole)
    snapshot = tmp_path / "snapshot"
    for file in [path for path in whole.rglob("*") if path.is_file()]:
        link = snapshot / file.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert_close(logits(snapshot), expected, rtol=0, atol=0)


def test_a_licence_that_is_a_link_to_elsewhere_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a private key")
    part = tmp_path / "part"
    part.mkdir()
    (part / "LICENSE").symlink_to(tmp_path / "secret")
    (part / "NOTICE").write_text("ours")
    assert copy_licence_files(part, tmp_path / "copied") == ["NOTICE"]


def test_a_link_that_is_kept_at_a_save_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a private key")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes").symlink_to(tmp_path / "secret")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    with replacing_folder(folder) as building:
        (building / "weights").write_text("new")
    assert (folder / "notes").is_symlink()
    assert (folder / "gone").is_symlink()
    assert (folder / "weights").read_text() == "new"


def test_a_folder_that_is_a_link_is_saved_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "big-disk")
    with replacing_folder(tmp_path / "model") as building:
        (building / "weights").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "big-disk" / "weights").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big-disk", "model"]
