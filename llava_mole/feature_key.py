"""What decides a picture's features: the key of a `FeatureCache`.

Tower, weights, layer, transform and the versions of the libraries that run them. What only rounds
differently in the last bit is left out: device, threads and batch size.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import torch

from llava_mole.configuration import VisionConfig
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.vision import VisionTower

FORMAT = 1
"""Of what `features.py` makes of a picture; raise it when that changes."""
SOFTWARE = ("open_clip_torch", "pillow", "timm", "torchvision")
"""What decodes, scales and runs; another version may do so differently."""


class TowerAlone:
    """A tower without a language model, for a `FeatureStore` that only fills a cache.

    Args:
        vision_tower, vision: as from `load_vision`.
    """

    def __init__(self, vision_tower: VisionTower, vision: VisionConfig) -> None:
        self.vision_tower = vision_tower
        self.config = SimpleNamespace(vision_part=vision)


Model = LlavaMoleForConditionalGeneration | TowerAlone


def feature_key(model: Model, image_processor: LlavaMoleImageProcessor) -> dict[str, Any]:
    """All that decides a picture's features, as JSON."""
    vision: VisionConfig = model.config.vision_part
    structure = vision.model_cfg or {}
    key = {
        "format": FORMAT,
        "tower": {k: structure.get(k) for k in ("embed_dim", "vision_cfg", "quick_gelu")},
        "weights": weights_hash(model.vision_tower),
        "layer": vision.layer,
        "features": vision.features,
        "grid": vision.grid,
        "computed_in": str(next(model.vision_tower.parameters()).dtype).removeprefix("torch."),
        "kept_in": "bfloat16",
        "shape": [1 + vision.num_patches, vision.width],
        "transform": image_processor.preprocess,
        "software": {name: metadata.version(name) for name in SOFTWARE},
    }
    return json.loads(json.dumps(key))


def about(model: Model) -> dict[str, Any]:
    """How the tower was named; weights may have many names."""
    vision = model.config.vision_part
    return {"model": vision.model, "pretrained": vision.pretrained}


@torch.no_grad()
def weights_hash(tower: VisionTower) -> str:
    """SHA-256 over all tensors of a tower: parameters and buffers, saved or not."""
    digest = hashlib.sha256()
    tensors = [*tower.named_parameters(), *tower.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_state(tower: VisionTower) -> tuple[Any, ...]:
    """Differs when a tensor was replaced or changed in place, by a step of an optimizer say."""
    tensors = [*tower.parameters(), *tower.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
