"""Small evaluation sets written by hand: in the layout of the OpenMoji dataset, in MMBench's."""

import base64
import csv
import importlib.util
import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.records import Record
from tests import helpers

EVAL = Path(__file__).resolve().parents[2] / "eval"

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
COLUMNS += ("source", "l2-category", "comment", "split", "language")
NAMES = {
    "en": ("cat", "red apple", "blue car", "tree", "house", "sun"),
    "ar": ("قطة", "تفاحة", "سيارة", "شجرة", "بيت", "شمس"),
    "zh": ("猫", "红苹果", "蓝色汽车", "树", "房子", "太阳"),
}
WORDS = {"naming": ("What?", "ما؟", "什么？"), "yes_no": ("Is it {}?", "هل {}؟", "是{}吗？")}
YES = {"en": ("Yes", "No"), "ar": ("نعم", "لا"), "zh": ("是", "不是")}


@cache
def png(seed: int) -> str:
    """A picture of coloured noise as base64."""
    file = io.BytesIO()
    helpers.picture(seed).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def rows(split: str) -> list[dict[str, str]]:
    """Per kind six items in three languages, the picture at its first row and then by reference."""
    out: list[dict[str, str]] = []
    holder: dict[int, str] = {}
    for kind in ("naming", "choice", "yes_no"):
        for number in range(6):
            for place, (language, names) in enumerate(NAMES.items()):
                index = str(len(out))
                if kind == "yes_no":
                    asked = names[(number + number % 2 * 3) % 6]
                    question = WORDS[kind][place].format(asked)
                    options = [*YES[language], "", "NaN"]
                    answer = "AB"[number % 2]
                else:
                    question = WORDS["naming"][place]
                    options = [names[(number + i) % 6] for i in range(4)]
                    options[0], options[number % 4] = options[number % 4], options[0]
                    answer = "ABCD"[number % 4]
                row = dict.fromkeys(COLUMNS, "")
                row |= {"index": index, "question": question, "answer": answer, "category": kind}
                row |= dict(zip("ABCD", options, strict=True))
                row |= {"image": holder.get(number, png(number)), "split": split}
                row |= {"language": language, "comment": f"picture=P{number};item={number}"}
                holder.setdefault(number, index)
                out.append(row)
    return out


