"""Where a model comes from: its parts, their licences, its training. Kept in `config.json`.

    {"language_model": {"name": …, "repository": …, "licence": …}, "vision": {…},
     "data": [{"name": …, "samples": …, "languages": {…}, …}], "stages": [{"name": …, "steps": …}]}

Nothing is built from it; the model card and the NOTICE are written from it. It holds no path of the
machine it was made on.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import yaml
from huggingface_hub import RepoCard, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE

from llava_mole.configuration import LlavaMoleConfig, VisionConfig, WeightSource
from llava_mole.licences import FOLDER as LICENCES
from llava_mole.licences import Part

Facts = dict[str, Any]

PARTS = ("language_model", "vision")
OWN_FOLDER = "language_model"
"""What a WeightSource names where the weights lie in the model's own folder."""
LICENCE_FILE = re.compile(r"licen[sc]e|notice|copying|use_policy|terms", re.IGNORECASE)
TEXT = {"", ".txt", ".md", ".html", ".rst", ".pdf"}
LARGEST = 2**20
"""Bytes of a licence file; what is larger is something else."""
GEMMA_TYPES = {"gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"}
"""Model types that Google has published under the Gemma Terms only."""
OPEN_CLIP_LICENCES = {"openai": "mit", "webli": "apache-2.0"}
"""By pretrained tag: OpenAI's CLIP, Google's SigLIP and SigLIP 2."""
OWNER_LICENCES = {"laion": "mit"}
"""By owner of the repository that open_clip names for a tag."""


# ---------------------------------------------------------------------- where a part lies


def snapshot(repository: str, file: str, revision: str | None = None) -> Path | None:
    """The folder of a hub repository in the cache, if it holds `file`. Asks no network."""
    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except ValueError:  # no name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None


def language_model_folder(config: LlavaMoleConfig) -> Path | None:
    source = WeightSource.from_dict(config.text_source or {"name": OWN_FOLDER})
    if source.name == OWN_FOLDER:
        return None
    if source.name == "starter":
        from llava_mole.starter import ensure_starter

        return ensure_starter().root
    folder = Path(source.name)
    return folder if folder.is_dir() else snapshot(source.name, "config.json", source.revision)


def tower_folder(vision: VisionConfig) -> Path | None:
    if vision.model.startswith("local-dir:"):
        return Path(vision.model.removeprefix("local-dir:"))
    if vision.model.startswith("hf-hub:"):
        return snapshot(vision.model.removeprefix("hf-hub:"), "open_clip_config.json")
    return None


def folders(config: LlavaMoleConfig, loaded: Path | None = None) -> dict[str, Path]:
    """Part -> where its licence files may lie: in the model folder that was loaded, else where the
    part came from."""
    places = {
        "language_model": language_model_folder(config),
        "vision": tower_folder(config.vision_part),
    }
    for name in PARTS:
        if loaded is not None and (loaded / LICENCES / name).is_dir():
            places[name] = loaded / LICENCES / name
    return {name: place for name, place in places.items() if place is not None}


# ---------------------------------------------------------------------- what it says of itself


def declared(folder: Path | None) -> Facts:
    """Licence lines of the model card in a part's folder: what is there of licence, licence_name,
    licence_link."""
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return {}
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
        data = RepoCard(text, ignore_metadata_errors=True).data
    except (ValueError, yaml.YAMLError):  # a card of another shape declares nothing
        return {}
    values = data.to_dict()
    keys = {"licence": "license", "licence_name": "license_name", "licence_link": "license_link"}
    found = {ours: values.get(theirs) for ours, theirs in keys.items()}
    return {key: value for key, value in found.items() if isinstance(value, str) and value}


