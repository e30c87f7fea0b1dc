"""Small data sets in every format, and thousands of ways to damage them; a seed says which.

`write_world` lays out a data root and, beside it, what no reader may open. `mutant` writes one
damaged data set into the root. Generic damage hits bytes; the rest hits values: keys dropped, types
changed, paths that lead out.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llava_mole.data import SourceSpec

SECRET = "the-secret-beside-the-data-root"
"""Text of every file outside the data root: no sample may hold it."""

RECORDS = 5


@dataclass(frozen=True)
class Mutant:
    """A damaged data set.

    Attributes:
        spec: to open it with.
        what: format, seed and damage, for messages.
        files: names of the files, one of which every error must tell.
        has_lines: its records stand in lines of text.
    """

    spec: SourceSpec
    what: str
    files: tuple[str, ...]
    has_lines: bool


def picture(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 200)).save(content, "PNG")
    return content.getvalue()


def write_world(folder: Path) -> Path:
    """Pictures and links in `folder/root`, secrets in `folder/outside`; returns the root."""
    root, outside = folder / "root", folder / "outside"
    (root / "images").mkdir(parents=True)
    outside.mkdir()
    for number in range(RECORDS):
        (root / "images" / f"{number}.png").write_bytes(picture(number))
    (outside / "secret.png").write_bytes(picture(255))
    secret = [{"image": "images/0.png", "language": "en", "conversations": _said(SECRET)}]
    (outside / "secret.json").write_text(json.dumps(secret))
    (outside / "secret.jsonl").write_text(json.dumps(secret[0]))
    table = pa.Table.from_pylist([{"texts": [{"user": SECRET, "assistant": SECRET}]}])
    pq.write_table(table, outside / "secret.parquet")
    _write_stream(table, outside / "secret.arrow")
    (root / "images" / "link_out.png").symlink_to(outside / "secret.png")
    (root / "link_folder").symlink_to(outside)
    (root / "images" / "loop.png").symlink_to(root / "images" / "loop.png")
    return root


# --- undamaged ------------------------------------------------------------------------------------


def _said(question: str, answer: str = 'Um "gato" [cinza], é claro.') -> list[dict[str, str]]:
    return [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]


def llava(number: int) -> dict[str, Any]:
    said = _said(f"O que é isto ({number})?")
    return {"id": number, "image": f"images/{number}.png", "kind": "naming", "conversations": said}


def sharegpt(number: int) -> dict[str, Any]:
    return {"images": [f"images/{number}.png"], "conversations": _said("你好吗？")}


def messages(number: int) -> dict[str, Any]:
    shown = {"type": "image", "image": f"images/{number}.png"}
    if number % 2:
        content = base64.b64encode(picture(number)).decode()
        shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [shown, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "A cat."},
        ]
    }


def swift(number: int) -> dict[str, Any]:
    return {
        "query": "<image>这是什么？",
        "response": "一只猫。",
        "history": [["Hi", "Hello"]],
        "images": [f"images/{number}.png"],
    }


def alpaca(number: int) -> dict[str, Any]:
    return {
        "instruction": "<image>Describe.",
        "input": "briefly",
        "output": "A cat.",
        "images": [f"images/{number}.png"],
    }


def nanovlm(number: int) -> dict[str, Any]:
    return {
        "images": [{"bytes": picture(number), "path": None}],
        "texts": [{"user": "What is this?", "assistant": f"Cat {number}."}] * 2,
    }


def vqa(number: int) -> dict[str, Any]:
    return {
        "image": {"bytes": picture(number), "path": None},
        "question": "What is this?",
        "answers": [f"Cat {number}.", "cat"],
    }


def chart_qa(number: int) -> dict[str, Any]:
    return {"image": f"images/{number}.png", "query": "这是什么？", "label": [f"Cat {number}."]}


def llava_row(number: int) -> dict[str, Any]:
    return llava(number) | {"image": {"bytes": None, "path": f"images/{number}.png"}}


def mmbench(number: int) -> dict[str, Any]:
    held = base64.b64encode(picture(number)).decode()
    return {
        "index": str(number),
        "question": "What\tis it?" if number == 2 else "What is it?",
        "hint": "NaN",
        "A": "a cat",
        "B": "a dog",
        "C": "a cow" if number else "NaN",
        "D": "",
        "answer": "B",
        "image": "0" if number == 3 else held,
        "language": "en",
    }


# --- writing --------------------------------------------------------------------------------------

Records = list[dict[str, Any]]


def _write_list(records: Records, place: Path) -> list[Path]:
    path = place.with_suffix(".json")
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False), errors="surrogatepass")
    return [path]


def _write_lines(records: Records, place: Path) -> list[Path]:
    path = place.with_suffix(".jsonl")
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(text, errors="surrogatepass")
    return [path]


def _write_factory(records: Records, place: Path) -> list[Path]:
    place.mkdir()
    (place / "images").symlink_to(place.parent / "images")
    [data] = _write_list(records, place / "data")
    info = {"set": {"file_name": data.name, "formatting": "sharegpt"}}
    (place / "dataset_info.json").write_text(json.dumps(info, indent=1))
    return [data, place / "dataset_info.json"]


def _write_tsv(records: Records, place: Path) -> list[Path]:
    path = place.with_suffix(".tsv")
    columns = list(records[0])
    rows = [columns, *([str(record.get(key, "")) for key in columns] for record in records)]
    quoted = [['"' + cell.replace('"', '""') + '"' if "\t" in cell else cell for cell in row]
              for row in rows]  # fmt: skip
    path.write_text("\n".join("\t".join(row) for row in quoted) + "\n", errors="surrogatepass")
    return [path]


def _write_parquet(records: Records, place: Path) -> list[Path]:
    path = place.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    return [path]


def _write_shards(records: Records, place: Path) -> list[Path]:
    (place / "data").mkdir(parents=True)
    names = [f"train-0000{number}-of-00002" for number in range(2)]
    return [
        _write_parquet(part, place / "data" / name)[0]
        for name, part in zip(names, (records[:2], records[2:]), strict=True)
    ]


def _write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)


def _write_saved(records: Records, place: Path) -> list[Path]:
    place.mkdir(parents=True)
    path = place / "data-00000-of-00001.arrow"
    _write_stream(pa.Table.from_pylist(records), path)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))
    return [path, place / "state.json"]


def _write_dict(records: Records, place: Path) -> list[Path]:
    files = _write_saved(records, place / "train")
    (place / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    return [*files, place / "dataset_dict.json"]


@dataclass(frozen=True)
class Format:
    """How a format is made: a record by its number, and the writer of a data set."""

    record: Callable[[int], dict[str, Any]]
    write: Callable[[Records, Path], list[Path]]
    has_lines: bool = True
    folder: bool = False


FORMATS: dict[str, Format] = {
    "llava_list": Format(llava, _write_list),
    "llava_lines": Format(llava, _write_lines),
    "sharegpt_list": Format(sharegpt, _write_list),
    "messages_lines": Format(messages, _write_lines),
    "swift_lines": Format(swift, _write_lines),
    "alpaca_list": Format(alpaca, _write_list),
    "factory": Format(sharegpt, _write_factory),
    "mmbench_tsv": Format(mmbench, _write_tsv),
    "vqa_lines": Format(chart_qa, _write_lines),
    "vqa_parquet": Format(vqa, _write_parquet, has_lines=False),
    "nanovlm_parquet": Format(nanovlm, _write_parquet, has_lines=False),
    "llava_parquet": Format(llava_row, _write_parquet, has_lines=False),
    "nanovlm_shards": Format(nanovlm, _write_shards, has_lines=False, folder=True),
    "messages_saved": Format(nanovlm, _write_saved, has_lines=False, folder=True),
    "llava_dict": Format(llava_row, _write_dict, has_lines=False, folder=True),
}


def spec_of(name: str, place: Path, files: list[Path], root: Path) -> SourceSpec:
    """How the data set of a format is opened."""
    path: Path | str = place if FORMATS[name].folder else files[0]
    if name == "factory":
        path = f"{place / 'dataset_info.json'}:set"
    return SourceSpec(path, image_root=root, language="en")


# --- damage to bytes ------------------------------------------------------------------------------


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def cut_a_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    return b"\n".join(lines)


def drop_a_piece(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randint(1, 40) :]


def repeat_a_piece(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.randint(1, 200))
    return content[:stop] + content[start:]


def insert_bytes(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    piece = rng.choice(
        [b"\0", b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b'"', b"\\",
         b"[" * 5000, b"}", b"]", b",", b"9" * 5000, "\u2028".encode(), b"\t", b"\r", b"NaN"]
    )  # fmt: skip
    return content[:start] + piece + content[start:]


def byte_order_mark(content: bytes, rng: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + content


def windows_line_ends(content: bytes, rng: random.Random) -> bytes:
    return content.replace(b"\n", b"\r\n")


def other_encoding(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-16-be", "utf-32"]))


def nothing_but(content: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b" \n\n ", b"[]", b"{}", b"null", b"[[]]", b"\0" * 64, b"PAR1PAR1",
                       b"\x1f\x8b\x08", b"<html>", b"[" * 100_000, b'{"a":' * 50_000])  # fmt: skip


BYTE_DAMAGE = (
    *[flip_bits] * 4, *[cut] * 2, cut_a_line, drop_a_piece, repeat_a_piece, *[insert_bytes] * 3,
    byte_order_mark, windows_line_ends, other_encoding, nothing_but,
)  # fmt: skip


# --- damage to values -----------------------------------------------------------------------------

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3.5, float("nan"), float("inf"), 10**40, 10**400, "", " ", "x", [], {}, [[]],
    [None], {"bytes": None, "path": None}, "\0", "\ud800", "\u2028", "<image>", "a" * 5000, "نص",
    {"type": "image"}, {"type": "image", "index": 10**30}, {"type": "video"}, "tool", 2**63, b"",
)  # fmt: skip
WAYS_OUT = (
    "../outside/secret.png",
    "images/../../outside/secret.png",
    "images/link_out.png",
    "link_folder/secret.png",
    "link_folder/../secret.png",
    "images/loop.png",
    "/etc/hostname",
    "{outside}/secret.png",
    "file://{outside}/secret.png",
    "file:///etc/hostname",
    "file://elsewhere/x.png",
    "http://127.0.0.1:9/x.png",
    "s3://bucket/x.png",
    "data:image/png;base64,####",
    "data:,x",
    "..",
    ".",
    "images",
    "gone.png",
    "nul\0.png",
    "n" * 5000,
    "~/x.png",
    "//etc/hostname",
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all values inside a value."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield (*path, key)
        yield from _places(item, (*path, key))


def damage_values(records: Records, rng: random.Random, root: Path) -> tuple[Records, str]:
    """One value dropped or replaced, in one record or (a column's type) in all."""
    records = copy.deepcopy(records)
    action = rng.choice(["drop", "odd", "odd", "odd", "out", "out", "unwrap"])
    where = rng.choice(list(_places(records[0])))
    if action == "out":
        pictures = [
            p for p in _places(records[0]) if {"image", "images", "path"} & set(map(str, p))
        ]
        where = rng.choice(pictures)
    way = rng.choice(WAYS_OUT).format(outside=root.parent / "outside")
    odd = rng.choice(ODD_VALUES)
    every = rng.random() < 0.3
    chosen = range(len(records)) if every else [rng.randrange(len(records))]
    for number in chosen:
        holder: Any = records[number]
        for key in where[:-1]:
            holder = holder[key] if _has(holder, key) else {}
        if not _has(holder, where[-1]):
            continue
        if action == "drop":
            del holder[where[-1]]
        elif action == "unwrap":
            holder[where[-1]] = [holder[where[-1]]]
        else:
            holder[where[-1]] = way if action == "out" else copy.deepcopy(odd)
    shown = {"out": way, "odd": odd}.get(action, "")
    return records, f"{action} {'/'.join(map(str, where))} {str(shown)[:60]!r}"


def _has(holder: Any, key: Any) -> bool:
    if isinstance(holder, dict):
        return key in holder
    return isinstance(holder, list) and isinstance(key, int) and key < len(holder)


# --- mutants --------------------------------------------------------------------------------------


def mutant(name: str, seed: int, root: Path) -> Mutant:
    """Write the damaged data set that a format and a seed stand for, in place of the last one."""
    rng = random.Random(f"{name}-{seed}")
    form = FORMATS[name]
    records = [form.record(number) for number in range(RECORDS)]
    place = root / name
    if place.is_dir():
        shutil.rmtree(place)
    what = ""
    files: list[Path] = []
    if rng.random() < 0.5:
        damaged, what = damage_values(records, rng, root)
        try:
            files = form.write(damaged, place)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            # The format itself cannot hold such a value.
            what = ""
            if place.is_dir():
                shutil.rmtree(place)
    if not what:
        files = form.write(records, place)
        hit = rng.choice(files)
        if hit.name in ("state.json", "dataset_info.json") and rng.random() < 0.5:
            ends = f"../../outside/secret{files[0].suffix}"
            hit.write_text(hit.read_text().replace(files[0].name, ends))
            what = f"{hit.name} leads out"
        elif form.folder and rng.random() < 0.1:
            files[0].unlink()
            files[0].symlink_to(root.parent / "outside" / f"secret{files[0].suffix}")
            what = f"{files[0].name} is a link out"
        else:
            damage = rng.choice(BYTE_DAMAGE)
            hit.write_bytes(damage(hit.read_bytes(), rng))
            what = f"{damage.__name__} in {hit.name}"
    spec = spec_of(name, place, files, root)
    names = tuple(dict.fromkeys([*(file.name for file in files), place.name]))
    return Mutant(spec, f"{name}, seed {seed}: {what}", names, form.has_lines)


def mutants(root: Path, seeds: Iterable[int], formats: Iterable[str] = FORMATS) -> Iterator[Mutant]:
    """Every format with every seed; each data set lasts until the next of its format is made."""
    for seed in seeds:
        for name in formats:
            yield mutant(name, seed, root)
