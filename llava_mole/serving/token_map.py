"""A few questions token by token, in one picture: which expert each visual token and word had.

The page of `benchmarks/routing_report.py` shows the same; this is for a document (`--token-map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from llava_mole.errors import DataError
from llava_mole.languages import RIGHT_TO_LEFT
from llava_mole.serving.why import ANSWER, PICTURE, Token, Why
from llava_mole.serving.why_shown import colour, overlay
from llava_mole.typesetting import draw_text, text_size

SIDE, COLUMN, MARGIN, GAP = 196, 268, 16, 12
SIZE, HEAD, LINE = 13, 15, 24
INK, PAPER = (20, 20, 20), (255, 255, 255)
UNKNOWN = "\N{WHITE SQUARE}"


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
    head, title, legend = 2 * HEAD, 2 * HEAD, 3 * HEAD
    sheet = Image.new("RGB", (width, head + sum(tops) + title * len(tops) + legend), PAPER)
    lefts = [MARGIN + place * (COLUMN + GAP) for place in range(len(routers))]
    for left, name in zip(lefts, names, strict=True):
        draw_text(sheet, (left, HEAD / 2), name, size=HEAD, fill=INK)
    y = head
    for one, row, height in zip(examples, cells, tops, strict=True):
        draw_text(sheet, (MARGIN, y), one.title, size=HEAD, fill=INK)
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, y + title))
        y += title + height
    x = MARGIN
    for expert in range(max(one.why.num_experts for one in examples)):
        x = _box(sheet, x, y + HEAD, f" expert {expert + 1} ", expert, "en", False) + GAP
    draw_text(sheet, (x, y + HEAD), "underlined: the answer", size=SIZE, fill=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    sheet.save(beside, format="PNG", optimize=True)
    beside.replace(path)


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
        widths = [_width(token, one.language) for token in line]
        leftward = one.language in RIGHT_TO_LEFT
        x = max(0, COLUMN - sum(widths)) if leftward else 0
        for token in reversed(line) if leftward else line:
            y = top + number * LINE
            text = _drawable(token, one.language)
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
        width = _width(token, one.language)
        if lines[-1] and width > room:
            lines.append([])
            room = COLUMN
        lines[-1].append(token)
        room -= width
        if "\n" in token.text:
            lines.append([])
            room = COLUMN
    return [line for line in lines if line]


def _width(token: Token, language: str) -> int:
    return text_size(_drawable(token, language), size=SIZE, language=language)[0]


def _drawable(token: Token, language: str) -> str:
    """A token's text on one line, a square in place of what no font has."""
    text = token.text.replace("\n", "\N{PILCROW SIGN}") or " "

    def known(character: str) -> bool:
        try:
            return bool(text_size(character, size=SIZE, language=language))
        except DataError:
            return False

    return "".join(one if known(one) else UNKNOWN for one in text)


def _box(
    image: Image.Image, x: int, y: float, text: str, expert: int, language: str, answer: bool
) -> int:
    """Text on the colour of its expert; where the next one begins."""
    width = text_size(text, size=SIZE, language=language)[0]
    pen = ImageDraw.Draw(image, "RGBA")
    box = (x, y, x + width - 1, y + LINE - 4)
    pen.rectangle(box, fill=colour(expert) + "66")
    draw_text(image, (x, y), text, size=SIZE, fill=INK, language=language)
    if answer:
        pen.rectangle((x, y + LINE - 5, x + width - 1, y + LINE - 4), fill=INK)
    return x + width
