"""A model folder -> Hugging Face's `LlavaForConditionalGeneration`, which plain transformers opens.

Only where that class computes the same: no experts, no Parrot, a CLIP ViT, an mlp2x_gelu projector.
Plain LoRA can be added to the weights. Names are those of the hub's LLaVA-1.5 folders, which every
version of transformers that has the class reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from peft.tuners.tuners_utils import BaseTunerLayer
from tqdm.auto import tqdm
from transformers import GenerationConfig, LlavaConfig, LlavaProcessor

from llava_mole import checkpoint
from llava_mole.configuration import LlavaMoleConfig, WeightSource
from llava_mole.conversion import clip, pictures
from llava_mole.conversion.assemble import licence_files
from llava_mole.conversion.llava import SELECTS
from llava_mole.conversion.plan import CORES, Piece, constant, language_shapes, stored
from llava_mole.conversion.tensors import TensorFiles, weights_of
from llava_mole.conversion.writing import RECORD, SHARD_BYTES, new_folder, write_shards
from llava_mole.errors import CheckpointError
from llava_mole.language_model import LANGUAGE_MODEL, load_language_model, locate, weights_hash
from llava_mole.plain_lora import load_lora
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.vision import load_referenced

TOWER = "vision_tower.vision_model."
PROJECTOR = {"layers.0": "linear_1", "layers.2": "linear_2"}


def export_huggingface(
    folder: Path, out: Path, *, merge_lora: bool = False, progress: bool = True
) -> list[str]:
    """Write the folder; returns what the user should know.

    Args:
        folder: a model folder of this project.
        out: made, or replaced.
        merge_lora: add plain LoRA to the language model's weights, which are then held in memory.
        progress: show a bar.

    Raises:
        CheckpointError: a part that Hugging Face's class does not have, by name; no room.
    """
    config = checkpoint.read_config(folder)
    problems = refusals(config, merge_lora)
    if problems:
        raise CheckpointError(
            f"{folder} cannot become a Hugging Face LLaVA\n  " + "\n  ".join(problems)
        )
    vision = config.vision_part
    theirs = clip.to_huggingface(vision)
    assert vision.preprocess is not None
    image_processor, notes = pictures.to_huggingface(vision.preprocess)
    processor = LlavaMoleProcessor.from_pretrained(folder)
    own = TensorFiles([folder / checkpoint.OWN_WEIGHTS])
    language, sources = language_pieces(config, folder, merge_lora)
    out_config = huggingface_config(config, theirs)
    pieces = {f"language_model.{name}": piece for name, piece in language.items()}
    tower = clip.huggingface_pieces(tower_pieces(config, own), theirs.num_hidden_layers)
    pieces |= {f"{TOWER}{name}": piece for name, piece in tower.items()}
    kind = next(iter(language.values())).dtype
    pieces |= projector_pieces(own, kind)
    if kind != torch.float32:
        notes.append(f"the projector, float32 here, is written as {kind}".replace("torch.", ""))
    total = sum(piece.nbytes for piece in pieces.values())
    with (
        new_folder(out, total) as building,
        tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not progress) as bar,
    ):
        write_shards(pieces, building, SHARD_BYTES, bar.update, [own, *sources])
        out_config.save_pretrained(building)
        if (folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(folder).save_pretrained(building)
        LlavaProcessor(
            image_processor,
            processor.tokenizer,
            patch_size=theirs.patch_size,
            vision_feature_select_strategy=out_config.vision_feature_select_strategy,
            image_token=processor.image_token,
            num_additional_image_tokens=1,  # the class token
            chat_template=processor.chat_template,
        ).save_pretrained(building)
        write_card(building, config)
        for file in [*licence_files(folder), folder / RECORD]:
            if file.is_file():
                shutil.copy2(file, building / file.name)
    return notes


def write_card(building: Path, config: LlavaMoleConfig) -> None:
    """README.md with the licence that the model came with."""
    origin = config.origin or {"source": None, "licence": None}
    data = ModelCardData(
        base_model=origin["source"],
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        license=origin["licence"] or "other",
    )
    front = f"---\n{data.to_yaml()}\n---\n"
    text = "\nA LLaVA for plain transformers, exported with `llava-mole convert --export hf`.\n"
    (building / "README.md").write_text(front + text, encoding="utf-8")


def refusals(config: LlavaMoleConfig, merge_lora: bool) -> list[str]:
    """Parts that Hugging Face's class does not have."""
    problems = []
    if config.mole is not None:
        problems.append("experts: each token is routed, so they cannot be added to the weights")
    if config.parrot is not None:
        problems.append("parrot: visual tokens depend on the question; LLaVA has no such module")
    if config.lora is not None and not merge_lora:
        problems.append("lora: add it to the weights with --merge-lora")
    if config.projector_part.type != "mlp2x_gelu":
        problems.append(f"projector of type {config.projector_part.type!r}: only mlp2x_gelu")
    vision = config.vision_part
    if vision.layer is None:
        problems.append(
            "vision.layer is empty: the tower's last features are normalised, LLaVA's never are"
        )
    if vision.grid is not None:
        problems.append(f"vision.grid={vision.grid}: patches are averaged; LLaVA takes them all")
    if config.text_config.model_type not in CORES:
        problems.append(
            f"language model of type {config.text_config.model_type!r}: {', '.join(CORES)} can be"
        )
    if vision.model == "starter":
        problems.append("the starter's tower is convolutional; LLaVA needs a CLIP ViT")
    return problems


