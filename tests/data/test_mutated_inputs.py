"""Thousands of damaged files: each is read, or refused by file and line; nothing else is opened."""

import re
import sys
from pathlib import Path

import pytest

import llava_mole
from llava_mole.data import Sample, open_source
from llava_mole.errors import DataError
from tests.data import mutations

SEEDS_A_FORMAT = 170

_opened: list[str] = []
_recording = False


def _record(event: str, arguments: tuple) -> None:
    if _recording and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(str(arguments[0]))


sys.addaudithook(_record)


@pytest.fixture
def opened(monkeypatch):
    """Paths opened by Python while the test runs."""
    _opened.clear()
    monkeypatch.setattr(sys.modules[__name__], "_recording", True)
    return _opened


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return mutations.write_world(tmp_path_factory.mktemp("world"))


def read_all(mutant: mutations.Mutant, cache: Path) -> tuple[list[Sample], list[str]]:
    """Samples and messages of a data set, by every door."""
    try:
        source = open_source(mutant.spec, cache_dir=cache)
    except DataError as error:
        return [], [str(error)]
    samples, messages = [], []
    try:
        assert len(source.index(progress=False)) == len(source)
    except DataError as error:
        messages.append(str(error))
    for number in range(len(source)):
        try:
            samples.append(source[number])
        except DataError as error:
            messages.append(str(error))
    walked = [found for _, _, found in source.walk()]
    good = [found.source for found in walked if isinstance(found, Sample)]
    assert good == [sample.source for sample in samples]
    messages += [str(found) for found in walked if isinstance(found, DataError)]
    return samples, messages


@pytest.mark.parametrize("name", mutations.FORMATS)
def test_undamaged_every_format_is_read(root, tmp_path, name):
    form = mutations.FORMATS[name]
    place = root / f"whole_{name}"
    files = form.write([form.record(n) for n in range(mutations.RECORDS)], place)
    source = open_source(mutations.spec_of(name, place, files, root), cache_dir=tmp_path)
    assert len(source.index(progress=False)) == mutations.RECORDS
    for number in range(mutations.RECORDS):
        assert len(source[number].images) == 1
        assert source[number].turns[-1].role == "assistant"


@pytest.mark.parametrize("name", mutations.FORMATS)
def test_damage_is_named_and_nothing_outside_is_opened(root, tmp_path, opened, name):
    refused = 0
    for mutant in mutations.mutants(root, range(SEEDS_A_FORMAT), [name]):
        opened.clear()
        samples, messages = read_all(mutant, tmp_path)
        refused += bool(messages)
        assert not [path for path in opened if not allowed(path, root, tmp_path)], mutant.what
        for sample in samples:
            assert mutations.SECRET not in str(sample.turns), mutant.what
            check_pictures(sample, root, mutant.what)
        for message in messages:
            message.encode("utf-8")  # can be printed
            assert any(file in message for file in mutant.files), f"{mutant.what}: {message}"
            assert len(message) < 4000, mutant.what
            if mutant.has_lines and not about_the_whole_file(message):
                place = "|".join(re.escape(file) for file in mutant.files)
                assert re.search(rf"({place}):\d+", message), f"{mutant.what}: {message}"
    assert refused > SEEDS_A_FORMAT / 3


def allowed(path: str, root: Path, cache: Path) -> bool:
    """Data, cache, and Python's own files (a module may be imported late)."""
    places = [root, cache, sys.prefix, sys.base_prefix, Path(llava_mole.__file__).parent]
    real = Path(path).resolve()
    return any(real.is_relative_to(Path(place).resolve()) for place in places)


def check_pictures(sample: Sample, root: Path, what: str) -> None:
    for image in sample.images:
        if isinstance(image, Path):
            assert image.resolve().is_relative_to(root.resolve()), what


def about_the_whole_file(message: str) -> bool:
    whole = ("no items", "dataset_info.json: ", "not a readable Parquet")
    return any(words in message for words in whole)


def test_there_are_two_thousand_of_them():
    assert SEEDS_A_FORMAT * len(mutations.FORMATS) >= 2000
