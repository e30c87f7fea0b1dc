"""The feature cache: what is read is what was written, whatever happens to disk and processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_mole import feature_cache
from llava_mole.errors import ConfigError
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_folder import list_keys, remove_keys

KEY: dict[str, Any] = {"tower": "a", "shape": [3, 8]}
LARGE: dict[str, Any] = {"tower": "b", "shape": [64, 256]}


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def row(number: int, key: dict[str, Any] = KEY) -> Tensor:
    """What the picture of that number must have, in every process."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(key["shape"], generator=generator).to(torch.bfloat16)


def rows(numbers: range, key: dict[str, Any] = KEY) -> dict[bytes, Tensor]:
    return {digest(number): row(number, key) for number in numbers}


def filled(folder: Path, *parts: range, **options: Any) -> FeatureCache:
    """A cache with one shard per range."""
    cache = FeatureCache(folder, KEY, **options)
    for part in parts:
        assert cache.add(rows(part)) == {}
        assert cache.flush() == {}
    return cache


def held(cache: FeatureCache, numbers: range, key: dict[str, Any] = KEY) -> list[int]:
    """Which of the pictures are there; each must be right."""
    found = []
    for number in numbers:
        got = cache.read(digest(number))
        if got is not None:
            assert torch.equal(got, row(number, key)), number
            found.append(number)
    return found


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def in_process(body: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Forked, so that it need not import this file by name."""
    process = multiprocessing.get_context("fork").Process(target=body, args=arguments)
    process.start()
    return process


# ---------------------------------------------------------------------- one process


def test_what_was_written_is_read_by_another_process(tmp_path: Path) -> None:
    filled(tmp_path, range(5), range(5, 7))

    def read() -> None:
        assert held(FeatureCache(tmp_path, KEY), range(9)) == [*range(7)]

    process = in_process(read)
    process.join(60)
    assert process.exitcode == 0


def test_rows_are_there_before_they_are_published(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, KEY)
    cache.add(rows(range(3)))
    assert shards(tmp_path) == []
    assert cache.has(digest(2))
    assert held(cache, range(4)) == [0, 1, 2]
    assert held(FeatureCache(tmp_path, KEY), range(4)) == []


def test_what_a_process_computed_last_is_published_when_it_ends(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom pathlib import Path\n"
        "from llava_mole.feature_cache import FeatureCache\n"
        f"cache = FeatureCache(Path({str(tmp_path)!r}), {KEY!r})\n"
        f"cache.add({{{digest(0)!r}: torch.zeros(3, 8, dtype=torch.bfloat16)}})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert FeatureCache(tmp_path, KEY).has(digest(0))


def test_rows_are_mapped_not_read(tmp_path: Path) -> None:
    filled(tmp_path, range(2))
    got = FeatureCache(tmp_path, KEY).read(digest(1))
    assert got is not None
    for path in shards(tmp_path):
        path.unlink()  # a map outlives the name
    assert torch.equal(got, row(1))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_a_picture_is_stored_once(tmp_path: Path) -> None:
    one, two = FeatureCache(tmp_path, KEY), FeatureCache(tmp_path, KEY)
    one.add(rows(range(4)))
    two.add(rows(range(2, 6)))
    one.flush()
    two.flush()
    assert [info.pictures for info in list_keys(tmp_path)] == [6]


def test_each_key_has_a_folder_that_says_what_it_is(tmp_path: Path) -> None:
    filled(tmp_path, range(3), about={"model": "a tower"})
    other = FeatureCache(tmp_path, {**KEY, "tower": "b"})
    assert held(other, range(3)) == []
    other.add(rows(range(1)))
    other.flush()
    found = {info.described["key"]["tower"]: info for info in list_keys(tmp_path)}
    assert found["a"].described["about"] == {"model": "a tower"}
    assert (found["a"].pictures, found["b"].pictures) == (3, 1)
    assert found["a"].bytes == shards(tmp_path / found["a"].id)[0].stat().st_size


def test_keys_are_removed_by_the_beginning_of_their_name(tmp_path: Path) -> None:
    first, second = filled(tmp_path, range(3)), FeatureCache(tmp_path, LARGE)
    second.add(rows(range(1), LARGE))
    second.flush()
    (tmp_path / "something else").mkdir()
    with pytest.raises(ConfigError, match="names 0 keys"):
        remove_keys(tmp_path, ["zzz"])
    with pytest.raises(ConfigError, match="names 0 keys"):
        remove_keys(tmp_path, [""])
    twice = remove_keys(tmp_path, [first.id[:8], first.id])
    assert [info.id for info in twice] == [first.id]
    assert held(FeatureCache(tmp_path, KEY), range(3)) == []
    assert held(FeatureCache(tmp_path, LARGE), range(1), LARGE) == [0]
    remove_keys(tmp_path)
    assert list_keys(tmp_path) == []
    assert (tmp_path / "something else").is_dir()


def test_what_cannot_be_removed_is_said(open_folder: Path) -> None:
    filled(open_folder, range(3))
    for path in (open_folder, *open_folder.glob("*/")):
        path.chmod(0o555)

    def use() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(ConfigError, match="could not be removed"):
            remove_keys(open_folder)

    process = in_process(use)
    process.join(60)
    assert process.exitcode == 0
    assert len(shards(open_folder)) == 1


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        filled(tmp_path, range(3))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in shards(tmp_path)] == [0o644]


def test_what_a_killed_library_left_is_removed_and_folders_are_left_alone(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    half = cache.folder / ".tmpAbC123"
    half.write_bytes(b"x" * 999)
    os.utime(half, (0, 0))
    (cache.folder / "folder.safetensors").mkdir()
    cache.add(rows(range(3, 5)))
    assert cache.flush() == {}
    assert not half.exists()
    assert held(FeatureCache(tmp_path, KEY), range(5)) == [*range(5)]


def test_a_run_goes_on_when_its_key_is_removed_while_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(tmp_path, range(3))
    written = feature_cache.write_shard

    def removed_meanwhile(*arguments: Any, **options: Any) -> None:
        written(*arguments, **options)
        remove_keys(tmp_path)

    cache.add(rows(range(3, 5)))
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "write_shard", removed_meanwhile)
        assert set(cache.flush()) == set(rows(range(3, 5)))
    cache.add(rows(range(5, 7)))
    assert cache.flush() == {}
    assert held(FeatureCache(tmp_path, KEY), range(7)) == [5, 6]


def test_a_run_goes_on_when_its_key_is_removed(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    remove_keys(tmp_path)
    cache.add(rows(range(3, 5)))
    assert cache.flush() == {}
    assert held(FeatureCache(tmp_path, KEY), range(5)) == [3, 4]
    assert [info.described["key"] for info in list_keys(tmp_path)] == [KEY]


def test_a_bound_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_bytes=0"):
        FeatureCache(tmp_path, KEY, max_bytes=0)


# ---------------------------------------------------------------------- damage


def test_no_flipped_byte_of_a_file_is_ever_returned(tmp_path: Path) -> None:
    """Header, digests, checksums, rows: every byte once. `held` compares what is returned."""
    filled(tmp_path, range(3))
    [path] = shards(tmp_path)
    whole = path.read_bytes()
    noticed = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        noticed += held(FeatureCache(tmp_path, KEY), range(3)) != [0, 1, 2]
    assert noticed > 0.95 * len(whole)  # a name in the header may be spelt in several ways


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_not_trusted(
    share: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a power failure may leave one."""
    filled(tmp_path, range(3), range(3, 6))
    path = shards(tmp_path)[0]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert held(FeatureCache(tmp_path, KEY), range(6)) == [3, 4, 5]
    assert str(path) in caplog.text
    assert path not in shards(tmp_path)


def test_a_damaged_row_is_computed_and_stored_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, range(3))
    [path] = shards(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(row(2).view(torch.uint8).numpy().tobytes())] ^= 1
    path.write_bytes(whole)
    cache = FeatureCache(tmp_path, KEY)
    assert held(cache, range(3)) == [0, 1]
    assert "does not fit its checksum" in caplog.text
    lost = [number for number in range(3) if not cache.has(digest(number))]
    cache.add({digest(number): row(number) for number in lost})
    cache.flush()
    assert held(FeatureCache(tmp_path, KEY), range(3)) == [0, 1, 2]


