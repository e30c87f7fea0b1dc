"""Items of a benchmark from a TSV in the schema that MMBench and MMMB share.

Columns: index, question, hint, A, B, C, …, answer, category, image, source, l2-category (or
L2-category), comment, split, in any order; which are needed depends on the kind of question. An
empty cell or `NaN` is no option. `image` is a file in base64, or, in up to 64 characters, the index
of the row that holds it. A `language` column, where there is one, says the language of each row.
Read as pandas would: tab-separated, cells with tabs or line breaks in double quotes. Of its words
for a missing cell only `NaN` counts, though: an option "None" stays one.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_mole.data.containers.tsv import REFERENCE_CHARACTERS, Tsv
from llava_mole.data.quoting import short
from llava_mole.errors import DataError
from llava_mole.languages import LANGUAGES

LETTERS = tuple("ABCDEFGHI")
NEEDED = {
    "choice": ("index", "question", "A", "B", "answer", "image"),
    "yes_no": ("index", "question", "answer", "image"),
    "open": ("index", "question", "answer", "image"),
}
ALIASES = {"cn": "zh"}
"""MMMB's file names spell Chinese `cn`."""
PER_PASS = 1_000_000
"""Row index + k · this is pass k of a question under circular evaluation."""
YES_NO = {"A": "Yes", "B": "No"}
MAX_INDEX = 200
MAX_PICTURE = 64 * 2**20
"""Characters of base64 that one picture may have; the largest published ones have a few million."""


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        index: of the row, unique in its file.
        options: letter -> text, two or more; Yes and No under letters of their own for `yes_no`;
            empty for `open`.
        answer: the right letter; "" where it is hidden, and for `open`.
        answers: accepted texts, for `open`; () where they are hidden.
        image: the picture file's bytes; items of one picture share the object.
        picture: name of the picture: the comment's `picture=…`, else the row that holds it.
        l2: the l2-category.
        tags: the comment's `key=value` pairs.
        source: "file:line".
        file: name of the file.
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
    l2: str = ""
    answers: tuple[str, ...] = ()
    file: str = ""

    @property
    def right(self) -> str:
        """The right option's text."""
        return self.options[self.answer]

    @property
    def group(self) -> str:
        """The question that this row is a pass of: file and index without the pass."""
        return f"{self.file}/{self.base}"

    @property
    def number(self) -> int | None:
        """The index, where it is a number."""
        return int(self.index) if self.index.isdecimal() and len(self.index) < 20 else None

    @property
    def base(self) -> str:
        """The question's index: that of its pass 0."""
        return self.index if self.number is None else str(self.number % PER_PASS)

    @property
    def question_id(self) -> str:
        """The same for a question in all languages: kind and the comment's `item=…`, else its
        index."""
        return f"{self.category}/{self.tags['item']}" if "item" in self.tags else self.base

    @property
    def turn(self) -> int:
        """Which pass of the question, from 0."""
        return 0 if self.number is None else self.number // PER_PASS


def language_code(name: str, where: str) -> str:
    """Raises DataError for a language that is none of the six."""
    code = ALIASES.get(name, name)
    if code not in LANGUAGES:
        raise DataError(f"{where}: language {name!r}: known are {', '.join(LANGUAGES)} (and cn)")
    return code


def read_items(
    path: Path,
    language: str | None = None,
    *,
    kind: str = "choice",
    hidden: bool = False,
    bad_rows: list[DataError] | None = None,
) -> list[Item]:
    """All items of a file, in its order.

    Args:
        path: the TSV.
        language: of every row; a `language` column may repeat it, and must not contradict it.
        kind: of questions, see `benchmark.KINDS`.
        hidden: answers may be missing (a test split).
        bad_rows: what is wrong with single rows is put here and the rows are left out; None: the
            first one is raised.

    Raises:
        DataError: names file, line and column of what is missing, doubled or broken.
    """
    if not path.is_file():
        raise DataError(f"{path}: cannot be read ({'a folder' if path.is_dir() else 'no file'})")
    if bad_rows is None:
        _check_lines(path)  # csv takes four bytes a character: 1 GB for a cell of 250 MB
    table = Tsv(path, None)
    columns = table.columns
    needed = [name for name in NEEDED[kind] if not (hidden and name == "answer")]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{path}:1: no column {', '.join(missing)}; found {', '.join(columns) or 'none'}. Is "
            "it a tab-separated file with a header?"
        )
    if "language" not in columns and language is None:
        raise DataError(
            f"{path}: no column language; add one (en, zh, …), or give the language where a "
            "command takes one"
        )
    given = None if language is None else language_code(language, str(path))
    pictures: dict[str, tuple[str, bytes]] = {}
    items: list[Item] = []
    for _, where, row in table.walk(0, len(table)):
        try:
            if isinstance(row, DataError):
                raise row
            items.append(_item(where, row, given, kind, hidden, pictures))
        except DataError as error:
            if bad_rows is None:
                raise error from None
            bad_rows.append(error)
    if table.damage is not None:
        if bad_rows is None:
            raise table.damage
        bad_rows.append(table.damage)
    if not len(table) and table.damage is None:
        raise DataError(f"{path}: a header and no row; was the file cut?")
    return items


def _check_lines(path: Path) -> None:
    """Raises DataError for a line longer than any with a picture of MAX_PICTURE."""
    most, header = MAX_PICTURE + 2**20, b""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            header = header or line.strip(b"\r\n")
            if len(line) > most:
                columns = header[: 2**16].decode("utf-8-sig", "replace").split("\t")
                place = line.count(b"\t")
                name = columns[place] if place < len(columns) else f"{place + 1}"
                raise DataError(
                    f"{path}:{number}: column {short(name).strip(chr(39))}: more than "
                    f"{MAX_PICTURE:,} characters, at most so many are read"
                )


