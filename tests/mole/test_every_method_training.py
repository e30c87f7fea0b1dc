"""What must hold for every method in all its options while it trains and beside other adapters.

See `arms.py` for the methods, and `test_every_method.py` for the rest.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    active_adapters,
    append_task,
    auxiliary_losses,
    delete_adapter,
    disable_adapter,
    enable_adapter,
    expert_parameters,
    load,
    mark_trainable,
    mole_context,
    router_parameters,
    router_step,
    save,
    set_adapter,
)
from tests.helpers import gradients, random_ids
from tests.mole.arms import (
    ARMS,
    ONE_OF_EACH,
    WITH_LOSSES,
    assert_near,
    base_model,
    batch,
    build,
    put,
    rouse,
    step,
)

IDS = random_ids(2, 12)
NAMES = list(ARMS)
PAIRS = list(zip(NAMES, [*NAMES[7:], *NAMES[:7]], strict=True))
"""Each arm with one of another method."""

# As in test_every_method.py: float32 sums in another order, passed on by layers.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}
EXACT = {"rtol": 0, "atol": 0}


def unit_counts(model: nn.Module) -> dict[str, Tensor]:
    """SMoRA's counts since the last step, and clear them."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "counts", None) is not None:
            found[name], module.counts = module.counts, None
    return found


# ---------------------------------------------------------------------- activation checkpointing


@pytest.mark.parametrize("name", ARMS)
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    model = build(name).train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        results = step(model, batch("right"))
        records = [record.name for record in mole_context(model)[0].records]
        found.append((results, records, unit_counts(model)))
    (plain, names, counts), (again, names_again, counts_again) = found
    assert_close(again, plain, **EXACT)
    assert names_again == names
    assert len(set(names)) == len(names) > 0
    assert_close(counts_again, counts, **EXACT)
    assert bool(counts) is ("smora" in name)


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_of_a_pass_without_a_graph_are_refused_with_the_key_to_change(name: str) -> None:
    model = build(name).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model(**batch())
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing_kwargs=.*'use_reentrant': False"
    ):
        auxiliary_losses(model)
    model.eval()
    with torch.no_grad():
        model(**batch())
    assert auxiliary_losses(model)


@pytest.mark.parametrize("name", ARMS)
def test_without_an_auxiliary_loss_reentrant_checkpointing_changes_nothing(name: str) -> None:
    model = build(name, **ARMS[name].without_losses()).train()
    model.enable_input_require_grads()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        found.append((step(model, batch("right")), unit_counts(model)))
    # A zero gradient may be none at all.
    (plain, counts), (again, counts_again) = found
    assert_close({key: again[key] for key in plain}, plain, **EXACT)
    assert_close(counts_again, counts, **EXACT)


# ---------------------------------------------------------------------- micro-batches


