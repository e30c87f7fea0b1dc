"""Layouts of the documents: for each recipe several that are trained, one of dev, one of test.

A *recipe* is a type of document, or one of the three sorts of sign. Dev and test layouts have a
heading and a body (see documents_bodies) that no trained document has, in this recipe or any other
for headings, in this recipe for bodies.
"""

from dataclasses import dataclass

TYPES = ("receipt", "form", "letter", "sign", "ticket", "table", "poster", "calendar")
TYPE_OF = {
    "receipt": "receipt",
    "form": "form",
    "letter": "letter",
    "number_sign": "sign",
    "word_sign": "sign",
    "list_sign": "sign",
    "ticket": "ticket",
    "table": "table",
    "poster": "poster",
    "calendar": "calendar",
}
RECIPES = tuple(TYPE_OF)
LISTED = ("receipt", "form", "list_sign", "table", "poster")
"""Recipes with a list of two to five entries."""
NUMBERED = ("number_sign", "ticket")
"""Recipes with one big digit."""
UNMARKED = ("number_sign", "word_sign", "list_sign")
"""Recipes that carry no stamp, signature or code."""


@dataclass(frozen=True)
class Layout:
    """How a document of a recipe is arranged."""

    name: str
    recipe: str
    split: str
    size: tuple[int, int]
    """Width and height of the sheet, in half pixels of the picture (448 across), give or take."""
    heading: str
    """Key of ``documents_drawing.HEADINGS``."""
    body: str
    """Style of the recipe's function in documents_bodies."""


_HEADINGS = {"train": ("band", "rule", "frame", "pill"), "dev": ("block",), "test": ("double",)}

_BODIES: dict[str, dict[str, tuple[tuple[tuple[int, int], str], ...]]] = {
    "receipt": {
        "train": (((250, 425), "leaders"), ((275, 420), "rules"), ((255, 400), "plain"),
                  ((285, 425), "bullets")),
        "dev": (((270, 425), "boxes"),),
        "test": (((260, 420), "bars"),),
    },
    "form": {
        "train": (((350, 425), "lines"), ((340, 420), "fields"), ((425, 380), "fields"),
                  ((360, 425), "stacked")),
        "dev": (((355, 420), "combs"),),
        "test": (((345, 425), "shaded"),),
    },
    "letter": {
        "train": (((325, 425), "plain"), ((335, 420), "indented"), ((315, 415), "centred"),
                  ((345, 425), "end")),
        "dev": (((330, 420), "columns"),),
        "test": (((325, 420), "initial"),),
    },
    "number_sign": {
        "train": (((330, 380), "over"), ((330, 380), "under"), ((400, 270), "beside"),
                  ((360, 360), "round")),
        "dev": (((370, 320), "panel"),),
        "test": (((350, 370), "ring"),),
    },
    "word_sign": {
        "train": (((410, 220), "plate"), ((380, 300), "plate"), ((400, 260), "framed"),
                  ((410, 200), "pointed")),
        "dev": (((400, 250), "lined"),),
        "test": (((390, 270), "badge"),),
    },
    "list_sign": {
        "train": (((390, 370), "rows"), ((410, 330), "plates"), ((370, 390), "rows"),
                  ((400, 350), "lines")),
        "dev": (((395, 360), "blocks"),),
        "test": (((385, 375), "pointers"),),
    },
    "ticket": {
        "train": (((420, 295), "stub start"), ((425, 275), "stub end"), ((415, 315), "stub start"),
                  ((420, 290), "plain")),
        "dev": (((420, 300), "stub both"),),
        "test": (((415, 305), "stub top"),),
    },
    "table": {
        "train": (((410, 410), "grid"), ((420, 390), "bars"), ((400, 425), "rules"),
                  ((390, 400), "grid")),
        "dev": (((410, 405), "columns"),),
        "test": (((415, 400), "cells"),),
    },
    "poster": {
        "train": (((315, 425), "sun"), ((325, 425), "hills"), ((305, 415), "discs"),
                  ((335, 425), "stripes")),
        "dev": (((315, 425), "rings"),),
        "test": (((320, 425), "squares"),),
    },
    "calendar": {
        "train": (((395, 415), "plain"), ((415, 395), "boxes"), ((385, 405), "lines"),
                  ((365, 425), "boxes")),
        "dev": (((400, 410), "rings"),),
        "test": (((390, 415), "stripes"),),
    },
}  # fmt: skip
"""Recipe -> split -> (size, style of the body)."""

LAYOUTS: tuple[Layout, ...] = tuple(
    Layout(
        f"{recipe}-{heading}-{number}",
        recipe,
        split,
        size,
        heading,
        body,
    )
    for recipe in RECIPES
    for split, bodies in _BODIES[recipe].items()
    for number, (size, body) in enumerate(bodies)
    for heading in _HEADINGS[split]
)


def layouts(recipe: str, split: str) -> list[Layout]:
    """Those in which a document of this recipe and split may be laid out."""
    return [layout for layout in LAYOUTS if (layout.recipe, layout.split) == (recipe, split)]