def _item(
    where: str,
    row: dict[str, str],
    language: str | None,
    kind: str,
    hidden: bool,
    pictures: dict[str, tuple[str, bytes]],
) -> Item:
    if not row["index"].strip():
        raise DataError(f"{where}: column index: empty")
    if len(row["index"]) > MAX_INDEX:
        raise DataError(f"{where}: column index: {len(row['index']):,} characters")
    options, answer, answers = _answer(where, row, kind, hidden)
    question = _text(row["question"])
    if not question:
        raise DataError(f"{where}: column question: empty")
    comment = _text(row.get("comment"))
    pairs = [part.split("=", 1) for part in comment.split(";") if "=" in part]
    tags = {key.strip(): value.strip() for key, value in pairs}
    holder, image = _picture(where, row, pictures)
    return Item(
        index=row["index"].strip(),
        question=question,
        hint=_text(row.get("hint")),
        options=options,
        answer=answer,
        answers=answers,
        category=_text(row.get("category")),
        l2=_text(row.get("l2-category")) or _text(row.get("L2-category")),
        language=_language(where, row, language),
        image=image,
        picture=tags.get("picture", holder),
        split=_text(row.get("split")),
        comment=comment,
        tags=tags,
        source=where,
        file=Path(where.rpartition(":")[0]).name,
    )


def _language(where: str, row: dict[str, str], given: str | None) -> str:
    if "language" not in row:
        return str(given)
    own = language_code(row["language"].strip(), where)
    if given is not None and own != given:
        raise DataError(
            f"{where}: column language: {own!r} in a file of {given!r}; files of several languages "
            "are read by their language column alone"
        )
    return own


def _answer(
    where: str, row: dict[str, str], kind: str, hidden: bool
) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """(options, right letter, accepted texts)."""
    answer = _text(row.get("answer"))
    if not answer and not hidden:
        raise DataError(f"{where}: column answer: empty; are the answers of this split hidden?")
    if kind == "open":
        try:
            return {}, "", accepted(answer) if answer else ()
        except DataError as error:
            raise DataError(f"{where}: column answer: {error}") from None
    if kind == "yes_no":
        letters = {text.casefold(): letter for letter, text in YES_NO.items()}
        if answer and answer.casefold() not in letters:
            raise DataError(f"{where}: column answer: {short(answer)} is neither Yes nor No")
        return dict(YES_NO), letters.get(answer.casefold(), ""), ()
    options = {letter: _text(row.get(letter)) for letter in LETTERS}
    options = {letter: text for letter, text in options.items() if text}
    if len(options) < 2:
        raise DataError(f"{where}: columns A to D: {len(options)} options, at least two are needed")
    if answer and answer not in options:
        raise DataError(
            f"{where}: column answer: {short(answer)} is none of the options {', '.join(options)}"
        )
    return options, answer, ()


def accepted(cell: str) -> tuple[str, ...]:
    """Texts that an open answer's cell accepts: itself, or the list of texts that it writes, as
    JSON or as Python prints one. (numpy prints lists without commas: that is refused.)

    Raises:
        DataError: a list that cannot be read.
    """
    if not (cell.startswith("[") and cell.endswith("]")):
        return (cell,)
    try:
        values: Any = json.loads(cell)
    except (ValueError, RecursionError):
        values = _python_list(cell)
    if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
        return tuple(values)
    return (cell,)


def _python_list(cell: str) -> list[str] | None:
    if len(cell) > 100_000:
        raise DataError(f"a list of answers of {len(cell):,} characters")
    try:
        body = ast.parse(cell, mode="eval").body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(body, ast.List):
        return None
    texts = [element.value for element in body.elts if isinstance(element, ast.Constant)]
    if len(texts) != len(body.elts) or not all(isinstance(text, str) for text in texts):
        return None
    tokens = tokenize.generate_tokens(io.StringIO(cell).readline)
    if sum(token.type == tokenize.STRING for token in tokens) != len(texts):
        raise DataError(f"a list of answers without commas between them: {short(cell)}")
    return [str(text) for text in texts]


def _picture(
    where: str, row: dict[str, str], known: dict[str, tuple[str, bytes]]
) -> tuple[str, bytes]:
    """(index of the first row that holds it, the file). Where a row refers to another, the
    container has put that one's cell here."""
    cell = row["image"].strip()
    if len(cell) <= REFERENCE_CHARACTERS:
        raise DataError(
            f"{where}: column image: {short(cell)} is neither a picture in base64 nor the index of "
            "a row that holds one"
        )
    if len(cell) > MAX_PICTURE:
        raise DataError(
            f"{where}: column image: {len(cell):,} characters, at most {MAX_PICTURE:,} are read"
        )
    key = hashlib.sha256(cell.encode()).hexdigest()
    if key not in known:
        try:
            content = base64.b64decode("".join(cell.split()), validate=True)
        except ValueError as error:  # binascii.Error is one
            raise DataError(f"{where}: column image: broken base64 ({error})") from error
        known[key] = row["index"].strip(), content
    return known[key]


def _text(cell: str | None) -> str:
    """A cell's text; `NaN`, as pandas writes a missing one, is empty."""
    text = (cell or "").strip()
    return "" if text in ("NaN", "nan") else text


def first_of_each(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first `limit` questions of each language, with all of their passes."""
    if limit is None:
        return list(items)
    kept: dict[str, dict[str, None]] = {}
    for item in items:
        groups = kept.setdefault(item.language, {})
        if len(groups) < limit:
            groups[item.group] = None
    return [item for item in items if item.group in kept[item.language]]
