"""model.attn_implementation: flex_attention equals the others on trees and packed rows; what this
machine lacks, or what cannot be masked, is refused by key before anything is loaded."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.testing import assert_close
from transformers import AutoConfig

from llava_mole.attention import ATTENTIONS, MASKED, mask_problem, missing_here
from llava_mole.building import build_model
from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, samples_by_expert
from llava_mole.tree import block_mask, check_supported, tree_positions, visibility
from tests.helpers import FAMILIES, gradients
from tests.test_tree import as_rows, as_tree, conversations

# Two trees in a row, padding, and a row of one tree.
SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, 0, 0, 1, 2, 2, -1, -1], [0] * 3 + [1] * 9])
TREES = torch.tensor([[0] * 5 + [1] * 5 + [-1] * 2, [0] * 12])


@pytest.fixture
def eager_flex() -> Iterator[None]:
    """flex_attention by torch's own unfused mathematics: compiling it would take a minute each."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def flex_backward_on_cpu(monkeypatch: pytest.MonkeyPatch, eager_flex: None) -> None:
    """torch refuses the backward pass on CPUs, for it has no compiled kernel of it there; its
    unfused mathematics differentiates on every device."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("trees", [None, TREES])
def test_a_block_mask_shows_what_its_readable_twin_shows(
    window: int | None, trees: Tensor | None
) -> None:
    segments = SEGMENTS if trees is not None else SEGMENTS[1:]
    positions = tree_positions(segments, trees)
    mask = block_mask(segments, positions, window, trees)
    rows, length = segments.shape
    row, query, key = torch.meshgrid(
        torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij"
    )
    seen = mask.mask_mod(row, torch.tensor(0), query, key)
    assert torch.equal(seen, visibility(segments, positions, window, trees))
    assert mask.shape == (rows, 1, length, length)


def twins(tiny_model: Callable[..., Any], family: str, **options: Any) -> list[Any]:
    """The same model under flex_attention, and as it is tested elsewhere, with its processor."""
    found = []
    for attention in ({"attn_implementation": "flex_attention"}, {}):
        model, processor = tiny_model(family, **options, **attention)
        found.append(model)
    assert found[0].language_model.config._attn_implementation == "flex_attention"
    return [*found, processor]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("eager_flex")
def test_a_tree_row_under_flex_attention_equals_the_others(
    tiny_model: Callable[..., Any], family: str
) -> None:
    """Gemma 2 too, whose soft cap sdpa has not."""
    mole = MoleConfig(num_experts=3, r=2, balance_coef=0.5)
    flex, plain, processor = twins(tiny_model, family, mole=mole, lora=True)
    batch = as_tree(processor, *conversations())
    with torch.no_grad():
        found, expected = flex(**batch), plain(**batch)
    # Float32 sums in another order; logits up to ~30.
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for name, value in expected.losses.items():
        assert_close(found.losses[name], value, rtol=1e-5, atol=1e-5)
    assert_close(samples_by_expert(flex), samples_by_expert(plain))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("build", [as_tree, as_rows])
@pytest.mark.usefixtures("flex_backward_on_cpu")
def test_flex_attention_has_the_gradients_of_the_others(
    tiny_model: Callable[..., Any], family: str, build: Any
) -> None:
    mole = MoleConfig(num_experts=3, r=2, gate="scaled")
    flex, plain, processor = twins(tiny_model, family, mole=mole)
    batch = build(processor, *conversations())
    found = []
    for model in (flex, plain):
        model.requires_grad_(True).train()
        model(**batch).loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        # Float32 sums in another order.
        error = (found[0][name] - expected).norm()
        assert error <= 1e-4 * expected.norm() + 1e-6, name


@pytest.mark.gpu
def test_compiled_flex_attention_has_the_gradients_of_sdpa_on_an_accelerator(
    tiny_model: Callable[..., Any], tiny_parts: Any
) -> None:
    wide = tiny_parts.language_model("llama", head_dim=64)  # torch's kernel takes none below 16
    options = {"language_model": wide, "dtype": "bfloat16", "mole": MoleConfig(num_experts=3, r=2)}
    flex, plain, processor = twins(tiny_model, "llama", **options)
    batch = {k: v.cuda() for k, v in as_tree(processor, *conversations()).items()}
    found = []
    for model in (flex, plain):
        model.cuda().requires_grad_(True).train()
        model(**batch).loss.backward()
        found.append(gradients(model))
    for name, expected in found[1].items():
        difference = (found[0][name] - expected).float().norm()
        assert difference <= 0.05 * expected.float().norm() + 1e-3, name


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("key", ["share_prefix", "packing"])
def test_only_flash_attention_takes_no_mask(key: str) -> None:
    assert {a for a in ATTENTIONS if mask_problem(a, key) is None} == set(MASKED)
    config = AutoConfig.for_model("llama")
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=rf"{key} needs .*sdpa, eager or flex_attention.*{key}: "):
        check_supported(config, key)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")
def test_flash_attention_without_a_cuda_device_is_refused_before_anything_is_loaded(
    tiny_parts: Any,
) -> None:
    recipe = tiny_parts.recipe(
        language_model="nowhere/to/be/found", attn_implementation="flash_attention_2"
    )
    with pytest.raises(ConfigError, match="needs a CUDA device; take sdpa or eager"):
        build_model(recipe)


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed"
)
def test_a_missing_package_is_named_with_its_command_and_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    problem = missing_here("flash_attention_2", "bfloat16")
    assert problem is not None
    for word in ("pip install flash-attn", "sdpa", "flex_attention"):
        assert word in problem


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about a machine of CPUs alone")
def test_flex_attention_trains_on_accelerators_only_and_says_what_to_take() -> None:
    assert missing_here("flex_attention", "float32") is None
    problem = missing_here("flex_attention", "float32", training=True)
    assert problem is not None
    assert "no backward pass" in problem
    assert "sdpa" in problem
