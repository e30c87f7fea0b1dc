"""Questions token by token in one picture: each on the colour of its own expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from llava_mole.errors import DataError
from llava_mole.serving import token_map
from llava_mole.serving.token_map import (
    COLUMN,
    GAP,
    MARGIN,
    Example,
    _from_the_right,
    draw_token_map,
)
from llava_mole.serving.why import ANSWER, PICTURE, WORDS, Token, Why
from llava_mole.serving.why_shown import colour

EXPERTS = 4


def example(
    words: list[tuple[str, str]], language: str = "en", routers: int = 2, pictures: int = 1
) -> Example:
    """Picture of 2 x 2 visual tokens that use experts 0 to 3; words use one by turns."""
    tokens = [Token("", PICTURE, n, place, (place,) * routers)
              for n in range(pictures) for place in range(4)]  # fmt: skip
    tokens += [Token(text, kind, None, None, tuple((place + r) % EXPERTS for r in range(routers)))
               for place, (text, kind) in enumerate(words)]  # fmt: skip
    names = tuple(f"layers.{number}.mlp" for number in range(routers))
    white = tuple(Image.new("RGB", (64, 64), "white") for _ in range(pictures))
    return Example(f"flags, {language}", language, white, Why(names, EXPERTS, tuple(tokens),
                   (2, 2), ()))  # fmt: skip


def tint(expert: int, alpha: int) -> tuple[int, ...]:
    """On white."""
    return tuple(255 + (c - 255) * alpha // 255 for c in ImageColor.getrgb(colour(expert)))


def runs(row: list[tuple[int, ...]], alpha: int) -> list[int]:
    """Experts whose colours follow each other in a row of pixels."""
    tints = {tint(expert, alpha): expert for expert in range(EXPERTS)}
    found: list[int] = []
    for pixel in row:
        near = [e for t, e in tints.items()
                if max(abs(a - b) for a, b in zip(t, pixel, strict=True)) <= 2]  # fmt: skip
        if near and found[-1:] != near:
            found += near
    return found


def column(sheet: Image.Image, number: int) -> Image.Image:
    left = MARGIN + number * (COLUMN + GAP)
    return sheet.crop((left, 0, left + COLUMN, sheet.height - 45))


def rows_of(image: Image.Image, alpha: int) -> list[list[int]]:
    """The different sequences of experts from the top; pixels over a whole word's height."""
    found: list[list[int]] = []
    for y in range(image.height):
        row = runs([image.getpixel((x, y)) for x in range(image.width)], alpha)
        if row and found[-1:] != [row]:
            found.append(row)
    return found


WORD = 0x66
VISUAL = 0x70


def test_visual_tokens_and_words_have_the_colours_of_their_experts(tmp_path: Path) -> None:
    one = example(
        [("What", WORDS), (" is", WORDS), (" it?", WORDS), ("\n", WORDS), ("egg", ANSWER)]
    )
    draw_token_map([one], [0, 1], ["layer 0", "layer 1"], tmp_path / "new" / "map.png")
    sheet = Image.open(tmp_path / "new" / "map.png").convert("RGB")
    first, second = column(sheet, 0), column(sheet, 1)
    assert [row for row in rows_of(first, VISUAL) if len(row) == 2] == [[0, 1], [2, 3]]
    assert next(row for row in rows_of(first, WORD) if len(row) == 4) == [0, 1, 2, 3]
    assert next(row for row in rows_of(second, WORD) if len(row) == 4) == [1, 2, 3, 0]
    # What ends a line begins another: the answer's own row, its fifth token at the first expert.
    assert rows_of(first, WORD)[-1] == [0]
    assert rows_of(second, WORD)[-1] == [1]


