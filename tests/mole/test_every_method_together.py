"""What must hold for every method beside other adapters, PEFT's LoRA and a base that trains."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.testing import assert_close

from llava_mole.mole import (
    active_adapters,
    append_task,
    auxiliary_losses,
    delete_adapter,
    disable_adapter,
    enable_adapter,
    load,
    mole_context,
    save,
    set_adapter,
)
from tests.helpers import random_ids
from tests.mole.arms import (
    ARMS,
    FLOAT32,
    ONE_OF_EACH,
    assert_near,
    base_model,
    batch,
    build,
    put,
    rouse,
    step,
    train_inputs,
    unit_counts,
)

IDS = random_ids(2, 12)
NAMES = list(ARMS)
PAIRS = list(zip(NAMES, [*NAMES[7:], *NAMES[:7]], strict=True))
"""Each arm with one of another method."""

EXACT = {"rtol": 0, "atol": 0}


# ---------------------------------------------------------------------- several adapters


def last_linear(name: str, other: str | None = None, **changes: Any) -> Any:
    """A model with experts on the last linear alone, under the names "first" and "second"."""
    place = {"target_modules": ("down_proj",), "layers_to_transform": (1,)}
    model = base_model("llama")
    put(model, ARMS[name], "first", awake=False, **place)
    if other is not None:
        put(model, ARMS[other], "second", awake=False, **place, **changes)
    return rouse(model)


def block_output(model: Any) -> Tensor:
    """Of the last MLP on the same input: linear in what its last linear adds."""
    for name in active_adapters(model):
        mole_context(model, name)[0].begin(2, 12, None, "cpu")
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.model.layers[1].mlp(x)


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_two_adapters_add_up_each_at_its_own_scaling(name: str, other: str) -> None:
    model = last_linear(name, other, lora_alpha=14.0)
    both = block_output(model)
    parts = []
    for adapter in ("first", "second"):
        set_adapter(model, adapter)
        parts.append(block_output(model))
    disable_adapter(model)
    base = block_output(model)
    assert all(float((part - base).norm()) > 0.1 for part in parts)
    assert_close(both, sum(parts) - base, **FLOAT32)


@pytest.mark.parametrize("name", [name for name in ARMS if "amlora" not in name])
def test_the_scaling_is_proportional_to_alpha(name: str) -> None:
    """Not AM-LoRA's: its router reads the scaled outputs."""
    deltas = []
    for alpha in (3.0, 12.0):
        model = last_linear(name, name, lora_alpha=alpha)
        set_adapter(model, "second")
        on = block_output(model)
        disable_adapter(model)
        deltas.append(on - block_output(model))
    assert_close(deltas[1], 4 * deltas[0], **FLOAT32)


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_switching_and_deleting_restore_the_exact_earlier_logits(name: str, other: str) -> None:
    model = base_model("llama")
    parameters = list(model.state_dict())

    def logits() -> Tensor:
        with torch.no_grad():
            return model(IDS).logits

    base = logits()
    put(model, ARMS[name], "first")
    state = copy.deepcopy(model.state_dict())
    first = logits()
    put(model, ARMS[other], "second")
    model.load_state_dict(state, strict=False)  # the first as it was
    both = logits()
    assert active_adapters(model) == ["first", "second"]
    set_adapter(model, "second")
    second = logits()
    assert len({float(x.sum()) for x in (base, first, second, both)}) == 4
    set_adapter(model, "first")
    assert_close(logits(), first, **EXACT)
    disable_adapter(model)
    assert_close(logits(), base, **EXACT)
    enable_adapter(model)
    assert_close(logits(), both, **EXACT)
    delete_adapter(model, "second")
    assert_close(logits(), first, **EXACT)
    assert list(model.state_dict()) == list(state)
    delete_adapter(model, "first")
    assert_close(logits(), base, **EXACT)
    assert list(model.state_dict()) == parameters


def assert_steps_agree(make: Callable[[str], Any], kernels: Any, padding: str = "left") -> None:
    """A model of each kernel takes the same step as one of `reference`; see FLOAT32."""
    expected = step(make("reference"), batch(padding))
    for kernel in kernels:
        assert_near(step(make(kernel), batch(padding)), expected, 1e-4)


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_two_adapters_on_the_same_linears_have_the_right_gradients(name: str, other: str) -> None:
    """A frozen linear's part of its input's gradient goes once, whoever computes it."""

    def make(kernel: str) -> Any:
        model = base_model("llama")
        model.model.layers.requires_grad_(False)
        put(model, ARMS[name], "first", kernel=kernel)
        put(model, ARMS[other], "second", kernel="auto" if kernel != "reference" else kernel)
        return train_inputs(model)

    assert_steps_agree(make, [k for k in ARMS[name].kernels if k in ("auto", "tiled", "grouped")])


