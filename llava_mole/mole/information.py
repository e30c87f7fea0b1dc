"""What the choice of expert tells about a label of the sample: its domain, its language. In bits.

Draw a sample, one of its tokens, and an expert by its share of that token's gates:

    I(expert; label) = sum_l p(l) sum_e p(e | l) log2 (p(e | l) / p(e))

with p(e | l) the mean of the samples' shares (`statistics.shares_by_sample`). 0 where experts are
used alike whatever the label; H(label) where the expert gives the label away.

The estimate is never negative, so a few samples make information of noise. Tokens of a sample are
not independent, which rules out corrections that count tokens (Miller and Madow's). So the bias is
measured: labels are permuted over *samples*, or over what the caller says is drawn together, and
the mean of these shuffles is taken off. Their 95th percentile and p say what chance alone reaches.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_mole.errors import ConfigError


@dataclass(frozen=True)
class Information:
    """Of one router about one label.

    Attributes:
        bits: the estimate as it comes, biased upwards.
        control, control_95: mean and 95th percentile of the same with permuted labels.
        p: share of permutations that reach `bits`, itself counted as one of them.
        entropy: H(label) in bits, the most that can be known.
    """

    bits: float
    control: float
    control_95: float
    p: float
    entropy: float

    @property
    def corrected(self) -> float:
        """`bits` less the shuffles' mean; about 0, on either side, where nothing is known."""
        return self.bits - self.control

    @property
    def normalised(self) -> float:
        """`corrected` over H(label); 0 with a single label."""
        return self.corrected / self.entropy if self.entropy else 0.0


@torch.no_grad()
def mutual_information(
    shares: Tensor,
    labels: Sequence[Hashable],
    *,
    shuffles: int = 200,
    seed: int = 0,
    units: Sequence[Hashable] | None = None,
    within: Sequence[Hashable] | None = None,
) -> list[Information]:
    """Of each router; all meet the same permutations.

    Args:
        shares: (S, L, E) of S samples at L routers; a router with fewer experts has zeros.
        labels: S of them.
        shuffles: permutations, at least 1.
        seed: of them.
        units: samples with the same unit (questions about one picture) keep one label together, so
            that their likeness is not taken for information; all of them have the same label. None:
            each sample for itself.
        within: only samples that are alike here change places (language within a domain): what this
            already tells about the label is then part of the control.

    Returns:
        L of them.

    Raises:
        ConfigError: numbers do not fit or are not finite, there is no sample, or a unit has two
            labels or is in two groups of `within`.
    """
    if not isinstance(shares, Tensor):
        raise ConfigError(
            f"shares are a {type(shares).__name__}, expected a tensor (samples, routers, experts): "
            "of one pass torch.stack([one.shares for one in shares_by_sample(model)], 1), of "
            "several torch.cat of these"
        )
    if shares.dim() != 3 or len(shares) != len(labels) or not len(labels):
        raise ConfigError(
            f"shares of shape {tuple(shares.shape)} for {len(labels)} labels: expected (samples, "
            "routers, experts), a label for each sample, and at least one"
        )
    if not torch.isfinite(shares).all():
        raise ConfigError("shares hold nan or infinity: a router, or the pass itself, went wrong")
    if shuffles < 1:
        raise ConfigError(f"shuffles={shuffles}: at least 1 is needed for a control")
    codes = _codes(labels)
    unit = torch.arange(len(codes)) if units is None else _codes(units)
    group = torch.zeros_like(codes) if within is None else _codes(within)
    of_unit = _per_unit(codes, unit, "label")
    group_of_unit = _per_unit(group, unit, "group of `within`")
    shares = shares.double().cpu()
    kinds = int(codes.max()) + 1
    found = _bits(shares, codes, kinds)
    generator = torch.Generator().manual_seed(seed)
    control = torch.stack(
        [
            _bits(shares, _permuted(of_unit, group_of_unit, generator)[unit], kinds)
            for _ in range(shuffles)
        ]
    )
    counts = torch.bincount(codes, minlength=kinds).double() / len(codes)
    entropy = float(-_plogp(counts).sum())
    # A permutation that only swaps equal labels is the original up to the order of its sums.
    reached = (control >= found - 1e-12).sum(0)
    return [
        Information(
            bits=float(found[router]),
            control=float(control[:, router].mean()),
            control_95=float(control[:, router].quantile(0.95)),
            p=float((1 + reached[router]) / (1 + shuffles)),
            entropy=entropy,
        )
        for router in range(shares.shape[1])
    ]


def _bits(shares: Tensor, codes: Tensor, kinds: int) -> Tensor:
    """(L,) the plug-in estimate; shares (S, L, E) in double precision."""
    samples, routers, experts = shares.shape
    joint = torch.zeros(kinds, routers * experts, dtype=shares.dtype)
    joint.index_add_(0, codes, shares.reshape(samples, -1))
    joint = joint.view(kinds, routers, experts) / samples
    total = joint.sum((0, 2))  # 1, or less where some samples have no share
    joint = joint / total.clamp(min=torch.finfo(joint.dtype).tiny)[None, :, None]
    by_label = _plogp(joint.sum(2)).sum(0)
    by_expert = _plogp(joint.sum(0)).sum(1)
    return (_plogp(joint).sum((0, 2)) - by_label - by_expert).clamp(min=0)


def _plogp(p: Tensor) -> Tensor:
    """p log2 p, 0 at 0."""
    return torch.special.xlogy(p, p) / torch.log(torch.tensor(2.0, dtype=p.dtype))


def _codes(values: Sequence[Hashable]) -> Tensor:
    """(n,) 0, 1, … in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


def _per_unit(codes: Tensor, unit: Tensor, what: str) -> Tensor:
    """(U,) the code that all samples of a unit have.

    Raises:
        ConfigError: `what` differs within one.
    """
    if len(unit) != len(codes):
        raise ConfigError(f"{len(unit)} units for {len(codes)} samples")
    per_unit = torch.zeros(int(unit.max()) + 1, dtype=torch.long)
    per_unit[unit] = codes
    if not bool((per_unit[unit] == codes).all()):
        raise ConfigError(f"a unit holds samples of more than one {what}; leave units out")
    return per_unit


def _permuted(codes: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """(U,) the codes, permuted among equals of a group."""
    order = group.argsort(stable=True)
    lots = torch.randperm(len(codes), generator=generator)
    drawn = lots[group[lots].argsort(stable=True)]
    out = torch.empty_like(codes)
    out[order] = codes[drawn]
    return out
