"""LLaVA JSON and JSONL to samples: every refusal names file, line and value.

An item of the format (one JSON list of them, or one a line)::

    {"id": "7", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

``image`` may be a list, one file for each ``<image>`` in reading order. Optional: ``domain``,
``language``; all other keys are kept in the sample's metadata.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_mole.data.sample import IMAGE, Role, Sample, Turn
from llava_mole.errors import DataError

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_OWN_KEYS = frozenset({"image", "conversations", "domain", "language"})


def read_llava_json(
    path: str | Path,
    image_root: str | Path,
    *,
    domain: str | None = None,
    language: str | None = None,
) -> list[Sample]:
    """All samples of a file, in its order. Pictures are looked for, not opened.

    Args:
        path: a JSON list or JSONL; which of the two is seen from the content, not from the name.
        image_root: the folder that ``image`` entries are relative to and must not leave, not even
            by a symbolic link.
        domain: for items without a ``domain`` (default: the file's name without suffix).
        language: for items without a ``language``; such an item is refused if this is None too.

    Raises:
        DataError: nothing is skipped; the first bad item stops the reading, with file, line and
            value. Where pictures are missing, the message counts them all.
    """
    path = Path(path)
    files = _ImageFiles(Path(image_root))
    samples = [
        _sample(item, f"{path}:{line}", files, domain or path.stem, language)
        for line, item in _items(path)
    ]
    files.report()
    if not samples:
        raise DataError(f"{path}: no items; expected a JSON list or one JSON object a line")
    return samples


# --- items with their line numbers ----------------------------------------------------------------


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, item) of a JSON list or of JSONL; the line is where the item begins."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return _list_items(path, text) if text.lstrip()[:1] == "[" else _line_items(path, text)


def _line_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): it would also cut at U+2028, which may stand raw inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: bad JSON, {error}; found {_short(line.strip())}; "
                "expected one whole object a line (or a single JSON list)"
            ) from error


def _list_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Decode a list element by element, because only so each element's line is known."""
    breaks = [found.start() for found in re.finditer("\n", text)]
    decoder = json.JSONDecoder()

    def line_of(place: int) -> int:
        return bisect_left(breaks, place) + 1

    def skip(place: int) -> int:
        while place < len(text) and text[place] in " \t\r\n":
            place += 1
        return place

    def wrong(place: int, expected: str) -> DataError:
        found = _short(text[place : place + 40]) if place < len(text) else "the end of the file"
        return DataError(f"{path}:{line_of(place)}: bad JSON, expected {expected}, found {found}")

    place = skip(skip(0) + 1)
    if text[place : place + 1] == "]":
        place += 1
    else:
        while True:
            start = place
            try:
                item, place = decoder.raw_decode(text, start)
            except RecursionError as error:
                raise wrong(start, "less deeply nested brackets") from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}:{line_of(error.pos)}: bad JSON, {error.msg} "
                    f"(column {error.colno}, in the item that begins at line {line_of(start)})"
                ) from error
            except ValueError as error:  # a number of thousands of digits
                raise DataError(f"{path}:{line_of(start)}: bad JSON, {error}") from error
            yield line_of(start), item
            place = skip(place)
            mark = text[place : place + 1]
            if mark not in (",", "]"):
                raise wrong(place, "',' or ']' after an item")
            place = skip(place + 1)
            if mark == "]":
                break
    if skip(place) < len(text):
        raise wrong(skip(place), "nothing after the list's ']'")


# --- one item -------------------------------------------------------------------------------------


