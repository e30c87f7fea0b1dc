"""What must travel with a saved model: notices and model-card lines for the parts inside it.

The wording is ours; the licences themselves are linked, and the Gemma terms are copied beside the
weights. `THIRD_PARTY.md` tells the same for the repository.
"""

from collections.abc import Iterable
from dataclasses import dataclass

GEMMA_TERMS_URL = "https://ai.google.dev/gemma/terms"
GEMMA_PROHIBITED_USE_URL = "https://ai.google.dev/gemma/prohibited_use_policy"
GEMMA_TERMS_FILE = "GEMMA_TERMS.html"
NOTICE_FILE = "NOTICE"

FIRST_USE_NOTICE = (
    "The starter's language model is Gemma 3 270M: using it accepts the Gemma Terms of Use "
    f"({GEMMA_TERMS_URL}). A model trained from it falls under them too; "
    "the folder it is saved in carries the notice they ask for."
)


@dataclass(frozen=True)
class Part:
    """A third-party part that a saved model contains or was trained on."""

    name: str
    """as a reader of the notice would look for it"""
    licence: str
    """the identifier used on a model card: `gemma`, `apache-2.0`, `cc-by-sa-4.0`, `unicode-3.0`"""
    statement: str
    """what the notice says about it"""


GEMMA = Part(
    name="Gemma 3 270M",
    licence="gemma",
    # The first sentence is the one that the terms prescribe word for word (section 3.1).
    statement=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms\n\n"
        "This model is derived from Gemma 3 270M, so those terms apply to it and to anything made "
        f"from it. A copy is in {GEMMA_TERMS_FILE}; the current text is at {GEMMA_TERMS_URL}.\n"
        "Whoever passes this model on, changed or not, has to pass on that copy and this notice, "
        "say which files were changed, and bind the recipients to the use restrictions of section "
        f"3.2: nothing that the prohibited use policy ({GEMMA_PROHIBITED_USE_URL}) rules out, and "
        "nothing unlawful."
    ),
)
EFFICIENTNET_LITE0 = Part(
    name="EfficientNet-Lite0",
    licence="apache-2.0",
    statement=(
        "Vision encoder: EfficientNet-Lite0, weights under the Apache License 2.0 "
        "(https://www.apache.org/licenses/LICENSE-2.0), packaged by ML Illustrated, copyright "
        "2020, trained on ImageNet. Changed here: tensors renamed to timm's names, the 1,000-class "
        "classifier left out."
    ),
)
OPENMOJI = Part(
    name="OpenMoji",
    licence="cc-by-sa-4.0",
    statement=(
        "Training pictures: OpenMoji, https://openmoji.org, the open-source emoji and icon "
        "project, CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Pictures, "
        "tables and screenshots that show them need this attribution and stay CC BY-SA 4.0."
    ),
)
UNICODE_CLDR = Part(
    name="Unicode CLDR",
    licence="unicode-3.0",
    statement=(
        "Names of the pictures: Unicode CLDR annotations, copyright Unicode, Inc., Unicode "
        "License v3 (https://www.unicode.org/license.txt)."
    ),
)
STARTER_PARTS = (GEMMA, EFFICIENTNET_LITE0)


def notice_text(parts: Iterable[Part], changes: Iterable[str]) -> str:
    """The NOTICE file of a saved model.

    Args:
        parts: what the folder contains or was trained on.
        changes: what was done to the weights, one line each ("experts trained on …"). The Gemma
            terms ask that changed files say so.
    """
    sections = [f"{part.name}\n{'-' * len(part.name)}\n{part.statement}\n" for part in parts]
    listed = [f"- {change}" for change in changes]
    if listed:
        sections.append("Changes\n-------\n" + "\n".join(listed) + "\n")
    return "NOTICE\n======\n\n" + "\n".join(sections)


def model_card_front_matter(
    parts: Iterable[Part],
    *,
    languages: Iterable[str],
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """The YAML block that opens a model card, `---` lines included.

    The licence is `gemma` as soon as Gemma is among the parts (a derivative keeps its terms), else
    `licence`, that of what a model was converted from, else `apache-2.0`.
    """
    gemma = any(part.licence == GEMMA.licence for part in parts)
    lines = [
        "---",
        f"license: {'gemma' if gemma else licence or 'apache-2.0'}",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
    ]
    if base_model is not None:
        lines.append(f"base_model: {base_model}")
    spoken = [f"- {language}" for language in languages]
    lines += ["language:", *spoken] if spoken else []
    lines += ["tags:", "- llava-mole", "- mixture-of-lora-experts", "---"]
    return "\n".join(lines) + "\n"
