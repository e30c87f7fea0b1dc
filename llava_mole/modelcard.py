"""The model card, the NOTICE and the licence files that a saved folder carries.

A card is written anew at every save as long as nobody has changed it; a marker at its end holds the
hash of what stands above. What a person writes below the marker is kept. Once the part above was
changed by hand, the whole file is the person's and is left as it is, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from llava_mole import licences, provenance
from llava_mole.configuration import LlavaMoleConfig
from llava_mole.folders import writing_file

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MARKER = re.compile(r"<!-- llava-mole card ([0-9a-f]{16}):[^\n]*-->\n?")
MARKED = (
    "<!-- llava-mole card {digest}: while nothing above is changed, it is written anew when the "
    "model is saved here again; what stands below is kept -->\n"
)
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")

USE = """\
## Use

`pip install` LLaVA-MoLE, then

```python
import llava_mole  # registers the model with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{title}")
processor = AutoProcessor.from_pretrained("{title}")
messages = [{{"role": "user", "content": [
    {{"type": "image", "image": "picture.png"}}, {{"type": "text", "text": "What is this?"}}]}}]
inputs = processor.apply_chat_template(
    messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
reply = model.generate(**inputs, max_new_tokens=32)
print(processor.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

{parts}
"""

ORIGIN = """
Its weights come from {source}, converted with `llava-mole convert` (sha256 {sha256}).
{licence} It applies to this folder and to what is trained from it.
"""


def write_card(
    folder: Path,
    config: LlavaMoleConfig,
    title: str,
    *,
    previous: Path,
    copied: dict[str, list[str]],
) -> None:
    """Write README.md and NOTICE into a model folder.

    Args:
        folder: being written.
        config: of the model, its provenance complete.
        title: shown as the model's name.
        previous: the folder that is replaced: its README.md may be a person's, a report.json
            beside it tells results.
        copied: part -> names of the licence files that lie under `licences/<part>/`.
    """
    facts = config.provenance or {}
    parts = [provenance.part(facts[name]) for name in provenance.PARTS]
    text = front_matter(config, parts) + body(config, parts, title, previous.parent, copied)
    card = merged(previous / CARD_FILE, text)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    sections = list(parts)
    for source in facts.get("data", []):
        if source.get("licence") or source.get("attribution"):
            sections.append(
                licences.Part(
                    f"Training data: {source['name']}", "other", source.get("licence"),
                    remark=source.get("attribution", "").strip(),
                )
            )  # fmt: skip
    (folder / licences.NOTICE_FILE).write_text(
        licences.notice_text(sections, changes(config)), encoding="utf-8"
    )


def refresh_card(folder: Path) -> None:
    """Write the card of a saved model anew, with the results that lie beside it by now."""
    config = LlavaMoleConfig.from_pretrained(folder)
    facts = config.provenance or {}
    if not all(name in facts for name in provenance.PARTS):
        return
    copied = {
        name: sorted(path.name for path in (folder / licences.FOLDER / name).glob("*"))
        for name in provenance.PARTS
    }
    parts = [provenance.part(facts[name]) for name in provenance.PARTS]
    text = front_matter(config, parts) + body(config, parts, folder.name, folder.parent, copied)
    card = merged(folder / CARD_FILE, text)
    with writing_file(folder / CARD_FILE) as file:
        file.write(card)


# ---------------------------------------------------------------------- a person's own words


def merged(previous: Path, text: str) -> str:
    """The new card: `text` and its marker, and what of the previous card is a person's."""
    marker = MARKED.format(digest=digest(text))
    if not previous.is_file():
        return f"{text}\n{marker}"
    old = previous.read_text(encoding="utf-8").replace("\r\n", "\n")
    found = MARKER.search(old)
    if found is not None and digest(old[: found.start()]) == found[1]:
        return f"{text}\n{marker}{old[found.end() :]}"
    logger.warning(
        "%s was changed by hand: it is left as it is. Remove it to get a new one at the next save.",
        previous,
    )
    return old


def digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- metadata


def front_matter(config: LlavaMoleConfig, parts: list[licences.Part]) -> str:
    """The YAML block that opens the card, `---` lines included."""
    facts = config.provenance or {}
    bases = [facts[name].get("repository") for name in provenance.PARTS]
    languages = sorted({code for source in facts.get("data", []) for code in source["languages"]})
    licence: dict[str, Any] = licences.whole_licence(parts)
    data = ModelCardData(
        base_model=[base for base in bases if base] or None,
        datasets=[s["hub"] for s in facts.get("data", []) if s.get("hub")] or None,
        language=[code for code in languages if LANGUAGE_CODE.fullmatch(code)] or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava-mole", "vision-language"] + ["mixture-of-lora-experts"] * bool(config.mole),
        **licence,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


# ---------------------------------------------------------------------- text


def body(
    config: LlavaMoleConfig,
    parts: list[licences.Part],
    title: str,
    beside: Path,
    copied: dict[str, list[str]],
) -> str:
    """What a reader sees."""
    shown = sorted({part.terms.display for part in parts if part.terms and part.terms.display})
    sections = [
        f"# {title}",
        *(f"**{sentence}**" for sentence in shown),
        summary(config, parts),
        origin(config),
        USE.format(title=title, parts=whereabouts(config)).strip(),
        training(config),
        results(beside / "report.json"),
        limitations(config),
        licence_section(parts, title, copied),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def adapters(config: LlavaMoleConfig) -> list[str]:
    found = []
    experts = config.mole_part
    if experts is not None:
        shared = getattr(experts, "shared_expert_r", 0)
        found.append(
            f"mixture of LoRA experts ({experts.method}, {amount(experts.num_experts)} experts, "
            f"rank {amount(experts.r)}{f', and a shared one of rank {shared}' if shared else ''})"
        )
    if config.lora is not None:
        found.append(f"plain LoRA of rank {config.lora.get('r', 8)}")
    return found


def amount(value: Any) -> str:
    """4, or "2 to 8" where it differs from layer to layer."""
    if isinstance(value, int):
        return str(value)
    return f"{min(value)} to {max(value)}" if min(value) != max(value) else str(value[0])


def summary(config: LlavaMoleConfig, parts: list[licences.Part]) -> str:
    language, tower = parts
    parrot = ""
    if (part := config.parrot_part) is not None:
        parrot = " → language-conditioned mixture of experts (Parrot)"
        if not part.reads_question:
            parrot = (
                f" → mixture of experts (Parrot's, steered by {part.condition_on}, not language)"
            )
    with_ = " and ".join(adapters(config))
    return (
        "A vision-language model made with LLaVA-MoLE: "
        f"{tower.name} → {config.projector_part.type} projector{parrot} → {language.name}"
        f"{f' with {with_}' if with_ else ''}. "
        f"A picture becomes {config.vision_part.tokens_per_image} visual tokens."
    )


def origin(config: LlavaMoleConfig) -> str:
    """Of a converted model, and of what is trained from it."""
    if config.origin is None:
        return ""
    said = config.origin["licence"]
    licence = (
        f"Licence of the source: {said}." if said
        else "The source states no licence: find out before you pass this folder on."
    )  # fmt: skip
    return ORIGIN.format(
        source=config.origin["source"], sha256=config.origin["sha256"][:12], licence=licence
    ).strip()


def whereabouts(config: LlavaMoleConfig) -> str:
    """Which parts are in the folder, which are fetched."""
    own = (config.text_source or {}).get("name") in (None, provenance.OWN_FOLDER)
    absent = [] if own else ["The language model"]
    if config.vision_part.source is not None:
        absent.append("the vision tower" if absent else "The vision tower")
    if not absent:
        return "All of its parts are in this folder."
    verb = "are" if len(absent) > 1 else "is"
    return (
        f"{' and '.join(absent)} {verb} kept by reference: looked for where they were or on the "
        "hub when the model is loaded, and checked by their hash "
        "(`save_pretrained(..., include_frozen=True)` writes everything)."
    )


def training(config: LlavaMoleConfig) -> str:
    facts = config.provenance or {}
    stages, data = facts.get("stages", []), facts.get("data", [])
    if not stages:
        return "## Training\n\nNo training of this model is on record."
    lines = ["## Training", "", "| stage | steps | rows a step | trained: learning rate |"]
    lines.append("|---|---:|---:|---|")
    for stage in stages:
        rates = ", ".join(f"{part}: {rate:g}" for part, rate in stage["learning_rates"].items())
        if stage["kind"] == "warm_start" and not rates:
            rates = "projector, solved for in closed form"
        steps, rows = stage["steps"], stage["rows"]
        lines.append(f"| {stage['name']} | {number(steps)} | {number(rows)} | {rates} |")
    if data:
        lines += ["", "| data | samples | languages | licence |", "|---|---:|---|---|"]
        for source in data:
            languages = ", ".join(source["languages"]) or "not told"
            lines.append(
                f"| {source['name']} | {source['samples']:,} | {languages} | "
                f"{source.get('licence') or 'not told'} |"
            )
    version, seed = facts.get("version"), facts.get("seed")
    lines += ["", f"Seed {seed}, LLaVA-MoLE {version}."]
    return "\n".join(lines)


def number(value: int | None) -> str:
    return f"{value:,}" if value else "–"


def results(report: Path) -> str:
    """The means of a quickstart's report, if there is one."""
    if not report.is_file():
        return ""
    try:
        means = json.loads(report.read_text(encoding="utf-8"))["after"]["means"]
        rows = [
            f"| {m['condition']} | {m['kind']} | {m['n']} | {100 * m['accuracy']:.0f} "
            f"({100 * m['low']:.0f} to {100 * m['high']:.0f}) | {100 * m['chance']:.0f} |"
            for m in means
        ]
    except (ValueError, KeyError, TypeError):  # a report of something else
        return ""
    return "\n".join(
        [
            "## Results",
            "",
            "Accuracy in percent of choosing the answer among options by likelihood, mean over "
            "languages, with its 95 % interval.",
            "",
            "| pictures | question | n | accuracy | chance |",
            "|---|---|---:|---:|---:|",
            *rows,
        ]
    )


def limitations(config: LlavaMoleConfig) -> str:
    facts = config.provenance or {}
    trained = sorted({code for source in facts.get("data", []) for code in source["languages"]})
    size = (config.vision_part.preprocess or {}).get("size")
    height, width = (size, size) if isinstance(size, int) else (size or (None, None))
    refused = config.mole_part.refuses_merge() if config.mole_part else None
    said = [
        "Answers may be wrong and sound certain. The model was not tuned or tested for safety.",
        f"Pictures are scaled to {height} × {width} pixels: small print is lost." if height else "",
        f"Languages other than {', '.join(trained)} were not trained." if trained else "",
        f"Its experts cannot be merged into the language model: {refused}." if refused else "",
    ]
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in said if line)


def licence_section(parts: list[licences.Part], title: str, copied: dict[str, list[str]]) -> str:
    lines = ["## Licence", ""]
    lines += [f"- {part.name}: {part.called}." for part in parts]
    for name, part in zip(provenance.PARTS, parts, strict=True):
        files = [f"`{licences.FOLDER}/{name}/{file}`" for file in copied.get(name, [])]
        if files:
            lines.append(f"- Copies for {part.name}: {', '.join(files)}.")
        elif part.terms is not None and part.terms.needs_copy:
            lines.append(
                f"- **A copy of the {part.terms.name} was not found beside {part.name}: add it "
                f"before this folder is passed on** ({part.terms.url})."
            )
        begins = part.terms.title_begins if part.terms else ""
        if begins and not title.startswith(begins):
            lines.append(
                f'- **The name of a model that is passed on must begin with "{begins}"** '
                f"({part.terms.name if part.terms else ''}); this folder's does not."
            )
    lines.append(f"- What whoever passes it on has to do is in `{licences.NOTICE_FILE}`.")
    return "\n".join(lines)


def changes(config: LlavaMoleConfig) -> list[str]:
    """What was done to the weights, a line each: several licences ask that changes be told."""
    trained = {
        part
        for stage in (config.provenance or {}).get("stages", [])
        for part in stage["learning_rates"]
    }
    own = ["projector"] + ["parrot"] * bool(config.parrot) + ["experts"] * bool(config.mole)
    own += ["lora"] * bool(config.lora)
    said = [f"model.safetensors, adapters/: made here ({', '.join(own)})."]
    for part, name in (("language_model", "language model"), ("vision", "vision tower")):
        verb = "changed by training" if part in trained else "unchanged"
        said.append(f"The {name}'s own weights: {verb}.")
    return said


# ---------------------------------------------------------------------- licence files


def copy_licences(
    config: LlavaMoleConfig, lying_in: dict[str, Path], folder: Path
) -> dict[str, list[str]]:
    """Licence files of each part into `licences/<part>/`; part -> their names. Warns where terms
    ask for a copy and none is found.

    Args:
        config: its provenance complete.
        lying_in: part -> folder that may hold some, see `provenance.folders`.
        folder: of the model, being written.
    """
    facts = config.provenance or {}
    copied = {}
    for name in provenance.PARTS:
        target = folder / licences.FOLDER / name
        copied[name] = provenance.copy_licence_files(lying_in.get(name), target)
        part = provenance.part(facts[name])
        if not copied[name] and part.terms is not None and part.terms.needs_copy:
            ask_for_copy(part.terms.name, part.name, f"{licences.FOLDER}/{name}")
    return copied


@cache
def ask_for_copy(terms: str, part: str, place: str) -> None:
    """Once a process, not at every checkpoint."""
    logger.warning(
        "no copy of the %s lies beside %s: put one into %s before passing the model on",
        terms, part, place,
    )  # fmt: skip
