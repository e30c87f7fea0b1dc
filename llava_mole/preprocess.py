"""The steps from a picture to pixels: open_clip's own, and two that LLaVA's towers were used with.

A preprocess mapping holds open_clip's PreprocessCfg and, where a model was imported,

    pad_to_square   [r, g, b] of 0 to 255: the picture is first put on a square of that colour
                    (LLaVA's `image_aspect_ratio: pad`, with the mean colour of its tower)
    crop            "floor": the odd pixel of a centred crop goes below and to the right, as in
                    Hugging Face's processors; torchvision rounds halves to even
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from llava_mole.errors import ConfigError

MAX_SQUARE = 16_000
"""Pixels of a side that is padded to a square. The square of a longer one takes gibibytes: such a
picture is first made smaller, to this side; a tower sees far fewer of its pixels in any case."""
OWN_KEYS = ("pad_to_square", "crop")


@dataclass(frozen=True)
class PadToSquare:
    """Centres a picture on a square, at most MAX_SQUARE a side; the odd pixel of the margin lies
    below or to the right."""

    colour: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height:
            return image
        side = max(width, height)
        if side > MAX_SQUARE:
            scale = MAX_SQUARE / side
            width, height = (max(1, round(length * scale)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            side = MAX_SQUARE
        square = Image.new("RGB", (side, side), self.colour)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square


@dataclass(frozen=True)
class FloorCrop:
    """The (height, width) in the middle of a picture that is at least as large."""

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        top, left = (image.height - height) // 2, (image.width - width) // 2
        return functional.crop(image, top, left, height, width)


def image_transform(preprocess: Mapping[str, Any]) -> transforms.Compose:
    """PIL image in RGB -> (3, H, W) float32.

    Args:
        preprocess: see the module's docstring.

    Raises:
        ConfigError: `crop` is neither empty nor "floor".
    """
    theirs = {key: value for key, value in preprocess.items() if key not in OWN_KEYS}
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**theirs), is_train=False
    )
    steps = list(transform.transforms)
    crop, colour = preprocess.get("crop"), preprocess.get("pad_to_square")
    if crop not in (None, "floor"):
        raise ConfigError(f"preprocess.crop={crop!r}: allowed is 'floor', or leave it out")
    if crop == "floor":
        steps = [
            FloorCrop(tuple(step.size)) if isinstance(step, transforms.CenterCrop) else step
            for step in steps
        ]
    if colour is not None:
        steps.insert(0, PadToSquare(tuple(colour)))
    return transforms.Compose(steps)
