"""Features of a frozen tower, computed once per picture.

A frozen tower gives the same features at every step, so the stages read them from memory. They are
kept in bfloat16: half the size, and below the noise of what the projector makes of them.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole import ranks
from llava_mole.folding import folded
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.vision import VisionTower

logger = logging.getLogger(__name__)


class FeatureStore:
    """Picture (a path, or a file's bytes) -> (1 + P, D_v).

    Args:
        model: its tower computes the features.
        image_processor: of the model.
        batch_size: pictures per tower pass.
    """

    def __init__(
        self,
        model: LlavaMoleForConditionalGeneration,
        image_processor: LlavaMoleImageProcessor,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.index: dict[Hashable, int] = {}
        self.blocks: list[Tensor] = []

    def clear(self) -> None:
        """Forget all: the tower has changed."""
        self.index.clear()
        self.blocks.clear()

    def fill(self, paths: Sequence[Any], progress: bool = True) -> None:
        """Compute what is not there yet.

        Raises:
            DataError: a picture is missing or broken.
        """
        todo = [path for path in dict.fromkeys(paths) if path not in self.index]
        if todo:
            self.compute(todo, progress)

    def fill_together(self, paths: Sequence[Any], progress: bool = True) -> None:
        """`fill`, each rank computing its share for all. A collective: every rank must call it with
        the same paths."""
        if ranks.size() == 1:
            self.fill(paths, progress)
            return
        # What no rank may take for granted: all must agree on whether there is anything to share.
        have = set.intersection(*(set(there) for there in ranks.gather(list(self.index))))
        todo = [path for path in dict.fromkeys(paths) if path not in have]
        if not todo:
            return
        mine = todo[ranks.rank() :: ranks.size()]
        self.fill(mine, progress and ranks.is_main())
        shares = ranks.gather([self.blocks[self.index[path]] for path in mine])
        for number, share in enumerate(shares):
            for path, feature in zip(todo[number :: ranks.size()], share, strict=True):
                if path not in self.index:
                    self.index[path] = len(self.blocks)
                    self.blocks.append(feature)

    def compute(self, todo: Sequence[Any], progress: bool) -> None:
        device = self.model.device
        tower = self.tower()
        bar = tqdm(total=len(todo), desc="image features", unit="image", disable=not progress)
        with torch.inference_mode(), bar:
            for start in range(0, len(todo), self.batch_size):
                part = todo[start : start + self.batch_size]
                pixels = self.image_processor(part)["pixel_values"].to(device)
                features = tower(pixels.to(self.dtype)).to("cpu", torch.bfloat16)
                for path, feature in zip(part, features.unbind(), strict=True):
                    self.index[path] = len(self.blocks)
                    self.blocks.append(feature.clone())
                bar.update(len(part))

    def tower(self) -> VisionTower:
        """The model's tower in evaluation mode, its batch norms folded."""
        assert self.model.config.vision_part.preprocess is not None
        size = self.model.config.vision_part.preprocess["size"]
        side = (size, size) if isinstance(size, int) else tuple(size)
        blank = torch.zeros(1, 3, *side, dtype=self.dtype, device=self.model.device)
        was_training = self.model.vision_tower.training
        self.model.vision_tower.eval()
        with torch.inference_mode():
            tower = folded(self.model.vision_tower, blank)
        self.model.vision_tower.train(was_training)
        return tower

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.vision_tower.parameters()).dtype

    def __call__(self, paths: Sequence[Any]) -> Tensor:
        """(N, 1 + P, D_v) bfloat16; computes what is missing."""
        missing = [path for path in paths if path not in self.index]
        if missing:
            self.fill(missing, progress=False)
        # Cloned: tensors made under inference_mode cannot take part in autograd.
        return torch.stack([self.blocks[self.index[path]] for path in paths]).clone()
