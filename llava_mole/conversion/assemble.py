"""The parts of an import, however they were named in the source, put together into a plan."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_mole import building
from llava_mole.configuration import LlavaMoleConfig, ProjectorConfig, VisionConfig, WeightSource
from llava_mole.conversion.placeholder import ensure_placeholder
from llava_mole.conversion.plan import (
    CORES,
    Options,
    Piece,
    Plan,
    check_pieces,
    constant,
    grown,
    language_shapes,
    projector_shapes,
    stored,
    tower_shapes,
)
from llava_mole.conversion.tensors import TensorFiles, listed
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.templates.choosing import template_source

TEMPLATES = {"llama": "vicuna_v1", "qwen2": "chatml"}
"""What LLaVA models on these cores were trained with; others differ among themselves."""

RULES = (
    (r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", "tower", ""),
    (r"(?:model\.)?(?:multi_modal_projector|mm_projector)\.", "projector", ""),
    (r"model\.language_model\.(?:model\.)?", "language", "model."),
    (r"language_model\.model\.", "language", "model."),
    (r"(?:language_model\.)?lm_head\.", "language", "lm_head."),
    (r"model\.(?=layers\.|embed_tokens\.|norm\.)", "language", "model."),
)
"""Prefix -> (part, what stands there instead). Three layouts: transformers 5, the older one of the
hub, and the authors' own."""
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
"""Buffers that older files hold and every model computes by itself."""
PROJECTOR = {
    f"{theirs}.{kind}": f"layers.{ours}.{kind}"
    for theirs, ours in (("linear_1", 0), ("linear_2", 2), ("0", 0), ("2", 2))
    for kind in ("weight", "bias")
} | {"weight": "layers.0.weight", "bias": "layers.0.bias"}


@dataclass
class Split:
    """A source's tensors by part, under plain names."""

    language: dict[str, Piece] = field(default_factory=dict)
    projector: dict[str, Piece] = field(default_factory=dict)
    tower: dict[str, Piece] = field(default_factory=dict)
    computed: int = 0


def split(files: TensorFiles, source: str) -> Split:
    """Sort a source's tensors into parts.

    Raises:
        CheckpointError: a tensor belongs to none, or a name comes in two layouts.
    """
    out, unknown = Split(), []
    for name, entry in files.entries.items():
        if COMPUTED.search(name):
            out.computed += 1
            continue
        for prefix, part, instead in RULES:
            match = re.match(prefix, name)
            if match:
                plain = instead + name[match.end() :]
                pieces = getattr(out, part)
                if plain in pieces:
                    raise CheckpointError(f"{source}: {name} and another tensor are the same one")
                pieces[plain] = stored(files, name)
                break
        else:
            unknown.append(f"{name} {entry.shape}")
    if unknown:
        raise CheckpointError(
            f"{source}: {len(unknown)} tensors belong to no part of a LLaVA model: "
            f"{listed(unknown)}"
        )
    return out


@dataclass
class Tower:
    """A vision tower: with the tensors to copy, or without, kept by reference.

    Attributes:
        pieces: by their names in `VisionTower.visual`, or None.
    """

    config: VisionConfig
    pieces: dict[str, Piece] | None


@dataclass
class Language:
    """A language model: with the tensors to copy, or `reference`."""

    config: Any
    pieces: dict[str, Piece]
    reference: WeightSource | None = None


def projector_pieces(found: Mapping[str, Piece]) -> dict[str, Piece]:
    """By our names, in float32 as projectors are here; what is unknown keeps its name."""
    out = {}
    for name, piece in found.items():
        out[PROJECTOR.get(name, name)] = in_float32(piece)
    for number in (0, 2):  # Hugging Face's may be without
        weight = out.get(f"layers.{number}.weight")
        if weight is not None and f"layers.{number}.bias" not in out:
            out[f"layers.{number}.bias"] = constant(torch.zeros(weight.shape[0]))
    out["input_scale"] = constant(torch.ones(()))
    return out


def in_float32(piece: Piece) -> Piece:
    return Piece(piece.shape, torch.float32, lambda: piece.read().float())