def accumulate(model: Any, sizes: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and summed losses of a step over four rows, in micro-batches of `sizes`."""
    inputs = batch("right", rows=(12, 7, 9, 5))
    tokens = int((inputs["labels"][:, 1:] != -100).sum())
    model.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for part in zip(*(value.split(sizes) for value in inputs.values()), strict=True):
        rows = dict(zip(inputs, part, strict=True))
        losses = {"task": model(**rows, num_items_in_batch=tokens).loss}
        losses |= auxiliary_losses(model, num_samples=4)
        sum(losses.values()).backward()
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + value.item()
    return gradients(model), sums


@pytest.mark.parametrize("name", ARMS)
def test_micro_batches_add_up_to_the_whole_batch(name: str) -> None:
    arm = ARMS[name]
    model = build(name, **({} if arm.extensive else arm.without_losses())).train()
    whole, losses = accumulate(model, [4])
    counts = unit_counts(model)
    parts, sums = accumulate(model, [1, 2, 1])
    assert sums == pytest.approx(losses, rel=1e-5)
    assert_near(parts, whole, 1e-4)  # see FLOAT32
    assert_close(unit_counts(model), counts, **EXACT)


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if not arm.extensive])
def test_a_statistic_of_the_batch_is_averaged_over_micro_batches(name: str) -> None:
    """LoRAMoE's loss is a dispersion over a batch's samples: what adds up is each batch's share."""
    model = build(name)
    inputs = batch("right", rows=(12, 7, 9, 5))
    alone = []
    for part in zip(*(value.split([1, 3]) for value in inputs.values()), strict=True):
        model(**dict(zip(inputs, part, strict=True)))
        alone.append(auxiliary_losses(model)["balance"].item())
    _, whole = accumulate(model, [4])
    _, sums = accumulate(model, [1, 3])
    assert sums["balance"] == pytest.approx(alone[0] / 4 + alone[1] * 3 / 4, rel=1e-5)
    assert sums["balance"] != pytest.approx(whole["balance"], rel=1e-2)


# ---------------------------------------------------------------------- two processes

SMORA = [name for name in ARMS if "smora" in name]


def balance_biases(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.named_buffers() if k.endswith("balance_bias")}


def one_rank(rank: int, name: str, folder: str, rows: list[list[int]]) -> None:
    """A process of two: a pass over its rows, the step, its biases into a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = build(name).train()
    inputs = batch("right")
    with torch.no_grad():
        for row in rows[rank]:
            model(**{key: value[row : row + 1] for key, value in inputs.items()})
    router_step(model)
    save_file(balance_biases(model), f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [[[0], [1]], [[0, 1], []]], ids=["a row each", "one has none"])
@pytest.mark.parametrize("name", SMORA)
def test_two_processes_move_smoras_bias_as_one_does(
    name: str, rows: list[list[int]], tmp_path: Path
) -> None:
    # Forked, for importing takes ten seconds. The children compute forward on one thread, which
    # needs none of the parent's.
    context = torch.multiprocessing.get_context("fork")
    arguments = [(rank, name, str(tmp_path), rows) for rank in range(2)]
    processes = [context.Process(target=one_rank, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    model = build(name).train()
    before = balance_biases(model)
    model(**batch("right"))
    router_step(model)
    alone = balance_biases(model)
    assert any(not torch.equal(alone[key], before[key]) for key in alone)
    for rank in range(2):
        # Counts are whole numbers, so their sums have no rounding.
        assert_close(load_file(tmp_path / f"{rank}.safetensors"), alone, **EXACT)


@pytest.mark.parametrize("name", SMORA)
def test_only_passes_in_training_count_for_the_bias(name: str) -> None:
    model = build(name)
    model(**batch("right"))
    assert not unit_counts(model)
    model.train()
    model(**batch("right"))
    real = int(batch("right")["attention_mask"].sum())
    for counts in unit_counts(model).values():
        assert counts.sum() == 2 * real  # two units for each token that is not padding


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


def train_inputs(model: Any) -> Any:
    """Input embeddings that need a gradient: then every linear's input does."""
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


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


# ---------------------------------------------------------------------- precision and tiny inputs


@pytest.mark.parametrize("name", ARMS)
def test_under_autocast_kernels_agree_and_training_lowers_the_loss(name: str) -> None:
    # One layer's linears with one input: rounding flips no choice; see test_every_method.py.
    place = {"layers_to_transform": (1,), "target_modules": ("gate_proj", "up_proj")}
    kernels = ["reference", *(k for k in ARMS[name].kernels if k != "masked")]
    found, losses = [], []
    for kernel in kernels:
        model = build(name, kernel=kernel, **place).train()
        train_inputs(model)
        found.append(step(model, batch("right"), autocast=True))
    for results in found[1:]:
        # Parts of up to six experts rounded to 8 bits, in hidden units and again in the output.
        assert_near(results, found[0], 2**-5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(6):
        losses.append(step(model, batch("right"), autocast=True)["loss"])
        optimizer.step()
        router_step(model)
    assert all(p.isfinite().all() for p in model.parameters())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ARMS)
def test_a_model_cast_as_a_whole_still_trains(name: str, dtype: torch.dtype) -> None:
    results = step(build(name).train().to(dtype), batch("right"))
    assert all(value.isfinite().all() for value in results.values())
    assert results["logits"].dtype == dtype


def tiny_step(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    logits = model(ids).logits
    (logits.sin().sum() + sum(auxiliary_losses(model).values())).backward()
    return {"logits": logits.detach()} | gradients(model)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)], ids=str)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_token_and_one_row(name: str, shape: tuple[int, int]) -> None:
    ids = random_ids(*shape)
    expected = tiny_step(train_inputs(build(name, kernel="reference").train()), ids)
    for kernel in ARMS[name].kernels:
        found = tiny_step(train_inputs(build(name, kernel=kernel).train()), ids)
        # See FLOAT32; attention to a single token has no gradient but of rounding errors.
        assert_near(found, expected, 1e-4, floor=1e-4)
    assert all(value.isfinite().all() for value in expected.values())


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if "gathered" in arm.kernels])
def test_experts_that_are_never_chosen_have_zero_gradients(name: str) -> None:
    """Routers of zeros choose the same experts for every token."""

    def make(kernel: str) -> Any:
        model = build(name, kernel=kernel, **ARMS[name].without_losses())
        with torch.no_grad():
            for parameter in router_parameters(model).values():
                parameter.zero_()
        return model

    expected = step(make("reference"), batch())
    idle = 0
    for key, parameter in expert_parameters(make("auto")).items():
        if key.endswith("lora_B"):
            units = expected[key].abs().sum(1)
            assert len(units) == len(parameter)
            idle += int((units == 0).sum())
    assert idle > 0
    for kernel in ARMS[name].kernels:
        found = step(make(kernel), batch())
        assert_near(found, expected, 1e-4)  # see FLOAT32
        for key in expert_parameters(make("auto")):
            zero = expected[key].abs().sum(1) == 0
            assert not found[key][zero].any()


