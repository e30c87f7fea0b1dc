"""A plan becomes a model folder, shard by shard: in memory is one shard, never the model.

The folder is filled beside its place and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole.checkpoint import OWN_WEIGHTS
from llava_mole.configuration import WeightSource
from llava_mole.conversion.plan import Piece, Plan
from llava_mole.conversion.tensors import TensorFiles
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import replacing_folder, sha256_file
from llava_mole.language_model import LANGUAGE_MODEL, weights_hash
from llava_mole.modelcard import write_card
from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor
from llava_mole.provenance import completed

RECORD = "conversion.json"
SHARD_BYTES = 2 * 2**30
"""Of a weight file, and so about what is in memory at once."""


def check_target(out: Path, source: str, force: bool) -> None:
    """Raises ConfigError: the folder is there, is the source itself, or holds no model."""
    if not out.exists():
        return
    if Path(source).expanduser().exists() and out.resolve() == Path(source).expanduser().resolve():
        raise ConfigError(f"--out {out} is the source; choose another folder")
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file")
    if not any(out.iterdir()):
        return
    if not force:
        raise ConfigError(f"--out {out} exists; choose another folder, or replace it with --force")
    if not (out / "config.json").is_file():
        raise ConfigError(
            f"--out {out} holds no model (no config.json): --force does not delete it"
        )


@contextmanager
def new_folder(out: Path, needed: int, what: str = "the model") -> Iterator[Path]:
    """Yields a folder that takes the place of `out`, whole, with nothing of the old one.

    Raises:
        CheckpointError: no room on disk.
    """
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(
            f"no room under {parent}: {what} takes {needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} "
            "GiB are free"
        )
    old = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    with replacing_folder(out, drop=old) as building:
        yield building


def write_model(plan: Plan, out: Path, *, progress: bool = True, shard: int = SHARD_BYTES) -> None:
    """Write one self-describing model folder.

    Args:
        plan: complete.
        out: made, or replaced; see `check_target`.
        progress: show a bar.
        shard: bytes of a weight file.

    Raises:
        CheckpointError: no room on disk; nothing is left behind.
    """
    config = plan.config
    total = sum(piece.nbytes for piece in [*plan.own.values(), *plan.language.values()])
    with (
        new_folder(out, total) as building,
        tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress) as bar,
    ):
        if plan.language:
            folder = building / LANGUAGE_MODEL
            folder.mkdir()
            write_shards(plan.language, folder, shard, bar.update, plan.sources)
            text = config.text_config
            text.architectures = [architecture(text)]
            text.save_pretrained(folder)
            config.text_source = WeightSource(LANGUAGE_MODEL, sha256=weights_hash(folder)).to_dict()
        tensors = {name: piece.read().contiguous() for name, piece in plan.own.items()}
        save_file(tensors, building / OWN_WEIGHTS, metadata={"format": "pt"})
        bar.update(sum(piece.nbytes for piece in plan.own.values()))
        del tensors
        record = {**plan.origin, "files": hashes_of(plan.sources), "notes": plan.notes}
        config.origin = {
            "source": record["source"],
            "sha256": combined(record["files"]),
            "licence": record["licence"],
        }
        (building / RECORD).write_text(
            json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        for file in plan.licences:
            shutil.copy2(file, building / file.name)
        config.provenance = completed(config)
        config.architectures = ["LlavaMoleForConditionalGeneration"]
        config.save_pretrained(building)
        plan.generation.save_pretrained(building)
        processor_of(plan).save_pretrained(building)
        write_card(building, config, out.name, previous=out, copied={})


def processor_of(plan: Plan) -> LlavaMoleProcessor:
    return LlavaMoleProcessor(
        LlavaMoleImageProcessor(plan.preprocess),
        plan.tokenizer,
        tokens_per_image=plan.config.vision_part.tokens_per_image,
        image_token=plan.image_token,
        chat_template=plan.template,
    )


def architecture(text_config: Any) -> str:
    """The class that a language model's config.json names."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text_config.model_type]


def write_shards(
    pieces: Mapping[str, Piece],
    folder: Path,
    limit: int,
    update: Callable[[int], Any],
    sources: Sequence[TensorFiles],
) -> None:
    """model.safetensors, or shards with an index where it would be larger than `limit` bytes.

    Args:
        pieces: what to write.
        folder: where.
        limit: bytes of a file, and of what is held at once.
        update: told of bytes done.
        sources: files that are closed after each shard, so that what was mapped is let go.
    """
    shards: list[list[str]] = [[]]
    held = 0
    for name, piece in pieces.items():
        if shards[-1] and held + piece.nbytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += piece.nbytes
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors[name] = pieces[name].read().contiguous()
            update(pieces[name].nbytes)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        tensors.clear()
        for files in sources:
            files.release()
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(piece.nbytes for piece in pieces.values())},
            "weight_map": places,
        }
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def hashes_of(sources: Sequence[TensorFiles]) -> dict[str, str]:
    """Of every weight file that was read, by its path."""
    return {str(path): sha256_file(path) for files in sources for path in files.files}


def combined(hashes: Mapping[str, str]) -> str:
    """One hash for all files, wherever they lie."""
    digest = hashlib.sha256()
    for path, value in hashes.items():
        digest.update(f"{Path(path).name} {value}\n".encode())
    return digest.hexdigest()
