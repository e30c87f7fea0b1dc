"""Records by number: found without parsing, parsed on demand, refused by file and line."""

import base64
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mole.data.containers import JsonLines, JsonList, Tsv, open_container
from llava_mole.data.containers import json_files as json_files_module
from llava_mole.data.containers.json_scan import scan_lines, scan_list
from llava_mole.errors import DataError
from tests.data.mutations import picture

TRICKY = ['"', "\\", '\\"', '\\\\"', "[", "]", "{", "}", ",", "\n", "\u2028", "é", "\\u005d", ""]


def values():
    text = st.lists(st.sampled_from(TRICKY)).map("".join) | st.text(max_size=5)
    leaves = st.none() | st.booleans() | st.integers() | text
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
    )


def file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def everything(container):
    return [container.record(number) for number in range(len(container))]


# --- the scan -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.lists(values(), min_size=1, max_size=6),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
    st.booleans(),
)
def test_scanning_a_list_finds_what_parsing_it_finds(items, indent, chunk_size, ascii_only):
    text = " \n" + json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    content = text.encode("utf-8", "surrogatepass")
    spans = scan_list(io.BytesIO(content), 2, 2, chunk_size=chunk_size)
    found = [content[start:stop] for start, stop in zip(spans.starts, spans.stops, strict=True)]
    assert [json.loads(piece.decode("utf-8", "surrogatepass")) for piece in found] == items
    assert spans.closed_by == "]"
    assert spans.end == len(content) - 1
    assert list(spans.lines) == [1 + content[:start].count(b"\n") for start in spans.starts]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["{}", " ", "", "\t\r", ' {"a": 1}', "xyz"])), st.integers(1, 9))
def test_scanning_lines_finds_every_line_that_is_not_blank(lines, chunk_size):
    content = "\n".join(lines).encode()
    spans = scan_lines(io.BytesIO(content), 0, chunk_size=chunk_size)
    found = [
        content[start:stop].decode() for start, stop in zip(spans.starts, spans.stops, strict=True)
    ]
    assert found == [line for line in lines if line.strip(" \t\r\n")]
    assert [lines[number - 1] for number in spans.lines] == found


# --- JSON -----------------------------------------------------------------------------------------


def test_any_record_is_read_without_the_others(tmp_path):
    items = [{"number": number, "text": '][}{,"' * number} for number in range(50)]
    container = open_container(file(tmp_path, "a.json", json.dumps(items, indent=2)))
    assert isinstance(container, JsonList)
    assert container.record(49) == items[49]
    assert [value for _, _, value in container.walk(10, 20)] == items[10:20]


def test_the_content_tells_the_kind_not_the_name(tmp_path):
    one = file(tmp_path, "list.jsonl", '[{"a": 1}]')
    other = file(tmp_path, "lines.json", '{"a": 1}\n{"a": 2}\n')
    assert isinstance(open_container(one), JsonList)
    assert isinstance(open_container(other), JsonLines)


def test_byte_order_mark_windows_line_ends_and_blank_lines_change_nothing(tmp_path):
    content = b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \t\r\n{"a": "\xe2\x80\xa8"}\r\n'
    container = open_container(file(tmp_path, "a.jsonl", content))
    assert everything(container) == [{"a": 1}, {"a": "\u2028"}]
    assert [container.where(n).rsplit(":")[-1] for n in range(2)] == ["1", "4"]


