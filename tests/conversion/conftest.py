"""Tiny LLaVA folders, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conversion.tiny import TINY


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory: changes -> folder of a Hugging Face LLaVA; each written once."""
    root = tmp_path_factory.mktemp("llava")
    made: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        label = repr(sorted(changes.items()))
        if label not in made:
            folder = root / str(len(made))
            TINY.write_tiny_llava(folder, **changes)
            made[label] = folder
        return made[label]

    return make