def huggingface_config(config: LlavaMoleConfig, theirs: Any) -> LlavaConfig:
    vision = config.vision_part
    strategies = {ours: name for name, ours in SELECTS.items()}
    layer = vision.layer
    assert layer is not None
    text = config.text_config
    return LlavaConfig(
        vision_config=theirs,
        text_config=text,
        image_token_index=config.image_token_id,
        image_seq_length=vision.tokens_per_image,
        vision_feature_layer=layer if layer < 0 else layer + 1,  # hidden_states begins before
        vision_feature_select_strategy=strategies[vision.select],
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=text.dtype,
        architectures=["LlavaForConditionalGeneration"],
    )


def language_pieces(
    config: LlavaMoleConfig, folder: Path, merge_lora: bool
) -> tuple[dict[str, Piece], list[TensorFiles]]:
    """The language model's tensors, read lazily unless LoRA is merged into them; and from where."""
    source = WeightSource.from_dict(config.text_source or {"name": LANGUAGE_MODEL})
    base = locate(source.name, source.revision, folder)
    if source.sha256 is not None and weights_hash(base) != source.sha256:
        raise CheckpointError(f"language model in {base} is not the one this model was trained on")
    if config.lora is not None and merge_lora:
        model = load_language_model(base, dtype=config.text_config.dtype)
        load_lora(model, config.lora, folder / checkpoint.LORA)
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
        tensors = checkpoint.base_tensors(model)
        return {name: constant(tensors[name]) for name in language_shapes(config.text_config)}, []
    files = weights_of(base)
    return {name: stored(files, name) for name in language_shapes(config.text_config)}, [files]


def tower_pieces(config: LlavaMoleConfig, own: TensorFiles) -> Mapping[str, Piece]:
    """open_clip's tensors by their names in the tower, from this folder or where it refers to."""
    prefix = "vision_tower.visual."
    if config.vision_part.source is None:
        return {
            name.removeprefix(prefix): stored(own, name)
            for name in own.entries
            if name.startswith(prefix)
        }
    tower = load_referenced(config.vision_part)
    return {name: constant(tensor) for name, tensor in tower.visual.state_dict().items()}


def projector_pieces(own: TensorFiles, dtype: torch.dtype) -> dict[str, Piece]:
    """The two linears, the scale of their input multiplied into the first."""
    scale = own.read("projector.input_scale").float()
    out = {}
    for ours, theirs in PROJECTOR.items():
        for kind in ("weight", "bias"):
            tensor = own.read(f"projector.{ours}.{kind}").float()
            if (ours, kind) == ("layers.0", "weight"):
                tensor = tensor * scale
            out[f"multi_modal_projector.{theirs}.{kind}"] = constant(tensor.to(dtype))
    return out
