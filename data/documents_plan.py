"""Which documents there are, and what each shows: drawn evenly, each feature apart from the others.

In every split each recipe comes in each language equally often (signs that carry one word or digit
half as often, as there are three sorts of sign); colours, marks, their places,
numbers of entries, digits and words come equally often too, whatever the recipe and language.
"""

import random
from dataclasses import dataclass
from itertools import product

if __package__:
    from data.common import even
    from data.documents_drawing import COLOURS
    from data.documents_layouts import LISTED, NUMBERED, RECIPES, TYPE_OF, UNMARKED, layouts
    from data.documents_marks import MARKS, PLACES
    from data.documents_typefaces import SCRIPT_OF, typefaces
    from data.documents_words import SIGNS
else:
    from common import even
    from documents_drawing import COLOURS
    from documents_layouts import LISTED, NUMBERED, RECIPES, TYPE_OF, UNMARKED, layouts
    from documents_marks import MARKS, PLACES
    from documents_typefaces import SCRIPT_OF, typefaces
    from documents_words import SIGNS

from llava_mole.languages import LANGUAGES

COUNTS = (2, 3, 4, 5)
DIGITS = tuple(range(1, 10))
SPLITS = ("train", "dev", "test")
_SHARES = tuple(
    recipe for recipe in RECIPES for _ in range(1 if recipe in ("number_sign", "word_sign") else 2)
)


@dataclass(frozen=True)
class Document:
    """One picture: all that decides its pixels but the seed, and the answers."""

    key: str
    split: str
    recipe: str
    written_in: str
    """Language of what is written."""
    layout: str
    typeface: str
    colour: str
    mark: str | None
    place: str | None
    """Corner of the mark."""
    count: int | None
    """Entries of the list."""
    number: int | None
    """The big digit."""
    word: str | None
    """Key of ``documents_words.SIGNS``."""

    @property
    def type(self) -> str:
        return TYPE_OF[self.recipe]

    @property
    def script(self) -> str:
        return SCRIPT_OF[self.written_in]


def _language(number: int) -> str:
    """Of the document of this number: in a row through the recipes, then shifted by one."""
    return LANGUAGES[(number + number // len(_SHARES)) % len(LANGUAGES)]


def plan(split: str, count: int, seed: int) -> list[Document]:
    """``count`` documents of a split."""
    rng = random.Random(f"{seed}:documents:{split}")
    cells = [(_SHARES[n % len(_SHARES)], _language(n)) for n in range(count)]
    rng.shuffle(cells)
    colours = even(COLOURS, count, rng)
    recipes = [recipe for recipe, _ in cells]
    marked = sum(recipe not in UNMARKED for recipe in recipes)
    marks = even(product(MARKS, PLACES), marked, rng)
    digits = even(DIGITS, sum(recipe in NUMBERED for recipe in recipes), rng)
    entries = {recipe: even(COUNTS, recipes.count(recipe), rng) for recipe in LISTED}
    words = even(SIGNS, recipes.count("word_sign"), rng)
    arranged = {
        recipe: even(layouts(recipe, split), recipes.count(recipe), rng) for recipe in RECIPES
    }
    documents = []
    for number, (recipe, language) in enumerate(cells):
        mark, place = (None, None) if recipe in UNMARKED else next(marks)
        documents.append(
            Document(
                key=f"{split}-{number:04}",
                split=split,
                recipe=recipe,
                written_in=language,
                layout=next(arranged[recipe]).name,
                typeface=rng.choice(typefaces(language, split)),
                colour=next(colours),
                mark=mark,
                place=place,
                count=next(entries[recipe]) if recipe in LISTED else None,
                number=next(digits) if recipe in NUMBERED else None,
                word=next(words) if recipe == "word_sign" else None,
            )
        )
    return documents
