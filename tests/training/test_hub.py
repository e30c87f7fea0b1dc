"""The hub, as a server that answers as it does: every way a repository cannot be had is told with
what to do; revisions are pinned; a run's model is pushed and read back."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.fake_hub import FakeHub, commit_of

FETCH = """
import llava_mole_cli  # as the shell's command does: no part is imported before it is needed
from llava_mole.errors import CheckpointError
from llava_mole.hub import fetch
for words in {asked!r}:
    try:
        folder = fetch(*words, what="language model")
        print("fetched", sorted(path.name for path in folder.iterdir()))
    except CheckpointError as error:
        print(error)
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def said(result: Any) -> list[str]:
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_what_the_hub_refuses_is_told_with_what_to_do(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["org/gated"] = {"main": {"config.json": b"{}"}}
    hub.gated.add("org/gated")
    hub.repositories["org/open"] = {"main": {"config.json": b"{}"}, "v1": {"old.json": b"{}"}}
    asked = [("org/gated",), ("org/open", "v9"), ("org/nothing",), ("no id",), ("org/open", "v1")]
    gated, revision, missing, no_id, fetched = said(hub.run(FETCH.format(asked=asked), tmp_path))
    assert f"gated: accept its conditions at {hub.address}/org/gated" in gated
    assert "`hf auth login`" in gated
    assert f"no revision 'v9': its branches and tags are at {hub.address}/org/open" in revision
    assert "'org/nothing' is no local folder, and there is none of that name" in missing
    assert "neither a local folder nor a hub id, which looks like org/name" in no_id
    assert fetched == "fetched ['old.json']"


def test_offline_what_is_not_in_the_cache_is_named_with_the_command_that_fetches_it(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.repositories["org/open"] = {"main": {"config.json": b"{}"}}
    program = FETCH.format(asked=[("org/open",), ("org/other", "v2")])
    once, _ = said(hub.run(program, tmp_path))
    assert once.startswith("fetched")
    again, absent = said(hub.run(program, tmp_path, HF_HUB_OFFLINE="1"))
    assert again == once
    assert "HF_HUB_OFFLINE" in absent
    assert "`hf download org/other --revision v2`" in absent
    assert str(tmp_path) in absent


def test_an_unreachable_hub_is_told_from_a_missing_repository(hub: FakeHub, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    (line,) = said(hub.run(FETCH.format(asked=[("org/a",)]), tmp_path, HF_ENDPOINT=nobody))
    assert f"the hub at {nobody} cannot be reached" in line
    assert "`hf download org/a --local-dir FOLDER`" in line


def test_a_full_disk_is_told_with_where_else_the_cache_may_be(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["org/big"] = {"main": {"config.json": b"1" * 200_000}}
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    (line,) = said(hub.run(limit + FETCH.format(asked=[("org/big",)]), tmp_path))
    assert "file too large while it was fetched into" in line
    assert "HF_HOME=FOLDER" in line


@pytest.mark.slow
def test_a_language_model_and_a_tower_come_at_their_revisions_and_are_found_again(
    hub: FakeHub, tiny_parts: Any, tmp_path: Path
) -> None:
    """Newer, broken files on main are never read."""
    language, tower = tiny_parts.language_model("llama"), tiny_parts.tower("vit")
    hub.repositories["org/lm"] = {"main": {"config.json": b"broken"}, "v1": files_of(language)}
    pinned = commit_of(files_of(tower))
    hub.repositories["org/tower"] = {"main": {"x": b"broken"}, "v1": files_of(tower)}
    program = f"""
import torch
from llava_mole import LlavaMoleForConditionalGeneration
from llava_mole.building import ModelRecipe, build_model
model, processor = build_model(ModelRecipe(
    language_model="org/lm", language_model_revision="v1", vision_model="hf-hub:org/tower",
    vision_revision={pinned!r}, dtype="float32", lora={{"r": 2, "target_modules": ["q_proj"]}},
))
model.save_pretrained({str(tmp_path / "model")!r}, processor=processor)
again = LlavaMoleForConditionalGeneration.from_pretrained({str(tmp_path / "model")!r})
ids = torch.tensor([[1, 20, 30]])
assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
try:
    build_model(ModelRecipe(language_model="org/lm", language_model_revision="v1",
                            vision_model="hf-hub:org/tower", dtype="float32"))
except Exception as error:
    print(type(error).__name__, error)
"""
    (line,) = said(hub.run(program, tmp_path / "cache"))
    assert line.startswith("CheckpointError vision tower 'org/tower' has no open_clip_config.json")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["text_source"]["revision"] == "v1"
    assert config["vision"]["source"]["revision"] == pinned


def parquet(word: str) -> bytes:
    written = io.BytesIO()
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": word}]
    pq.write_table(pa.table({"messages": [messages]}), written)
    return written.getvalue()


def test_a_data_set_is_read_at_its_revision_and_refusals_are_told(
    hub: FakeHub, tmp_path: Path
) -> None:
    name = "data/train-00000-of-00001.parquet"
    hub.repositories["datasets/org/set"] = {
        "main": {name: parquet("new")}, "v1": {name: parquet("old")},
    }  # fmt: skip
    program = """
from llava_mole.data.containers import open_container
from llava_mole.errors import DataError
for address in ("hub:org/set:train", "hub:org/set@v1:train", "hub:org/set@v9", "hub:org/none"):
    try:
        print(open_container(address).record(0)["messages"][1]["content"])
    except DataError as error:
        print(error)
"""
    new, old, revision, missing = said(hub.run(program, tmp_path))
    assert (new, old) == ("new", "old")
    assert "data set 'org/set' has no revision 'v9'" in revision
    assert "`hf download org/set --repo-type dataset --revision v9 --local-dir DIR`" in revision
    assert f"there is none of that name at {hub.address}/datasets/org/none" in missing


# ---------------------------------------------------------------------- pushing

TRAIN = """
from pathlib import Path
from llava_mole.cli import main
raise SystemExit(main(["train", "--config", {config!r}]))
"""
READ = """
import torch, llava_mole
from transformers import AutoModelForImageTextToText, AutoProcessor
ids = torch.tensor([[1, 20, 30]])
local, pushed = (AutoModelForImageTextToText.from_pretrained(name) for name in
                 ({local!r}, "me/tiny"))
AutoProcessor.from_pretrained("me/tiny")
assert torch.equal(local(input_ids=ids).logits, pushed(input_ids=ids).logits)
print("equal")
"""


def pushing(recipe_file: Path, **training: Any) -> str:
    values = yaml.safe_load(recipe_file.read_text())
    values["stages"] = values["stages"][1:2]
    del values["model"]["parrot"]
    values["training"] |= {"push_to_hub": True, "hub_model_id": "me/tiny", **training}
    recipe_file.write_text(yaml.safe_dump(values))
    return str(recipe_file)


@pytest.mark.slow
def test_a_run_pushes_its_whole_model_folder_and_the_hub_gives_it_back(
    hub: FakeHub, recipe_file: Path, tmp_path: Path
) -> None:
    config = pushing(recipe_file, hub_private_repo=True, hub_strategy="every_save")
    done = hub.run(TRAIN.format(config=config), tmp_path / "cache", HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["name"] == "tiny"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    messages = [message for _, _, message, _ in hub.commits]
    assert messages[-1] == "Trained model"
    assert "Training in progress, step 2" in messages
    pushed = hub.repositories["me/tiny"]["main"]
    local = files_of(tmp_path / "run" / "model")
    assert {name: pushed[name] for name in local if not name.startswith(".")} == {
        name: data for name, data in local.items() if not name.startswith(".")
    }
    assert "adapters/experts/adapter_model.safetensors" in pushed
    assert not [name for name in pushed if name.startswith(("optimizer", "training_args"))]
    (line,) = said(
        hub.run(READ.format(local=str(tmp_path / "run" / "model")), tmp_path / "other cache")
    )
    assert line == "equal"


def test_without_a_token_nothing_is_trained(
    hub: FakeHub, recipe_file: Path, tmp_path: Path
) -> None:
    config = pushing(recipe_file)
    done = hub.run(TRAIN.format(config=config), tmp_path / "cache")
    assert done.returncode == 2
    assert "no token on this machine; `hf auth login`" in done.stderr
    assert not (tmp_path / "run").exists()
    assert not hub.commits