def test_a_file_of_another_key_is_not_read(tmp_path: Path) -> None:
    filled(tmp_path, range(3))
    other = FeatureCache(tmp_path, {**KEY, "tower": "b"})
    other.folder.mkdir()
    shutil.copy(shards(tmp_path)[0], other.folder)
    other.refresh()
    assert held(other, range(3)) == []


# ---------------------------------------------------------------------- several processes


def test_two_processes_fill_the_same_folder_at_once(tmp_path: Path) -> None:
    """Each its share and some of the other's, in small files, reading meanwhile."""

    def fill(mine: range) -> None:
        cache = FeatureCache(tmp_path, KEY)
        for start in range(mine.start, mine.stop, 5):
            part = range(start, min(start + 5, mine.stop))
            assert cache.add(rows(part)) == {}
            assert cache.flush() == {}
            held(cache, range(300))  # compares

    processes = [in_process(fill, range(200)), in_process(fill, range(100, 300))]
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    assert held(FeatureCache(tmp_path, KEY), range(300)) == [*range(300)]
    assert list(tmp_path.rglob("*.writing")) == []


def test_a_writer_that_is_killed_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    """Killed in the middle of a file: what was published before is whole, the rest is not there."""

    def write() -> None:
        cache = FeatureCache(tmp_path, LARGE)
        for start in range(0, 100_000, 400):
            cache.add(rows(range(start, start + 400), LARGE))
            cache.flush()

    for _ in range(20):
        process = in_process(write)
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*.safetensors.writing")):
            assert time.monotonic() < deadline
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(60)
        if list(tmp_path.rglob("*.safetensors.writing")):
            break
    [left, *_] = tmp_path.rglob("*.safetensors.writing")
    cache = FeatureCache(tmp_path, LARGE)
    found = held(cache, range(1200), LARGE)
    assert len(found) % 400 == 0
    # Nor does the lock of a dead process hold anybody up, and in time its litter goes.
    os.utime(left, (0, 0))
    cache.add(rows(range(100_000, 100_002), LARGE))
    assert cache.flush() == {}
    assert not left.exists()


