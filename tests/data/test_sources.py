"""A source is opened once, described in a line, indexed once and read by number ever after."""

import json
import multiprocessing
import os
import pickle
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llava_mole.data import SourceSpec, open_source, source_index
from llava_mole.errors import ConfigError, DataError
from tests.data.mutations import picture


def record(number: int, image="a.png", **more) -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "é" * number}]
    return {"image": image, "conversations": turns, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "pictures" / name).write_bytes(picture(len(name)))
    return tmp_path


def source_of(root: Path, records: list, name: str = "birds.json", **options):
    path = root / name
    path.write_text(json.dumps(records, indent=1), "utf-8")
    options = {"image_root": root / "pictures", "language": "en", **options}
    return open_source(SourceSpec(path, **options), cache_dir=root / "cache")


def entries(root: Path) -> list[Path]:
    return [folder for folder in (root / "cache").iterdir() if folder.is_dir()]


def test_a_source_tells_what_it_is_in_a_line(root):
    source = source_of(root, [record(1)] * 1200)
    assert source.describe() == "LLaVA JSON list, 1,200 items"
    assert (source.name, len(source)) == ("birds", 1200)


def test_domain_and_language_come_from_the_record_then_the_source_then_the_file(root):
    records = [record(1), record(1, domain="maps", language="pt")]
    first, second = source_of(root, records).samples()
    assert (first.domain, first.language) == ("birds", "en")
    assert (second.domain, second.language) == ("maps", "pt")
    assert source_of(root, records, domain="trees")[0].domain == "trees"
    with pytest.raises(DataError, match=r"birds\.json:2: 'language' is None"):
        source_of(root, records, language=None)[0]


def test_the_index_holds_what_a_planner_needs(root):
    text_only = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "é"}]}
    records = [
        record(1, kind="naming"),
        record(2, "b.png", language="pt"),
        record(3, "./a.png", domain="maps"),
        text_only,
        text_only,
    ]
    index = source_of(root, records).index(progress=False)
    assert index.group[0] == index.group[2]
    assert len(set(index.group.tolist())) == 4
    assert [index.domains[code] for code in index.domain] == ["birds", "birds", "maps"] + 2 * [
        "birds"
    ]
    assert [index.languages[code] for code in index.language] == ["en", "pt", "en", "en", "en"]
    assert [index.kinds[code] for code in index.kind] == ["naming", "", "", "", ""]
    assert index.images.tolist() == [1, 1, 1, 0, 0]
    assert index.turns.tolist() == [2] * 5
    assert index.text_bytes.tolist() == [15, 17, 19, 4, 4]
    assert (index.group.dtype, index.domain.dtype) == (np.uint64, np.int16)


def test_groups_do_not_depend_on_where_the_data_lie(root):
    (root / "elsewhere").mkdir()
    os.rename(root / "pictures", root / "elsewhere" / "pictures")
    (root / "pictures").symlink_to(root / "elsewhere" / "pictures")
    here = source_of(root, [record(1)]).index(progress=False)
    there = source_of(root / "elsewhere", [record(1)]).index(progress=False)
    assert here.group[0] == there.group[0]


def test_groups_do_not_depend_on_how_the_root_is_written(root, monkeypatch):
    monkeypatch.chdir(root)
    absolute = [record(1, str(root / "pictures" / "a.png"))]
    groups = {
        int(source_of(root, records, image_root=folder).index(progress=False).group[0])
        for folder in ("pictures", root / "pictures", "./pictures/")
        for records in (absolute, [record(1)])
    }
    assert len(groups) == 1


