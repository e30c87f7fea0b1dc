"""The model card and the notices that a saved folder carries."""

from __future__ import annotations

import shutil
from pathlib import Path

from llava_mole import licences
from llava_mole.configuration import LlavaMoleConfig
from llava_mole.languages import LANGUAGES

CARD = """
# {title}

A vision-language model made with LLaVA-MoLE: {tower} → {projector} projector{parrot} →
{language_model}{adapters}.

```python
import llava_mole
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

Frozen parts are kept by reference and checked by hash when the folder is loaded.
"""

ORIGIN = """
Its weights come from {source}, converted with `llava-mole convert` (sha256 {sha256}).
{licence} It applies to this folder and to what is trained from it.
"""


def write_card(folder: Path, config: LlavaMoleConfig, title: str) -> None:
    """Write README.md, and NOTICE where a part asks for one, into a model folder.

    Args:
        folder: being written.
        config: of the model.
        title: shown as the model's name.
    """
    base = (config.text_source or {}).get("name", "")
    origin = config.origin or {}
    base = origin.get("source", base)
    vision = config.vision_part
    parts: list[licences.Part] = []
    if config.text_config.model_type.startswith("gemma"):
        parts.append(licences.GEMMA)
    if vision.model == "starter":
        parts += [licences.EFFICIENTNET_LITE0, licences.OPENMOJI, licences.UNICODE_CLDR]
    adapters = []
    if config.mole_part is not None:
        adapters.append(f"{config.mole_part.num_experts} LoRA experts per MLP")
    if config.lora is not None:
        adapters.append("plain LoRA")
    card = CARD.format(
        title=title,
        tower=f"open_clip {vision.model}",
        projector=config.projector_part.type,
        parrot=" → language-conditioned MoE" if config.parrot else "",
        language_model=base or config.text_config.model_type,
        adapters=f" with {' and '.join(adapters)}" if adapters else "",
    )
    if origin:
        said = origin["licence"]
        card += ORIGIN.format(
            source=origin["source"],
            sha256=origin["sha256"][:12],
            licence=f"Licence of the source: {said}."
            if said
            else "The source states no licence: find out before you pass this folder on.",
        )
    front = licences.model_card_front_matter(
        parts,
        languages=() if origin else LANGUAGES,  # what a converted model speaks is not known here
        base_model=base or None,
        licence=(origin["licence"] or "other") if origin else None,
    )
    (folder / "README.md").write_text(front + card, encoding="utf-8")
    if parts:
        changes = ["A projector and adapters were trained; the language model's own weights are"]
        changes[0] += " unchanged unless the folder holds them in full."
        (folder / licences.NOTICE_FILE).write_text(
            licences.notice_text(parts, changes), encoding="utf-8"
        )
    if base == "starter":
        from llava_mole.starter import ensure_starter

        for file in ensure_starter().licences:
            if file.name != licences.NOTICE_FILE:
                shutil.copy2(file, folder / file.name)
