"""Small data sets written for one test."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_mole.data import SourceSpec
from llava_mole.inspection.findings import Finding
from llava_mole.inspection.inspect import inspect
from llava_mole.inspection.result import Inspection


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture with something to recognise: soft blobs of colour, different for each seed."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def record(
    image: str | None = "0.png",
    question: str = "What can be seen in this picture?",
    answer: str = "A few soft blobs of colour.",
    **more: Any,
) -> dict[str, Any]:
    shown = "" if image is None else "<image>\n"
    turns = [{"from": "human", "value": shown + question}, {"from": "gpt", "value": answer}]
    return {**({} if image is None else {"image": image}), "conversations": turns, **more}


def write(folder: Path, records: list[Any], name: str = "train.jsonl") -> SourceSpec:
    """A JSONL file; pictures 0.png to 3.png are there."""
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
    path = folder / name
    path.write_text("".join(json.dumps(item) + "\n" for item in records), encoding="utf-8")
    return SourceSpec(path, language="en")


def write_benchmark(
    path: Path, rows: list[dict[str, Any]], columns: str = "index question A B answer image"
) -> Path:
    """A TSV; `image` is a picture, bytes or text."""
    lines = [columns.split()]
    for number, row in enumerate(rows):
        image = row.get("image", "")
        content = encoded(image) if isinstance(image, Image.Image) else image
        cell = base64.b64encode(content).decode() if isinstance(content, bytes) else content
        whole = {"index": str(number), **row, "image": cell}
        lines.append([str(whole.get(column, "")) for column in lines[0]])
    path.write_text("\n".join("\t".join(line) for line in lines) + "\n", encoding="utf-8")
    return path


def look(spec: SourceSpec, folder: Path, **options: Any) -> Inspection:
    options = {"workers": 1, "progress": False, **options}
    return inspect(spec, cache_dir=folder / "cache", **options)


def all_findings(path: Path) -> list[Finding]:
    return [Finding(**entry) for entry in json.loads(path.read_text())["findings"]]


def only(inspection: Inspection) -> Finding:
    """The one finding there is."""
    [[finding]] = inspection.findings.first.values()
    assert inspection.findings.counts.total() == 1
    return finding