def assemble(
    source: str,
    folder: Path,
    *,
    language: Language,
    tower: Tower,
    projector: Mapping[str, Piece],
    projector_type: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    files: Sequence[TensorFiles],
    kind: str,
    image_token: str | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """A plan whose every tensor is there and of the right shape.

    Args:
        source: as the user named it.
        folder: where it lies.
        language, tower, projector, projector_type: the parts.
        tokenizer: of the language model.
        options: of the command line.
        files: whose hashes are recorded.
        kind: of source, for the record.
        image_token: the source's own placeholder, if it has one.
        notes: what the user should know so far.

    Raises:
        CheckpointError, ConfigError: what does not fit, by name.
    """
    text_config = language.config
    rows = text_config.vocab_size
    asked = image_token or options.image_token
    token, needed = ensure_placeholder(tokenizer, rows, asked)
    notes = list(notes)
    pieces = dict(language.pieces)
    if language.reference is None:
        tied = pieces.get("lm_head.weight") if text_config.tie_word_embeddings else None
        if tied is not None:
            embedding = pieces.get("model.embed_tokens.weight")
            if embedding is not None and not torch.equal(tied.read(), embedding.read()):
                raise CheckpointError(
                    f"{source}: config.json ties the head to the embedding, but their tensors "
                    "differ; which one is meant? (tie_word_embeddings)"
                )
            del pieces["lm_head.weight"]
        check_pieces("language model", pieces, language_shapes(text_config), source)
        text_config.dtype = most_common(pieces)
    if needed != rows:
        if language.reference is not None:
            raise AssertionError("a language model that must grow is copied")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in pieces:
                pieces[name] = grown(pieces[name], needed)
        text_config.vocab_size = needed
        notes.append(
            f"the vocabulary was full: {token} and padding made it {needed:,} rows from {rows:,}, "
            "the new ones the mean of the others"
        )
    ours = ProjectorConfig(type=projector_type)
    made = projector_pieces(projector)
    width = tower.config.width
    check_pieces("projector", made, projector_shapes(width, text_config.hidden_size, ours), source)
    own = {f"projector.{name}": piece for name, piece in made.items()}
    if tower.pieces is not None:
        named = {f"visual.{name}": piece for name, piece in tower.pieces.items()}
        check_pieces("vision tower", named, tower_shapes(tower.config), source)
        own |= {f"vision_tower.{name}": piece for name, piece in named.items()}
    template_name = options.chat_template or TEMPLATES.get(text_config.model_type)
    if template_name is None:
        raise ConfigError(
            f"{source}: LLaVA models on {text_config.model_type} were trained with different chat "
            f"formats; name this one's with --chat-template (vicuna_v1, chatml, …)"
        )
    template = template_source(template_name, tokenizer, token)
    config = LlavaMoleConfig(
        text_config=text_config,
        text_source=None if language.reference is None else language.reference.to_dict(),
        vision=tower.config.to_dict(),
        projector=ours.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(token),
        tie_word_embeddings=False,
    )
    pad = tokenizer.pad_token_id
    return Plan(
        config=config,
        tokenizer=tokenizer,
        image_token=token,
        template=template,
        preprocess=tower.config.preprocess or {},
        generation=building.generation_config(
            tokenizer,
            tokenizer.eos_token_id if pad is None else pad,
            stops_of(folder),
        ),
        own=own,
        language={} if language.reference is not None else pieces,
        origin=origin(source, folder, kind, options, template_name),
        sources=list(files),
        licences=licence_files(folder),
        notes=notes,
    )


def most_common(pieces: Mapping[str, Piece]) -> torch.dtype:
    counts = Counter(piece.dtype for piece in pieces.values())
    return counts.most_common(1)[0][0]


def load_tokenizer(folder: Path, text_config: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, whose config.json may be of a class that transformers lacks.

    Raises:
        CheckpointError: there is none, or it is not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=text_config, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"tokenizer in {folder} cannot be loaded: {first}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"tokenizer in {folder} is a slow one: label masks need offsets; add a tokenizer.json"
        )
    return tokenizer


def check_core(text_config: Any, source: str) -> None:
    """Raises CheckpointError for a language model that does not compute the same in both."""
    if text_config.model_type not in CORES:
        raise CheckpointError(
            f"{source}: language model of type {text_config.model_type!r}; {', '.join(CORES)} can "
            "be converted"
        )


# ---------------------------------------------------------------------- where it came from


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError: missing, or no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def stops_of(folder: Path) -> list[int]:
    """End-of-sequence tokens of a source's generation config."""
    path = folder / "generation_config.json"
    stops = read_json(path).get("eos_token_id") if path.is_file() else None
    return [stops] if isinstance(stops, int) else list(stops or [])


def origin(
    source: str,
    folder: Path,
    kind: str,
    options: Options,
    template: str,
) -> dict[str, Any]:
    """Of `config.origin` and conversion.json; hashes are added when it is written."""
    here = Path(source).expanduser()
    return {
        "source": str(here.resolve()) if here.exists() else source,
        "revision": options.revision,
        "kind": kind,
        "licence": licence_of(folder),
        "chat_template": template,
        "options": {k: v for k, v in vars(options).items() if v is not None},
    }


def licence_of(folder: Path) -> str | None:
    """What a source's model card says: `license`, or its own name where that is "other"."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    if not isinstance(front, dict):
        return None
    said = front.get("license")
    if said == "other":
        said = front.get("license_name", said)
    return said if isinstance(said, str) else None


def licence_files(folder: Path) -> list[Path]:
    patterns = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})
