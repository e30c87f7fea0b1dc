"""A benchmark's files: whose language, whose hash, from where."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.files import columns_of, digests, fetch, local_file, mismatch, select
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.questions import Selection, read_questions


def benchmark(*files: PublishedFile) -> Benchmark:
    return Benchmark("own", "Own", "here", "none", Protocol(), files=files)


# ---------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("questions_tr.tsv", "tr"),
        ("mmmb_cn.tsv", "zh"),
        ("a_b_ru.tsv", "ru"),
        ("questions_xx.tsv", None),
        ("questions-en.tsv", None),
        ("MMBench_DEV_EN.tsv", None),
    ],
)
def test_language_from_a_name(row, table, name, language):
    assert local_file(benchmark(), table([row()], name), None).language == language


def test_language_of_a_published_file(row, table):
    own = benchmark(PublishedFile("MMBench_DEV_CN.tsv", "zh"), PublishedFile("x_en.tsv", "pt"))
    assert local_file(own, table([row()], "MMBench_DEV_CN.tsv"), None).language == "zh"
    renamed = local_file(own, table([row()], "mmbench_dev_cn.TSV"), None)
    assert renamed.published is own.files[0]
    assert local_file(own, table([row()], "x_en.tsv"), None).language == "pt"


def test_a_language_column_says_it_itself(tsv):
    path = tsv()
    named = path.rename(path.with_name("eval_ru.tsv"))
    assert local_file(benchmark(), named, None).language is None


def test_a_given_language_counts(row, table):
    assert local_file(benchmark(), table([row()], "q.tsv"), "ar").language == "ar"


def test_languages_go_to_files_in_turn(row, table):
    asked = read_questions(
        benchmark(),
        Selection((table([row()], "one.tsv"), table([row()], "two.tsv")), ("en", "en")),
        Protocol(), progress=False,
    )  # fmt: skip
    assert [unit.asks[0].item.language for unit in asked.units] == ["en", "en"]
    with pytest.raises(DataError, match="one for each --data file"):
        read_questions(
            benchmark(),
            Selection((table([row()], "one.tsv"), table([row()], "two.tsv")), ("en",)),
            Protocol(), progress=False,
        )  # fmt: skip


def test_columns_of_reads_the_header_alone(row, table, tmp_path):
    path = table([row()])
    assert columns_of(path) == list(row())
    path.write_bytes(b'\xef\xbb\xbfindex\t"a\nb"\r\n' + b"\xff" * 100)
    assert columns_of(path) == ["index", "a\nb"]
    path.write_bytes(b"index\n")
    with pytest.raises(DataError, match=r":1: expected a header of several columns"):
        columns_of(path)


# ---------------------------------------------------------------------- hashes


def test_facts_of_a_file(row, table):
    path = table([row()])
    content = path.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert digests(path) == (md5, hashlib.sha256(content).hexdigest())
    known = benchmark(PublishedFile(path.name, "en", md5=md5))
    assert local_file(known, path, None).official
    assert local_file(known, path, None).facts == {
        "name": path.name, "bytes": len(content), "sha256": digests(path)[1], "md5": md5,
        "published": True,
    }  # fmt: skip
    unknown = local_file(benchmark(PublishedFile(path.name, "en")), path, None)
    assert (unknown.facts["published"], unknown.official) == (None, False)
    assert mismatch(unknown, 1, ["index"]) == ""


def test_another_content_under_a_published_name_is_told(row, table):
    path = table([row(n) for n in range(3)])
    known = benchmark(PublishedFile(path.name, "en", md5="0" * 32))
    asked = read_questions(known, Selection((path,)), Protocol(), progress=False)
    [warning] = asked.warnings
    md5, sha256 = digests(path)
    for part in (
        f"{path}: not the published {path.name}: MD5 {md5}, published {'0' * 32}",
        "found 3 rows, columns index, question, hint, A, B, C, D, answer",
        f"SHA-256 {sha256}",
    ):
        assert part in warning
    assert asked.about["data"][0]["published"] is False
    assert asked.about["data"][0]["rows"] == 3


def test_a_published_file_with_hidden_answers(row, table):
    path = table([row(answer="")])
    hidden = benchmark(PublishedFile(path.name, "en", hidden=True))
    asked = read_questions(hidden, Selection((path,)), Protocol(), progress=False)
    assert asked.units[0].asks[0].item.answer == ""
    with pytest.raises(DataError, match="column answer: empty"):
        read_questions(benchmark(), Selection((path,)), Protocol(), progress=False)


# ---------------------------------------------------------------------- selecting


def published(**splits: str) -> Benchmark:
    return benchmark(
        *(
            PublishedFile(f"{split}_{code}.tsv", code, split)
            for split, codes in splits.items()
            for code in codes.split()
        )
    )


def test_select_takes_the_first_split_and_all_languages():
    own = published(dev="en zh", test="en ru")
    assert [f.name for f in select(own, None, None)] == ["dev_en.tsv", "dev_zh.tsv"]
    assert [f.name for f in select(own, ["en"], "test")] == ["test_en.tsv"]
    assert [f.name for f in select(own, [], "test")] == ["test_en.tsv", "test_ru.tsv"]


def test_select_says_what_there_is():
    own = published(dev="en zh", test="en ru")
    message = "no published file of split 'dev' in ru: splits are dev, test, languages en, ru, zh"
    with pytest.raises(ConfigError, match=message):
        select(own, ["ru"], None)
    with pytest.raises(ConfigError, match="of split 'val'"):
        select(own, None, "val")
    with pytest.raises(ConfigError, match="no published files here: name yours with --data"):
        select(benchmark(), None, None)


@pytest.mark.parametrize(("split", "rows"), [("dev", 2), ("test", 1), (None, 3), ("val", 0)])
def test_rows_of_a_split(row, table, split, rows):
    path = table([row(0), row(1), row(2, split="test")])
    asked = read_questions(
        benchmark(), Selection((path,), split=split), Protocol(), progress=False
    )  # fmt: skip
    assert len(asked.units) == rows


def test_the_split_of_a_published_file_is_its_own_name_for_it(row, table):
    """MMBench's files of version 1.1 say "dev" in their rows."""
    path = table([row(0), row(1)])
    own = benchmark(PublishedFile(path.name, "en", "dev_v11"))
    for split in ("dev_v11", "dev", None):
        asked = read_questions(own, Selection((path,), split=split), Protocol(), progress=False)
        assert len(asked.units) == 2
    asked = read_questions(own, Selection((path,), split="test"), Protocol(), progress=False)
    assert asked.units == []


