"""Datasets of the Hugging Face hub, read where they are: Parquet row groups over the network.

`hub:org/name`, `hub:org/name:split`, and `hub:org/name@REVISION:split` for a branch, tag or
commit that shall not change. Only the row groups in use are fetched. The hub keeps a
Parquet copy of datasets stored otherwise under the revision `refs/convert/parquet`; it is used
where the repository itself has no Parquet files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, HfFileSystem, constants

from llava_mole.data.containers.arrow import Parquet, split_of
from llava_mole.errors import DataError
from llava_mole.hub import HUB_ERRORS, reason

PREFIX = "hub:"


class HubParquet(Parquet):
    """The Parquet files of one split of a dataset on the hub."""

    kind = "Parquet on the hub"

    def __init__(self, repository: str, names: Sequence[str], revisions: Sequence[Any]) -> None:
        self._revisions = list(revisions)
        super().__init__(Path(f"{PREFIX}{repository}"), [Path(name) for name in names])

    def _open(self, file: int) -> Any:
        return HfFileSystem().open(self._files[file].as_posix(), "rb")

    def state(self) -> list[Any]:
        return self._revisions

    def size(self) -> int:
        return sum(int(size) for _, _, size in self._revisions)


def open_hub(address: str) -> HubParquet:
    """A dataset by its address, `hub:org/name[@REVISION][:split]`.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset or split; says how to
            download the dataset.
    """
    repository, _, split = address.removeprefix(PREFIX).partition(":")
    plain, _, revision = repository.partition("@")
    pinned = f"--revision {revision} " if revision else ""
    advice = (
        f"download it where there is a network with `hf download {plain} --repo-type dataset "
        f"{pinned}--local-dir DIR` and give DIR as the path"
    )
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"{address}: the hub is switched off (HF_HUB_OFFLINE); {advice}")
    system = HfFileSystem()
    try:
        names = system.glob(f"datasets/{repository}/**/*.parquet")
        if not names and revision:
            HfApi().dataset_info(plain, revision=revision)  # says so where there is none
        if not names and not revision:
            names = system.glob(f"datasets/{repository}@refs%2Fconvert%2Fparquet/**/*.parquet")
        by_split: dict[str, list[str]] = {}
        for name in sorted(names):
            by_split.setdefault(split_of(Path(name)), []).append(name)
        if split not in by_split and (split or len(by_split) != 1):
            raise DataError(
                f"{address}: found the splits {', '.join(sorted(by_split)) or 'none'}; "
                f"name one, as in '{PREFIX}{repository}:train'"
            )
        chosen = by_split[split] if split in by_split else next(iter(by_split.values()))
        facts = [system.info(name) for name in chosen]
    except HUB_ERRORS as error:
        # A missing repository reads as a missing file to a file system.
        cause = error.__cause__ if isinstance(error.__cause__, HUB_ERRORS) else error
        why = reason(cause, "data set", plain, revision or None, dataset=True)
        raise DataError(f"{address}: {why}; or {advice}") from error
    revisions = [[fact["name"], fact.get("blob_id"), fact["size"]] for fact in facts]
    return HubParquet(repository, chosen, revisions)