def write(path: Path, table: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        names = list(table[0])
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return path


@pytest.fixture
def tsv(tmp_path: Path) -> Callable[..., Path]:
    """(split, **{"row.column": value}) -> a file with those cells changed."""

    def make(split: str = "train", **changes: str) -> Path:
        table = rows(split)
        for place, value in changes.items():
            number, column = place.removeprefix("row").split("_", 1)
            table[int(number)][column] = value
        return write(tmp_path / f"eval_{split}.tsv", table)

    return make


# ---------------------------------------------------------------------- benchmarks in miniature

MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
MMBENCH += ("source", "l2-category", "comment", "split")


@pytest.fixture
def row() -> Callable[..., dict[str, str]]:
    """A row in MMBench's columns; named cells replace what it says."""

    def make(index: int = 0, **cells: str) -> dict[str, str]:
        made = dict.fromkeys(MMBENCH, "")
        made |= {"index": str(index), "question": f"Which animal is in picture {index}?"}
        made |= {"A": "a cat", "B": "a dog", "C": "a horse", "D": "a sheep", "answer": "A"}
        made |= {"category": "naming", "l2-category": "perception", "split": "dev"}
        return made | {"image": png(index % 100)} | cells

    return make


@pytest.fixture
def circular(row: Callable[..., dict[str, str]]) -> Callable[..., list[dict[str, str]]]:
    """A question's rows as MMBench's files have them; `step` is how far options move a pass."""

    def make(index: int = 0, options: int = 4, step: int = 1, **cells: str) -> list[dict[str, str]]:
        first = row(index, **cells)
        letters = "ABCD"[:options]
        texts = [first[letter] for letter in letters]
        out = []
        for k in range(options):
            turned = {a: texts[(n - k * step) % options] for n, a in enumerate(letters)}
            answer = next(a for a, text in turned.items() if text == first[first["answer"]])
            empty = dict.fromkeys("ABCD"[options:], "")
            image = str(index) if k and len(first["image"]) > 64 else first["image"]
            moved = {"index": str(index + k * 1_000_000), "answer": answer, "image": image}
            out.append(first | turned | empty | moved)
        return out

    return make


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """(rows, file name) -> the TSV."""

    def make(of: list[dict[str, str]], name: str = "questions_en.tsv") -> Path:
        return write(tmp_path / name, of)

    return make


@pytest.fixture
def item() -> Callable[..., Item]:
    """An item as read from a file; named attributes replace what it says."""

    def make(index: int = 0, **values: Any) -> Item:
        about: dict[str, Any] = {"index": str(index), "question": "Which animal is it?"}
        about |= {"hint": "", "options": {"A": "cat", "B": "dog"}, "answer": "A"}
        about |= {"category": "naming", "language": "en", "image": b"", "picture": "P"}
        about |= {"split": "dev", "comment": "", "tags": {}, "file": "q.tsv"}
        return Item(**about | {"source": f"q.tsv:{index + 2}"} | values)

    return make


@pytest.fixture
def record() -> Callable[..., Record]:
    """A line of predictions; the score follows from choice and answer unless it is given."""

    def make(index: int = 0, turn: int = 0, **values: Any) -> Record:
        about: dict[str, Any] = {"file": "q.tsv", "row": str(index + 2), "index": str(index)}
        about |= {"group": f"q.tsv/{index}", "turn": turn, "question_id": str(index)}
        about |= {"question": "Which?", "language": "en", "split": "", "category": "", "l2": ""}
        about |= {"picture": None, "prompt": "Which?", "options": {"A": "cat", "B": "dog"}}
        about |= {"answer": "A", "answers": (), "reply": "A", "finished": True, "scores": None}
        about |= {"choice": "A", "batch": 0} | values
        hidden = about["answer"] is None
        return Record(
            **{"score": None if hidden else float(about["choice"] == about["answer"])} | about
        )

    return make


@pytest.fixture
def head() -> Callable[..., dict[str, Any]]:
    """The head of a run of the random baseline."""

    def make(**values: Any) -> dict[str, Any]:
        file = {"name": "q.tsv", "bytes": 1, "sha256": "0" * 64, "md5": "0" * 32}
        return {
            "format": 1,
            "benchmark": "own",
            "title": "Own",
            "metric": "choice",
            "protocol": Protocol(passes="circular").describe(),
            "model": {"kind": "baseline", "name": "random"},
            "data": [file | {"published": None, "rows": 1}],
            "left_out": [],
            "extraction_version": 1,
        } | values

    return make


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A file of `eval/` by its name, as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"eval_{name}", EVAL / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., int]:
    """The command line of a benchmark of one's own -> exit code; files go to tmp_path/out."""

    def call(*arguments: object, passes: str = "vanilla", model: str = "random") -> int:
        own = Benchmark("own", "Own", "here", "none", Protocol(passes=passes))
        start = ["--model", model, "--out", tmp_path / "out", "--quiet", "--device", "cpu"]
        return command.main(own, "", [str(a) for a in (*start, *arguments)])

    return call


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels, and next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        end = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + end

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def cut_jpeg() -> bytes:
    file = io.BytesIO()
    helpers.picture(0).resize((200, 200)).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.fixture(scope="session")
def broken_picture() -> dict[str, str]:
    """Kind of damage -> an image cell that has it."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
    html = b"<!DOCTYPE html><html><body>404, the file that you asked for is not here</body></html>"
    damaged = {"bomb": png_claiming(60_000, 60_000), "cut": cut_jpeg(), "svg": svg, "html": html}
    cells = {kind: base64.b64encode(content).decode() for kind, content in damaged.items()}
    return cells | {"base64": png(0)[:200] + "!" + png(0)[200:], "text": "<svg/>" * 20}
