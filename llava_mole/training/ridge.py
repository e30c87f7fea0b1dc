"""Ridge start: the warm start of an `rbf` projector, in closed form.

The same pairs as in `warm_start.py`, without a gradient. Every drawing (plain or re-drawn) is a
unit of the projector; where there are more of them than units, the plain ones come first. What the
units stand for is the ridge regression of each drawing's mean token on the mean direction of its
names:

    V = argmin sum_i |V m_i - t_i|^2 + lambda |V|^2        m_i = mean over tokens of k(x_it)
    t_i = mean over languages of n_il + sum_kinds weight * (the same of the kind's answers)

n_il as in `warm_start.name_vectors`. One pass over the pictures and one linear system, so it takes
seconds. Drawings by another hand lie between the known ones, where a mean of neighbours is the best
guess: there these directions come much nearer to the right names than a trained MLP's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from llava_mole.data.sample import ImageRef, Sample
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.projector import RadialBasisProjector, root
from llava_mole.training.recipe import WarmStartRecipe
from llava_mole.training.warm_start import Log, Pairs, alignment_loss, naming_accuracy

logger = logging.getLogger(__name__)

SHOWN = 128
"""Pictures that the logged accuracy is among."""
CHUNK = 32_000_000
"""Entries of the kernel worked out at a time: 128 MB."""
PICTURES = 256
"""Pictures whose features are read at a time."""


@torch.no_grad()
def ridge_start(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    samples: Sequence[Sample],
    features: Callable[[Sequence[ImageRef]], Tensor],
    recipe: WarmStartRecipe,
    *,
    seed: int,
    variants: Mapping[Any, Sequence[Path]] | None = None,
    log: Log | None = None,
) -> dict[str, float]:
    """Solve for the projector in place.

    Args:
        model: its projector is an `rbf`; the rest is only read.
        processor, samples, features, variants, log: as in `warm_start`.
        recipe: `kind`, `also`, `alignment_weight` (which `also` is relative to) and `ridge`.
        seed: of the choice among re-drawings, where there are more drawings than units.

    Returns:
        Cosine between plain pictures and their names, accuracy as a warm start logs it, among
        `SHOWN` of them, seconds.
    """
    started = time.monotonic()
    projector = model.projector
    assert isinstance(projector, RadialBasisProjector)
    pairs = Pairs(model, processor, samples, recipe)
    target = mean_direction(pairs.vectors, pairs.mask)
    for weight, vectors, answered in pairs.others:
        target = target + weight / recipe.alignment_weight * mean_direction(vectors, answered)
    drawings = [
        (row, path)
        for row, picture in enumerate(pairs.pictures)
        for path in (picture, *(variants or {}).get(picture, ()))
    ]
    units = len(projector.centres)
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(drawings))
    plain = {picture: row for row, picture in enumerate(pairs.pictures)}
    first = [index for index in order if drawings[index][1] in plain]
    rest = [index for index in order if drawings[index][1] not in plain]
    chosen = sorted([*first, *rest][:units])
    if len(drawings) > units:
        logger.warning(
            "%d drawings share %d units: %d of them, re-drawings first, have none of their own "
            "(model.projector.units)", len(drawings), units, len(drawings) - units,
        )  # fmt: skip
    set_centres(projector, features, [drawings[i][1] for i in chosen], [p for _, p in drawings])

    used = len(chosen)
    device = projector.centres.device
    gram = torch.zeros(used, used, device=device)
    moment = torch.zeros(used, target.shape[1], device=device)
    size = max(1, CHUNK // (units * features([drawings[0][1]]).shape[1]))
    bar = tqdm(total=len(drawings), desc="ridge start", unit="drawing")
    with bar:
        for start in range(0, len(drawings), size):
            part = drawings[start : start + size]
            mean = mean_kernel(projector, features([path for _, path in part]))[:, :used]
            gram += mean.T @ mean
            moment += mean.T @ target[[row for row, _ in part]].to(device)
            bar.update(len(part))
    gram.diagonal().add_((recipe.ridge * gram.diagonal().mean()).clamp(min=1e-12))
    values = torch.linalg.solve(gram.double(), moment.double())
    projector.values.weight.zero_()
    projector.values.weight[:, :used] = values.T.to(projector.values.weight)
    projector.offset.copy_(pairs.centre)
    projector.scale.fill_(pairs.spread * target.shape[1] ** 0.5)

    projector.eval()
    shown = rng.permutation(len(pairs.pictures))[:SHOWN]
    dtype = projector.values.weight.dtype
    seen = features([pairs.pictures[row] for row in shown])[:, 1:].to(device, dtype)
    vector = (projector(seen).float().mean(1) - pairs.centre).cpu()
    named, mask = pairs.vectors[shown], pairs.mask[shown]
    last = {
        "cosine": 1 - alignment_loss(vector, named, mask).item(),
        "accuracy": naming_accuracy(vector, named, mask),
    }
    if log is not None:
        log({"step": 0, **last, "units": used, "drawings": len(drawings)})
    return {**last, "seconds": time.monotonic() - started}


def mean_direction(vectors: Tensor, mask: Tensor) -> Tensor:
    """(K, languages, D) and (K, languages) -> (K, D); zero where there is none."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    return (vectors * mask.unsqueeze(-1)).sum(1) / count


def mean_kernel(projector: RadialBasisProjector, features: Tensor) -> Tensor:
    """(N, 1 + P, D_v) -> (N, units) float32, the mean over the P tokens."""
    tokens = features[:, 1:].to(projector.centres)
    return projector.kernel(tokens).float().mean(1)


def set_centres(
    projector: RadialBasisProjector,
    features: Callable[[Sequence[ImageRef]], Tensor],
    chosen: Sequence[ImageRef],
    drawings: Sequence[ImageRef],
) -> None:
    """Direction of each chosen drawing's mean token; `projector.mean` is over all `drawings`."""
    total = torch.zeros(projector.mean.shape, dtype=torch.float64, device=projector.mean.device)
    for start in range(0, len(drawings), PICTURES):
        part = features(drawings[start : start + PICTURES])[:, 1:].to(projector.mean)
        total += root(part.mean(1)).sum(0)
    projector.mean.copy_(total / len(drawings))
    projector.centres.zero_()
    for start in range(0, len(chosen), PICTURES):
        part = features(chosen[start : start + PICTURES])[:, 1:].to(projector.mean)
        projector.centres[start : start + len(part)] = projector.direction(part.mean(1))
