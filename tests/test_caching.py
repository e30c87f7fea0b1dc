"""`llava-mole cache`: features ahead of a run, and what the cache holds."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from llava_mole.building import build_model
from llava_mole.caching import add_arguments, cache_command, features_folder, fill_cache
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_folder import list_keys
from llava_mole.feature_key import feature_key
from llava_mole.features import FeatureStore
from llava_mole.training.data import read_data
from llava_mole.training.schema import load_recipe
from tests.helpers import picture

Run = Callable[..., str]


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_parts: Any) -> Path:
    """Six pictures, the last a copy of the first, and another drawing of one."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    items = []
    for index in range(6):
        picture(index % 5).save(folder / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": f"{index}"}]
        items.append({"image": f"images/{index}.png", "conversations": turns, "domain": "tiny",
                      "language": "en", "kind": "naming"})  # fmt: skip
    picture(99).save(folder / "images" / "other.png")
    (folder / "train.json").write_text(json.dumps(items), encoding="utf-8")
    (folder / "names.json").write_text(
        json.dumps({"0": {"variants": [{"file": "images/other.png", "keeps_colour": True}]}})
    )
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "language_model": str(tiny_parts.language_model("llama")),
            "vision_model": f"local-dir:{tiny_parts.tower('cnn')}",
            "dtype": "float32",
        },
        "data": {
            "sources": [
                {"path": str(folder / "train.json"), "variants": str(folder / "names.json")}
            ]
        },
        "stages": [{"name": "align", "steps": 1, "learning_rates": {"projector": 0.01}}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def run(folder: Path) -> Run:
    """Words of the command line -> what it prints."""

    def command(*words: object) -> str:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        out = io.StringIO()
        args = parser.parse_args([*map(str, words), "--folder", str(folder)])
        assert cache_command(args, Console(file=out, width=200)) == 0
        return out.getvalue()

    return command


def test_a_run_finds_every_picture_that_was_filled_ahead(recipe_file: Path, folder: Path) -> None:
    recipe = load_recipe(recipe_file)
    report = fill_cache(recipe, folder, progress=False)
    assert (report.pictures, report.distinct, report.hits, report.computed) == (7, 6, 0, 6)
    assert report.bytes == sum(p.stat().st_size for p in report.folder.glob("*.safetensors"))
    model, processor = build_model(recipe.model)
    key = feature_key(model, processor.image_processor)
    store = FeatureStore(model, processor.image_processor, cache=FeatureCache(folder, key))
    pictures = read_data(recipe.data).pictures()
    assert store.fill(pictures, progress=False) == 0
    plain = FeatureStore(model, processor.image_processor)
    assert torch.equal(store(pictures), plain(pictures))


def test_filling_again_computes_nothing(recipe_file: Path, folder: Path) -> None:
    recipe = load_recipe(recipe_file)
    fill_cache(recipe, folder, progress=False)
    report = fill_cache(recipe, folder, progress=False)
    assert (report.hits, report.computed, report.bytes) == (6, 0, 0)


def test_only_the_tower_is_built(recipe_file: Path, folder: Path) -> None:
    recipe = load_recipe(recipe_file, ["model.language_model=/nowhere"])
    assert fill_cache(recipe, folder, progress=False).computed == 6


def test_the_command_says_what_it_did(recipe_file: Path, run: Run, tmp_path: Path) -> None:
    said = run("--config", recipe_file, "--json", tmp_path / "figures.json")
    assert "7 pictures, 1 of them the same as another; 0 of 6 held already" in said
    assert "computed 6" in said
    assert "6 of 6 held already" in run("--config", recipe_file)
    assert json.loads((tmp_path / "figures.json").read_text())["computed"] == 6


def test_a_dry_run_tells_and_stores_nothing(recipe_file: Path, run: Run, folder: Path) -> None:
    assert "would compute 6: about" in run("--config", recipe_file, "--dry-run")
    assert list_keys(folder) == []
    assert list(folder.rglob("*.safetensors")) == []
    assert "do not fit" in run("--config", recipe_file, "--dry-run", "--max-gib", 1e-6)


def test_what_could_not_be_stored_is_counted(recipe_file: Path, run: Run) -> None:
    assert "6 could not be stored" in run("--config", recipe_file, "--max-gib", 1e-6)


def test_an_override_that_changes_the_features_has_its_own_key(
    recipe_file: Path, run: Run, folder: Path
) -> None:
    run("--config", recipe_file)
    assert "0 of 6 held already" in run("--config", recipe_file, "model.vision_grid=1")
    table = run("--list")
    assert "5 x 256" in table
    assert "grid 1" in table
    one, other = list_keys(folder)
    assert "removed 1 keys" in run("--clear", one.id[:12])
    assert [info.id for info in list_keys(folder)] == [other.id]
    assert "removed 1 keys" in run("--clear")
    assert list_keys(folder) == []


def test_the_recipes_own_folder_and_bound_are_taken(recipe_file: Path, tmp_path: Path) -> None:
    own = ["data.feature_cache.folder=" + str(tmp_path / "own"), "data.feature_cache.max_gib=1e-6"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = io.StringIO()
    args = parser.parse_args(["--config", str(recipe_file), *own])
    assert cache_command(args, Console(file=out, width=200)) == 0
    assert "6 could not be stored" in out.getvalue()
    args = parser.parse_args(["--config", str(recipe_file), *own, "--max-gib", "1"])
    assert cache_command(args, Console(file=out, width=200)) == 0
    assert [info.pictures for info in list_keys(tmp_path / "own")] == [6]


def test_filling_without_a_recipe_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="--config"):
        run()


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "much"])
def test_a_bound_that_is_no_size_is_refused(
    size: str, recipe_file: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("--config", recipe_file, f"--max-gib={size}")
    assert "--max-gib" in capsys.readouterr().err


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path))
    assert features_folder() == tmp_path / "features"
    assert features_folder("elsewhere") == Path("elsewhere")
