"""Where a run may write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_mole.configuration import WeightSource
from llava_mole.errors import ConfigError
from llava_mole.training.schema import load_recipe


@pytest.mark.parametrize("where", ["model", "stages/1-instruct/model"])
@pytest.mark.parametrize("how", ["plain", "link", "dots", "referred"])
def test_a_run_does_not_write_over_what_it_starts_from(
    recipe_file: Path, tmp_path: Path, tiny_model: Any, where: str, how: str
) -> None:
    out = tmp_path / "self"
    start = out / where
    model, processor = tiny_model("llama")
    model.save_pretrained(start, processor=processor)
    named, key = start, "model.start_from: "
    if how == "link":
        named = tmp_path / "linked"
        named.symlink_to(start)
    elif how == "dots":
        named = tmp_path / "data" / ".." / "self" / where
    elif how == "referred":
        named, key = tmp_path / "elsewhere", r"model.start_from=.*: its language model: "
        model.config.text_source = WeightSource(str(start / "language_model")).to_dict()
        named.mkdir()
        model.config.save_pretrained(named)
    changes = [f"output_dir={out}", f"model.start_from={named}"]
    with pytest.raises(ConfigError, match=rf"{key}.*writes over"):
        load_recipe(recipe_file, changes)
    assert (start / "config.json").is_file()


def test_data_below_what_a_run_removes_is_refused(recipe_file: Path, data: Path) -> None:
    out = data.parent / "run"
    (out / "stages").mkdir(parents=True)
    (data / "train.json").rename(out / "stages" / "train.json")
    with pytest.raises(ConfigError, match=r"data.sources.0: .*writes over"):
        load_recipe(recipe_file, [f"data.sources.0.path={out / 'stages' / 'train.json'}"])


@pytest.mark.parametrize("how", ["file", "below a file", "too long"])
def test_an_output_dir_that_cannot_be_made_is_refused(
    recipe_file: Path, tmp_path: Path, how: str
) -> None:
    (tmp_path / "file").write_text("mine")
    places = {"file": "file", "below a file": "file/run", "too long": "x" * 300}
    with pytest.raises(ConfigError, match=r"output_dir=.*(is a file|too long)"):
        load_recipe(recipe_file, [f"output_dir={tmp_path / places[how]}"])


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true"])
def test_a_step_has_at_least_one_micro_batch(recipe_file: Path, value: str) -> None:
    for path in ("training", "stages.instruct.training"):
        with pytest.raises(ConfigError, match=r"gradient_accumulation_steps=.*whole number"):
            load_recipe(recipe_file, [f"{path}.gradient_accumulation_steps={value}"])
