"""A contact sheet: pictures, a question in one of the languages, truth, the model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from llava_mole.data.images import load_image
from llava_mole.errors import DataError
from llava_mole.evaluation.generation import generate_answers, same_answer
from llava_mole.evaluation.items import Item, read_items
from llava_mole.evaluation.prompts import ask, style_of
from llava_mole.languages import LANGUAGES, RIGHT_TO_LEFT
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.typesetting import draw_text, text_size

CARD_WIDTH, PICTURE, MARGIN = 240, 150, 14
RIGHT, WRONG, INK, QUIET = (22, 120, 60), (190, 40, 40), (20, 20, 20), (110, 110, 110)
PAPER = (238, 238, 236)
Line = tuple[str, int, tuple[int, int, int]]


def sheet_items(items: Sequence[Item], count: int, seed: int, kind: str = "naming") -> list[Item]:
    """`count` items of a kind, drawn by seed: languages in turn, each picture at most once."""
    order = np.random.default_rng(seed).permutation(len(items))
    waiting = {
        code: [items[i] for i in order if (items[i].language, items[i].category) == (code, kind)]
        for code in LANGUAGES
    }
    chosen: list[Item] = []
    shown: set[str] = set()
    for number in range(count):
        queue = waiting[LANGUAGES[number % len(LANGUAGES)]]
        fresh = next((item for item in queue if item.picture not in shown), None)
        if fresh is not None:
            shown.add(fresh.picture)
            chosen.append(fresh)
    return chosen


def contact_sheet(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    unseen: Path,
    trained: Path,
    path: Path,
    *,
    seed: int = 0,
    cards: tuple[int, int] = (12, 12),
) -> list[str]:
    """Ask for the name of some pictures, draw the sheet as PNG, return the answers.

    Answers are green where they equal the truth (see `same_answer`), else red, and then the truth
    stands below.

    Args:
        unseen, trained: eval_test.tsv and eval_train.tsv of `data/openmoji.py`.
        path: of the PNG.
        seed: of the choice of pictures.
        cards: how many trained and how many unseen pictures.

    Raises:
        DataError: a file has no naming item.
    """
    blocks = {
        "Trained pictures, asked in words never trained": sheet_items(
            read_items(trained), cards[0], seed
        ),
        "Pictures never trained on": sheet_items(read_items(unseen), cards[1], seed),
    }
    items = [item for block in blocks.values() for item in block]
    if not items:
        raise DataError(f"{trained}, {unseen}: no naming item to draw")
    queries = [ask(item, style_of(item.category), item.image) for item in items]
    answers = generate_answers(model, processor, queries)
    said = iter(answers)
    draw_sheet(
        {title: [(item, next(said)) for item in block] for title, block in blocks.items()}
    ).save(path)
    return answers


def draw_sheet(
    blocks: Mapping[str, Sequence[tuple[Item, str]]], *, columns: int = 6
) -> Image.Image:
    """Titled blocks of cards, (item, answer) each; a row is as high as its highest card."""
    width = columns * (CARD_WIDTH + MARGIN) + MARGIN
    strips: list[Image.Image] = []
    for title, pairs in blocks.items():
        heading = Image.new("RGB", (width, 2 * MARGIN + 20), PAPER)
        draw_text(heading, (MARGIN, MARGIN), title, size=20, fill=INK)
        strips.append(heading)
        drawn = [_card(item, answer) for item, answer in pairs]
        for start in range(0, len(drawn), columns):
            row = drawn[start : start + columns]
            height = max(card.height for card in row)
            strip = Image.new("RGB", (width, height + MARGIN), PAPER)
            for column, card in enumerate(row):
                left = MARGIN + column * (CARD_WIDTH + MARGIN)
                strip.paste((255, 255, 255), (left, 0, left + CARD_WIDTH, height))
                strip.paste(card, (left, 0))
            strips.append(strip)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _card(item: Item, answer: str) -> Image.Image:
    good = same_answer(answer, item.right)
    lines: list[Line] = [
        (item.question, 14, QUIET),
        (drawable(answer) or "(nothing)", 18, RIGHT if good else WRONG),
    ]
    if not good:
        lines.append((item.right, 15, INK))
    inner = CARD_WIDTH - 2 * MARGIN
    sizes = [
        text_size(text, size=size, language=item.language, max_width=inner)[1]
        for text, size, _ in lines
    ]
    height = PICTURE + 2 * MARGIN + sum(sizes) + 6 * len(lines) + MARGIN
    card = Image.new("RGB", (CARD_WIDTH, height), "white")
    picture = load_image(item.image)
    picture.thumbnail((PICTURE, PICTURE))
    card.paste(picture, ((CARD_WIDTH - picture.width) // 2, MARGIN))
    right_to_left = item.language in RIGHT_TO_LEFT
    x, anchor = (CARD_WIDTH - MARGIN, "ra") if right_to_left else (MARGIN, "la")
    y = PICTURE + 2 * MARGIN
    for (text, size, colour), line_height in zip(lines, sizes, strict=True):
        draw_text(
            card, (x, y), text, size=size, fill=colour, language=item.language,
            anchor=anchor, max_width=inner,
        )  # fmt: skip
        y += line_height + 6
    return card


def drawable(answer: str, limit: int = 80) -> str:
    """An answer fit to draw: one line, shortened, characters that no font has shown as □.

    A model may say anything; an untrained one does. Texts of ours are drawn as they are, and a
    missing glyph in them is an error.
    """
    text = " ".join(answer.split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(character if _has_glyph(character) else "□" for character in text)


def _has_glyph(character: str) -> bool:
    try:
        text_size(character, size=10)
    except DataError:
        return False
    return True
