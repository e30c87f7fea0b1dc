"""Benchmark: what a file of `eval/` states about one benchmark, and nothing else.

Which files, in which languages, where they are published and with which hash; which columns; how it
is asked and scored by default; what its categories are called. `command.main` runs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llava_mole.evaluation.protocol import Protocol

KINDS = ("choice", "yes_no", "open")
"""Of questions: lettered options in columns; answers Yes and No; texts."""


@dataclass(frozen=True)
class PublishedFile:
    """One file as its authors published it.

    Attributes:
        name: file name; `--data` files are known by it.
        language: of its questions, a code of `languages.py`.
        split: where the file is of one split, or "".
        repo: dataset repository on the hub, with `path` inside it; or "" and `url`.
        url: address, where it is not on the hub.
        md5: of the published file; None where nobody published one.
        hidden: the answers are withheld: predictions go into a submission file.
    """

    name: str
    language: str
    split: str = ""
    repo: str = ""
    path: str = ""
    url: str = ""
    md5: str | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: short, as in file names.
        title, source, licence: for people.
        protocol: the default one; every part of it can be changed on the command line.
        kind: one of KINDS.
        metric: how a reply is scored, a name in `metrics.METRICS`.
        files: published files; empty where a benchmark has no fixed ones.
        groups: l2-category -> its categories, where the definition has them.
        note: what a reader must know about published numbers.
    """

    name: str
    title: str
    source: str
    licence: str
    protocol: Protocol
    kind: str = "choice"
    metric: str = "choice"
    files: tuple[PublishedFile, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    def published(self, name: str) -> PublishedFile | None:
        """The published file of that name, in any case."""
        return next((f for f in self.files if f.name.casefold() == name.casefold()), None)
