"""What a run leaves on record in the model's config, for its card."""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from llava_mole.configuration import LlavaMoleConfig
from llava_mole.training.history import said_beside, steps_taken
from llava_mole.training.recipe import StageRecipe
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe


def test_a_run_records_its_data_and_the_steps_it_took(recipe_file: Path, data: Path) -> None:
    (data / "dataset.json").write_text('{"licence": "CC BY-SA 4.0"}')
    (data / "ATTRIBUTION.txt").write_text("drawn by somebody")
    recipe = load_recipe(recipe_file, ["training.gradient_accumulation_steps=3"])
    run_recipe(recipe)
    folder = Path(recipe.output_dir) / "model"
    history = LlavaMoleConfig.from_pretrained(folder).provenance
    assert history["data"] == [
        {"name": "train", "samples": 12, "languages": {"en": 6, "tr": 6},
         "licence": "CC BY-SA 4.0", "attribution": "drawn by somebody"}
    ]  # fmt: skip
    assert [(s["name"], s["steps"], s["rows"]) for s in history["stages"]] == [
        ("warm", 3, None), ("instruct", 4, 6), ("parrot", 2, 6),
    ]  # fmt: skip
    assert history["stages"][2]["learning_rates"] == {"parrot": 0.01}
    assert ModelCard.load(folder / "README.md").data.language == ["en", "tr"]
    assert "drawn by somebody" in (folder / "NOTICE").read_text()
    # A run that goes on finds finished stages and tells the same.
    shutil.rmtree(folder)
    run_recipe(recipe)
    assert LlavaMoleConfig.from_pretrained(folder).provenance == history


def test_what_no_builder_wrote_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("[1, 2")
    (tmp_path / "ATTRIBUTION.txt").write_text("long " * 2_000)
    assert said_beside(tmp_path / "train.json") == {
        "attribution": "See ATTRIBUTION.txt in the folder of train.json."
    }


def test_steps_are_those_of_the_log_and_not_of_the_recipe(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"stage": "a", "step": 2}, {"stage": "a", "step": 7}, {"stage": "b", "step": 90}]
    log.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"stage": "a", "st')
    assert steps_taken(log, StageRecipe("a")) == 7
    assert steps_taken(log, StageRecipe("c")) is None
    assert steps_taken(tmp_path / "none", StageRecipe("a")) is None
