"""What a run stands on, and what is wrong with it: `llava-mole env`.

People ask when something is broken, so nothing here imports torch, torchvision or transformers. A
child process tries them (`probe.py`), and may fail or die; `system.py` reads what needs no import;
`diagnosis.py` turns facts into problems with remedies; `command.py` prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HINT = "llava-mole: `llava-mole env` says which package is broken, and the remedy"
MODULES = ("llava_mole.cli", "llava_mole.environment")


def first_word(words: Sequence[str]) -> str | None:
    """The command among the words of a command line."""
    return next((word for word in words if not word.startswith("-")), None)


def is_asked_for() -> bool:
    """Whether this process is `llava-mole env`, or `python -m llava_mole.cli env`.

    Then the package imports none of its parts, for what they need may be broken.
    """
    module = ""
    if "-m" in sys.orig_argv[1:-1]:
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    ours = module in MODULES or (bool(sys.argv) and Path(sys.argv[0]).stem == "llava-mole")
    return ours and (module == MODULES[1] or first_word(sys.argv[1:]) == "env")


@contextmanager
def pointed_to() -> Iterator[None]:
    """A failing import of torch, transformers or another says at its end where to ask."""
    try:
        yield
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        error.add_note(HINT)
        raise
