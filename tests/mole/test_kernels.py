"""Kernels agree with `reference`: output and every gradient, in every dtype and shape of route."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import ExpertBank, LinearRouter, PairedRoute, Route, RouteContext
from llava_mole.mole import route as route_module
from llava_mole.mole.kernels import KERNELS, SORTED
from llava_mole.mole.route import Layout

IN, OUT = 24, 16
SPARSE = ["gathered", "tiled", "grouped"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", autouse=True)
def small_tiles() -> Iterator[None]:
    """As many tiles for the few tokens here as for a thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route_module, "TILE_TOKENS", 4)
        patch.setattr(route_module, "TILE_STEP", 3)
        yield


def make_bank(
    ranks: list[int],
    kernel: str,
    dtype: torch.dtype,
    widths: tuple[int, int] = (IN, OUT),
    shared_rank: int = 0,
) -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(
        *widths, ranks, scaling=1.5, kernel=kernel, shared_rank=shared_rank, dtype=dtype
    )
    torch.nn.init.normal_(bank.lora_B)
    return bank


def make_route(
    tokens: int, experts: int, shape: str, dtype: torch.dtype, seed: int = 1
) -> tuple[Route, Tensor]:
    """A route of a shape, and the leaf its weights come from."""
    generator = torch.Generator().manual_seed(seed)
    leaf = torch.rand(tokens, experts, generator=generator, dtype=torch.float64).to(dtype)
    leaf.requires_grad_(True)
    probs = leaf / leaf.sum(dim=1, keepdim=True)
    if shape == "dense":
        return Route(None, probs, probs), leaf
    if shape.startswith("top"):
        weights, indices = probs.topk(min(experts, int(shape[3:])), dim=1)
        return Route(indices, weights, probs), leaf
    indices = torch.randint(experts, (tokens, 1), generator=generator)
    if shape == "one expert for all":
        indices = torch.zeros_like(indices) + experts - 1
    if shape == "no gate":
        return Route(indices, None, probs), leaf
    return Route(indices, probs.gather(1, indices), probs), leaf


