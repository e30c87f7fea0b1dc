"""Tiny LLaVA folders, and the same question put to both models."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole.conversion.importing import plan_import
from llava_mole.conversion.plan import Options
from llava_mole.conversion.writing import write_model
from tests.helpers import picture

ROOT = Path(__file__).resolve().parents[2]
PATCHES = 16
"""Of a tiny LLaVA's picture."""

# Both compute in float32 with the same weights; open_clip projects queries, keys and values in one
# matrix product and transformers in three, so sums are rounded in another order. Logits are of size
# 10, and differ by less than 2e-5 in what was seen; a missing LayerNorm or the other GELU by 1e-2.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def tiny_example() -> Any:
    """examples/tiny_llava.py as a module."""
    spec = importlib.util.spec_from_file_location("tiny_llava", ROOT / "examples" / "tiny_llava.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = tiny_example()


def convert(source: Path | str, out: Path, **options: Any) -> Path:
    write_model(plan_import(str(source), Options(**options)), out, progress=False)
    return out


def load(folder: Path) -> tuple[Any, Any]:
    """Model in float32 and its processor, ours or Hugging Face's."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


@torch.inference_mode()
def logits(model: Any, ids: Tensor, pixels: Tensor | None = None) -> Tensor:
    images = {} if pixels is None else {"pixel_values": pixels}
    return model(input_ids=ids, **images).logits


def ids_with(processor: Any, pictures: int, patches: int = PATCHES) -> Tensor:
    """(1, T): text with so many pictures in it, as both models read it."""
    pieces = ["USER: which of them?", " and this?", " ASSISTANT:"]
    tokens = [processor.tokenizer(p, add_special_tokens=False)["input_ids"] for p in pieces]
    image = [processor.image_token_id] * patches
    row = [processor.tokenizer.bos_token_id, *tokens[0]]
    for n in range(pictures):
        row += image + tokens[1 if n < pictures - 1 else 2]
    return torch.tensor([row])


def pixels_of(count: int, side: int = 56, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def wide(seed: int = 0, size: tuple[int, int] = (131, 90)) -> Image.Image:
    """A picture that is not square, with soft edges as photos have."""
    return picture(seed, side=24).resize(size, Image.Resampling.BICUBIC)


def assert_same_logits(theirs: Any, ours: Any, processor: Any, patches: int = PATCHES) -> None:
    """Text alone, one picture, two pictures."""
    for count in (0, 1, 2):
        ids = ids_with(processor, count, patches)
        pixels = pixels_of(count) if count else None
        expected = logits(theirs, ids, pixels)
        assert expected.std() > 0.3  # a model whose logits are all alike would prove nothing
        torch.testing.assert_close(logits(ours, ids, pixels), expected, **TOLERANCE)
