"""A whole file of another program, given as a recipe: every key translated, and a sketch of ours.

LLaMA-Factory's and Axolotl's YAML, LLaVA's and ms-swift's arguments as YAML or as the shell script
they are started by. The sketch says what is known to mean the same; it is printed, never run.
"""

from __future__ import annotations

import dataclasses
import json
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
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336-quickgelu", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14-quickgelu", "openai"),
    "google/siglip-so400m-patch14-384": ("ViT-SO400M-14-SigLIP-384", "webli"),
    "google/siglip2-so400m-patch16-384": ("ViT-SO400M-16-SigLIP2-384", "webli"),
}
"""Hub names of towers -> open_clip's name and tag of the same weights."""
KEPT_OUT = frozenset({"deepspeed", "tf32", "gradient_checkpointing", "eval_strategy", "eval_steps"})
"""TrainingArguments that a sketch does not take over as they are: `one` says what to do."""
OF_THE_FOLDER = frozenset(
    {"language_model", "language_model_revision", "chat_template", "projector"}
)
"""Keys of `model:` that a folder to start from brings, beside all vision_…."""
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
    begins = beginning(values)
    lines = [
        f"{path} was written for {owner}; a recipe has other keys. What each one is here:",
        *(f"  {key}={short(value)}: {one(str(key), value)}" for key, value in values.items()),
        "",
        *(["The folder that the sketch starts from, written once:", f"  {begins[0]}", ""]
          if begins is not None else []),
        "A sketch of the recipe, from what is known to mean the same (save it, look it over, then",
        "`llava-mole train --config NEW.yaml --dry-run`; configs/ has whole ones):",
        sketch(values),
    ]  # fmt: skip
    return "\n".join(lines)


def one(key: str, value: Any) -> str:
    foreign = NAMES.get(key)
    if key in BASES and is_llava(value):
        command, folder = from_llava(value)
        return f"a LLaVA, it seems: `{command}`, then model.start_from: {folder}"
    if key == "model" and isinstance(value, str):
        return here(NAMES["model_id_or_path"])
    if key == "pretrain_mm_mlp_adapter" and value:
        command, folder = from_projector({key: value})
        return f"`{command}`, then model.start_from: {folder}"
    if key == "warmup_ratio" and value not in (None, ""):
        return f"here training.warmup_steps: warmup_steps: {value}, below 1 a share"
    if key == "deepspeed":
        return "ZeRO by `accelerate launch --config_file configs/accelerate/zero3.yaml`"
    if key == "tf32":
        return "set on GPUs with training.tf32: true"
    if key == "gradient_checkpointing":
        return "here training.activation_checkpointing: the same value"
    if key in ("eval_strategy", "evaluation_strategy", "eval_steps"):
        return f"here data.held_out: its sources are evaluated; then {HELD_OUT[key]}"
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


HELD_OUT = {
    "eval_strategy": "training.eval_strategy as there",
    "evaluation_strategy": "training.eval_strategy, as it is called now",
    "eval_steps": "training.eval_steps as there",
}
BASES = ("model_name_or_path", "model_id_or_path", "model", "base_model")


def is_llava(name: Any) -> bool:
    """Whether a model is a whole LLaVA: by a folder's config.json, or else, as a hint, its name."""
    config = Path(str(name)).expanduser() / "config.json"
    if not isinstance(name, str):
        return False
    if config.is_file():
        try:
            return "llava" in str(json.loads(config.read_text("utf-8")).get("model_type")).lower()
        except (ValueError, AttributeError):
            return False
    return "llava" in name.lower()


def from_llava(name: str) -> tuple[str, str]:
    """The command that converts it, and the folder to start from."""
    folder = f"models/{Path(name).name}"
    return f"llava-mole convert {name} --out {folder}", folder


def from_projector(values: dict[Any, Any]) -> tuple[str, str]:
    """The same for a projector that LLaVA's first stage left."""
    model, tag = tower(values).values()
    layer = values.get("mm_vision_select_layer", -2)
    parts = [
        f"llava-mole convert {values['pretrain_mm_mlp_adapter']} --out models/aligned",
        f"--language-model {values.get('model_name_or_path') or 'LANGUAGE_MODEL'}",
        f"--vision-model {model} --vision-pretrained {tag}",
        *([f"--vision-layer {layer}"] if layer != -2 else []),
        *(["--image-aspect-ratio pad"] if values.get("image_aspect_ratio") == "pad" else []),
    ]
    return " ".join(parts), "models/aligned"