def test_arabic_runs_from_the_right(tmp_path: Path) -> None:
    one = example([("ما", WORDS), (" هذا", WORDS), ("؟", WORDS)], "ar", routers=1)
    draw_token_map([one], [0], ["layer 0"], tmp_path / "map.png")
    sheet = column(Image.open(tmp_path / "map.png").convert("RGB"), 0)
    assert [2, 1, 0] in rows_of(sheet, WORD)
    pixels = [[sheet.getpixel((x, y)) for x in range(COLUMN)] for y in range(sheet.height)]
    [words, *_] = [row for row in pixels if runs(row, WORD) == [2, 1, 0]]
    assert words[:20] == [(255, 255, 255)] * 20
    assert words[-1] != (255, 255, 255)


def test_numbers_and_latin_words_in_arabic_run_from_the_left() -> None:
    texts = ["كم", " ثمن", " ", "2", "0", "2", "4", " ", "La", "VA", "-", "Mo", "LE", "؟", "<eos>"]
    line = [Token(text, WORDS, None, None, (place,)) for place, text in enumerate(texts)]
    shown = [token.text for token in _from_the_right(line)]
    assert shown == ["<eos>", "؟", "2", "0", "2", "4", " ", "La", "VA", "-", "Mo", "LE", " ",
                     " ثمن", "كم"]  # fmt: skip


def test_tokens_of_no_width_and_directions_alone_are_drawn(tmp_path: Path) -> None:
    odd = ["\N{ARABIC DAMMA}", "\N{COMBINING ACUTE ACCENT}", "\u200b", "\ufeff", "\0", "\u2066",
           "a\u2067b", ""]  # fmt: skip
    for language in ("ar", "en"):
        one = example([(text, ANSWER) for text in odd], language)
        draw_token_map([one], [0, 1], ["layer 0", "layer 1"], tmp_path / "map.png")
    rows = rows_of(column(Image.open(tmp_path / "map.png").convert("RGB"), 0), WORD)
    assert max(map(len, rows)) == len(odd)  # each has room for its expert


def test_the_legend_has_every_expert_that_occurs(tmp_path: Path) -> None:
    many = Why(("layers.0.mlp",), 40, tuple(
        Token(f"{n} ", WORDS, None, None, (n,)) for n in range(40)), None, ())  # fmt: skip
    few = replace(many, tokens=many.tokens[:2])
    heights = []
    for why in (few, many):
        draw_token_map([Example("\U0001f600", "en", (), why)], [0], ["layer"], tmp_path / "map.png")
        legend = token_map._legend([Example("x", "en", (), why)], [0], COLUMN)
        heights.append(legend.height)
        found = {expert for row in rows_of(legend, WORD) for expert in row}
        assert found >= ({0, 1} if why is few else set(range(EXPERTS)))
    assert heights[1] > heights[0] + 5 * 24


def test_what_no_font_has_and_long_lines_are_drawn_all_the_same(tmp_path: Path) -> None:
    long = [(" word", WORDS)] * 40 + [("\U0001f600\u21b5", ANSWER)]
    short = tmp_path / "short.png"
    draw_token_map([example([("a", WORDS)], routers=1)], [0], ["layer 0"], short)
    draw_token_map([example(long, routers=1)], [0], ["layer 0"], tmp_path / "long.png")
    assert Image.open(tmp_path / "long.png").height > Image.open(short).height + 3 * 24


def test_several_pictures_and_none(tmp_path: Path) -> None:
    both = [example([("a", WORDS)], pictures=n, routers=1) for n in (2, 0)]
    draw_token_map(both, [0], ["layer 0"], tmp_path / "map.png")
    sheet = column(Image.open(tmp_path / "map.png").convert("RGB"), 0)
    assert [row for row in rows_of(sheet, VISUAL) if len(row) == 2] == [[0, 1], [2, 3]] * 2


def test_without_experts_nothing_is_written(tmp_path: Path) -> None:
    for examples in ([], [example([("a", WORDS)], routers=0)]):
        with pytest.raises(DataError, match="no token used an expert"):
            draw_token_map(examples, [0], ["layer 0"], tmp_path / "map.png")
    assert not list(tmp_path.iterdir())