def test_selection_by_language_and_category(tsv):
    chosen = Selection((tsv(),), ("cn", "ar"), categories=("naming", "yes_no"), limit=4)
    asked = read_questions(benchmark(), chosen, Protocol(), progress=False)
    items = [unit.asks[0].item for unit in asked.units]
    assert [item.language for item in items].count("zh") == 4
    assert {item.language for item in items} == {"zh", "ar"}
    assert {item.category for item in items} <= {"naming", "yes_no"}
    assert asked.about["selection"] == {
        "languages": ["zh", "ar"], "split": None, "categories": ["naming", "yes_no"], "limit": 4,
    }  # fmt: skip


# ---------------------------------------------------------------------- fetching


def test_without_the_hub_the_advice_is_to_bring_the_file():
    file = PublishedFile("mmmb_en.tsv", "en", repo="AIDC-AI/Parrot-dataset", path="mmmb/x.tsv")
    with pytest.raises(DataError) as error:
        fetch(benchmark(file), [file])
    assert "mmmb_en.tsv could not be fetched from AIDC-AI/Parrot-dataset on the hub" in str(
        error.value
    )
    assert str(error.value).endswith("bring the file and name it: --data PATH")
    assert "\n" not in str(error.value)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "benchmarks" / "own"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.tsv", "nowhere", "file:///no/x.tsv"])
def test_an_address_that_does_not_answer(own_cache, url):
    file = PublishedFile("x_en.tsv", "en", url=url)
    with pytest.raises(DataError, match=r"x_en\.tsv could not be fetched from .*--data PATH"):
        fetch(benchmark(file), [file])
    assert list(own_cache.glob("*")) == []


class Server:
    """Sends bytes over HTTP, whole or only half of them, and counts who asked."""

    def __init__(self, content: bytes, sent: int | None = None, status: int = 200) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:sent])

            def log_message(self, *_: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/x_en.tsv"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def test_a_fetched_file_is_kept(row, table, own_cache):
    content = table([row()]).read_bytes()
    with Server(content) as server:
        file = PublishedFile("x_en.tsv", "en", url=server.url)
        own = benchmark(file)
        [path] = fetch(own, [file])
        assert (path, path.read_bytes()) == (own_cache / "x_en.tsv", content)
        assert fetch(own, [file]) == [path]
        assert server.asked == 1
    asked = read_questions(own, Selection(), Protocol(), progress=False)
    assert len(asked.units) == 1


def test_a_transfer_that_breaks_off_leaves_nothing(own_cache):
    with Server(b"index\tquestion\n" * 99, sent=700) as server:
        file = PublishedFile("x_en.tsv", "en", url=server.url)
        with pytest.raises(DataError, match="broke off after 700 of 1,485 bytes"):
            fetch(benchmark(file), [file])
    assert list(own_cache.glob("*")) == []


def test_an_address_without_the_file(own_cache):
    with Server(b"not here", status=404) as server:
        file = PublishedFile("x_en.tsv", "en", url=server.url)
        with pytest.raises(DataError, match="HTTPError: HTTP Error 404"):
            fetch(benchmark(file), [file])
    assert list(own_cache.glob("*")) == []
