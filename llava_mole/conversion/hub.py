"""A local folder for what the user names: a folder, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_mole.errors import CheckpointError

SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*", "USE_*"]


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
    try:
        snapshot = snapshot_download(
            name, revision=revision, allow_patterns=[*SMALL_FILES, "*.safetensors"]
        )
        if not list(Path(snapshot).glob("*.safetensors")):
            snapshot = snapshot_download(
                name, revision=revision, allow_patterns=[*SMALL_FILES, "*.bin"]
            )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(hub_problem(name, revision, error)) from error
    return Path(snapshot)


def hub_problem(name: str, revision: str | None, error: Exception) -> str:
    """What kept the hub from giving a repository, and what to do."""
    neither = f"{name!r} is no local folder and "
    if isinstance(error, GatedRepoError):
        return (
            f"{neither}its repository on the hub is gated: accept its terms on its page there, log "
            "in with `hf auth login`, and convert again"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{neither}the hub's repository has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{neither}the hub has no public repository of that name; a private one needs "
            "`hf auth login`"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{neither}the hub is switched off (HF_HUB_OFFLINE=1) and its cache lacks it: unset "
            "the variable, or download the repository where the hub is reachable and give its "
            "folder"
        )
    reason = str(error).splitlines()[0] if str(error) else ""
    return (
        f"{neither}could not be fetched from the hub ({type(error).__name__}: {reason}). Give a "
        "folder, or try again where the hub is reachable"
    )
