"""A folder is whole or not there, whoever builds it and however they end."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_mole.errors import CheckpointError
from llava_mole.folders import build_folder, file_hashes, find_damage, replacing_folder

# A forked child runs nothing but the builder, so torch's threads in the parent do it no harm.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def fill_slowly(folder: Path) -> dict[str, str]:
    (folder / "sub").mkdir()
    (folder / "sub" / "first").write_text("half")
    time.sleep(1.0)
    (folder / "second").write_text(str(os.getpid()))
    return {"by": str(os.getpid())}


def fill_forever(folder: Path) -> dict[str, str]:
    (folder / "sub").mkdir()
    (folder / "sub" / "first").write_text("half")
    time.sleep(600)
    return {}


def start(
    final: Path, fill: Callable[[Path], dict[str, str]] = fill_slowly
) -> multiprocessing.process.BaseProcess:
    """Build in a process of its own. Forked, so that it need not import this file by name."""
    process = multiprocessing.get_context("fork").Process(
        target=build_folder, args=(final, fill), kwargs={"needed_bytes": 1}
    )
    process.start()
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_processes_end_with_one_folder(tmp_path: Path) -> None:
    processes = [start(tmp_path / "x") for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "x" / "second").read_text() in {str(process.pid) for process in processes}
    assert find_damage(tmp_path / "x", rehash=True) is None
    assert names(tmp_path) == [".x.lock", "x"]


def test_what_a_killed_run_left_is_no_folder_and_is_cleaned_up(tmp_path: Path) -> None:
    process = start(tmp_path / "x", fill_forever)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".x.building-*/sub/first")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert not (tmp_path / "x").exists()
    assert any(name.startswith(".x.building-") for name in names(tmp_path))
    build_folder(tmp_path / "x", fill_slowly, needed_bytes=1)
    assert find_damage(tmp_path / "x", rehash=True) is None
    assert names(tmp_path) == [".x.lock", "x"]


def test_a_builder_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    build_folder(tmp_path / "x", fill_slowly, needed_bytes=1)
    (tmp_path / "x" / "second").unlink()

    def fail(folder: Path) -> dict[str, str]:
        (folder / "second").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_folder(tmp_path / "x", fail, needed_bytes=1)
    assert names(tmp_path) == [".x.lock", "x"]
    assert names(tmp_path / "x") == ["manifest.json", "sub"]


def test_a_damaged_folder_is_replaced(tmp_path: Path) -> None:
    build_folder(tmp_path / "x", fill_slowly, needed_bytes=1)
    before = file_hashes(tmp_path / "x")
    (tmp_path / "x" / "sub" / "first").write_text("fulL")
    assert "SHA-256" in (find_damage(tmp_path / "x", rehash=True) or "")
    build_folder(tmp_path / "x", fill_slowly, needed_bytes=1, rehash=True)
    assert find_damage(tmp_path / "x", rehash=True) is None
    assert file_hashes(tmp_path / "x") == before
    assert names(tmp_path) == [".x.lock", "x"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write under .*LLAVA_MOLE_CACHE"):
        build_folder(tmp_path / "file" / "x", fill_slowly, needed_bytes=1)


def replace_again_and_again(final: Path, times: int, more: Any = None) -> None:
    """As often, and on until the event `more` is set."""
    for number in count():
        if number >= times and (more is None or more.is_set()):
            break
        with replacing_folder(final) as building:
            for name in ("first", "second"):
                (building / name).write_text(str(number))


def identity(folder: Path) -> tuple[int, int]:
    """Of the folder that has this name now; a deleted one's number may come back, its time not."""
    found = folder.stat()
    return found.st_ino, found.st_ctime_ns


@pytest.mark.skipif(sys.platform != "linux", reason="needs an exchange of folders in one step")
def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    final = tmp_path / "x"
    replace_again_and_again(final, 1)
    forked = multiprocessing.get_context("fork")
    enough = forked.Event()
    process = forked.Process(target=replace_again_and_again, args=(final, 100, enough))
    process.start()
    looks = 0
    while process.is_alive() and looks < 1_000_000:
        if looks > 100:
            enough.set()
        before = identity(final)
        found = names(final)
        # A listing that was begun in the old folder may end while that one is being deleted.
        if identity(final) == before:
            assert found == ["first", "second"]
            looks += 1
    process.join(60)
    assert process.exitcode == 0
    assert looks > 100
    assert int((final / "second").read_text()) >= 99
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_files_are_as_readable_as_others_that_the_user_makes(tmp_path: Path) -> None:
    """safetensors writes files that nobody but their owner can read."""
    with replacing_folder(tmp_path / "x") as building:
        save_file({"a": torch.zeros(1)}, building / "a.safetensors")
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode & 0o777
    assert (tmp_path / "x" / "a.safetensors").stat().st_mode & 0o777 == usual
