"""Files of the repository that an installed wheel does not have: recipes and data builders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from llava_mole.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def repository_file(name: str) -> Path:
    """A file of the clone, e.g. "configs/starter.yaml".

    Raises:
        ConfigError: the package runs outside a clone.
    """
    path = ROOT / name
    if not path.is_file():
        raise ConfigError(
            f"{name} is not beside the package ({ROOT}): clone the repository and run "
            '`pip install -e ".[starter]"` in it'
        )
    return path


def load_builder(name: str) -> ModuleType:
    """A data builder of the clone as a module, e.g. "openmoji"."""
    path = repository_file(f"data/{name}.py")
    sys.path.insert(0, str(path.parent))  # a builder may import its neighbours
    try:
        spec = importlib.util.spec_from_file_location(f"llava_mole_data_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
