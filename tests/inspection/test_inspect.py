"""Every record and every picture is looked at; every finding has its place and is counted."""

import json
import os
import shutil

import pytest
from PIL import Image

from llava_mole.data import SourceSpec
from llava_mole.errors import DataError
from llava_mole.inspection.findings import SEVERITIES
from llava_mole.inspection.parallel import in_order, ranges
from llava_mole.inspection.report import CHECKS
from tests.inspection.sets import all_findings, encoded, look, only, record, scene, write


def test_a_broken_record_is_named_and_the_others_are_read(tmp_path):
    spec = write(tmp_path, [record(), {"image": "0.png"}, record("1.png")])
    inspection = look(spec, tmp_path)
    finding = only(inspection)
    assert (finding.check, finding.severity) == ("record", "error")
    assert finding.where == f"{spec.path}:2"
    assert (inspection.records, inspection.tables.samples, inspection.exit_code) == (3, 2, 1)


def test_a_file_that_is_cut_is_named_where_it_ends(tmp_path):
    spec = write(tmp_path, [])
    path = tmp_path / "train.json"
    path.write_text("[\n" + json.dumps(record()) + ",\n" + json.dumps(record("1.png"))[:-9])
    finding = only(look(SourceSpec(path, language="en"), tmp_path))
    assert finding.where == f"{path}:3"
    assert "bad JSON" in finding.message
    assert spec.path != path


def test_a_missing_picture_is_an_error_of_each_record_that_shows_it(tmp_path):
    inspection = look(
        write(tmp_path, [record("no.png"), record(), record("no.png", "Who?")]), tmp_path
    )
    shown = inspection.findings.first["image-missing"]
    assert [f.where.rpartition(":")[2] for f in shown] == ["1", "3"]
    assert {f.value for f in shown} == {"no.png"}
    assert inspection.pictures == 1


@pytest.mark.parametrize(
    ("content", "check", "severity", "words"),
    [
        (encoded(scene(9))[:400], "image-unreadable", "error", "truncated"),
        (b"<html>404</html>", "image-unreadable", "error", "HTML page"),
        (b"", "image-unreadable", "error", "empty"),
        (encoded(scene(9, 20)), "image-small", "warning", "20 × 20"),
        (encoded(scene(9).resize((500, 40))), "image-elongated", "warning", "12 times"),
        (encoded(Image.new("RGB", (64, 64), "pink")), "image-blank", "warning", "one colour"),
    ],
)
def test_a_bad_picture_is_told_once_at_the_first_record_that_shows_it(
    tmp_path, content, check, severity, words
):
    spec = write(tmp_path, [record(), record("bad.png"), record("bad.png", "What else is there?")])
    (tmp_path / "bad.png").write_bytes(content)
    finding = only(look(spec, tmp_path))
    assert (finding.check, finding.severity) == (check, severity)
    assert finding.where == f"{spec.path}:2"
    assert words in finding.message
    assert "bad.png" in finding.message
    assert finding.message.endswith("(and 1 more records show it)")


def test_grey_and_transparent_pictures_are_fine(tmp_path):
    spec = write(tmp_path, [record("grey.png"), record("clear.png")])
    (tmp_path / "grey.png").write_bytes(encoded(scene(5).convert("L")))
    (tmp_path / "clear.png").write_bytes(encoded(scene(6).convert("RGBA")))
    assert not look(spec, tmp_path).findings.counts


def test_the_same_conversation_about_the_same_picture_is_a_duplicate(tmp_path):
    spec = write(tmp_path, [record(), record("1.png"), record(id=7)])
    finding = only(look(spec, tmp_path))
    assert (finding.check, finding.severity) == ("duplicate", "warning")
    assert (finding.where, finding.value) == (f"{spec.path}:3", f"{spec.path}:1")


def test_a_picture_under_two_names_is_told(tmp_path):
    spec = write(tmp_path, [record(), record("copy.png"), record("again.bmp")])
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    (tmp_path / "again.bmp").write_bytes(encoded(scene(0), "BMP"))
    shown = look(spec, tmp_path).findings.first["picture-twice"]
    assert [(f.where.rpartition(":")[2], f.value) for f in shown] == [
        ("2", "0.png"),
        ("3", "0.png"),
    ]
    assert "same file" in shown[0].message
    assert "same pixels" in shown[1].message


def test_a_picture_that_looks_like_an_earlier_one_is_told(tmp_path):
    spec = write(tmp_path, [record(), record("1.png"), record("small.jpg")])
    small = scene(1).resize((60, 60))
    (tmp_path / "small.jpg").write_bytes(encoded(small, "JPEG", quality=60))
    finding = only(look(spec, tmp_path))
    assert (finding.check, finding.where, finding.value) == (
        "picture-alike", f"{spec.path}:3", "1.png",
    )  # fmt: skip


