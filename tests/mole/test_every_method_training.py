"""What must hold for every method in all its options while it trains. See `arms.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    auxiliary_losses,
    expert_parameters,
    mole_context,
    router_parameters,
    router_step,
)
from llava_mole.mole.hooks import Banks
from llava_mole.mole.router import Router
from tests.helpers import gradients, random_ids
from tests.mole.arms import (
    ARMS,
    FLOAT32,
    ONE_OF_EACH,
    WITH_LOSSES,
    assert_near,
    batch,
    build,
    step,
    train_inputs,
    unit_counts,
)

EXACT = {"rtol": 0, "atol": 0}


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


@pytest.mark.parametrize("name", ARMS)
def test_a_block_that_checkpointing_computes_anew_leaves_no_graph_behind(name: str) -> None:
    """It is left at the last tensor that is needed: hooks that only run after a whole block would
    leave its route there, and with it everything the block computed."""
    model = build(name).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step(model, batch("right"))
    for module in model.modules():
        if isinstance(module, Router):
            assert module.current is None
        if isinstance(module, Banks):
            assert module._input is None


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
    torch.distributed.barrier()  # see ranks.leave
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
