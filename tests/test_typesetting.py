"""Text in six scripts: drawn with the right glyphs, joined and ordered, or refused."""

import numpy as np
import pytest
from PIL import Image, ImageFont, features

pytest.importorskip("fontpkg_noto_sans", reason="needs the starter extra")

from llava_mole.errors import ConfigError, DataError
from llava_mole.typesetting import _font_files, draw_text, text_size, visual_order

SAMPLES = {
    "en": "What is this?",
    "zh": "这是“红苹果”吗？",
    "pt": "Não é uma maçã?",
    "ar": "هل هذا «تفاح أحمر»؟",
    "tr": "Bu çizimde ağaç, şapka ve İğne var mı?",
    "ru": "Это «зелёный ёж»?",
}


def drawn(text: str, **options) -> np.ndarray:
    """Ink of a text on white: True where a pixel is dark."""
    image = Image.new("L", (700, 200), 255)
    draw_text(image, options.pop("xy", (10, 10)), text, size=32, fill="black", **options)
    return np.asarray(image) < 128


@pytest.mark.parametrize("language", SAMPLES)
def test_every_language_is_drawn_inside_its_box(language):
    image = Image.new("L", (900, 200), 255)
    left, top, right, bottom = draw_text(
        image, (40, 40), SAMPLES[language], size=32, language=language
    )
    ys, xs = np.nonzero(np.asarray(image) < 128)
    assert left - 3 <= xs.min()
    assert xs.max() <= right + 3
    assert top <= ys.min()
    assert ys.max() <= bottom
    assert text_size(SAMPLES[language], size=32, language=language) == (right - left, bottom - top)


def test_arabic_letters_join():
    """Joined letters leave fewer gaps between inked columns than the same letters apart."""

    def pieces(text: str) -> int:
        columns = drawn(text, language="ar").any(axis=0).astype(int)
        return int((np.diff(columns) == 1).sum())

    assert pieces("بيت") == 1
    assert pieces("ب ي ت") == 3


def test_arabic_runs_from_the_right_with_brackets_mirrored():
    assert visual_order("abc", "en") == "abc"
    assert visual_order("A. موز", "ar").endswith(".A")
    quoted = visual_order("«موز»", "ar")
    assert (quoted[0], quoted[-1]) == ("«", "»")
    in_brackets = visual_order("زر (موز)", "ar")
    assert in_brackets[0] == "("


@pytest.mark.skipif(not features.check("raqm"), reason="no second shaper to compare with")
def test_arabic_looks_as_another_shaper_draws_it():
    """Advance widths agree within a few pixels; a wrong form or order would not."""
    text = SAMPLES["ar"]
    font = ImageFont.truetype(str(_font_files()["arabic"]), 32, layout_engine=ImageFont.Layout.RAQM)
    other = font.getlength(text, direction="rtl", language="ar")
    assert text_size(text, size=32, language="ar")[0] == pytest.approx(other, abs=6)


def test_scripts_mix_in_one_line():
    width = text_size("Noto 字体 خط", size=32, language="en")[0]
    parts = sum(text_size(part, size=32)[0] for part in ("Noto ", "字体", " خط"))
    assert width == pytest.approx(parts, abs=4)


def test_a_missing_glyph_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"U\+1F34E RED APPLE.*NotoSans"):
        drawn("an 🍎")


@pytest.mark.parametrize("language", SAMPLES)
def test_lines_are_broken_to_fit_and_nothing_is_lost(language):
    text = " ".join([SAMPLES[language]] * 3)
    width, height = text_size(text, size=24, language=language, max_width=200)
    one_line = text_size(text, size=24, language=language)
    assert width <= 200 < one_line[0]
    assert height >= one_line[1] * 3
    assert width * height / one_line[1] > 0.9 * one_line[0]


def test_a_word_wider_than_the_line_is_broken_inside():
    assert text_size("m" * 60, size=24, max_width=200)[0] <= 200


def test_a_closing_mark_does_not_begin_a_line():
    full = text_size("红苹果", size=24, language="zh")[0]
    width, height = text_size("红苹果？", size=24, language="zh", max_width=full + 2)
    assert height == text_size("x\nx", size=24)[1]
    assert width == text_size("红苹", size=24, language="zh")[0]


def test_the_anchor_places_the_block():
    image = Image.new("L", (400, 200), 255)
    left, top, right, bottom = draw_text(image, (200, 100), "middle", size=20, anchor="mm")
    assert abs((left + right) / 2 - 200) <= 1
    assert abs((top + bottom) / 2 - 100) <= 1
    assert draw_text(image, (390, 10), "end", size=20, anchor="ra")[2] == 390
    with pytest.raises(ConfigError, match="'xx'"):
        draw_text(image, (0, 0), "x", size=20, anchor="xx")


def test_an_empty_text_draws_nothing():
    assert not drawn("").any()
