"""Before the first question is asked: do the pictures open, is the text in its language?

What is found here would otherwise end a run in its middle, or spoil a figure in silence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from llava_mole import ranks
from llava_mole.data.images import load_image
from llava_mole.errors import DataError
from llava_mole.evaluation.items import Item
from llava_mole.inspection.language import other_language

SCRIPTS = {
    "Han": re.compile("[\u4e00-\u9fff]"),
    "Arabic": re.compile("[\u0620-\u064a\u066e-\u06d3]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]"),
}
SCRIPT_OF = {
    "en": "Latin", "pt": "Latin", "tr": "Latin", "zh": "Han", "ar": "Arabic", "ru": "Cyrillic",
}  # fmt: skip
MOST_OTHERS = 0.2
"""Share of a file's rows that may look like another language before the file is refused: published
files leave some questions untranslated, and short ones are mistaken for a neighbour's."""


def check_pictures(
    items: Sequence[Item], bad_rows: list[DataError] | None = None, *, progress: bool = True
) -> list[Item]:
    """Decode every picture once; the items whose picture is whole.

    Args:
        bad_rows: rows that show a broken picture are put here and left out; None: the first is
            raised.

    Raises:
        DataError: file, line and column of a picture that is none, is cut or too large.
    """
    first: dict[int, Item] = {}
    for item in items:
        first.setdefault(id(item.image), item)
    broken: dict[int, str] = {}

    def look(item: Item) -> tuple[int, str]:
        try:
            load_image(item.image)
        except DataError as error:
            return id(item.image), str(error)
        return id(item.image), ""

    with ThreadPoolExecutor(min(8, ranks.cores())) as pool:
        bar = tqdm(total=len(first), desc="checking pictures", unit="picture", disable=not progress)
        with bar:
            for key, problem in pool.map(look, first.values()):
                bar.update()
                if problem:
                    broken[key] = problem
    kept: list[Item] = []
    for item in items:
        if id(item.image) not in broken:
            kept.append(item)
            continue
        found = DataError(f"{item.source}: column image: {broken[id(item.image)]}")
        if bad_rows is None:
            raise found
        bad_rows.append(found)
    return kept


def check_languages(
    items: Sequence[Item], bad_rows: list[DataError] | None = None
) -> tuple[list[Item], list[str]]:
    """Whether questions are in the language that they are declared to be in.

    A question in a script that no text of its language is written in (Cyrillic in a Turkish file)
    is an error. One that only looks like another language, or is in Latin script where its language
    has its own, is told; many such make an error of the whole file.

    Returns:
        (items without the refused rows, places of the rows that look like another language).

    Raises:
        DataError: names the row, or the file with its first such rows.
    """
    kept: list[Item] = []
    doubtful: dict[tuple[str, str], list[Item]] = defaultdict(list)
    looks: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    total: dict[tuple[str, str], int] = defaultdict(int)
    for item in items:
        foreign = foreign_script(item.question, item.language)
        if foreign:
            problem = DataError(
                f"{item.source}: column question: in {foreign} script, but the row is declared "
                f"{item.language!r}; are files or rows of several languages mixed?"
            )
            if bad_rows is None:
                raise problem
            bad_rows.append(problem)
            continue
        kept.append(item)
        if item.turn:
            continue
        file = item.file, item.language
        total[file] += 1
        other = other_language(" ".join([item.hint, item.question, *_words(item)]), item.language)
        if other is not None:
            doubtful[file].append(item)
            looks[file][other[0]] += 1
    for (name, language), rows in doubtful.items():
        if len(rows) > max(2, MOST_OTHERS * total[name, language]):
            found = looks[name, language]
            raise DataError(
                f"{rows[0].source}: column question: {len(rows)} of {total[name, language]} "
                f"questions declared {language!r} look like {max(found, key=found.__getitem__)!r} "
                f"(also {', '.join(row.source for row in rows[1:4])}); is the language right?"
            )
    return kept, [row.source for rows in doubtful.values() for row in rows]


def foreign_script(text: str, language: str) -> str:
    """The script of a text that holds no letter of its language's own and none of Latin; "" if
    there is none such."""
    own = SCRIPT_OF[language]
    if SCRIPTS[own].search(text) or SCRIPTS["Latin"].search(text):
        return ""
    return next((name for name, letters in SCRIPTS.items() if letters.search(text)), "")


def _words(item: Item) -> list[str]:
    return [text for text in item.options.values() if len(text) > 3]