@pytest.mark.parametrize("name", ARMS)
def test_a_pass_in_inference_mode_leaves_nothing_behind(name: str) -> None:
    model = build(name)
    expected = step(model, batch())
    with torch.inference_mode():
        assert_close(model(**batch()).logits, expected["logits"], **FLOAT32)
    assert_close(step(model, batch()), expected, **EXACT)


# ---------------------------------------------------------------------- the host

NO_READING = [
    (name, kernel)
    for name, kernel in itertools.product(ARMS, ("masked", "grouped", "gathered"))
    if kernel in ARMS[name].kernels and not ARMS[name].is_paired()
]
"""Conditional MixLoRA is left out: it refuses a batch in which a row has no prompt."""


class NothingReadOnTheHost(TorchDispatchMode):
    """Refuses what would make a GPU wait: values or shapes that depend on values, and literals."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask, "indexed by a mask"
        assert name not in self.READING, name
        return func(*args, **(kwargs or {}))


def block_step(model: Any, x: Tensor) -> Callable[[], None]:
    """Forward and backward of the last MLP."""
    block = model.model.layers[1].mlp

    def run() -> None:
        block(x).float().sin().sum().backward()

    return run


@pytest.mark.parametrize(("name", "kernel"), NO_READING)
def test_a_block_reads_no_value_on_the_host(name: str, kernel: str) -> None:
    model = build(name, kernel=kernel).train()
    run = block_step(model, torch.randn(2, 9, 32, requires_grad=True))
    run()
    with NothingReadOnTheHost():
        run()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "kernel"), NO_READING)
def test_on_cuda_a_block_does_not_wait_for_the_device(
    name: str, kernel: str, dtype: torch.dtype
) -> None:
    fast = dtype is torch.bfloat16 and torch.cuda.get_device_capability()[0] in (9, 10)
    if kernel == "grouped" and not fast:
        pytest.skip("elsewhere torch's grouped_mm loops over groups and reads their ends")
    model = put(base_model("llama").to("cuda", dtype), ARMS[name], kernel=kernel)
    mark_trainable(model)
    x = torch.randn(2, 9, 32, device="cuda", dtype=dtype, requires_grad=True)
    run = block_step(model.train(), x)
    run()  # libraries start and allocate
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kernel"), [(n, k) for n in ARMS for k in ARMS[n].kernels])
def test_on_cuda_kernels_agree_with_reference(name: str, kernel: str) -> None:
    def run(kernel: str) -> dict[str, Tensor]:
        model = train_inputs(build(name, kernel=kernel).cuda())
        return step(model, {key: value.cuda() for key, value in batch("left").items()})

    # torch multiplies float32 matrices exactly unless told to use TF32; see FLOAT32.
    assert_near(run(kernel), run("reference"), 1e-4)
