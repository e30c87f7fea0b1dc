"""A local folder for what the user names: a folder, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from llava_mole import hub
from llava_mole.errors import CheckpointError

SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*", "USE_*")


def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder itself, or a snapshot of the hub's repository of that name.

    Weights are taken as safetensors; pickled ones only where a repository has nothing else.

    Raises:
        CheckpointError: no such folder, and the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{name}: no such folder")
    found = hub.fetch(name, revision, what="model", only=[*SMALL_FILES, "*.safetensors"])
    if not list(found.glob("*.safetensors")):
        found = hub.fetch(name, revision, what="model", only=[*SMALL_FILES, "*.bin"])
    return found
