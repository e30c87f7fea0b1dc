"""Kernels agree with `reference`: output and every gradient, in every dtype and shape of route."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from llava_mole.mole import ExpertBank, LinearRouter, Route, RouteContext
from llava_mole.mole.kernels import KERNELS

IN, OUT = 12, 10
FAST = sorted(set(KERNELS) - {"reference"})
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def make_bank(ranks: list[int], kernel: str, dtype: torch.dtype) -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(IN, OUT, ranks, scaling=1.5, kernel=kernel, dtype=dtype)
    torch.nn.init.normal_(bank.lora_B)
    return bank


def make_route(tokens: int, experts: int, shape: str, dtype: torch.dtype) -> tuple[Route, Tensor]:
    """A route of a shape, and the leaf its weights come from."""
    generator = torch.Generator().manual_seed(1)
    leaf = torch.rand(tokens, experts, generator=generator, dtype=torch.float64).to(dtype)
    leaf.requires_grad_(True)
    probs = leaf / leaf.sum(dim=1, keepdim=True)
    if shape == "dense":
        return Route(torch.arange(experts).expand(tokens, experts), probs, probs), leaf
    if shape == "top2":
        weights, indices = probs.topk(2, dim=1)
        return Route(indices, weights, probs), leaf
    indices = torch.randint(experts, (tokens, 1), generator=generator)
    if shape == "one expert for all":
        indices = torch.zeros_like(indices) + experts - 1
    return Route(indices, probs.gather(1, indices), probs), leaf


def run(
    kernel: str, ranks: list[int], tokens: int, shape: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output and all gradients. Weights are float32 masters where the input is bfloat16."""
    bank = make_bank(ranks, kernel, torch.float32 if dtype is torch.bfloat16 else dtype)
    route, leaf = make_route(tokens, len(ranks), shape, bank.lora_A.dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, tokens, IN, generator=generator, dtype=torch.float64).to(dtype)
    x.requires_grad_(True)
    out = bank(x, route)
    assert out.dtype == dtype
    out.float().sin().sum().backward()
    zero = torch.zeros_like(leaf)
    return {
        "output": out.detach(),
        "input": x.grad,
        "A": bank.lora_A.grad,
        "B": bank.lora_B.grad,
        "gates": zero if leaf.grad is None else leaf.grad,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["top1", "one expert for all", "top2", "dense"])
@pytest.mark.parametrize("ranks", [[3, 3, 3, 3], [1, 4, 2], [5, 1]], ids=str)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("kernel", FAST)
def test_kernel_equals_reference_forward_and_all_gradients(
    kernel: str, tokens: int, ranks: list[int], shape: str, dtype: torch.dtype
) -> None:
    found = run(kernel, ranks, tokens, shape, dtype)
    expected = run("reference", ranks, tokens, shape, dtype)
    for name, value in expected.items():
        if dtype is torch.bfloat16:
            # Each of up to four experts' parts is rounded to 8 bits in one order or another, in
            # the hidden units and again in the output: 8 roundings of 2^-8, so 2^-5 of the norm.
            error = (found[name].float() - value.float()).norm()
            assert error <= 2**-5 * value.float().norm() + 1e-6, name
        else:
            # Sums of at most 17 terms in another order: a few ulp.
            few = 1e-13 if dtype is torch.float64 else 2e-5
            assert_close(found[name], value, rtol=few, atol=few, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_expert_without_tokens_has_a_zero_gradient_not_none(kernel: str) -> None:
    found = run(kernel, [2, 2, 2], 5, "one expert for all", torch.float32)
    assert_close(found["A"][:4], torch.zeros(4, IN), rtol=0, atol=0)
    assert found["A"][4:].abs().sum() > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_token_sees_its_own_expert_only(kernel: str) -> None:
    bank = make_bank([2, 3], kernel, torch.float64)
    x = torch.randn(4, IN, dtype=torch.float64)
    indices = torch.tensor([[0], [1], [1], [0]])
    out = bank(x, Route(indices, torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 2)))
    a, b = bank.lora_A.split([2, 3]), bank.lora_B.split([2, 3], dim=1)
    for token, expert in enumerate(indices[:, 0].tolist()):
        assert_close(out[token], 1.5 * b[expert] @ a[expert] @ x[token])


@pytest.mark.parametrize(
    ("routing", "gate"),
    [("top1", "none"), ("top1", "straight_through"), ("top1", "scaled"), ("dense", "none")],
)
@pytest.mark.parametrize("kernel", FAST)
def test_the_routers_gradient_is_the_same_through_every_kernel(
    kernel: str, routing: str, gate: str
) -> None:
    def through(name: str) -> list[Tensor | None]:
        bank = make_bank([2, 2, 2], name, torch.float32)
        torch.manual_seed(3)
        router = LinearRouter(IN, 3, routing=routing, gate=gate, context=RouteContext())
        x = torch.randn(9, IN, requires_grad=True)
        bank(x, router(x)).sin().sum().backward()
        return [x.grad, router.weight.grad, router.bias.grad]

    for found, expected in zip(through(kernel), through("reference"), strict=True):
        if gate == "none" and routing == "top1" and expected is None:
            assert found is None
        else:
            assert_close(found, expected, rtol=1e-5, atol=1e-6)
