"""`llava-mole merge`: the same answers without adapters, and a folder that starts the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_mole.building import ModelRecipe, build_model
from llava_mole.cli import main
from llava_mole.mole import MoleConfig
from tests import helpers

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
ONE_EXPERT = MoleConfig(num_experts=1, r=2, lora_alpha=4, target_modules=["up_proj", "down_proj"])
Make = Callable[..., Any]


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    chat = [helpers.user("What is six times seven?", helpers.picture(3)), helpers.assistant("42")]
    return model(**helpers.training_batch(processor, [chat])).logits.float()


def folders(root: Path) -> tuple[list[str], Path]:
    return ["merge", str(root / "trained"), "--out", str(root / "merged")], root / "merged"


@pytest.mark.parametrize(
    "adapters", [{"lora": LORA}, {"mole": ONE_EXPERT}, {"lora": LORA, "mole": ONE_EXPERT}], ids=str
)
def test_what_is_merged_answers_as_before(
    tiny_model: Make, tmp_path: Path, adapters: dict[str, Any]
) -> None:
    model, processor = tiny_model("gemma3_text", parrot=True, **adapters)
    model.save_pretrained(tmp_path / "trained", processor=processor)
    words, merged = folders(tmp_path)
    assert main(words) == 0
    assert not (merged / "adapters").exists()
    before, after = logits(tmp_path / "trained"), logits(merged)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    plain, processor = tiny_model("gemma3_text", parrot=True)
    plain.save_pretrained(tmp_path / "plain", processor=processor)
    assert (after - logits(tmp_path / "plain")).abs().max() > 0.1  # the adapters mattered


def test_a_bf16_model_keeps_its_dtype_and_moves_by_its_rounding(
    tiny_model: Make, tmp_path: Path
) -> None:
    model, processor = tiny_model("llama", lora=LORA, dtype="bfloat16")
    model.save_pretrained(tmp_path / "trained", processor=processor)
    words, merged = folders(tmp_path)
    assert main(words) == 0
    loaded = AutoModelForImageTextToText.from_pretrained(merged)
    assert {p.dtype for p in loaded.language_model.parameters()} == {torch.bfloat16}
    before, after = logits(tmp_path / "trained"), logits(merged)
    assert (after - before).abs().max() < 0.05 * before.abs().max()


def test_the_next_run_starts_from_it(tiny_model: Make, tmp_path: Path) -> None:
    model, processor = tiny_model("llama", lora=LORA)
    model.save_pretrained(tmp_path / "trained", processor=processor)
    words, merged = folders(tmp_path)
    assert main(words) == 0
    recipe = ModelRecipe(start_from=str(merged), dtype="float32", lora={**LORA, "r": 4})
    started, processor = build_model(recipe)
    started.save_pretrained(tmp_path / "next", processor=processor)
    torch.testing.assert_close(logits(tmp_path / "next"), logits(merged))


def test_the_card_still_names_the_language_model(tiny_model: Make, tmp_path: Path) -> None:
    model, processor = tiny_model("llama", lora=LORA)
    model.save_pretrained(tmp_path / "trained", processor=processor)
    words, merged = folders(tmp_path)
    assert main(words) == 0
    name = AutoModelForImageTextToText.from_pretrained(tmp_path / "trained").config.provenance
    assert AutoModelForImageTextToText.from_pretrained(merged).config.provenance == name


@pytest.mark.parametrize(
    ("adapters", "said"),
    [({}, "nothing to merge"), ({"mole": True}, "cannot merge 3 experts of llava_mole")],
    ids=["none", "routed"],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    tiny_model: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    adapters: dict[str, Any],
    said: str,
) -> None:
    model, processor = tiny_model("llama", **adapters)
    model.save_pretrained(tmp_path / "trained", processor=processor)
    words, merged = folders(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not merged.exists()
