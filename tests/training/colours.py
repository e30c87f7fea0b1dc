"""Six pictures of one colour each, named in two languages."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from llava_mole.data.sample import Sample, Turn

NAMES = {
    "red": ("rot", "kızıl"), "blue": ("blau", "mavi"), "green": ("grün", "yeşil"),
    "white": ("weiß", "beyaz"), "black": ("schwarz", "siyah"), "yellow": ("gelb", "sarı"),
}  # fmt: skip


def named_colours(root: Path, questions: Mapping[str, str]) -> list[Sample]:
    """A picture's German name, then its Turkish one; `questions` by language."""
    made = []
    for colour, names in NAMES.items():
        path = root / f"{colour}.png"
        Image.new("RGB", (16, 16), colour).save(path)
        for language, name in zip(("de", "tr"), names, strict=True):
            turns = (Turn("user", f"<image>\n{questions[language]}"), Turn("assistant", name))
            made.append(Sample(turns, (path,), "colours", language, "x:1", {"kind": "naming"}))
    return made