def _sample(
    item: Any, where: str, files: "_ImageFiles", domain: str, language: str | None
) -> Sample:
    if not isinstance(item, dict):
        raise DataError(f"{where}: expected an object with 'conversations', found {_short(item)}")
    turns = _turns(item, where)
    names = item.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    wanted = sum(turn.text.count(IMAGE) for turn in turns)
    if wanted != len(names):
        raise DataError(
            f"{where}: {wanted} {IMAGE} in the conversation but {len(names)} in 'image' "
            f"({_short(names)}); each picture needs exactly one {IMAGE}"
        )
    spoken = item.get("language", language)
    if not isinstance(spoken, str) or not spoken:
        raise DataError(
            f"{where}: 'language' is {_short(spoken)}; expected a code such as 'pt', in the item "
            "or for the whole file (in a recipe: data.sources.0.language=pt)"
        )
    kind = item.get("domain", domain)
    if not isinstance(kind, str) or not kind:
        raise DataError(f"{where}: 'domain' is {_short(kind)}; expected a name such as 'document'")
    task = item.get("kind", "")
    if not isinstance(task, str):
        raise DataError(f"{where}: 'kind' is {_short(task)}; expected a name such as 'naming'")
    return Sample(
        turns=turns,
        images=tuple(files.find(name, where) for name in names),
        domain=kind,
        language=spoken,
        source=where,
        metadata={key: value for key, value in item.items() if key not in _OWN_KEYS},
    )


def _turns(item: dict[str, Any], where: str) -> tuple[Turn, ...]:
    said = item.get("conversations")
    if not isinstance(said, list) or not said:
        raise DataError(
            f"{where}: 'conversations' is {_short(said)}; expected a list with at least a question "
            "and an answer"
        )
    turns = tuple(_turn(entry, f"{where}: turn {number}") for number, entry in enumerate(said, 1))
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise DataError(
            f"{where}: no answer: no turn is from 'gpt' or 'assistant', nothing to learn"
        )
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise DataError(f"{where}: turn {number}: the answer is empty")
        if turn.role != "user" and IMAGE in turn.text:
            raise DataError(
                f"{where}: turn {number}: {IMAGE} in a {turn.role} turn; only a user shows pictures"
            )
    return turns


def _turn(entry: Any, where: str) -> Turn:
    if not isinstance(entry, dict) or "from" not in entry or "value" not in entry:
        raise DataError(f"{where}: expected {{'from': …, 'value': …}}, found {_short(entry)}")
    speaker, text = entry["from"], entry["value"]
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise DataError(
            f"{where}: unknown role {_short(speaker)}; expected one of {', '.join(_ROLES)}"
        )
    if not isinstance(text, str):
        raise DataError(f"{where}: 'value' is {_short(text)}; expected a text")
    return Turn(_ROLES[speaker], text)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _ImageFiles:
    """Looks each picture up once; refuses what leads outside, collects what is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root = root.resolve()
        self._found: dict[str, Path | None] = {}
        self._first_missing: tuple[str, str] | None = None
        self._missing = 0

    def find(self, name: Any, where: str) -> Path:
        """The path of a picture. A missing one is noted for :meth:`report`."""
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: 'image' holds {_short(name)}; expected a file name")
        if name not in self._found:
            self._found[name] = self._look(name, where)
        path = self._found[name]
        if path is None:
            self._missing += 1
            self._first_missing = self._first_missing or (where, name)
            return self._root / name
        return path

    def _look(self, name: str, where: str) -> Path | None:
        path = self._root / name
        try:
            real = path.resolve()
            inside = real.is_relative_to(self._real_root)
            there = inside and real.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL in the name
            raise DataError(f"{where}: image {_short(name)} is no usable path ({error})") from error
        if not inside:
            raise DataError(
                f"{where}: image {name!r} leads outside '{self._root}' (to '{real}'); "
                "pictures must lie under the image root"
            )
        return path if there else None

    def report(self) -> None:
        """Raise for the first missing picture, with the number of further items that miss one."""
        if self._first_missing is None:
            return
        where, name = self._first_missing
        more = f" ({self._missing - 1} more like it)" if self._missing > 1 else ""
        raise DataError(
            f"{where}: image {name!r} not found under '{self._root}'{more}; "
            "check the image root, or whether the pictures were unpacked"
        )