def beginning(values: dict[Any, Any]) -> tuple[str, str] | None:
    """The command and the folder of what a run of theirs starts from; None: from parts."""
    for key in BASES:
        if is_llava(values.get(key)):
            return from_llava(values[key])
    return from_projector(values) if values.get("pretrain_mm_mlp_adapter") else None


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


# ---------------------------------------------------------------------- the sketch


def sketch(values: dict[Any, Any]) -> str:
    """YAML of a recipe that says the same, as far as it can be said key by key."""
    recipe: dict[str, Any] = {
        "output_dir": values.get("output_dir") or "runs/mine",
        "model": {"language_model": values.get("model") or "LANGUAGE_MODEL", **tower(values)},
        "data": {"too_long": "drop", "sources": sources(values)},
        "training": {},
        "stages": [
            {"name": "instruct", "learning_rates": rates(values), "questions_per_picture": 1,
             "share_prefix": False}
        ],
    }  # fmt: skip
    if isinstance(values.get("seed"), int):
        recipe["seed"] = values["seed"]
    for key, value in values.items():
        foreign = NAMES.get(str(key))
        if foreign is not None and foreign.put is not None:
            for path, ours in foreign.put(value).items():
                put(recipe, path, ours)
        elif (
            foreign is None and key in ARGUMENTS and key not in {*OWN_ARGUMENTS, *KEPT_OUT}
            and value is not None
        ):  # fmt: skip
            recipe["training"][key] = value
    if values.get("gradient_checkpointing") in (True, "True"):
        recipe["training"]["activation_checkpointing"] = True
    lora = recipe["model"].get("lora")
    if not trains_lora(values):
        recipe["model"].pop("lora", None)
    elif lora is None or "target_modules" not in lora:
        put(recipe, "model.lora.target_modules", ["q_proj", "k_proj", "v_proj", "o_proj"])
    if "language_model" in recipe["stages"][0]["learning_rates"]:
        recipe["model"]["dtype"] = "float32"  # bfloat16's rounding loses steps of 2e-5
    begins = beginning(values)
    if begins is not None:
        rest = {
            key: value for key, value in recipe["model"].items()
            if key not in OF_THE_FOLDER and not key.startswith("vision_")
        }  # fmt: skip
        recipe["model"] = {"start_from": begins[1], **rest}
    if not recipe["training"]:
        del recipe["training"]
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None,
                          width=1000)  # fmt: skip
    lines = [f"{line}  # name it" if "language: en" in line else line for line in text.splitlines()]
    return "".join(f"  {line}\n" for line in lines)


def put(recipe: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = recipe
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})
    node[last] = value


def tower(values: dict[Any, Any]) -> dict[str, str]:
    name = values.get("vision_tower") or values.get("mm_vision_tower")
    model, tag = TOWERS.get(str(name), ("ViT-L-14-336-quickgelu", "openai"))
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
            "language": "en",
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


def projector_frozen(values: dict[Any, Any]) -> bool:
    """LLaMA-Factory's default is true, and ms-swift's `freeze_aligner` may be said."""
    if "freeze_multi_modal_projector" in values:
        return values["freeze_multi_modal_projector"] is True
    if values.get("freeze_aligner") is True or values.get("freeze_mm_mlp_adapter") is True:
        return True
    return "finetuning_type" in values and "tune_mm_mlp_adapter" not in values


def rates(values: dict[Any, Any]) -> dict[str, float]:
    """What learns, and how fast. A projector that is new here always does, frozen there or not."""
    rate = float(values.get("learning_rate") or 1e-4)
    found = {"projector": rate}
    if beginning(values) is not None and projector_frozen(values):
        found = {}
    if values.get("tune_mm_mlp_adapter") in (True, "True"):
        return found
    found["lora" if trains_lora(values) else "language_model"] = rate
    thawed = any(values.get(k) is False for k in ("freeze_vision_tower", "freeze_vit"))
    if thawed or values.get("unfreeze_mm_vision_tower") is True:
        found["vision"] = rate
    return found
