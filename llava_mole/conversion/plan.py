"""What a conversion will write: the config, the processor, and where each tensor comes from.

A plan is complete before the first byte is written: every tensor that the model needs has a piece
of the expected shape, and every tensor of the source has a place, or a reason to be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase

from llava_mole.configuration import LlavaMoleConfig, ProjectorConfig, VisionConfig
from llava_mole.conversion.tensors import TensorFiles, listed
from llava_mole.errors import CheckpointError
from llava_mole.projector import build_projector
from llava_mole.vision import build_structure

CORES = ("llama", "mistral", "qwen2")
"""Language models that can be converted: their logits are the head of the last hidden state and
nothing more, so that Hugging Face's LLaVA and the causal language model compute the same."""


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: known by its shape, read when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass
class Options:
    """What the command line can change."""

    chat_template: str | None = None
    image_token: str | None = None
    image_aspect_ratio: str | None = None
    """"pad" or "crop", in place of what the source says."""
    vision_tower: str | None = None
    vision_model: str | None = None
    vision_pretrained: str | None = None
    vision_layer: int | None = None
    vision_select: str | None = None
    language_model: str | None = None
    revision: str | None = None


@dataclass
class Plan:
    """A model folder that is yet to be written.

    Attributes:
        config: of the model.
        tokenizer, image_token, template, preprocess: its processor.
        generation: its generation config.
        own: what goes into model.safetensors.
        language: what goes into language_model/; empty: it is kept by reference.
        origin: for `config.origin` and conversion.json.
        sources: weight files that are read, whose hashes are recorded.
        licences: files of the source that travel with the model.
        notes: what the user should know.
    """

    config: LlavaMoleConfig
    tokenizer: PreTrainedTokenizerBase
    image_token: str
    template: str
    preprocess: dict[str, Any]
    generation: GenerationConfig
    own: dict[str, Piece]
    language: dict[str, Piece]
    origin: dict[str, Any]
    sources: list[TensorFiles]
    licences: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def stored(files: TensorFiles, name: str, dtype: torch.dtype | None = None) -> Piece:
    """A tensor as the source holds it, or in another dtype."""
    entry = files.entries[name]
    kind = dtype or entry.dtype

    def read() -> Tensor:
        return files.read(name).to(kind)

    return Piece(entry.shape, kind, read)


def joined(pieces: Iterable[Piece]) -> Piece:
    """Several tensors one below another, as open_clip keeps queries, keys and values."""
    parts = list(pieces)
    rows = sum(part.shape[0] for part in parts)
    shape = (rows, *parts[0].shape[1:])
    return Piece(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def constant(tensor: Tensor) -> Piece:
    return Piece(tuple(tensor.shape), tensor.dtype, lambda: tensor.clone())


def grown(piece: Piece, rows: int) -> Piece:
    """An embedding or a head with rows for new tokens, each the mean of the others.

    Of a head, the new logit is then the mean of the logits: never the largest, and of a share of at
    most 1/V each, by Jensen's inequality.
    """
    if rows <= piece.shape[0]:
        return piece

    def read() -> Tensor:
        old = piece.read()
        mean = old.float().mean(dim=0).to(old.dtype)
        return torch.cat([old, mean.expand(rows - len(old), -1)])

    return Piece((rows, *piece.shape[1:]), piece.dtype, read)


# ---------------------------------------------------------------------- what must be there


def language_shapes(text_config: Any) -> dict[str, tuple[int, ...]]:
    """Tensors of a causal language model, by name; built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text_config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if text_config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def tower_shapes(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Tensors of an open_clip tower, by their name in `VisionTower`."""
    with torch.device("meta"):
        tower = build_structure(vision)
    return {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}


def projector_shapes(width: int, out: int, config: ProjectorConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        projector = build_projector(width, out, config)
    return {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}


def check_pieces(
    part: str,
    found: Mapping[str, Piece],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Raises CheckpointError naming tensors that are missing, left over or of another shape."""
    problems = []
    missing = [f"{n} {expected[n]}" for n in sorted(expected.keys() - found.keys())]
    extra = [f"{n} {found[n].shape}" for n in sorted(found.keys() - expected.keys())]
    shapes = [
        f"{n} is {found[n].shape}, the config says {expected[n]}"
        for n in sorted(found.keys() & expected.keys())
        if found[n].shape != expected[n]
    ]
    strange = [
        f"{n} holds {piece.dtype}"
        for n, piece in sorted(found.items())
        if not piece.dtype.is_floating_point or piece.dtype.itemsize == 1
    ]
    for what, names in (
        ("missing", missing),
        ("unexpected", extra),
        ("of another shape", shapes),
        ("quantised or no weights", strange),
    ):
        if names:
            problems.append(f"{len(names)} {what}: {listed(names)}")
    if problems:
        raise CheckpointError(
            f"{source}: tensors of the {part} do not fit its config.json\n  "
            + "\n  ".join(problems)
        )
