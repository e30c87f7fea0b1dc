"""What tells one model from another in a result."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from llava_mole.folders import sha256_file

READ = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Ends of the names of files that decide replies. README and logs don't."""


def folder_hash(folder: Path) -> str:
    """Hex SHA-256 over a model folder's files, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in READ):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def software(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
