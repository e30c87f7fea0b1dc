"""Fixtures shared by the tests. Nothing here reaches the network: the hub is switched off first."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Uploads to a page under test: a folder for each process, or tests would see each other's.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="llava-mole-tests-")

# A package installed elsewhere may also be called `tests`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from hypothesis import HealthCheck, settings

from llava_mole.building import ModelRecipe, build_model
from llava_mole.configuration import ParrotConfig
from llava_mole.mole import MoleConfig
from llava_mole.starter import StarterPaths, ensure_starter
from tests import helpers

atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
torch.set_num_threads(1)  # tiny models: threads only wait for each other
# A busy machine is no mistake, and what fails here fails everywhere. Other examples than these:
# HYPOTHESIS_PROFILE=default
settings.register_profile("same", deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "same")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are about the CPU on every machine, and with `-m gpu` about a CUDA device."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("-m")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, and say so."""
    asked_for_hub = "hub" in config.getoption("-m")
    if "thorough" not in config.getoption("-m") and not any("::" in one for one in config.args):
        left = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: ask for it with -m gpu"))
        if item.get_closest_marker("hub") and not asked_for_hub:
            item.add_marker(pytest.mark.skip(reason="needs the hub: ask for it with -m hub"))


@pytest.fixture(scope="session")
def starter() -> StarterPaths:
    """The real starter in the user's cache; made there once if it is not (about a minute)."""
    return ensure_starter()


# ---------------------------------------------------------------------- parts in miniature


class TinyParts:
    """Folders of tiny parts, each written once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def language_model(self, family: str, **changes: Any) -> Path:
        """Folder of a random language model; `changes` go to its config."""
        label = "-".join([family, *(f"{key}={value}" for key, value in changes.items())])
        folder = self.root / label.replace("/", "_")
        if not folder.is_dir():
            helpers.write_language_model(folder, family, **changes)
        return folder

    def tower(self, kind: str) -> Path:
        """Folder of a random tower, "vit" or "cnn"."""
        folder = self.root / kind
        return folder if folder.is_dir() else helpers.write_tower(folder, kind)

    def recipe(
        self,
        family: str = "llama",
        *,
        tower: str = "vit",
        parrot: ParrotConfig | bool | None = None,
        mole: MoleConfig | bool | None = None,
        lora: dict[str, Any] | bool | None = None,
        language_model: Path | None = None,
        **options: Any,
    ) -> ModelRecipe:
        """The `model:` section of a recipe; True takes a small default of that part."""
        return ModelRecipe(
            language_model=str(language_model or self.language_model(family)),
            vision_model=f"local-dir:{self.tower(tower)}",
            parrot=ParrotConfig(num_experts=3, hidden_size=16)
            if parrot is True
            else parrot or None,
            experts=MoleConfig(num_experts=3, r=2, lora_alpha=4.0)
            if mole is True
            else mole or None,
            lora={"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}
            if lora is True
            else lora or None,
            **{"dtype": "float32", "attn_implementation": helpers.ATTENTION[family], **options},
        )


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> TinyParts:
    return TinyParts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def tiny_model(tiny_parts: TinyParts) -> Callable[..., Any]:
    """Factory: (family, parrot=…, mole=…, lora=…, awake=True) -> (model, processor).

    `awake` gives adapters random weights; without it they are the identity, as a user gets them.
    """

    def make(family: str = "llama", *, awake: bool = True, seed: int = 0, **options: Any) -> Any:
        recipe = tiny_parts.recipe(family, **options)  # writes its parts the first time: draws
        torch.manual_seed(seed)
        model, processor = build_model(recipe)
        if awake:
            helpers.awaken(model)
        return model, processor

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(
    tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved model folder with its processor: Gemma 3, experts and plain LoRA."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model, processor = tiny_model("gemma3_text", mole=True, lora=True)
    model.save_pretrained(folder, processor=processor)
    return folder