def test_a_file_that_was_changed_and_given_its_old_times_is_indexed_anew(root):
    source = source_of(root, [record(1, language="en")])
    assert source.index(progress=False).languages == ("en",)
    path = root / "birds.json"
    before = path.stat()
    changed = source_of(root, [record(1, language="pt")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    again = open_source(changed.spec, cache_dir=root / "cache")
    assert again.index(progress=False).languages == ("pt",)


def test_null_is_as_good_as_absent(root):
    (sample,) = source_of(root, [record(1, domain=None, language=None, kind=None)]).samples()
    assert (sample.domain, sample.language, sample.metadata) == ("birds", "en", {})


def test_the_index_is_read_from_the_cache_until_the_file_changes(root, monkeypatch):
    records = [record(1), record(2)]
    first = source_of(root, records).index(progress=False)
    path = root / "birds.json"
    spec = SourceSpec(path, image_root=root / "pictures", language="en")

    def again():
        return open_source(spec, cache_dir=root / "cache").index(progress=False)

    with monkeypatch.context() as patch:
        patch.setattr(source_index, "_part", None)  # building would fail
        second = again()
    assert second.group.tolist() == first.group.tolist()
    assert second.domains == first.domains
    path.write_text(json.dumps([record(3)]), "utf-8")
    assert len(again()) == 1
    assert len(entries(root)) == 1


def test_other_defaults_have_an_index_of_their_own(root):
    assert source_of(root, [record(1)]).index(progress=False).domains == ("birds",)
    assert source_of(root, [record(1)], domain="x").index(progress=False).domains == ("x",)


@pytest.mark.parametrize("damage", ["cut", "flip", "meta", "pickle"])
def test_a_broken_cache_entry_is_built_again(root, damage):
    expected = source_of(root, [record(1), record(2)]).index(progress=False)
    [entry] = entries(root)
    array = entry / "group.npy"
    content = array.read_bytes()
    if damage == "cut":
        array.write_bytes(content[:-3])
    elif damage == "flip":
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "meta":
        (entry / "meta.json").write_text("{")
    else:
        np.save(array, np.array([{}]), allow_pickle=True)
    spec = SourceSpec(root / "birds.json", image_root=root / "pictures", language="en")
    found = open_source(spec, cache_dir=root / "cache").index(progress=False)
    assert found.group.tolist() == expected.group.tolist()


def test_where_the_cache_cannot_be_written_the_index_is_still_built(root, caplog):
    (root / "cache").write_text("a file where the folder should be")
    assert len(source_of(root, [record(1)]).index(progress=False)) == 1
    assert "the index is not kept" in caplog.text


def test_several_processes_build_the_same_index(root, monkeypatch):
    monkeypatch.setattr(source_index, "_PART", 7)
    records = [record(n % 5 + 1, "ab"[n % 2] + ".png", kind=f"k{n % 11}") for n in range(50)]
    alone = source_of(root, records).index(processes=1, progress=False)
    together = source_of(root, records, name="same.json", domain="birds").index(
        processes=2, progress=False
    )
    for name, array in alone.arrays().items():
        assert array.tolist() == together.arrays()[name].tolist()
    assert alone.kinds == together.kinds


def index_in_a_process(path: Path) -> list[int]:
    spec = SourceSpec(path, image_root=path.parent / "pictures", language="en")
    source = open_source(spec, cache_dir=path.parent / "cache")
    return source.index(progress=False).group.tolist()


def test_processes_that_want_the_same_index_at_once_all_get_it_whole(root):
    path = root / "birds.json"
    path.write_text(json.dumps([record(n % 7 + 1) for n in range(500)]), "utf-8")
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(index_in_a_process, [path] * 8))
    assert all(groups == found[0] for groups in found)
    assert [entry.name for entry in entries(root) if "building" in entry.name] == []
    assert len(entries(root)) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_bad_record_stops_the_index(root, monkeypatch, processes):
    monkeypatch.setattr(source_index, "_PART", 5)
    records: list = [record(1) for _ in range(40)]
    records[13] = record(0)
    records[31] = []
    source = source_of(root, records)
    with pytest.raises(DataError, match=r"birds\.json:\d+: turn 2: the answer is empty"):
        source.index(processes=processes, progress=False)
    assert not entries(root)


def test_missing_pictures_are_counted_together_by_the_index(root):
    records = [record(1, "x.png"), record(1), record(1, "y.png"), record(1, "x.png")]
    source = source_of(root, records)
    with pytest.raises(DataError, match=r"json:2: image 'x\.png' not found .*\(2 more like it\)"):
        source.index(progress=False)
    assert source[1].images == (root / "pictures" / "a.png",)
    with pytest.raises(DataError, match=r"image 'y\.png' not found under '[^']*'; check"):
        source[2]


def test_a_walk_goes_on_after_every_bad_record_and_ends_with_the_files_own_damage(root):
    path = root / "walk.json"
    good = json.dumps(record(1))
    path.write_text(f'[{good},\n{{"image": 3}},\n{{oops}},\n{good},\n{good}')
    spec = SourceSpec(path, image_root=root / "pictures", language="en")
    found = list(open_source(spec, cache_dir=root / "cache").walk())
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4]
    assert [where.rsplit(":")[-1] for _, where, _ in found[:4]] == ["1", "2", "3", "4"]
    assert [isinstance(what, DataError) for _, _, what in found] == [False, True, True, False, True]
    assert "bad JSON, expected ',' or ']' after an item" in str(found[4][2])


def test_a_source_works_in_another_process(root):
    source = source_of(root, [record(1), record(2)])
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def peak_of_reading_the_last(root, lines: int) -> int:
    path = root / f"big{lines}.json"
    line = json.dumps(record(500, language="en"), ensure_ascii=False)
    path.write_text("[" + ",\n".join([line] * lines) + "]", "utf-8")
    spec = SourceSpec(path, image_root=root / "pictures")
    tracemalloc.start()
    assert open_source(spec, cache_dir=root / "cache")[lines - 1].images
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_reading_a_record_takes_no_memory_in_proportion_to_the_file(root):
    small, large = (peak_of_reading_the_last(root, lines) for lines in (10_000, 60_000))
    # 11 and 67 MB of data; what grows are 24 bytes a record.
    assert large < small + 5e6


def test_an_unknown_format_is_named_with_the_nearest(root):
    with pytest.raises(ConfigError, match=r"unknown format 'lava' \(did you mean llava\?\)"):
        source_of(root, [record(1)], format="lava")


def test_an_image_root_that_is_no_folder_is_refused_before_anything_is_read(root):
    with pytest.raises(DataError, match=r"image_root '.*nowhere' is no folder"):
        source_of(root, [record(1)], image_root=root / "nowhere")


def test_pictures_lie_beside_the_data_where_no_root_is_given(root):
    source = source_of(root / "pictures", [record(1)], image_root=None)
    assert source[0].images == (root / "pictures" / "a.png",)
