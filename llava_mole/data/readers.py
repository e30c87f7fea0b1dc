"""LLaVA JSON and JSONL as a list of samples; `sources` reads these and more, lazily."""

from pathlib import Path

from llava_mole.data.sample import Sample
from llava_mole.data.sources import SourceSpec, open_source


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
    spec = SourceSpec(path, format="llava", image_root=image_root, domain=domain, language=language)
    return open_source(spec).samples()
