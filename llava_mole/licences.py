"""What must travel with a saved model: notices and model-card lines for the parts inside it.

The wording is ours, but for the sentences that a licence prescribes; the licences themselves are
linked, and copied where they lie beside a part's weights. `THIRD_PARTY.md` tells the same for the
repository. A part's licence is what its own folder declares, never a guess from its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GEMMA_TERMS_URL = "https://ai.google.dev/gemma/terms"
GEMMA_PROHIBITED_USE_URL = "https://ai.google.dev/gemma/prohibited_use_policy"
GEMMA_TERMS_FILE = "GEMMA_TERMS.html"
NOTICE_FILE = "NOTICE"
FOLDER = "licences"
"""In a model folder: copies of its parts' licence files, a folder for each part."""

FIRST_USE_NOTICE = (
    "The starter's language model is Gemma 3 270M: using it accepts the Gemma Terms of Use "
    f"({GEMMA_TERMS_URL}). A model trained from it falls under them too; "
    "the folder it is saved in carries the notice they ask for."
)


@dataclass(frozen=True)
class Terms:
    """A licence that a part may be under."""

    name: str
    url: str
    asks: str = ""
    """What the notice says, `{part}` being the part's name; "" : name and link are enough."""
    permissive: bool = True
    """Whether what is trained from the part may be under another licence."""
    needs_copy: bool = False
    """Whether the licence's text must be handed on."""
    display: str = ""
    """A sentence that must be shown prominently."""
    title_begins: str = ""
    """How the name of a model that is passed on must begin."""


def llama(version: str, url: str, display: str, title: str) -> Terms:
    """Meta's licences differ in names, not in kind. The attribution sentence is prescribed."""
    community = "LLAMA 2" if version == "Llama 2" else version
    return Terms(
        name=f"{version} Community License",
        url=url,
        asks=(
            f"{version} is licensed under the {community} Community License, Copyright © Meta "
            "Platforms, Inc. All Rights Reserved.\n\n"
            "This model is derived from {part}, so that licence and its acceptable use policy "
            "apply to it. Whoever passes it on has to hand over a copy of the licence and keep "
            "this notice"
            + (f', show "{display}" prominently' if display else "")
            + (f', and give it a name that begins with "{title}"' if title else "")
            + "."
        ),
        permissive=False,
        needs_copy=True,
        display=display,
        title_begins=title,
    )


TERMS: dict[str, Terms] = {
    "gemma": Terms(
        name="Gemma Terms of Use",
        url=GEMMA_TERMS_URL,
        # The first sentence is the one that the terms prescribe word for word (section 3.1).
        asks=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms\n\n"
            "This model is derived from {part}, so those terms apply to it and to anything made "
            f"from it; the current text is at {GEMMA_TERMS_URL}.\n"
            "Whoever passes this model on, changed or not, has to pass on a copy of the terms and "
            "this notice, say which files were changed, and bind the recipients to the use "
            "restrictions of section 3.2: nothing that the prohibited use policy "
            f"({GEMMA_PROHIBITED_USE_URL}) rules out, and nothing unlawful."
        ),
        permissive=False,
        needs_copy=True,
    ),
    "llama2": llama("Llama 2", "https://ai.meta.com/llama/license/", "", ""),
    "llama3": llama(
        "Meta Llama 3", "https://www.llama.com/llama3/license/", "Built with Meta Llama 3",
        "Llama 3",
    ),
    "llama3.1": llama(
        "Llama 3.1", "https://www.llama.com/llama3_1/license/", "Built with Llama", "Llama"
    ),
    "llama3.2": llama(
        "Llama 3.2", "https://www.llama.com/llama3_2/license/", "Built with Llama", "Llama"
    ),
    "llama3.3": llama(
        "Llama 3.3", "https://www.llama.com/llama3_3/license/", "Built with Llama", "Llama"
    ),
    "llama4": llama(
        "Llama 4", "https://www.llama.com/llama4/license/", "Built with Llama", "Llama"
    ),
    "apache-2.0": Terms("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "mit": Terms("MIT License", "https://opensource.org/license/mit"),
    "bsd-3-clause": Terms("BSD 3-Clause License", "https://opensource.org/license/bsd-3-clause"),
    "cc-by-4.0": Terms("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
}  # fmt: skip
"""By the identifier that model cards use. Others are passed on by name and link."""


@dataclass(frozen=True)
class Part:
    """A third-party part that a saved model contains, refers to or was trained on."""

    name: str
    """as a reader of the notice would look for it"""
    licence: str | None = None
    """the identifier used on a model card; None: its folder declares none"""
    licence_name: str | None = None
    """beside `other`: what the licence calls itself"""
    licence_link: str | None = None
    see: str = ""
    """where to look, in words or as a link"""
    remark: str = ""
    """what else the notice says about it"""

    @property
    def terms(self) -> Terms | None:
        return None if self.licence is None else TERMS.get(self.licence)

    @property
    def called(self) -> str:
        """The licence in words, with its link: for notices, cards and messages."""
        if self.licence is None:
            return f"unknown: see {self.see}" if self.see else "unknown"
        name = self.terms.name if self.terms else self.licence_name or self.licence
        link = self.licence_link or (self.terms.url if self.terms else None)
        if link is not None and "://" in link:
            return f"{name} ({link})"
        where = link or self.see
        return f"{name}: see {where}" if where and not self.terms else name

    @property
    def statement(self) -> str:
        """What the notice says about it."""
        asked = self.terms.asks.format(part=self.name) if self.terms else ""
        lines = [asked or f"Licence: {self.called}.", self.remark]
        return "\n".join(line for line in lines if line)


GEMMA = Part("Gemma 3 270M", "gemma", remark=f"A copy of the terms is in {GEMMA_TERMS_FILE}.")
EFFICIENTNET_LITE0 = Part(
    "EfficientNet-Lite0",
    "apache-2.0",
    remark=(
        "Vision encoder, packaged by ML Illustrated, copyright 2020, trained on ImageNet. Changed "
        "here: tensors renamed to timm's names, the 1,000-class classifier left out."
    ),
)
STARTER_PARTS = (GEMMA, EFFICIENTNET_LITE0)


def notice_text(parts: Iterable[Part], changes: Iterable[str]) -> str:
    """The NOTICE file of a saved model.

    Args:
        parts: what the folder contains, refers to or was trained on.
        changes: what was done to the weights, one line each ("experts trained on …"). The Gemma
            terms ask that changed files say so.
    """
    sections = [f"{part.name}\n{'-' * len(part.name)}\n{part.statement}\n" for part in parts]
    listed = [f"- {change}" for change in changes]
    if listed:
        sections.append("Changes\n-------\n" + "\n".join(listed) + "\n")
    return "NOTICE\n======\n\n" + "\n".join(sections)


def whole_licence(parts: Sequence[Part]) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of a model made from these parts.

    One part whose terms bind what is made from it: those. Several such, or a part whose licence is
    unknown: "other", with the NOTICE to read. Else Apache-2.0, this project's own.
    """
    binding = {part.licence: part for part in parts if not (part.terms and part.terms.permissive)}
    if not binding:
        return {"license": "apache-2.0"}
    if len(binding) > 1 or None in binding:
        name = "unknown" if list(binding) == [None] else "several"
        return {"license": "other", "license_name": name, "license_link": NOTICE_FILE}
    (part,) = binding.values()
    assert part.licence is not None
    found = {"license": part.licence}
    if part.licence_name is not None:
        found["license_name"] = part.licence_name
    if part.terms is None:
        link = part.licence_link
        found["license_link"] = link if link and "://" in link else NOTICE_FILE
    return found