def run(
    kernel: str,
    ranks: list[int],
    tokens: int,
    shape: str,
    dtype: torch.dtype,
    *,
    masters: torch.dtype | None = None,
    widths: tuple[int, int] = (IN, OUT),
    seed: int = 1,
    shared_rank: int = 0,
) -> dict[str, Tensor]:
    """Output and all gradients, added to a linear's output."""
    bank = make_bank(ranks, kernel, masters or dtype, widths, shared_rank)
    route, leaf = make_route(tokens, len(ranks), shape, torch.promote_types(dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(1, tokens, widths[0], generator=generator, dtype=torch.float64).to(dtype)
    linear = torch.randn(widths[1], widths[0], generator=generator, dtype=torch.float64).to(dtype)
    x.requires_grad_(True)
    out = bank(x, route, x @ linear.T)
    assert out.dtype == dtype
    out.float().sin().sum().backward()
    zero = torch.zeros_like(leaf)
    assert bank.lora_A is not None
    return {
        "output": out.detach(),
        "input": x.grad,
        "A": bank.lora_A.grad,
        "B": bank.lora_B.grad,
        "gates": zero if leaf.grad is None else leaf.grad,
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in expected.items():
        if dtype is torch.bfloat16:
            # Each of up to four experts' parts is rounded to 8 bits in one order or another, in
            # the hidden units and again in the output: 8 roundings of 2^-8, so 2^-5 of the norm.
            error = (found[name].float() - value.float()).norm()
            assert error <= 2**-5 * value.float().norm() + 1e-5, name
        else:
            # Sums of at most some hundred terms in another order: a few ulp of the largest.
            few = 1e-12 if dtype is torch.float64 else 5e-5
            assert_close(found[name], value, rtol=few, atol=few, msg=lambda m, n=name: f"{n}: {m}")


def combinations() -> list[tuple[str, list[int], str]]:
    found = []
    for shape in ["top1", "one expert for all", "no gate", "top2", "dense"]:
        found += [("masked", ranks, shape) for ranks in ([3, 3, 3, 3], [1, 4, 2], [5, 1])]
        if shape != "dense":
            found += [(kernel, [r] * n, shape) for kernel in SPARSE for r, n in ((3, 4), (8, 3))]
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(("kernel", "ranks", "shape"), combinations(), ids=str)
def test_kernel_equals_reference_forward_and_all_gradients(
    kernel: str, ranks: list[int], shape: str, tokens: int, dtype: torch.dtype
) -> None:
    if kernel == "grouped" and dtype is torch.float64:
        pytest.skip("grouped_mm takes no float64; refused below")
    found = run(kernel, ranks, tokens, shape, dtype)
    assert_same(found, run("reference", ranks, tokens, shape, dtype), dtype)


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(1, torch.float32), (17, torch.float32), (17, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize(
    ("kernel", "ranks", "shape"),
    [
        *(("masked", [3] * 4, shape) for shape in ("top1", "no gate", "top2", "dense")),
        ("masked", [1, 4, 2], "top1"),
        ("masked", [4], "no gate"),
        *((kernel, [3] * 4, shape) for kernel in SPARSE for shape in ("top1", "no gate", "top2")),
    ],
    ids=str,
)
def test_units_that_every_token_uses_are_in_every_kernel(
    kernel: str, ranks: list[int], shape: str, tokens: int, dtype: torch.dtype
) -> None:
    found = run(kernel, ranks, tokens, shape, dtype, shared_rank=2)
    assert_same(found, run("reference", ranks, tokens, shape, dtype, shared_rank=2), dtype)
    assert found["A"][:2].abs().sum(1).gt(0).all()


def test_units_that_every_token_uses_are_a_lora_beside_the_experts() -> None:
    bank = make_bank([3, 3], "reference", torch.float64, shared_rank=2)
    alone = make_bank([3, 3], "reference", torch.float64)
    assert bank.lora_A is not None
    assert alone.lora_A is not None
    with torch.no_grad():
        alone.lora_A.copy_(bank.lora_A[2:])
        alone.lora_B.copy_(bank.lora_B[2:])
    route, _ = make_route(7, 2, "top1", torch.float64)
    x = torch.randn(7, IN, dtype=torch.float64)
    lora = 1.5 * (x @ bank.lora_A[:2].T) @ bank.lora_B[:2]
    assert_close(bank(x, route), alone(x, route) + lora)
    merged = alone.delta_weight() + (1.5 * bank.lora_B[:2].T @ bank.lora_A[:2]).float()
    assert_close(bank.delta_weight(), merged)


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("shared_rank", [0, 4])
def test_master_weights_compute_in_the_inputs_dtype(
    kernel: str, masters: torch.dtype, shared_rank: int
) -> None:
    """Float32 masters under bfloat16 inputs, and the other way round."""
    dtype = torch.bfloat16 if masters is torch.float32 else torch.float32
    more = {"masters": masters, "shared_rank": shared_rank}
    found = run(kernel, [8] * 3, 9, "top1", dtype, **more)
    expected = run("reference", [8] * 3, 9, "top1", dtype, **more)
    # Masters in bfloat16 hold gradients of 8 bits, whatever was computed.
    assert_same(found, expected, torch.bfloat16)
    assert found["A"].dtype == masters


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    experts=st.integers(1, 70),
    rank=st.integers(2, 9),
    top_k=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 10**6),
)
def test_kernels_agree_on_drawn_shapes(
    tokens: int, experts: int, rank: int, top_k: int, widths: tuple[int, int], seed: int
) -> None:
    """Tiles that end inside an expert, experts without tokens, more experts than tokens."""
    shape = f"top{top_k}"
    size = (8 * widths[0], 8 * widths[1])
    args = ([rank] * experts, tokens, shape, torch.float32)
    expected = run("reference", *args, widths=size, seed=seed)
    for kernel in ["masked", *SPARSE]:
        found = run(kernel, *args, widths=size, seed=seed)
        for name, value in expected.items():
            # As above, of the largest entry: hypothesis also draws entries near zero.
            bound = 5e-5 * (1 + float(value.abs().max()))
            assert_close(found[name], value, rtol=5e-5, atol=bound)


@pytest.mark.parametrize("shape", ["top1", "no gate", "top2", "dense"])
@pytest.mark.parametrize("kernel", ["reference", "masked", "tiled", "gathered"])
@pytest.mark.parametrize("shared_rank", [0, 2])
def test_gradients_are_those_of_finite_differences(
    kernel: str, shape: str, shared_rank: int
) -> None:
    if shape == "dense" and kernel in ("tiled", "gathered"):
        pytest.skip("these compute chosen experts only; refused below")
    bank = make_bank([2, 2, 2], kernel, torch.float64, (3, 4), shared_rank)
    route, _ = make_route(5, 3, shape, torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    gate = None if route.weights is None else route.weights.detach().requires_grad_()
    leaves = [x, bank.lora_A, bank.lora_B, *([] if gate is None else [gate])]

    def compute(x: Tensor, A: Tensor, B: Tensor, *gates: Tensor) -> Tensor:
        twin = make_bank([2, 2, 2], kernel, torch.float64, (3, 4), shared_rank)
        del twin.lora_A, twin.lora_B
        twin.lora_A, twin.lora_B = A, B
        return twin(x, Route(route.indices, gates[0] if gates else None, route.probs))

    assert torch.autograd.gradcheck(compute, leaves)


@pytest.mark.parametrize("kernel", ["masked", "tiled", "grouped"])
@pytest.mark.parametrize("sorts", [False, True])
def test_a_frozen_linears_own_gradient_may_be_computed_by_the_kernel(
    kernel: str, sorts: bool
) -> None:
    """`weight`: out comes without a graph, and x's gradient is that of both."""
    if sorts is (kernel == "masked"):
        pytest.skip("sorted kernels fuse where the block sorts, masked where it does not")
    gradients = []
    for fused in (False, True):
        bank = make_bank([4] * 5, kernel, torch.float32)
        route, _ = make_route(21, 5, "no gate", torch.float32)
        assert route.indices is not None
        if sorts:
            layout = Layout(route.indices, 5, kernel)
            route = Route(route.indices[layout.rows], None, None, layout=layout)
        torch.manual_seed(4)
        x = torch.randn(21, IN, requires_grad=True)
        weight = torch.randn(OUT, IN)
        out = (x.detach() if fused else x) @ weight.T
        bank(x, route, out, weight if fused else None).sin().sum().backward()
        gradients.append([x.grad, bank.lora_A.grad, bank.lora_B.grad])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("kernel", ["reference", "masked"])
@pytest.mark.parametrize("weighted", [False, True])
def test_paired_units_are_the_sum_over_positions(kernel: str, weighted: bool) -> None:
    bank = make_bank([1] * 5, kernel, torch.float64)
    sequence = torch.tensor([0, 0, 1, 1, 1])
    a, b = torch.tensor([[0, 3], [4, 1]]), torch.tensor([[2, 2], [0, 3]])
    weights = torch.tensor([[0.5, 2.0], [1.0, -1.0]], dtype=torch.float64) if weighted else None
    x = torch.randn(5, IN, dtype=torch.float64)
    out = bank(x, PairedRoute(sequence, a, b, weights))
    for token, s in enumerate(sequence.tolist()):
        expected = torch.zeros(OUT, dtype=torch.float64)
        for j in range(2):
            w = 1.0 if weights is None else weights[s, j]
            expected += w * 1.5 * bank.lora_B[b[s, j]] * (bank.lora_A[a[s, j]] @ x[token])
        assert_close(out[token], expected)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_an_expert_without_tokens_has_a_zero_gradient_not_none(kernel: str) -> None:
    found = run(kernel, [2, 2, 2], 5, "one expert for all", torch.float32)
    assert_close(found["A"][:4], torch.zeros(4, IN), rtol=0, atol=0)
    assert_close(found["B"][:4], torch.zeros(4, OUT), rtol=0, atol=0)
    assert found["A"][4:].abs().sum() > 0


@pytest.mark.parametrize("kernel", ["reference", "masked", "gathered", "tiled"])
def test_a_token_sees_its_own_expert_only(kernel: str) -> None:
    bank = make_bank([2, 2], kernel, torch.float64)
    x = torch.randn(4, IN, dtype=torch.float64)
    indices = torch.tensor([[0], [1], [1], [0]])
    out = bank(x, Route(indices, None, torch.ones(4, 2)))
    a, b = bank.lora_A.split([2, 2]), bank.lora_B.split([2, 2])
    for token, expert in enumerate(indices[:, 0].tolist()):
        assert_close(out[token], 1.5 * b[expert].T @ a[expert] @ x[token])


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_an_output_that_must_not_be_overwritten_is_not(kernel: str) -> None:
    bank = make_bank([2, 2], kernel, torch.float32)
    route, _ = make_route(3, 2, "no gate", torch.float32)
    x = torch.randn(3, IN)
    leaf = torch.zeros(3, OUT, requires_grad=True)
    view = torch.zeros(4, OUT)
    bank(x, route, leaf).sum().backward()
    bank(x, route, view[:3])
    assert not leaf.detach().any()
    assert not view.any()
    assert_close(leaf.grad, torch.ones(3, OUT))


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("shared_rank", [0, 3])
def test_without_gradient_the_output_is_the_same(kernel: str, shared_rank: int) -> None:
    bank = make_bank([2, 2], kernel, torch.float32, shared_rank=shared_rank)
    route, _ = make_route(7, 2, "top1", torch.float32)
    x = torch.randn(7, IN)
    with torch.no_grad():
        found = bank(x, route)
    assert_close(found, bank(x, route))


@pytest.mark.parametrize("masters", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("ranks", "shape"),
    [
        *(([3, 3, 3, 3], shape) for shape in ("top1", "top2", "no gate", "dense")),
        *(([1, 4, 2], shape) for shape in ("top1", "top2", "no gate", "dense")),
        ([1] * 6, "top3"),
        ([4], "top1"),
        ([4], "no gate"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shared_rank", [0, 2])
def test_one_token_without_a_graph_equals_reference(
    ranks: list[int], shape: str, dtype: torch.dtype, masters: torch.dtype, shared_rank: int
) -> None:
    """What `auto` does in decoding."""
    route, _ = make_route(1, len(ranks), shape, torch.promote_types(dtype, torch.float32))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 1, IN, generator=generator).to(dtype)
    linear = torch.randn(1, 1, OUT, generator=generator).to(dtype)
    with torch.no_grad():
        exact = make_bank(ranks, "reference", masters, shared_rank=shared_rank).double()
        expected = exact(x.double(), route, linear.double())
        own = linear.clone()
        found = make_bank(ranks, "auto", masters, shared_rank=shared_rank)(x, route, own)
        assert found.dtype == dtype
        assert found.data_ptr() == own.data_ptr()
        # Rounded once, at the end, and in float32 if nothing is wider.
        few = {torch.bfloat16: 2**-7, torch.float32: 5e-6, torch.float64: 1e-6}[dtype]
        if dtype is masters is torch.float64:
            few = 1e-12
        assert_close(found.double(), expected, rtol=few, atol=few)
        kept = linear.expand(2, 1, OUT)[:1]  # a view: must not be written to
        make_bank(ranks, "auto", masters, shared_rank=shared_rank)(x, route, kept)
        assert torch.equal(kept, linear)


def test_one_token_under_autocast_is_not_rounded_on_the_way() -> None:
    bank = make_bank([4] * 3, "auto", torch.float32)
    route, _ = make_route(1, 3, "top1", torch.float32)
    x, linear = torch.randn(1, IN).bfloat16(), torch.zeros(1, OUT).bfloat16()
    with torch.no_grad():
        expected = bank(x.float(), route, linear.float()).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(bank(x, route, linear.clone()), expected)


# ---------------------------------------------------------------------- what a kernel cannot take


@pytest.mark.parametrize("kernel", SPARSE)
def test_a_kernel_for_chosen_experts_refuses_all_of_them(kernel: str) -> None:
    with pytest.raises(ConfigError, match="uses all of them"):
        run(kernel, [4, 4], 3, "dense", torch.float32)


@pytest.mark.parametrize("kernel", SPARSE)
def test_a_stacking_kernel_refuses_ragged_ranks(kernel: str) -> None:
    with pytest.raises(ConfigError, match=r"one rank, found \[2, 4\]"):
        run(kernel, [4, 2], 3, "top1", torch.float32)


@pytest.mark.parametrize("kernel", SORTED)
def test_sorting_refuses_experts_of_rank_1(kernel: str) -> None:
    with pytest.raises(ConfigError, match="cannot take experts of rank 1"):
        run(kernel, [1, 1, 1], 3, "top2", torch.float32)


@pytest.mark.parametrize("kernel", SPARSE)
def test_paired_units_are_refused_by_kernels_that_cannot_pair(kernel: str) -> None:
    bank = make_bank([1, 1], kernel, torch.float32)
    units = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ConfigError, match="cannot pair"):
        bank(torch.randn(1, IN), PairedRoute(torch.zeros(1, dtype=torch.long), units, units))


def test_grouped_refuses_float64_and_odd_widths() -> None:
    with pytest.raises(ConfigError, match="float64"):
        run("grouped", [4, 4], 3, "top1", torch.float64)
    with pytest.raises(ConfigError, match=r"multiples of 8 in torch\.bfloat16, found 12"):
        run("grouped", [4, 4], 3, "top1", torch.bfloat16, widths=(12, 16))


def test_grouped_is_given_matrices_that_begin_at_whole_16_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As CUDA's grouped_mm wants them; engines that keep parameters in one buffer cut anywhere."""
    bank = make_bank([8] * 3, "grouped", torch.bfloat16)
    for name in ("lora_A", "lora_B"):
        matrix = getattr(bank, name)
        buffer = torch.empty(matrix.numel() + 4, dtype=matrix.dtype)[4:]
        assert buffer.data_ptr() % 16 == 8
        setattr(bank, name, torch.nn.Parameter(buffer.view_as(matrix).copy_(matrix.detach())))
    seen = []
    real = F.grouped_mm

    def watched(left: Tensor, right: Tensor, **more: Any) -> Tensor:
        seen.extend((left.data_ptr() % 16, right.data_ptr() % 16))
        return real(left, right, **more)

    monkeypatch.setattr(F, "grouped_mm", watched)
    route, _ = make_route(6, 3, "top1", torch.bfloat16)
    x = torch.randn(6, IN, dtype=torch.bfloat16, requires_grad=True)
    bank(x, route).sum().backward()
    assert len(seen) >= 10
    assert not any(seen)


@pytest.mark.parametrize("shape", ["top1", "dense"])
def test_masked_keeps_one_matrix_of_units_beside_the_gates(shape: str) -> None:
    bank = make_bank([4, 4, 4], "masked", torch.float32)
    route, _ = make_route(6, 3, shape, torch.float32)
    kept: dict[int, tuple[int, ...]] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = bank(torch.randn(6, IN, requires_grad=True), route)
    assert list(kept.values()).count((6, 12)) == 2  # units, gates
    out.sum().backward()


@pytest.mark.parametrize(
    ("routing", "gate"),
    [("top1", "none"), ("top1", "straight_through"), ("top1", "scaled"), ("dense", "none")],
)
@pytest.mark.parametrize("kernel", ["masked", *SPARSE])
def test_the_routers_gradient_is_the_same_through_every_kernel(
    kernel: str, routing: str, gate: str
) -> None:
    if routing == "dense" and kernel != "masked":
        pytest.skip("computes chosen experts only; refused above")

    def through(name: str) -> list[Tensor | None]:
        bank = make_bank([2, 2, 2], name, torch.float32)
        torch.manual_seed(3)
        router = LinearRouter(
            IN, 3, top_k=1 if routing == "top1" else None, gate=gate, context=RouteContext()
        )
        x = torch.randn(9, IN, requires_grad=True)
        bank(x, router(x)).sin().sum().backward()
        assert router.bias is not None
        return [x.grad, router.weight.grad, router.bias.grad]

    for found, expected in zip(through(kernel), through("reference"), strict=True):
        if gate == "none" and routing == "top1" and expected is None:
            assert found is None
        else:
            assert_close(found, expected, rtol=1e-5, atol=1e-5)
