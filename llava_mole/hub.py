"""The Hugging Face hub: fetching a repository, and saying in words why it could not be.

Every part that is named by a hub id comes through here, so that a gated licence, a mistyped
revision, no network and a full disk read the same for a language model, a tower and a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_mole.errors import CheckpointError
from llava_mole.folders import NO_ROOM

HUB_ERRORS: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, HFValidationError)
"""What a call of the hub may raise: its HTTP client's errors (which client it is depends on the
version of huggingface_hub), OSError, and an id that is none."""


def fetch(
    repository: str,
    revision: str | None = None,
    *,
    what: str,
    token: str | None = None,
    only: Sequence[str] | None = None,
    without: Sequence[str] | None = None,
) -> Path:
    """The folder of a model repository in the cache, downloaded if it is not there.

    Args:
        repository: `org/name`.
        revision: branch, tag or commit; None: main.
        what: it is, for messages: "language model".
        token: of the hub; None: the one of `hf auth login` or HF_TOKEN.
        only, without: patterns of file names.

    Raises:
        CheckpointError: with what to do.
    """
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                token=token,
                allow_patterns=list(only) if only is not None else None,
                ignore_patterns=list(without) if without is not None else None,
            )
        )
    except HUB_ERRORS as error:
        raise CheckpointError(reason(error, what, repository, revision)) from error


def reason(
    error: Exception,
    what: str,
    repository: str,
    revision: str | None = None,
    *,
    dataset: bool = False,
) -> str:
    """Why the hub gave nothing, and what to do about it.

    Args:
        error: one of HUB_ERRORS.
        what, repository, revision: see `fetch`.
        dataset: of a data set's repository.
    """
    page = f"{constants.ENDPOINT}/{'datasets/' if dataset else ''}{repository}"
    download = f"hf download {repository}{' --repo-type dataset' if dataset else ''}"
    download += f" --revision {revision}" if revision else ""
    name = f"{what} {repository!r}"
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated: accept its conditions at {page} with your account, then log in "
            "with it here (`hf auth login`, or HF_TOKEN in the environment) and run this again"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}: its branches and tags are at {page}/tree/main"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is no local folder, and there is none of that name at {page}, or it is "
            "private: check the spelling; for a private one `hf auth login`"
        )
    if isinstance(error, DisabledRepoError):
        return f"{name} was disabled by the hub, see {page}"
    if isinstance(error, HFValidationError):
        return f"{name} is neither a local folder nor a hub id, which looks like org/name"
    if isinstance(error, LocalTokenNotFoundError):
        return f"{name}: no token of the hub on this machine; `hf auth login`, or HF_TOKEN"
    offline = isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE
    if offline and isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            f"{name} is no local folder and not in the cache {constants.HF_HUB_CACHE}, and the hub "
            f"is switched off (HF_HUB_OFFLINE). Where there is a network: `{download}`, and copy "
            "the cache here, or add --local-dir FOLDER and give that folder"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{name} is no local folder and could not be fetched: the hub at {constants.ENDPOINT} "
            f"cannot be reached ({first_line(error.__cause__ or error)}), and the cache "
            f"{constants.HF_HUB_CACHE} does not hold it whole. Where there is a network: "
            f"`{download} --local-dir FOLDER`, and give that folder; 'starter' needs no hub"
        )
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return (
            f"{name}: {NO_ROOM[error.errno]} while it was fetched into {constants.HF_HUB_CACHE}; "
            "make room, or say HF_HOME=FOLDER of another disk"
        )
    return f"{name} could not be fetched from {page} ({first_line(error)})"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