# ---------------------------------------------------------------------- room


def nine(part: int) -> range:
    return range(9 * part, 9 * part + 9)


def age(folder: Path) -> None:
    """Make the files there old, the first the oldest."""
    for number, path in enumerate(shards(folder)):
        os.utime(path, (1000 + number, 1000 + number))


@pytest.fixture
def file_size(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of a file with nine rows."""
    folder = tmp_path_factory.mktemp("measured")
    filled(folder, nine(0)).close()
    return total(folder)


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in shards(folder))


def test_the_least_recently_used_files_make_room(tmp_path: Path, file_size: int) -> None:
    filled(tmp_path, nine(0), nine(1), nine(2)).close()
    age(tmp_path)
    assert held(FeatureCache(tmp_path, KEY), nine(0)) == [*nine(0)]  # the oldest, used again
    cache = FeatureCache(tmp_path, KEY, max_bytes=3 * file_size)
    cache.add(rows(nine(3)))
    assert cache.flush() == {}
    found = held(FeatureCache(tmp_path, KEY), range(36))
    assert found == [*nine(0), *nine(2), *nine(3)]
    assert total(tmp_path) <= 3 * file_size


def test_what_is_not_the_caches_is_neither_counted_nor_removed(
    tmp_path: Path, file_size: int
) -> None:
    """Somebody may name a folder that holds models."""
    (tmp_path / "model").mkdir()
    others = [tmp_path / "model" / "model.safetensors", tmp_path / "model.safetensors"]
    for path in others:
        path.write_bytes(bytes(10 * file_size))
        os.utime(path, (0, 0))
    filled(tmp_path, nine(0), max_bytes=file_size).close()
    filled(tmp_path, nine(1), max_bytes=file_size).close()
    assert held(FeatureCache(tmp_path, KEY), range(18)) == [*nine(1)]
    remove_keys(tmp_path)
    assert shards(tmp_path) == sorted(others)


def test_files_of_other_keys_make_room_too(tmp_path: Path, file_size: int) -> None:
    filled(tmp_path, nine(0), nine(1)).close()
    other = FeatureCache(tmp_path, {**KEY, "tower": "b"}, max_bytes=2 * file_size)
    other.add(rows(nine(0)))
    assert other.flush() == {}
    assert held(FeatureCache(tmp_path, KEY), range(18)) == [*nine(1)]


def test_a_file_in_use_is_never_evicted_and_the_run_goes_on(
    tmp_path: Path, file_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, nine(0), nine(1)).close()
    cache = FeatureCache(tmp_path, KEY, max_bytes=2 * file_size + 10)
    reader = FeatureCache(tmp_path, KEY)
    assert held(cache, nine(0)) == [*nine(0)]
    assert held(reader, nine(1)) == [*nine(1)]
    for _ in range(2):
        left = cache.add(rows(nine(2))) or cache.flush()
        assert set(left) == set(rows(nine(2)))
    assert caplog.text.count("is full") == 1
    assert held(FeatureCache(tmp_path, KEY), range(27)) == [*range(18)]


def test_nothing_is_evicted_for_what_cannot_fit(tmp_path: Path, file_size: int) -> None:
    filled(tmp_path, nine(0), nine(1)).close()
    cache = FeatureCache(tmp_path, LARGE, max_bytes=2 * file_size)
    assert cache.add(rows(range(1), LARGE)) != {}
    assert held(FeatureCache(tmp_path, KEY), range(18)) == [*range(18)]


def test_a_small_cache_is_kept_in_small_files(tmp_path: Path) -> None:
    """So that making room costs a part of it."""
    cache = FeatureCache(tmp_path, KEY, max_bytes=100_000)
    for number in range(2000):
        assert cache.add(rows(range(number, number + 1))) == {}
        if number % 100 == 0:
            assert total(tmp_path) <= 100_000
            cache.close()  # nothing is in use
    cache.flush()
    assert 50_000 < total(tmp_path) <= 100_000
    assert held(FeatureCache(tmp_path, KEY), range(1900, 1950)) == [*range(1900, 1950)]


# ---------------------------------------------------------------------- disks that refuse


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_folder_is_read_and_not_written(open_folder: Path) -> None:
    filled(open_folder, range(3))
    for path in [open_folder, *open_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def use() -> None:
        if os.geteuid() == 0:  # who may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        cache = FeatureCache(open_folder, KEY)
        assert held(cache, range(5)) == [0, 1, 2]
        cache.add(rows(range(3, 5)))
        assert set(cache.flush()) == set(rows(range(3, 5)))
        assert not cache.stores
        assert cache.digests([b"a"]) == [hashlib.sha256(b"a").digest()]

    process = in_process(use)
    process.join(60)
    assert process.exitcode == 0
    assert len(shards(open_folder)) == 1


def test_a_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = FeatureCache(tmp_path / "file" / "cache", KEY)
    cache.add(rows(range(3)))
    assert len(cache.flush()) == 3
    assert len(cache.add(rows(range(3, 5)))) == 2
    assert caplog.text.count("cannot be written") == 1


def test_a_full_disk_is_done_without(tmp_path: Path) -> None:
    filled(tmp_path, range(3))

    def use() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may be larger
        cache = FeatureCache(tmp_path, KEY)
        assert held(cache, range(3)) == [0, 1, 2]
        cache.add(rows(range(3, 200)))
        assert len(cache.flush()) == 197

    process = in_process(use)
    process.join(60)
    assert process.exitcode == 0
    assert held(FeatureCache(tmp_path, KEY), range(200)) == [0, 1, 2]
    assert list(tmp_path.rglob("*.writing")) == []
