"""Pictures' digests: of content alone, remembered while a file stays as it was."""

import hashlib
import multiprocessing
import os
import sqlite3
from pathlib import Path

import pytest

from llava_mole import digests
from llava_mole.digests import Digests, checksum, state_of
from llava_mole.errors import DataError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"one picture")
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file counts as settled as soon as it is written."""
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**9))


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def entries(file: Path) -> list[tuple[bytes, str, bytes, bytes]]:
    with sqlite3.connect(file) as database:
        return database.execute("SELECT * FROM pictures").fetchall()


def forge(file: Path, path: Path, digest: bytes, proof: bytes | None = None) -> None:
    """Write a digest into the database that is not the file's."""
    proof = checksum(str(path), state_of(str(path)), digest) if proof is None else proof
    with sqlite3.connect(file) as database:
        database.execute("UPDATE pictures SET digest = ?, checksum = ?", (digest, proof))


def test_a_file_and_its_bytes_are_the_same_picture(picture: Path) -> None:
    expected = sha256(b"one picture")
    assert Digests()([picture, b"one picture", str(picture)]) == [expected] * 3


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_unchanged_is_not_read_again(picture: Path, tmp_path: Path) -> None:
    Digests(tmp_path / "d")([picture])
    forge(tmp_path / "d", picture, b"x" * 32)  # what only one who asks the database will say
    assert Digests(tmp_path / "d")([picture]) == [b"x" * 32]


@pytest.mark.usefixtures("settled")
def test_an_entry_that_does_not_fit_its_checksum_is_unknown(picture: Path, tmp_path: Path) -> None:
    Digests(tmp_path / "d")([picture])
    for digest, proof in ((b"x" * 32, b"wrong"), ("text", b""), (None, b""), (7, b"\0")):
        forge(tmp_path / "d", picture, digest, proof)  # type: ignore[arg-type]
        assert Digests(tmp_path / "d")([picture]) == [sha256(b"one picture")]


@pytest.mark.usefixtures("settled")
def test_a_change_is_seen_though_size_and_time_are_put_back(picture: Path, tmp_path: Path) -> None:
    known = Digests(tmp_path / "d")
    known([picture])
    before = picture.stat()
    picture.write_bytes(b"two picture")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known([picture]) == [sha256(b"two picture")]


def test_a_file_written_just_now_is_not_remembered(picture: Path, tmp_path: Path) -> None:
    """Where times count in seconds it could change again and look the same."""
    Digests(tmp_path / "d")([picture])
    assert entries(tmp_path / "d") == []


@pytest.mark.usefixtures("settled")
def test_a_damaged_database_costs_reading_again(
    picture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Digests(tmp_path / "d")([picture])
    (tmp_path / "d").write_bytes(b"no database" * 1000)
    assert Digests(tmp_path / "d")([picture]) == [sha256(b"one picture")]
    assert "cannot be used" in caplog.text
    Digests(tmp_path / "d")([picture])  # the damaged file is gone
    assert len(entries(tmp_path / "d")) == 1


@pytest.mark.usefixtures("settled")
def test_any_flipped_byte_of_the_database_is_harmless(picture: Path, tmp_path: Path) -> None:
    Digests(tmp_path / "d")([picture])
    whole = (tmp_path / "d").read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]
    for place in used:
        damaged = bytearray(whole)
        damaged[place] ^= 0x21
        (tmp_path / "d").write_bytes(damaged)
        assert Digests(tmp_path / "d")([picture]) == [sha256(b"one picture")], place


def test_a_place_that_cannot_be_written_is_done_without(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    known = Digests(tmp_path / "file" / "d")
    assert known([picture]) == known([picture]) == [sha256(b"one picture")]


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png': no such file"):
        Digests()([tmp_path / "gone.png"])
    with pytest.raises(DataError, match="cannot be read"):
        Digests()([tmp_path])
    with pytest.raises(DataError, match="cannot be read"):
        Digests()(["a\0b.png"])


@pytest.mark.usefixtures("settled")
def test_a_forked_process_asks_for_itself(picture: Path, tmp_path: Path) -> None:
    """As a DataLoader's worker does: a connection must not cross a fork."""
    known = Digests(tmp_path / "d")
    known([picture])
    forge(tmp_path / "d", picture, b"x" * 32)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(known([picture, b"new"])))
    process.start()
    process.join(60)
    assert answers.get() == [b"x" * 32, sha256(b"new")]
    assert known([picture]) == [b"x" * 32]