def test_a_bad_record_leaves_its_neighbours_readable(tmp_path):
    container = open_container(file(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": \xff}\n{"a":\n{"a": 4}'))
    found = [value for _, _, value in container.walk(0, 4)]
    assert (found[0], found[3]) == ({"a": 1}, {"a": 4})
    assert "a.jsonl:2: not UTF-8" in str(found[1])
    assert "a.jsonl:3: bad JSON" in str(found[2])


@pytest.mark.parametrize("text", ['{"a": 1, "b": {"c": 1, "c": 2}}', '[\n{"a": 1, "a": 2}]'])
def test_a_key_that_stands_twice_is_an_error_not_the_last(tmp_path, text):
    container = open_container(file(tmp_path, "a.json", text.encode()))
    (found,) = [value for _, _, value in container.walk(0, 1)]
    assert "stands twice in one object" in str(found)
    assert f"a.json:{1 + text.count(chr(10))}: " in str(found)


@pytest.mark.parametrize(
    ("text", "whole", "message"),
    [
        ('[{"a": 1},\n{"a": 2}', 1, ":2: bad JSON, expected ',' or ']' after an item"),
        ('[{"a": 1},\n{"a": "2', 1, ":2: bad JSON, Unterminated string"),
        ('[{"a": 1},\n\n', 1, ":3: bad JSON, expected an item, found the end"),
        ('[{"a": 1},\n]', 1, ":2: bad JSON, expected an item, found ']'"),
        ('[{"a": 1}\n}', 1, ":2: bad JSON, expected ',' or ']' after an item, found '}'"),
        ('[{"a": 1}]\n\n[3]', 1, ":3: bad JSON, expected nothing after the list's ']'"),
    ],
)
def test_a_list_with_a_damaged_end_gives_its_whole_records_and_says_why(
    tmp_path, text, whole, message
):
    container = open_container(file(tmp_path, "a.json", text))
    assert everything(container) == [{"a": 1}] * whole
    assert message in str(container.damage)


def test_the_line_of_a_list_item_is_where_it_begins_even_after_line_breaks(tmp_path):
    container = open_container(file(tmp_path, "a.json", '[\n\n{"a": 1}\n,\n\n{"a":\n}]'))
    assert container.where(0).endswith("a.json:3")
    assert container.where(1).endswith("a.json:6")
    with pytest.raises(DataError, match=r"a\.json:7: bad JSON.*begins at line 6"):
        container.record(1)


def test_items_that_share_a_line_are_told_apart_by_their_number(tmp_path):
    container = open_container(file(tmp_path, "a.json", b'[{"a": 1}, {"a": 2},{"a":}]'))
    assert container.where(1).endswith("a.json:1 (item 2)")
    found = [str(value) for _, _, value in container.walk(0, 3)]
    assert [where.rpartition("/")[2] for _, where, _ in container.walk(0, 3)] == [
        "a.json:1", "a.json:1 (item 2)", "a.json:1 (item 3)"]  # fmt: skip
    assert "a.json:1: bad JSON" in found[2]


def test_offsets_of_large_files_are_kept_and_made_anew_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files_module, "CACHED_FROM", 1)
    path = file(tmp_path, "a.json", '[{"a": 1}]')
    cache = tmp_path / "cache"
    open_container(path, cache_dir=cache)
    [entry] = [folder for folder in cache.iterdir() if folder.is_dir()]
    made = os.stat(entry / "meta.json").st_mtime_ns
    assert everything(open_container(path, cache_dir=cache)) == [{"a": 1}]
    assert os.stat(entry / "meta.json").st_mtime_ns == made
    file(tmp_path, "a.json", '[{"a": 1}, {"a": 2}]')
    assert everything(open_container(path, cache_dir=cache)) == [{"a": 1}, {"a": 2}]
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


def test_a_file_that_changes_under_an_open_container_is_refused(tmp_path):
    path = file(tmp_path, "a.json", '[{"a": 1}]')
    container = open_container(path)
    file(tmp_path, "a.json", '[{"b": 10}]')
    with pytest.raises(DataError, match="changed since it was indexed"):
        container.record(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no items"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        ('[{"a": 1}]'.encode("utf-16"), "UTF-16"),
        (b"<!doctype html>", "failed download"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"a,b\n1,2\n", "expected a JSON list"),
        (b"PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_what_is_none_of_these_is_refused_with_what_it_is(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        open_container(file(tmp_path, "a.bin", content))
    assert "a.bin" in str(caught.value)


# --- tables ---------------------------------------------------------------------------------------


def test_parquet_rows_come_by_number_and_nulls_are_absent(tmp_path):
    rows = [{"text": f"row {n}", "image": None if n % 2 else {"bytes": b"x"}} for n in range(10)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    container = open_container(path)
    assert container.record(7) == {"text": "row 7"}
    assert container.record(8) == {"text": "row 8", "image": {"bytes": b"x"}}
    assert container.where(7) == f"{path}:8"


def test_parquet_keeps_few_row_groups_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_mole.data.containers.arrow.KEPT_BYTES", 10)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(100))}), path, row_group_size=10)
    container = open_container(path)
    assert [container.record(n)["a"] for n in range(100)] == list(range(100))
    assert len(container._kept) == 1


def test_a_parquet_file_in_another_process_reads_the_same(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": list(range(10))}), path)
    container = open_container(path)
    container.record(0)
    assert everything(pickle.loads(pickle.dumps(container))) == everything(container)


def test_shards_of_a_split_are_one_container_and_several_splits_must_be_named(tmp_path):
    for name, numbers in [("train-00000-of-00002", [0, 1]), ("train-00001-of-00002", [2]),
                          ("test-00000-of-00001", [9])]:  # fmt: skip
        pq.write_table(pa.table({"a": numbers}), tmp_path / f"{name}.parquet")
    assert [row["a"] for row in everything(open_container(tmp_path, split="train"))] == [0, 1, 2]
    with pytest.raises(DataError, match="several splits; name one of test, train"):
        open_container(tmp_path)


def test_a_dataset_that_datasets_saved_is_read_with_its_encoded_pictures(tmp_path, png):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = [{"image": {"bytes": png, "path": None}, "text": f"{n}"} for n in range(3)]
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict({"train": data, "test": data.select([0])})
    both.save_to_disk(tmp_path / "both")
    container = open_container(tmp_path / "one")
    assert container.record(2) == {"image": {"bytes": png, "path": None}, "text": "2"}
    assert container.kind == "saved dataset"
    assert len(open_container(tmp_path / "both", split="test")) == 1
    with pytest.raises(DataError, match="name one of test, train"):
        open_container(tmp_path / "both")


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/hostname", "link.arrow"])
def test_a_saved_dataset_does_not_lead_out_of_its_folder(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "other.arrow").write_bytes(b"")
    (folder / "link.arrow").symlink_to(tmp_path / "other.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match=r"state\.json: .* leads outside"):
        open_container(folder)


def test_broken_offsets_inside_an_arrow_file_are_refused_not_followed(tmp_path):
    table = pa.table({"text": ["one", "two", "three"]})
    folder = tmp_path / "data"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as stream,
    ):
        stream.write_table(table)
    content = (folder / "a.arrow").read_bytes()
    offsets = np.array([0, 3, 6, 11], dtype=np.int32).tobytes()
    assert content.count(offsets) == 1
    broken = np.array([0, 2**30, 6, 11], dtype=np.int32).tobytes()
    (folder / "a.arrow").write_bytes(content.replace(offsets, broken))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    with pytest.raises(DataError, match=r"a\.arrow:1: damaged saved dataset"):
        open_container(folder).record(0)


def test_without_the_hub_the_message_says_how_to_download():
    with pytest.raises(DataError, match="hf download org/name --repo-type dataset"):
        open_container("hub:org/name:train")


# --- TSV ------------------------------------------------------------------------------------------


def test_tsv_rows_with_quoted_tabs_and_line_breaks(tmp_path):
    path = file(
        tmp_path, "a.tsv", 'index\tquestion\tA\n1\t"two\nlines\tand ""quotes"""\tx\n2\té\ty\n'
    )
    container = open_container(path)
    assert isinstance(container, Tsv)
    assert container.record(0) == {"index": "1", "question": 'two\nlines\tand "quotes"', "A": "x"}
    assert container.record(1)["question"] == "é"
    assert container.where(1).endswith("a.tsv:4")


def test_a_tsv_row_shows_the_picture_of_the_row_it_names(tmp_path):
    held = base64.b64encode(b"x" * 60).decode()
    path = file(tmp_path, "a.tsv", f"index\tquestion\timage\n7\tq\t{held}\n8\tr\t7\n9\ts\t5\n")
    container = open_container(path)
    assert container.record(1)["image"] == held
    assert container.record(2)["image"] == "5"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1\tq\n2\tr\textra\n", ":3: 3 cells, the header has 2 columns"),
        ("1\tq\n1\tr\n", ":3: column index: '1' is the row's of line 2 already"),
        ('1\tq\n2\t"open\n', ":3: not a TSV row"),
    ],
)
def test_a_bad_tsv_row_is_refused_with_its_line(tmp_path, rows, message):
    container = open_container(file(tmp_path, "a.tsv", "index\tquestion\n" + rows))
    found = [str(value) for _, _, value in container.walk(0, len(container))]
    assert message in " ".join([*found, str(container.damage)])


@pytest.fixture(scope="module")
def png():
    return picture(3)


def test_shards_with_a_hash_in_their_name_have_a_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002-9c7bb61715644330", "test-00000-of-00001-0a1b2c3d4e5f6071"):
        pq.write_table(pa.table({"x": [1, 2]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="train"):
        open_container(tmp_path, cache_dir=tmp_path / "cache")
    assert len(open_container(tmp_path, split="train", cache_dir=tmp_path / "cache")) == 2


def test_subsets_in_folders_of_their_own_are_not_merged(tmp_path: Path) -> None:
    for subset in ("charts", "documents"):
        (tmp_path / subset).mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / subset / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"2 folders.*charts.*source of its own"):
        open_container(tmp_path, cache_dir=tmp_path / "cache")
    assert len(open_container(tmp_path / "charts", cache_dir=tmp_path / "cache")) == 1
