"""Twenty pictures with a question each, as somebody's own data would lie in a folder.

    python examples/own_data.py datasets/mine

    datasets/mine/pictures/    20 drawings: five colours by four shapes
    datasets/mine/train.json   16 of them, LLaVA's layout: one conversation each
    datasets/mine/held_out.json   the other 4, the same way: scored while training, never trained on
    datasets/mine/test_en.tsv  the same 4 as lettered questions, in MMBench's columns

To try the commands of the README on; put your own files in their place.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "blue", "green", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = {("red", "cross"), ("blue", "circle"), ("green", "triangle"), ("orange", "square")}
SIDE = 224


def draw(colour: str, shape: str) -> Image.Image:
    """SIDE x SIDE, the shape in the middle of a white ground."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    low, middle, high = SIDE // 5, SIDE // 2, SIDE * 4 // 5
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle, low), (low, high), (high, high)], fill=colour)
    else:
        pen.line((low, low, high, high), fill=colour, width=SIDE // 8)
        pen.line((low, high, high, low), fill=colour, width=SIDE // 8)
    return image


def conversation(colour: str, shape: str) -> dict[str, object]:
    """An item of LLaVA's layout, with the two keys that this project adds."""
    return {
        "id": f"{colour}-{shape}",
        "image": f"{colour}-{shape}.png",
        "language": "en",
        "domain": "shapes",
        "conversations": [
            {"from": "human", "value": "<image>\nWhich shape is this, and which colour has it?"},
            {"from": "gpt", "value": f"A {shape}. It is {colour}."},
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("datasets/mine"))
    folder = parser.parse_args().folder
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for colour, shape in pairs:
        draw(colour, shape).save(pictures / f"{colour}-{shape}.png")
    parts = {
        "train": [pair for pair in pairs if pair not in HELD_OUT],
        "held_out": [pair for pair in pairs if pair in HELD_OUT],
    }
    for name, part in parts.items():
        lines = [json.dumps(conversation(*pair)) for pair in part]
        (folder / f"{name}.json").write_text("[" + ",\n ".join(lines) + "]\n", encoding="utf-8")
    with (folder / "test_en.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["index", "question", *"ABCD", "answer", "category", "image"])
        for number, (colour, shape) in enumerate(parts["held_out"]):
            content = (pictures / f"{colour}-{shape}.png").read_bytes()
            answer = "ABCD"[SHAPES.index(shape)]
            picture = base64.b64encode(content).decode()
            rows.writerow([number, "Which shape is this?", *SHAPES, answer, "shape", picture])
    print(f"{len(parts['train'])} samples in {folder}/train.json, 4 held out, 4 in test_en.tsv")


if __name__ == "__main__":
    main()
