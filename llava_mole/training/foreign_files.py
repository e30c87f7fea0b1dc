"""A whole file of another program, given as a recipe: every key translated, and a sketch of ours.

LLaMA-Factory's and Axolotl's YAML, LLaVA's and ms-swift's arguments as YAML or as the shell script
they are started by. The sketch says what is known to mean the same; it is printed, never run.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from llava_mole.training.arguments import OWN_ARGUMENTS
from llava_mole.training.foreign_names import NAMES, here
from llava_mole.training.recipe import Recipe

ENOUGH = 3
"""Foreign names at a file's top that make it a foreign file."""
TOWERS = {
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14", "openai"),
    "google/siglip-so400m-patch14-384": ("ViT-SO400M-14-SigLIP-384", "webli"),
    "google/siglip2-so400m-patch16-384": ("ViT-SO400M-16-SigLIP2-384", "webli"),
}
"""Hub names of towers -> open_clip's name and tag of the same weights."""
ARGUMENTS = frozenset(field.name for field in dataclasses.fields(TrainingArguments) if field.init)


def whose(values: dict[Any, Any]) -> str | None:
    """The program that a mapping was written for; None for a recipe."""
    own = {field.name for field in dataclasses.fields(Recipe)} - {"output_dir", "seed", "training"}
    ours = [k for k in values if k in own and isinstance(values[k], dict | list)]
    theirs = [str(k) for k in values if k not in own and (k in NAMES or k in ARGUMENTS)]
    if ours or len(theirs) < ENOUGH:
        return None
    owners = Counter(owner for k in theirs if k in NAMES for owner in NAMES[k].whose)
    owners.pop("transformers", None)
    return owners.most_common(1)[0][0] if owners else "transformers"


def explain(values: dict[Any, Any], path: Path, owner: str) -> str:
    """The whole answer: what each key is here, then a sketch of the recipe."""
    lines = [
        f"{path} was written for {owner}; a recipe has other keys. What each one is here:",
        *(f"  {key}={short(value)}: {one(str(key), value)}" for key, value in values.items()),
        "",
        "A sketch of the recipe, from what is known to mean the same (save it, look it over, then",
        "`llava-mole train --config NEW.yaml --dry-run`; configs/ has whole ones):",
        sketch(values),
    ]
    return "\n".join(lines)


def one(key: str, value: Any) -> str:
    foreign = NAMES.get(key)
    if foreign is not None:
        return here(foreign)
    if key in ("output_dir", "seed"):
        return "the same key here"
    if key in OWN_ARGUMENTS:
        return f"set by {OWN_ARGUMENTS[key]}"
    if key in ARGUMENTS:
        return "the same, under training:"
    if value in (None, False, ""):
        return "not known here, and empty"
    return "not known here; docs/recipe-reference.md lists all keys of a recipe"


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# ---------------------------------------------------------------------- the sketch


def sketch(values: dict[Any, Any]) -> str:
    """YAML of a recipe that says the same, as far as it can be said key by key."""
    recipe: dict[str, Any] = {
        "output_dir": values.get("output_dir") or "runs/mine",
        "model": {"language_model": "LANGUAGE_MODEL", **tower(values)},
        "data": {"sources": sources(values)},
        "training": {},
        "stages": [{"name": "instruct", "learning_rates": rates(values), "share_prefix": False}],
    }
    if isinstance(values.get("seed"), int):
        recipe["seed"] = values["seed"]
    for key, value in values.items():
        foreign = NAMES.get(str(key))
        if foreign is not None and foreign.put is not None:
            for path, ours in foreign.put(value).items():
                put(recipe, path, ours)
        elif (
            foreign is None and key in ARGUMENTS and key not in OWN_ARGUMENTS and value is not None
        ):
            recipe["training"][key] = value
    lora = recipe["model"].get("lora")
    if not trains_lora(values):
        recipe["model"].pop("lora", None)
    elif lora is None or "target_modules" not in lora:
        put(recipe, "model.lora.target_modules", ["q_proj", "k_proj", "v_proj", "o_proj"])
    if not recipe["training"]:
        del recipe["training"]
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return "".join(f"  {line}\n" for line in text.splitlines())


def put(recipe: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = recipe
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    node[last] = value


def tower(values: dict[Any, Any]) -> dict[str, str]:
    name = values.get("vision_tower") or values.get("mm_vision_tower")
    model, tag = TOWERS.get(str(name), ("ViT-L-14-336", "openai"))
    return {"vision_model": model, "vision_pretrained": tag}


def sources(values: dict[Any, Any]) -> list[dict[str, Any]]:
    """One for each dataset that the file names."""
    root = values.get("image_folder") or values.get("media_dir")
    weights = values.get("interleave_probs") or values.get("interleave_prob")
    if values.get("data_path"):
        found = [{"path": str(values["data_path"])}]
    elif isinstance(values.get("datasets"), list):
        found = [{"path": str(d.get("path"))} for d in values["datasets"] if isinstance(d, dict)]
    elif values.get("dataset"):
        named = values["dataset"]
        names = named.split(",") if isinstance(named, str) else [str(name) for name in named]
        folder = values.get("dataset_dir", "data" if "finetuning_type" in values else None)
        where = f"{folder}/dataset_info.json:" if folder else ""
        found = [{"path": where + name.strip()} for name in names]
    else:
        found = [{"path": "DATA.json"}]
    numbers = [float(w) for w in weights.split(",")] if isinstance(weights, str) else weights
    return [
        {
            **source,
            **({"image_root": str(root)} if root else {}),
            **({"weight": numbers[i]} if numbers and len(numbers) == len(found) else {}),
            **({"samples": values["max_samples"]} if isinstance(values.get("max_samples"), int)
               and not numbers else {}),
        }
        for i, source in enumerate(found)
    ]  # fmt: skip


def trains_lora(values: dict[Any, Any]) -> bool:
    kind = next(
        (values[k] for k in ("finetuning_type", "train_type", "tuner_type", "sft_type", "adapter")
         if values.get(k)), None,
    )  # fmt: skip
    if kind is not None:
        return str(kind) in ("lora", "qlora", "lora_llm")
    return bool(values.get("lora_enable") or values.get("use_lora")) or (
        "lora_enable" not in values and bool({"lora_rank", "lora_target"} & set(values))
    )


def rates(values: dict[Any, Any]) -> dict[str, float]:
    """What learns, and how fast. A projector is new here, so it always does."""
    rate = float(values.get("learning_rate") or 1e-4)
    found = {"projector": rate}
    if values.get("tune_mm_mlp_adapter") in (True, "True"):
        return found
    found["lora" if trains_lora(values) else "language_model"] = rate
    thawed = any(values.get(k) is False for k in ("freeze_vision_tower", "freeze_vit"))
    if thawed or values.get("unfreeze_mm_vision_tower") is True:
        found["vision"] = rate
    return found
