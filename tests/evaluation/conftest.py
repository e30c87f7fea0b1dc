"""A small evaluation set in the layout of the OpenMoji dataset, written by hand."""

import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import helpers

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
COLUMNS += ("source", "l2-category", "comment", "split", "language")
NAMES = {
    "en": ("cat", "red apple", "blue car", "tree", "house", "sun"),
    "ar": ("قطة", "تفاحة", "سيارة", "شجرة", "بيت", "شمس"),
    "zh": ("猫", "红苹果", "蓝色汽车", "树", "房子", "太阳"),
}
WORDS = {"naming": ("What?", "ما؟", "什么？"), "yes_no": ("Is it {}?", "هل {}؟", "是{}吗？")}
YES = {"en": ("Yes", "No"), "ar": ("نعم", "لا"), "zh": ("是", "不是")}


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
