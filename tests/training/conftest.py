"""A tiny data set and a recipe over tiny parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import picture

LANGUAGES = {"en": "What is it?", "tr": "Bu nedir?"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures, named in two languages, with a re-drawing of the first."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    items = []
    for index in range(6):
        picture(index).save(folder / "images" / f"{index}.png")
        for language, question in LANGUAGES.items():
            items.append(
                {
                    "image": f"images/{index}.png",
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{question}"},
                        {"from": "gpt", "value": f"thing {chr(97 + index)} {language}"},
                    ],
                    "domain": "tiny",
                    "language": language,
                    "kind": "naming",
                }
            )
    picture(99).save(folder / "images" / "other.png")
    (folder / "train.json").write_text(json.dumps(items), encoding="utf-8")
    (folder / "names.json").write_text(
        json.dumps({"0": {"variants": [{"file": "images/other.png", "keeps_colour": True}]}})
    )
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, data: Path, tiny_parts: Any) -> Path:
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "language_model": str(tiny_parts.language_model("gemma3_text")),
            "vision_model": f"local-dir:{tiny_parts.tower('cnn')}",
            "dtype": "float32",
            "experts": {"num_experts": 2, "r": 2, "lora_alpha": 4},
            "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]},
            "parrot": {"num_experts": 2, "hidden_size": 8},
        },
        "data": {
            "sources": [
                {"path": str(data / "train.json"), "variants": str(data / "names.json")}
            ]
        },
        "training": {"logging_steps": 1, "save_strategy": "steps", "save_steps": 2},
        "stages": [
            {"name": "warm", "kind": "warm_start", "steps": 3},
            {
                "name": "instruct",
                "steps": 4,
                "pictures_per_step": 2,
                "questions_per_picture": 2,
                "learning_rates": dict.fromkeys(("projector", "experts", "routers", "lora"), 0.01),
            },
            {
                "name": "parrot",
                "parrot": True,
                "share_prefix": False,
                "steps": 2,
                "pictures_per_step": 2,
                "questions_per_picture": 1,
                "learning_rates": {"parrot": 0.01},
            },
        ],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
