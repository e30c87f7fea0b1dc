"""No kernel waits for the device: nothing is read on the host, and on CUDA all agree."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava_mole.mole import auxiliary_losses, mark_trainable
from tests.helpers import gradients
from tests.mole.arms import (
    ARMS,
    assert_near,
    base_model,
    batch,
    build,
    put,
    step,
    train_inputs,
)

NO_READING = [
    (name, kernel)
    for name, kernel in itertools.product(ARMS, ("masked", "grouped", "gathered"))
    if kernel in ARMS[name].kernels and not ARMS[name].is_paired()
]
"""Conditional MixLoRA is left out: it refuses a batch in which a row has no prompt."""
WITHOUT_READING = [name for name in ARMS if ARMS[name].losses and ARMS[name].extensive]
"""LoRAMoE is left out: kinds of samples come from the CPU."""


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


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", WITHOUT_READING)
def test_losses_read_no_value_on_the_host(name: str, padding: str | None) -> None:
    model = build(name).train()
    model(**batch(padding))
    with NothingReadOnTheHost():
        losses = auxiliary_losses(model)
        assert losses.keys() == set(ARMS[name].losses)
        sum(losses.values()).backward()  # type: ignore[union-attr]


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITHOUT_READING)
def test_on_cuda_losses_do_not_wait_for_the_device(name: str) -> None:
    model = build(name).cuda().train()
    inputs = {key: value.cuda() for key, value in batch("left").items()}
    for mode in ("default", "error"):  # the first time libraries start and allocate
        model(**inputs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            sum(auxiliary_losses(model).values()).backward()  # type: ignore[union-attr]
        finally:
            torch.cuda.set_sync_debug_mode("default")


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


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "kernel"), NO_READING)
def test_on_cuda_kernels_agree_with_reference_in_bfloat16(name: str, kernel: str) -> None:
    def run(kernel: str) -> dict[str, Tensor]:
        model = put(base_model("llama").to("cuda", torch.bfloat16), ARMS[name], kernel=kernel)
        mark_trainable(model)
        generator = torch.Generator().manual_seed(0)
        # One block: through a whole model, roundings change a route here and there.
        x = torch.randn(4, 60, 32, generator=generator).to("cuda", torch.bfloat16).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            out = model.train().model.layers[1].mlp(x)
        towards = torch.randn(out.shape, generator=generator).to(out)
        (out * towards).float().sum().backward()
        assert x.grad is not None
        return {"out": out.detach(), "x": x.grad, **gradients(model)}

    # Each output is rounded to 8 bits, and so is what comes between. Where down_proj has a router
    # of its own, which reads such outputs, a token here and there has another expert.
    assert_near(run(kernel), run("reference"), 0.06, 1e-3)
