"""Real pictures, and what happens to them on their way from one data set to the next.

    PYTHONPATH=. python tests/inspection/copies.py

prints how many copies the leak check finds, and how often it takes two pictures for one.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from data import openmoji_catalogue as catalogue
from data import openmoji_drawing as drawing
from llava_mole.inspection.alike import CORRELATION, SAME, alike
from llava_mole.inspection.fingerprints import (
    FINGERPRINT,
    HASHES,
    Fingerprints,
    fingerprint,
    stacked,
)

TILE = 200
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def drawings(count: int | None = None) -> list[Image.Image]:
    """OpenMoji drawings on white, 224 × 224, spread over all of them."""
    found = catalogue.load_pictures()
    step = max(1, len(found) // (count or len(found)))
    chosen = found[::step][:count]
    return [drawing.on_ground(drawing.render(picture.svg)) for picture in chosen]


def photos() -> list[Image.Image]:
    """scikit-image's photographs and tiles of them (textures among them); none twice."""
    tiles = []
    for path in sorted(Path(skimage.data.__file__).parent.iterdir()):
        if path.suffix not in (".png", ".jpg") or path.stem in ("motorcycle_right", "phantom"):
            continue
        image = Image.open(path).convert("RGB")
        for left in range(0, image.width - TILE + 1, TILE):
            for top in range(0, image.height - TILE + 1, TILE):
                tile = image.crop((left, top, left + TILE, top + TILE))
                if np.asarray(tile.convert("L")).std() > 8:
                    tiles.append(tile)
    return tiles


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(io.BytesIO(content.getvalue())).convert("RGB")


def cropped(image: Image.Image, rng: np.random.Generator, most: float = 0.05) -> Image.Image:
    """Up to `most` of the width and of the height cut off, on either side."""
    width, height = image.size
    cut_x, cut_y = rng.uniform(0, most, 2) * (width, height)
    left, top = rng.uniform(0, 1, 2) * (cut_x, cut_y)
    box = left, top, width - cut_x + left, height - cut_y + top
    return image.crop(tuple(round(edge) for edge in box))


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


COPIES: dict[str, Change] = {
    "half the size": lambda i, rng: i.resize((i.width // 2, i.height // 2)),
    "twice the size": lambda i, rng: i.resize((i.width * 2, i.height * 2)),
    "squashed to 336 × 224": lambda i, rng: i.resize((336, 224)),
    "JPEG, quality 75": lambda i, rng: jpeg(i, 75),
    "JPEG, quality 30": lambda i, rng: jpeg(i, 30),
    "grey": lambda i, rng: grey(i),
    "15 % brighter": lambda i, rng: i.point(lambda level: min(255, int(level * 1.15))),
    "up to 5 % cut off": cropped,
    "10 % cut off": lambda i, rng: cropped(i, rng, 0.10),
    "cut, 150 × 150, grey, JPEG": lambda i, rng: jpeg(grey(cropped(i, rng).resize((150, 150))), 75),
}


def prints_of(images: list[Image.Image]) -> Fingerprints:
    return stacked([fingerprint(image, image.tobytes()) for image in images])


def found(copies: Fingerprints, originals: Fingerprints) -> np.ndarray:
    """(n,) correlation at which each copy was found to be its original; 0: it was not."""
    pairs, scores = alike(copies, originals)
    out = np.zeros(len(copies))
    own = pairs[:, 0] == pairs[:, 1]
    out[pairs[own, 0]] = scores[own]
    return out


def confused(originals: Fingerprints) -> np.ndarray:
    """Correlations of all pairs of different pictures that are taken for alike."""
    pairs, scores = alike(originals, originals)
    return scores[pairs[:, 0] < pairs[:, 1]]


def random_prints(count: int, seed: int) -> Fingerprints:
    """Hashes and grey thumbnails of noise."""
    rng = np.random.default_rng(seed)
    prints = np.zeros(count, FINGERPRINT)
    for name in HASHES:
        prints[name] = rng.integers(0, 2**64 - 1, count, dtype=np.uint64)
    prints["grey"] = rng.integers(0, 256, prints["grey"].shape)
    return prints


def main() -> None:
    say = sys.stdout.write
    for name, images in (("drawings", drawings()), ("photographs", photos())):
        originals = prints_of(images)
        chosen = list(range(0, len(images), max(1, len(images) // 400)))
        say(f"\n{len(images)} {name}, {len(chosen)} copied: found (of them as the same)\n")
        for what, change in COPIES.items():
            rng = np.random.default_rng(0)
            copies = prints_of([change(images[n], rng) for n in chosen])
            scores = found(copies, originals[chosen])
            certain = f"({(scores >= SAME).mean():.1%})"
            say(f"  {what:28} {(scores >= CORRELATION).mean():6.1%} {certain}\n")
        wrong, pairs = confused(originals), len(images) * (len(images) - 1) // 2
        say(f"  of {pairs:,} pairs of different ones {len(wrong):,} look alike, ")
        say(f"{(wrong >= SAME).sum():,} the same\n")
    many, some = random_prints(100_000, 0), random_prints(10_000, 1)
    start = time.perf_counter()
    alike(many, some)
    say(f"\n100,000 against 10,000 pictures: {time.perf_counter() - start:.1f} s\n")


if __name__ == "__main__":
    main()
