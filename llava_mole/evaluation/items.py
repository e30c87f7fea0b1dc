"""Multiple-choice items from a TSV in the schema that MMBench and MMMB share.

Columns: index, question, hint, A, B, C, D, answer, category, image, source, l2-category, comment,
split, in any order; needed are index, question, A, B, answer and image. An empty cell or `NaN` is
no option. `image` is a file in base64, or, in up to 64 characters, the index of the row that holds
it. A `language` column, where there is one, says the language of each row. Read as pandas would:
tab-separated, cells with tabs or line breaks in double quotes.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_mole.errors import DataError
from llava_mole.languages import LANGUAGES

LETTERS = ("A", "B", "C", "D")
NEEDED = ("index", "question", "A", "B", "answer", "image")
REFERENCE_CHARACTERS = 64
ALIASES = {"cn": "zh"}
"""MMMB's file names spell Chinese `cn`."""


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        index: of the row, unique in its file.
        options: letter -> text, two to four.
        answer: the right letter.
        image: the picture file's bytes; items of one picture share the object.
        picture: name of the picture: the comment's `picture=…`, else the row that holds it.
        tags: the comment's `key=value` pairs.
        source: "file:row", the header being row 1.
    """

    index: str
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    language: str
    image: bytes
    picture: str
    split: str
    comment: str
    tags: dict[str, str]
    source: str

    @property
    def right(self) -> str:
        """The right option's text."""
        return self.options[self.answer]


def language_code(name: str, where: str) -> str:
    """Raises DataError for a language that is none of the six."""
    code = ALIASES.get(name, name)
    if code not in LANGUAGES:
        raise DataError(f"{where}: language {name!r}: known are {', '.join(LANGUAGES)} (and cn)")
    return code


def read_items(path: Path, language: str | None = None) -> list[Item]:
    """All items of a file, in its order.

    Args:
        path: the TSV.
        language: of every row, where the file has no `language` column.

    Raises:
        DataError: names file, row and column of what is missing, doubled or broken.
    """
    csv.field_size_limit(2**31 - 1)  # a cell holds a picture
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restkey="")
            columns = list(reader.fieldnames or [])
            missing = [name for name in NEEDED if name not in columns]
            if missing:
                raise DataError(
                    f"{path}: no column {', '.join(missing)}; found "
                    f"{', '.join(columns) or 'none'}. Is it a tab-separated file with a header?"
                )
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 TSV ({error})") from error
    if "language" not in columns and language is None:
        raise DataError(f"{path}: no column language; say which language its questions are in")
    given = None if language is None else language_code(language, str(path))
    pictures = _pictures(path, rows)
    return [_item(path, number, row, given, pictures) for number, row in enumerate(rows, start=2)]


def _pictures(path: Path, rows: Sequence[dict[str, str]]) -> dict[str, bytes]:
    """Index of a row -> the picture it holds."""
    first: dict[str, int] = {}
    pictures: dict[str, bytes] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}:{number}"
        if None in row.values() or "" in row:
            raise DataError(f"{where}: more or fewer cells than the header has columns")
        index = row["index"]
        if index in first:
            raise DataError(f"{where}: column index: {index!r} is row {first[index]}'s already")
        first[index] = number
        if len(row["image"]) > REFERENCE_CHARACTERS:
            try:
                pictures[index] = base64.b64decode("".join(row["image"].split()), validate=True)
            except ValueError as error:  # binascii.Error is one
                raise DataError(f"{where}: column image: broken base64 ({error})") from error
    return pictures


def _item(
    path: Path,
    number: int,
    row: dict[str, str],
    language: str | None,
    pictures: dict[str, bytes],
) -> Item:
    where = f"{path}:{number}"
    options = {letter: _text(row.get(letter)) for letter in LETTERS}
    options = {letter: text for letter, text in options.items() if text}
    if len(options) < 2:
        raise DataError(f"{where}: columns A to D: {len(options)} options, at least two are needed")
    answer = _text(row["answer"])
    if answer not in options:
        hidden = "; are the answers of this split hidden?" if not answer else ""
        raise DataError(
            f"{where}: column answer: {answer!r} is none of the options "
            f"{', '.join(options)}{hidden}"
        )
    question = _text(row["question"])
    if not question:
        raise DataError(f"{where}: column question: empty")
    holder = row["index"] if row["index"] in pictures else row["image"].strip()
    if holder not in pictures:
        raise DataError(
            f"{where}: column image: {holder!r} is neither a picture in base64 nor the index of a "
            "row that holds one"
        )
    comment = _text(row.get("comment"))
    pairs = [part.split("=", 1) for part in comment.split(";") if "=" in part]
    tags = {key.strip(): value.strip() for key, value in pairs}
    return Item(
        index=row["index"],
        question=question,
        hint=_text(row.get("hint")),
        options=options,
        answer=answer,
        category=_text(row.get("category")),
        language=language_code(row["language"], where) if "language" in row else str(language),
        image=pictures[holder],
        picture=tags.get("picture", holder),
        split=_text(row.get("split")),
        comment=comment,
        tags=tags,
        source=where,
    )


def _text(cell: str | None) -> str:
    """A cell's text; `NaN`, as pandas writes a missing one, is empty."""
    text = (cell or "").strip()
    return "" if text in ("NaN", "nan") else text
