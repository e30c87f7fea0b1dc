"""A few questions token by token, in one picture: which expert each visual token and word had.

The page of `benchmarks/routing_report.py` shows the same; this is for a document (`--token-map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unicodedata import bidirectional

from PIL import Image, ImageDraw

from llava_mole.errors import DataError
from llava_mole.folders import writing_file
from llava_mole.languages import RIGHT_TO_LEFT
from llava_mole.serving.why import ANSWER, PICTURE, Token, Why
from llava_mole.serving.why_shown import COLOURS, MARK, colour, overlay
from llava_mole.typesetting import draw_text, text_size

SIDE, COLUMN, MARGIN, GAP = 196, 268, 16, 12
SIZE, HEAD, LINE, NARROW = 13, 15, 24, 4
INK, PAPER = (20, 20, 20), (255, 255, 255)
UNKNOWN = "\N{WHITE SQUARE}"
LEFT, RIGHT, NEUTRAL = "left", "right", "neutral"


@dataclass(frozen=True)
class Example:
    """A question that was explained.

    Attributes:
        title: above it.
        language: its words run as this one's do.
        pictures: as the tower saw them, see `why.seen`.
        why: what was on, see `why.explain`.
    """

    title: str
    language: str
    pictures: tuple[Image.Image, ...]
    why: Why


def draw_token_map(
    examples: Sequence[Example], routers: Sequence[int], names: Sequence[str], path: Path
) -> None:
    """Write a PNG: a row an example, a column a router; pictures above their words.

    Args:
        routers: places in `Why.routers`, as columns from the left.
        names: what is written above each column.

    Raises:
        DataError: there is no example, or a model without experts.
    """
    if not examples or not routers or not all(one.why.routers for one in examples):
        raise DataError(f"{path}: no token used an expert, so there is no map of them")
    cells = [[_cell(one, router) for router in routers] for one in examples]
    tops = [max(cell.height for cell in row) for row in cells]
    width = MARGIN + len(routers) * (COLUMN + GAP) - GAP + MARGIN
    legend = _legend(examples, routers, width - 2 * MARGIN)
    head, title = 2 * HEAD, 2 * HEAD
    height = head + sum(tops) + title * len(tops) + legend.height + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    lefts = [MARGIN + place * (COLUMN + GAP) for place in range(len(routers))]
    for left, name in zip(lefts, names, strict=True):
        draw_text(sheet, (left, HEAD / 2), _drawable(name, "en"), size=HEAD, fill=INK)
    y = head
    for one, row, height in zip(examples, cells, tops, strict=True):
        draw_text(sheet, (MARGIN, y), _drawable(one.title, "en"), size=HEAD, fill=INK)
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, y + title))
        y += title + height
    sheet.paste(legend, (MARGIN, y))
    with writing_file(path, binary=True) as file:
        sheet.save(file, format="PNG", optimize=True)


def _legend(examples: Sequence[Example], routers: Sequence[int], width: int) -> Image.Image:
    """The experts that occur, in as many lines as they take."""
    tokens = [token for one in examples for token in one.why.tokens]
    used = sorted({token.experts[router] for token in tokens for router in routers})
    notes = ["underlined: the answer"]
    if max(used) >= len(COLOURS):
        notes.append(f"colours come again after {len(COLOURS)}")
    texts = [*((f" expert {expert + 1} ", expert) for expert in used), *((n, None) for n in notes)]
    places, x, y = [], 0, HEAD
    for text, expert in texts:
        size = _width(text, "en")
        if x and x + size > width:
            x, y = 0, y + LINE + 4
        places.append((x, y, text, expert))
        x += size + GAP
    image = Image.new("RGB", (width, y + LINE), PAPER)
    for x, y, text, expert in places:
        if expert is None:
            draw_text(image, (x, y), text, size=SIZE, fill=INK)
        else:
            _box(image, x, y, text, expert, "en", False)
    return image


def _cell(one: Example, router: int) -> Image.Image:
    """An example at one router."""
    shown = []
    for index, picture in enumerate(one.pictures):
        rows = one.why.overlay(index, router)
        plain = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        shown.append(overlay(picture, rows, SIDE) if rows else plain)
    lines = _lines(one)
    top = len(shown) * (SIDE + GAP)
    cell = Image.new("RGB", (COLUMN, top + len(lines) * LINE + GAP), PAPER)
    for index, picture in enumerate(shown):
        cell.paste(picture, (0, index * (SIDE + GAP)))
    for number, line in enumerate(lines):
        texts = {token: _drawable(token.text, one.language) for token in line}
        leftward = one.language in RIGHT_TO_LEFT
        x = max(0, COLUMN - sum(_width(texts[t], one.language) for t in line)) if leftward else 0
        for token in _from_the_right(line) if leftward else line:
            y, text = top + number * LINE, texts[token]
            answer = token.kind == ANSWER
            x = _box(cell, x, y, text, token.experts[router], one.language, answer)
    return cell


def _lines(one: Example) -> list[list[Token]]:
    """The words, broken where a column ends and after a token that ends a line."""
    lines: list[list[Token]] = [[]]
    room = COLUMN
    for token in one.why.tokens:
        if token.kind == PICTURE:
            continue
        width = _width(_drawable(token.text, one.language), one.language)
        if lines[-1] and width > room:
            lines.append([])
            room = COLUMN
        lines[-1].append(token)
        room -= width
        if "\n" in token.text:
            lines.append([])
            room = COLUMN
    return [line for line in lines if line]


def _from_the_right(line: Sequence[Token]) -> list[Token]:
    """As they stand from left to right where lines run from the right: numbers and Latin words,
    which may be several tokens, the other way round among them."""
    kinds = [_kind(token.text) for token in line]
    runs: list[list[Token]] = []
    place = 0
    while place < len(line):
        end = place + 1
        if kinds[place] == LEFT:
            further = place + 1
            while further < len(line) and kinds[further] in (LEFT, NEUTRAL):
                further += 1
                end = further if kinds[further - 1] == LEFT else end
        runs.append(list(line[place:end]))
        place = end
    return [token for run in reversed(runs) for token in run]


def _kind(text: str) -> str:
    """Which way a token runs; the chat format's marks stand for themselves."""
    ways = {bidirectional(character) for character in text}
    if MARK.fullmatch(text) or ways & {"R", "AL"}:
        return RIGHT
    return LEFT if ways & {"L", "EN", "AN"} else NEUTRAL


def _width(text: str, language: str) -> int:
    """Of what is drawn; marks that stand above others have none, and still show their expert."""
    return max(NARROW, text_size(text, size=SIZE, language=language)[0])


@cache
def _drawable(text: str, language: str) -> str:
    """On one line, a square in place of what no font has or bidi does not take."""

    def known(character: str) -> bool:
        try:
            return bool(text_size(character, size=SIZE, language=language))
        except (DataError, AssertionError):
            return False

    return "".join(
        one if known(one) else UNKNOWN for one in text.replace("\n", "\N{PILCROW SIGN}") or " "
    )


def _box(
    image: Image.Image, x: int, y: float, text: str, expert: int, language: str, answer: bool
) -> int:
    """Text on the colour of its expert; where the next one begins."""
    width = _width(text, language)
    pen = ImageDraw.Draw(image, "RGBA")
    box = (x, y, x + width - 1, y + LINE - 4)
    pen.rectangle(box, fill=colour(expert) + "66")
    draw_text(image, (x, y), text, size=SIZE, fill=INK, language=language)
    if answer:
        pen.rectangle((x, y + LINE - 5, x + width - 1, y + LINE - 4), fill=INK)
    return x + width
