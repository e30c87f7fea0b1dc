"""Ranks whose rows differ in kind never wait for each other, and sum up to what one would compute.

Text on one rank and pictures on the other, with every part trained but the language model, Parrot
on, and more experts than some rank has tokens for. A deadlock is a failure after the time limit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import together

pytestmark = pytest.mark.slow

LLAVA_MOLE = {"num_experts": 6, "r": 2, "lora_alpha": 4.0, "balance_coef": 0.5}
FROZEN_TOWER = ["projector", "experts", "routers"]
CASES: dict[str, dict[str, Any]] = {
    # Layer -2 leaves a block of the tower, and its head, without a part in anything.
    "ddp": {"engine": "ddp", "vision_layer": -2, "seeds": 7},
    "fsdp": {"engine": "fsdp", "vision_layer": -2, "seeds": 7},
    "fsdp, tower frozen": {
        "engine": "fsdp", "family": "llama", "train": FROZEN_TOWER, "reshard": False, "seeds": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("ddp", marks=pytest.mark.thorough),
        pytest.param("fsdp", marks=pytest.mark.thorough),
        "fsdp, tower frozen",
    ],
)
def test_ranks_with_other_kinds_of_rows_sum_up_to_one(
    case: str, tiny_parts: Any, tmp_path: Path
) -> None:
    """float32 sums in another order: 2^-24 of the largest gradient, over some layers."""
    options = {"experts": LLAVA_MOLE, **CASES[case]}
    tiny_parts.language_model(options.get("family", "gemma3_text")), tiny_parts.tower("vit")
    together(
        "tests.training.mixed_ranks",
        [str(tmp_path), str(tiny_parts.root), json.dumps(options)],
    )
    for rank in range(2):
        differences = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(differences) == options["seeds"]
        assert max(differences.values()) < 2e-5, differences