def test_a_picture_outside_the_root_is_refused_not_opened(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(encoded(scene(1)))
    finding = only(look(write(tmp_path / "in", [record("../out.png")]), tmp_path))
    assert (finding.check, finding.severity) == ("record", "error")
    assert "leads outside" in finding.message


# --- tables and JSON ------------------------------------------------------------------------------


def test_tables_count_samples(tmp_path):
    more = [
        {"from": "human", "value": "And what else?"},
        {"from": "gpt", "value": "Nothing else at all."},
    ]
    long = record("1.png", domain="maps")
    long["conversations"] += more
    inspection = look(
        write(tmp_path, [record(), long, record(None, "Hi there, who are you?")]), tmp_path
    )
    tables = inspection.tables
    assert tables.domains == {"train": 2, "maps": 1}
    assert tables.turns == {2: 2, 4: 1}
    assert tables.pictures == {1: 2, 0: 1}
    assert tables.answers.total() == 4
    assert inspection.widths == {96: 2}


@pytest.fixture
def troubled(tmp_path):
    """Many findings of several checks."""
    records = [record(f"gone{n}.png") for n in range(300)]
    records += [record(f"{n % 4}.png", f"What is blob {n}, please?") for n in range(300)]
    records += [{"x": 1}, record("0.png", "Blobs?"), record("bad.png"), record("bad.png")]
    spec = write(tmp_path, records)
    (tmp_path / "bad.png").write_bytes(b"no")
    return spec


def test_every_finding_is_in_the_json_file_and_the_counts_are_exact(troubled, tmp_path):
    inspection = look(troubled, tmp_path, json_file=tmp_path / "out.json")
    whole = json.loads((tmp_path / "out.json").read_text())
    assert set(whole) == {
        "format", "findings", "source", "counts", "by_check", "tables", "tokens_counted",
        "benchmarks",
    }  # fmt: skip
    assert whole["format"] == 1
    for entry in whole["findings"]:
        assert set(entry) == {"severity", "check", "where", "message", "value"}
        assert entry["severity"] in SEVERITIES
        assert entry["check"] in CHECKS
        assert entry["where"].startswith(f"{troubled.path}:")
    assert whole["by_check"] == inspection.findings.by_check() == {
        "duplicate": {"warning": 1}, "image-missing": {"error": 300},
        "image-unreadable": {"error": 1}, "one-word-question": {"note": 1}, "record": {"error": 1},
    }  # fmt: skip
    assert len(whole["findings"]) == 304
    assert (whole["counts"]["errors"], whole["counts"]["records"]) == (302, 604)
    assert len(inspection.findings.first["image-missing"]) == 5


def test_several_processes_find_what_one_finds(troubled, tmp_path):
    written = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.json"
        look(troubled, tmp_path, json_file=path, workers=workers)
        written.append(path.read_text())
    assert written[0] == written[1]


def test_a_source_that_cannot_be_read_leaves_no_json_file(tmp_path):
    (tmp_path / "x.json").write_text("nothing")
    with pytest.raises(DataError, match=r"x\.json"):
        look(SourceSpec(tmp_path / "x.json"), tmp_path, json_file=tmp_path / "out.json")
    spec = write(tmp_path, [record()])
    with pytest.raises(DataError, match=r"none\.tsv"):
        look(spec, tmp_path, json_file=tmp_path / "out.json", against=[tmp_path / "none.tsv"])
    assert not [path for path in tmp_path.iterdir() if "out.json" in path.name]


def die(state: None, part: range) -> None:
    os._exit(1)


def test_a_process_that_dies_is_an_error_of_ours():
    with pytest.raises(DataError, match="died"):
        list(in_order(die, None, ranges(4, 1), workers=2))


def test_a_json_file_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    spec = write(tmp_path, [record()])
    with pytest.raises(DataError, match="cannot be written"):
        look(spec, tmp_path, json_file=tmp_path / "no" / "out.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        look(spec, tmp_path, json_file=tmp_path / "folder")


def test_pictures_inside_parquet_are_inspected_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    texts = [{"user": "What can be seen here?", "assistant": "A few soft blobs."}]
    good, bad = encoded(scene(0)), encoded(scene(1))[:300]
    rows = [{"images": [{"bytes": b, "path": None}], "texts": texts} for b in (good, bad, good)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    path = tmp_path / "out.json"
    inspection = look(SourceSpec(tmp_path / "t.parquet", language="en"), tmp_path, json_file=path)
    table = tmp_path / "t.parquet"
    found = {f.check: f.where for f in all_findings(path)}
    assert found == {"image-unreadable": f"{table}:2", "duplicate": f"{table}:3"}
    assert (inspection.pictures, inspection.unreadable) == (2, 1)
