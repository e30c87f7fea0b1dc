"""FeatureStore on several ranks: they share the work, and all have the features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_mole.feature_key import TowerAlone
from llava_mole.features import FeatureStore
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.vision import load_vision
from tests import helpers
from tests.processes import together

PICTURES = 9  # and a copy of the first


@pytest.fixture(scope="module")
def out(tiny_parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote; see tests/filling.py."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        helpers.picture(number).save(folder / "pictures" / f"{number}.png")
    copy = (folder / "pictures" / "0.png").read_bytes()
    (folder / "pictures" / "same.png").write_bytes(copy)
    command = [tiny_parts.tower("cnn"), folder / "pictures", folder]
    together("tests.filling", [str(part) for part in command])
    return folder


@pytest.fixture(scope="module")
def expected(tiny_parts: Any, out: Path) -> torch.Tensor:
    """What one process computes."""
    alone = TowerAlone(*load_vision(f"local-dir:{tiny_parts.tower('cnn')}"))
    image_processor = LlavaMoleImageProcessor(alone.config.vision_part.preprocess)
    return FeatureStore(alone, image_processor, 4)(sorted((out / "pictures").glob("*.png")))


# Rank 1 begins with three pictures, which the other sees only on a disk that they share; without
# one, those of the three that fall to rank 0 are computed twice.
@pytest.mark.parametrize(("disk", "at_most"), [("none", 9), ("shared", 6), ("own", 9)])
def test_all_ranks_have_all_features(
    disk: str, at_most: int, out: Path, expected: torch.Tensor
) -> None:
    for rank in range(2):
        figures = json.loads((out / f"{disk}-{rank}.json").read_text())
        found = load_file(out / f"{disk}-{rank}.safetensors")["features"]
        assert torch.equal(found, expected)
        assert PICTURES - 3 <= figures["computed"] <= at_most
        assert figures["again"] == 0
        assert figures["memory"] == (PICTURES if disk == "none" else 0)
