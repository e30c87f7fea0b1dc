"""When and how tokens are sorted by expert: tiles, and the rule of `auto`."""

import pytest
import torch

from llava_mole.mole import kernels as kernels_module
from llava_mole.mole import route as route_module
from llava_mole.mole.config import KERNELS as NAMES
from llava_mole.mole.kernels import KERNELS, choose
from llava_mole.mole.route import Layout, tile_count


@pytest.fixture(params=[False, True], ids=["plain products", "AMX"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU is taken for one that multiplies tiles."""
    for module in (route_module, kernels_module):
        monkeypatch.setattr(module, "HAS_AMX", request.param)
    return request.param


def test_tiles_are_many_where_products_are_dear_and_have_enough_tokens(
    amx: bool,
) -> None:
    assert tile_count(1024, 64) == (4 if amx else 8)
    assert tile_count(8192, 64) == (4 if amx else 64)
    assert tile_count(1024, 4) == (1 if amx else 4)
    assert tile_count(300, 64) == 2
    assert tile_count(1, 64) == tile_count(100, 4) == 1


@pytest.mark.parametrize("chosen", ["all", "some", "one"])
def test_every_token_is_in_the_tile_of_its_expert(
    amx: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_module, "TILE_TOKENS", 4)
    monkeypatch.setattr(route_module, "TILE_STEP", 3)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(40, (101, 1), generator=generator)
    if chosen == "some":
        indices = indices // 7 * 7
    if chosen == "one":
        indices = torch.full_like(indices, 23)
    layout = Layout(indices, 40, "tiled")
    tiles = layout.tiles()
    assert len(tiles) <= (2 if amx else 25)
    assert len(tiles) == {"all": 2 if amx else 25, "one": 1}.get(chosen, len(tiles))
    experts = [expert for *_, low, high in tiles for expert in range(low, high)]
    assert experts == sorted(set(experts))  # each in one tile, units are written once
    seen = torch.zeros(101, dtype=torch.long)
    for start, stop, low, high in tiles:
        own = layout.experts[start:stop]
        seen[start:stop] += (own >= low) & (own < high)
        assert stop - start == 101 or (stop - start) % route_module.TILE_STEP == 0
        assert low in own
        assert high - 1 in own
    assert seen.eq(1).all()
    assert torch.equal(indices[layout.rows][layout.inverse()], indices)
    counts = torch.bincount(indices[:, 0], minlength=40)
    assert torch.equal(layout.ends.long(), counts.cumsum(0))


# ---------------------------------------------------------------------- the rule of `auto`


def chosen(tokens: int = 1024, **changes: object) -> str:
    values = {"top_k": 1, "ranks": (16,) * 4, "device": torch.device("cpu")}
    values |= {"dtype": torch.bfloat16, "sortable": True}
    return choose(tokens=tokens, **{**values, **changes})


def test_auto_names_a_kernel_that_there_is() -> None:
    assert set(NAMES) == {"auto", *KERNELS}
    assert chosen(ranks=(16,) * 2) == "masked"
    assert chosen(ranks=(16,) * 64) == "tiled"
    assert chosen(1, ranks=(16,) * 64) == "gathered"


def test_auto_goes_wide_further_on_a_gpu_and_never_gathers_what_fits() -> None:
    gpu = torch.device("cuda")
    assert chosen(ranks=(16,) * 64, device=gpu) == "masked"
    assert chosen(1, ranks=(16,) * 64, device=gpu) == "masked"
    many = (64,) * 64
    assert chosen(ranks=many, device=gpu) == "grouped"
    assert chosen(ranks=many, device=gpu, dtype=torch.float32) == "masked"
    assert chosen(1, ranks=many, device=gpu) == "gathered"


def test_auto_sorts_earlier_where_products_are_dear(amx: bool) -> None:
    assert chosen(ranks=(16,) * 3) == "masked"
    for ranks in ((16,) * 4, (16,) * 16):
        assert chosen(ranks=ranks) == ("masked" if amx else "tiled")
        assert chosen(ranks=ranks, device=torch.device("cuda")) == "masked"
    assert chosen(ranks=(16,) * 64) == "tiled"


def test_auto_does_not_sort_for_a_single_tile() -> None:
    many = (16,) * 64
    assert [chosen(tokens, ranks=many) for tokens in (33, 255, 256)] == [
        "masked",
        "masked",
        "tiled",
    ]


def test_auto_never_names_one_that_cannot_take_the_route() -> None:
    many = (16,) * 64
    assert chosen(top_k=None, ranks=many) == "masked"
    assert chosen(ranks=(*many, 4)) == "masked"
    assert chosen(ranks=many, sortable=False) == "masked"
    cuda, many = torch.device("cuda"), (64,) * 64
    assert chosen(ranks=many, device=cuda) == "grouped"
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert chosen(ranks=many, device=cuda, dtype=dtype) == "masked"
    assert chosen(ranks=many, device=cuda, aligned=False) == "masked"