def describe_language_model(config: LlavaMoleConfig) -> Facts:
    unnamed = {"name": f"a {config.text_config.model_type} language model"}
    source = WeightSource.from_dict(config.text_source or {"name": OWN_FOLDER})
    if source.name == OWN_FOLDER:
        return unnamed
    if source.name == "starter":
        return {
            "name": "Gemma 3 270M", "repository": "google/gemma-3-270m", "licence": "gemma",
            "starter": True,
        }  # fmt: skip
    local = Path(source.name).is_absolute()
    facts: Facts = {"name": Path(source.name).name if local else source.name}
    if not local:
        facts |= {"repository": source.name, "revision": source.revision}
    facts |= declared(language_model_folder(config))
    if "licence" not in facts and config.text_config.model_type in GEMMA_TYPES:
        facts["licence"] = "gemma"
    return facts


def describe_tower(vision: VisionConfig) -> Facts:
    if vision.model == "starter":
        return {
            "name": "EfficientNet-Lite0", "repository": "timm/tf_efficientnet_lite0",
            "licence": "apache-2.0", "starter": True,
        }  # fmt: skip
    if vision.model.startswith("hf-hub:"):
        repository = vision.model.removeprefix("hf-hub:")
        return {"name": repository, "repository": repository, **declared(tower_folder(vision))}
    if vision.model.startswith("local-dir:"):
        folder = Path(vision.model.removeprefix("local-dir:"))
        return {"name": folder.name, **declared(folder)}
    tag = vision.pretrained or ""
    if tag not in open_clip.list_pretrained_tags_by_model(vision.model):  # a file of one's own
        return {"name": f"open_clip {vision.model}", **declared(Path(tag).parent)}
    known = open_clip.get_pretrained_cfg(vision.model, tag)
    repository = str(known.get("hf_hub", "")).strip("/")
    facts: Facts = {"name": f"open_clip {vision.model} ({tag})", "repository": repository}
    owner = repository.partition("/")[0]
    licence = OPEN_CLIP_LICENCES.get(tag) or OWNER_LICENCES.get(owner)
    return facts | ({"licence": licence} if licence else {})


def describe_converted(config: LlavaMoleConfig, part: str) -> Facts:
    """A part of a model that was converted whole: its licence is what the source states."""
    assert config.origin is not None
    source = config.origin["source"]
    facts: Facts = {"name": f"{part} of {Path(source).name}"}
    if not Path(source).is_absolute():
        facts |= {"name": f"{part} of {source}", "repository": source}
    if config.origin["licence"]:
        facts["licence"] = config.origin["licence"]
    return facts


def completed(config: LlavaMoleConfig) -> Facts:
    """The provenance of a model, its parts described where they are not yet."""
    known = dict(config.provenance or {})
    if config.origin is not None:
        known.setdefault("language_model", describe_converted(config, "language model"))
        known.setdefault("vision", describe_converted(config, "vision tower"))
    if "language_model" not in known:
        known["language_model"] = describe_language_model(config)
    if "vision" not in known:
        known["vision"] = describe_tower(config.vision_part)
    return known


def part(facts: Facts) -> Part:
    """A described part, for notices and cards."""
    repository = facts.get("repository")
    return Part(
        facts["name"],
        facts.get("licence"),
        facts.get("licence_name"),
        facts.get("licence_link"),
        see=f"https://huggingface.co/{repository}" if repository else "where it came from",
    )


# ---------------------------------------------------------------------- its licence files


def lies_within(path: Path, folder: Path) -> bool:
    """Whether a file, its links followed, is the folder's own; a hub snapshot's files are links to
    its repository's blobs. A link to anywhere else would put a stranger's file into a model."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.is_relative_to(Path(HF_HUB_CACHE).resolve()):
        root = root.parent.parent
    return path.resolve().is_relative_to(root)


def copy_licence_files(source: Path | None, target: Path) -> list[str]:
    """Copy what looks like a licence or notice; the names, sorted. The source is left as it is."""
    if source is None or not source.is_dir():
        return []
    found = [
        path
        for path in sorted(source.iterdir())
        if LICENCE_FILE.search(path.stem)
        and path.suffix.lower() in TEXT
        and path.is_file()
        and path.stat().st_size <= LARGEST
        and lies_within(path, source)
    ]
    if found:
        target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copyfile(path, target / path.name)
    return [path.name for path in found]