@pytest.mark.parametrize("kernel", ["tiled", "grouped"])
def test_padding_counts_for_nothing_where_another_adapter_sorts_tokens(kernel: str) -> None:
    def make(kernel: str) -> Any:
        model = base_model("llama")
        put(model, ARMS["llava_mole"], "first", kernel=kernel)
        for other in ("smora", "dynmole tsallis", "conditional_mixlora scaled"):
            put(model, ARMS[other], other.replace(" ", "_"), target_modules="mlp-linears")
        return model.train()

    found = []
    for name in ("masked", kernel):
        model = make(name)
        found.append((step(model, batch("right")), unit_counts(model)))
    assert_near(found[1][0], found[0][0], 1e-4)  # see FLOAT32
    assert_close(found[1][1], found[0][1], **EXACT)


# ---------------------------------------------------------------------- beside PEFT, and the base

LORAS = {
    "first, on the same linears": (True, ["gate_proj", "down_proj", "q_proj"]),
    "afterwards, on the same linears": (False, ["gate_proj", "down_proj", "q_proj"]),
    "on other linears": (True, ["k_proj"]),
}


def with_lora(name: str, where: str, **changes: Any) -> Any:
    lora_first, targets = LORAS[where]
    lora = LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False)
    model = base_model("llama")
    model.model.layers.requires_grad_(False)

    def add_lora() -> None:
        torch.manual_seed(7)
        inject_adapter_in_model(lora, model)

    if lora_first:
        add_lora()
    put(model, ARMS[name], awake=False, **changes)
    if not lora_first:
        add_lora()
    return rouse(model)


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_kernels_agree_beside_peft_lora(name: str, lora: str) -> None:
    def make(kernel: str) -> Any:
        model = with_lora(name, lora, kernel=kernel)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("base_layer.weight" not in key)
        return train_inputs(model)

    kernels = [k for k in ARMS[name].kernels if k in ("auto", "tiled", "grouped")]
    assert_steps_agree(make, kernels)


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_experts_beside_peft_lora_are_those_on_a_base_with_the_lora_merged(
    name: str, lora: str, tmp_path: Path
) -> None:
    both = with_lora(name, lora)
    save(both, tmp_path)
    merged = base_model("llama")
    with torch.no_grad():
        for linear, module in both.named_modules():
            if hasattr(module, "base_layer"):
                merged.get_submodule(linear).weight.add_(module.get_delta_weight("default"))
    load(merged, tmp_path)
    # One rounded weight in place of a sum of products.
    assert_close(both(IDS).logits, merged(IDS).logits, rtol=1e-3, atol=1e-3)
    for key, value in auxiliary_losses(both).items():
        assert_close(value, auxiliary_losses(merged)[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lora", LORAS)
def test_a_task_is_appended_beside_peft_lora(lora: str) -> None:
    model = with_lora("amlora sigmoid", lora).eval()
    context = mole_context(model)[0]
    before = model(IDS).logits
    append_task(model)
    assert mole_context(model)[0] is context
    # The new LoRA's output is 0 and its weight is its own; one more term is added.
    assert_close(model(IDS).logits, before, **FLOAT32)


TRAINED: dict[str, Callable[[str], bool]] = {
    "all of the base": lambda key: True,
    "biases of the base alone": lambda key: "mole_" not in key and key.endswith("bias"),
    "one linear of the base": lambda key: "up_proj.weight" in key or "mole_" in key,
    "A": lambda key: "_A" in key and "mole_bank" in key,
    "B": lambda key: "_B" in key and "mole_bank" in key,
    "routers": lambda key: "mole_router" in key,
}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_whatever_trains_has_the_right_gradient(name: str, trained: str) -> None:
    # Qwen 2 has biases on the linears of its attention.
    def make(kernel: str) -> Any:
        model = put(base_model("qwen2"), ARMS[name], kernel=kernel)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(TRAINED[trained](key))
        return train_inputs(model)

    assert_steps_agree(make, ARMS[name].kernels if name == "llava_mole" else ["auto"])


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_with_dropout_kernels_agree_in_training_and_in_eval_mode(name: str) -> None:
    """Those that keep the order of the tokens: dropout draws in it."""

    def make(kernel: str, training: bool) -> Any:
        model = train_inputs(build(name, kernel=kernel, lora_dropout=0.5).train(training))
        torch.manual_seed(9)
        return model

    kernels = [kernel for kernel in ("masked", "gathered") if kernel in ARMS[name].kernels]
    for training in (True, False):
        assert_steps_agree(functools.partial(make, training=training), kernels)
