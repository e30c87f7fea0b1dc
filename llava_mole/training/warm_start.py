"""Warm start: teach the projector what pictures are called, before the language model ever runs.

A symmetric contrastive loss between each picture and its name, in every language at once: the
picture's vector is the mean of its projected tokens, the name's is the mean of its *input*
embeddings, both centred (names per language, or the language itself would be the easiest feature).
No language-model forward pass, so a step is cheap, and the gradient says where in the embedding
space a picture belongs instead of asking all layers to find out. A second term pulls the picture
towards its names, and if asked towards its answers of other kinds (its category, its colour):
contrast alone is content with any direction that tells pictures apart.

Works for any tower and language model; on the decoder's side only the embedding table is used.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from llava_mole.data.sample import ImageRef, Sample
from llava_mole.errors import DataError, TrainingError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor
from llava_mole.projector import Projector
from llava_mole.training.one_language import OneLanguage
from llava_mole.training.recipe import WarmStartRecipe

Log = Callable[[dict[str, Any]], None]


Answers = dict[ImageRef, dict[str, str]]
"""Picture -> language -> answer."""


def names_of_pictures(samples: Sequence[Sample], kind: str | Sequence[str]) -> Answers:
    """From the answers of samples of one kind, or of the first of several that a picture has.

    Raises:
        DataError: no sample of a kind has exactly one picture.
    """
    kinds = [kind] if isinstance(kind, str) else list(kind)
    return merged(answers_by_kind(samples, kinds), kinds)


def warm_start_answers(
    samples: Sequence[Sample], recipe: WarmStartRecipe
) -> tuple[Answers, dict[str, Answers]]:
    """Names as `names_of_pictures` finds them, and the answers of each kind in `recipe.also`.
    The data are read once, however many kinds there are.

    Raises:
        DataError: no sample of a kind has exactly one picture.
    """
    kinds = [recipe.kind] if isinstance(recipe.kind, str) else list(recipe.kind)
    found = answers_by_kind(samples, [*kinds, *recipe.also])
    others = {kind: merged(found, [kind], f"warm_start.also.{kind}") for kind in recipe.also}
    return merged(found, kinds), others


def answers_by_kind(samples: Sequence[Sample], kinds: Sequence[str]) -> dict[str, Answers]:
    """Of samples with one picture, the last answer."""
    found: dict[str, Answers] = {one: defaultdict(dict) for one in kinds}
    for sample in samples:
        of_kind = found.get(sample.metadata.get("kind", ""))
        if of_kind is not None and len(sample.images) == 1:
            answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
            of_kind[sample.images[0]][sample.language] = answers[-1]
    return found


def merged(
    found: Mapping[str, Answers], kinds: Sequence[str], key: str = "warm_start.kind"
) -> Answers:
    """A picture's answers are those of the first of the kinds that has any; `key` of the recipe
    asked for them."""
    names: Answers = {}
    for one in reversed(kinds):
        names |= found[one]
    few = next((one for one in kinds if len(found[one]) < 2), None)
    if few is not None:
        raise DataError(
            f"{key}: {len(found[few])} pictures have a sample of kind {few!r}; "
            + (
                "name a kind whose answers name the picture, or drop the stage "
                "(stages.warm_start=null, with 'model.projector={type: mlp2x_gelu}')"
                if key == "warm_start.kind"
                else "drop this key, or name a kind that the data have"
            )
        )
    return names


@torch.no_grad()
def name_vectors(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    names: Sequence[Mapping[str, str]],
    languages: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """Mean input embedding of each name, centred per language, at unit length.

    Returns:
        (pictures, languages, D) vectors and a mask (pictures, languages), False where a picture
        has no name in a language.
    """
    table = model.get_input_embeddings()
    width = model.config.text_config.hidden_size
    vectors = torch.zeros(len(names), len(languages), width)
    mask = torch.zeros(len(names), len(languages), dtype=torch.bool)
    texts: dict[str, Tensor] = {}  # many pictures share an answer
    for row, by_language in enumerate(names):
        for column, language in enumerate(languages):
            if language not in by_language:
                continue
            text = by_language[language]
            if text not in texts:
                ids = torch.tensor(processor.question_ids(text))
                texts[text] = table(ids.to(model.device)).float().mean(0).cpu()
            vectors[row, column] = texts[text]
            mask[row, column] = True
    for column in range(len(languages)):
        rows = mask[:, column]
        if rows.any():
            vectors[rows, column] -= vectors[rows, column].mean(0)
    return F.normalize(vectors, dim=-1), mask


@torch.no_grad()
def embedding_statistics(
    model: LlavaMoleForConditionalGeneration, tokens: Sequence[int]
) -> tuple[Tensor, float]:
    """Mean (D,) and standard deviation of the decoder's input embeddings of `tokens`."""
    ids = torch.tensor(sorted(set(tokens)), device=model.device)
    vectors = model.get_input_embeddings()(ids).float()
    mean = vectors.mean(0)
    return mean, (vectors - mean).std().item()


class Pairs:
    """Pictures and what a warm start pulls them to.

    Attributes:
        pictures: each once; those with an answer of any of the kinds.
        vectors, mask: of their names, see `name_vectors`.
        languages: their codes, the second axis of vectors and masks.
        others: (weight, vectors, mask) of each kind in `recipe.also`.
        kinds: of samples that took part.
        answered: (pictures, languages) True where there is an answer of any kind.
        centre, spread: mean (D,) and standard deviation of the names' input embeddings.
    """

    def __init__(
        self,
        model: LlavaMoleForConditionalGeneration,
        processor: LlavaMoleProcessor,
        samples: Sequence[Sample],
        recipe: WarmStartRecipe,
    ) -> None:
        by_picture, others = warm_start_answers(samples, recipe)
        kinds = [recipe.kind] if isinstance(recipe.kind, str) else recipe.kind
        self.kinds = [*kinds, *recipe.also]
        every = [by_picture, *others.values()]
        self.pictures = list(dict.fromkeys(picture for known in every for picture in known))
        languages = sorted({one for known in every for by in known.values() for one in by})

        def vectors(answers: Mapping[ImageRef, Mapping[str, str]]) -> tuple[Tensor, Tensor]:
            known = [answers.get(picture, {}) for picture in self.pictures]
            return name_vectors(model, processor, known, languages)

        self.languages = languages
        self.vectors, self.mask = vectors(by_picture)
        self.others = [(recipe.also[kind], *vectors(known)) for kind, known in others.items()]
        self.answered = torch.stack([self.mask, *(mask for _, _, mask in self.others)]).any(0)
        names = {name for known in by_picture.values() for name in known.values()}
        tokens = [token for name in names for token in processor.question_ids(name)]
        self.centre, self.spread = embedding_statistics(model, tokens)


def match_embeddings(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    samples: Sequence[Sample],
    features: Callable[[Sequence[ImageRef]], Tensor],
    count: int = 64,
) -> None:
    """Where no warm start comes first: bring the projector to the scale of the answers' embeddings,
    by `count` samples from all over the data. Text alone leaves it as it is."""
    places = sorted({place * len(samples) // count for place in range(count)})
    shown = [sample for sample in (samples[place] for place in places) if sample.images]
    if not shown:
        return
    texts = [turn.text for sample in shown for turn in sample.turns if turn.role == "assistant"]
    tokens = [token for text in texts for token in processor.question_ids(text)]
    mean, spread = embedding_statistics(model, tokens)
    seen = features([sample.images[0] for sample in shown])[:, 1:].to(model.device)
    assert isinstance(model.projector, Projector)
    model.projector.match_scale(seen, mean, spread)


def contrastive_loss(pictures: Tensor, names: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE, averaged over languages.

    Args:
        pictures: (K, D) one vector per picture, centred.
        names: (K, languages, D) unit vectors.
        mask: (K, languages).
        scale: scalar, one over the temperature.
    """
    pictures = F.normalize(pictures, dim=-1)
    losses = []
    for column in range(names.shape[1]):
        rows = mask[:, column].nonzero().squeeze(1)
        if len(rows) < 2:
            continue
        logits = scale * pictures[rows] @ names[rows, column].T
        target = torch.arange(len(rows), device=logits.device)
        losses.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    # Two names of one language are needed to tell apart; a step may hold none such.
    return torch.stack(losses).mean() if losses else 0 * pictures.sum()


def alignment_loss(pictures: Tensor, names: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine between a picture and its names, mean over pairs. Arguments as above.

    With names in several languages it cannot reach 0: the best a picture can do is their mean.
    Without a pair: 0, with a gradient of zeros.
    """
    if not mask.any():
        return 0 * pictures.sum()
    cosines = torch.einsum("kd,kld->kl", F.normalize(pictures, dim=-1), names)
    return 1 - cosines[mask].mean()


@torch.no_grad()
def naming_accuracy(pictures: Tensor, names: Tensor, mask: Tensor) -> float:
    """Share of pictures nearest to their own name among all of that language, mean over names.
    Arguments as above."""
    cosines = torch.einsum("id,jld->lij", F.normalize(pictures, dim=-1), names)
    hit = cosines.masked_fill(~mask.T.unsqueeze(1), -2).argmax(-1)
    right = (hit == torch.arange(len(pictures), device=hit.device))[mask.T]
    return right.float().mean().nan_to_num().item()  # no name among them: 0


def random_tokens(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random subset of each picture's tokens, (K, P, D_v) -> (K, round(share * P), D_v).

    Half the cost, and no picture can be recognised by one token.
    """
    pictures, tokens, width = features.shape
    count = max(1, round(share * tokens))
    if count == tokens:
        return features
    order = torch.rand(pictures, tokens, generator=generator).argsort(dim=1)[:, :count]
    return features.gather(1, order.unsqueeze(-1).expand(-1, -1, width))


def random_channels(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Keep a random `share` of each picture's channels, the same in all of its tokens, scaled up by
    what is missing; the rest is zero. (K, P, D_v) -> the same shape."""
    if share >= 1:
        return features
    kept = torch.rand(len(features), 1, features.shape[-1], generator=generator) < share
    return features * (kept / share).to(features)


def in_language(mask: Tensor, chosen: Tensor | None) -> Tensor:
    """(K, languages): of the answers there are, those in the language drawn; None: in any."""
    return mask if chosen is None else mask & chosen


def draw_pictures(rng: np.random.Generator, total: int, count: int, hard_share: float) -> Any:
    """Indices of one step: some pictures at random, the rest in runs of neighbours.

    Sources list similar pictures together, so neighbours make the step harder.
    """
    count = min(count, total)
    chosen: set[int] = set()
    while len(chosen) < int(count * hard_share):
        start = int(rng.integers(total))
        chosen.update((start + offset) % total for offset in range(min(8, count - len(chosen))))
    rest = rng.permutation(total)
    for index in rest:
        if len(chosen) >= count:
            break
        chosen.add(int(index))
    return np.array(sorted(chosen))


def draw_drawing(
    rng: np.random.Generator, drawings: Sequence[ImageRef], variant_share: float
) -> ImageRef:
    """The picture itself (the first), or with probability `variant_share` one of the others."""
    if len(drawings) == 1 or rng.random() >= variant_share:
        return drawings[0]
    return drawings[1 + int(rng.integers(len(drawings) - 1))]


@dataclass(frozen=True)
class Objective:
    """What a step is graded by.

    Attributes:
        loss: what is minimised, with all its terms.
        contrastive, away: two of them; away is 1 - cosine to the names.
        std: of the tokens around the names' centre.
        vectors, names, named: of the step's pictures, as `contrastive_loss` takes them.
    """

    loss: Tensor
    contrastive: Tensor
    away: Tensor
    std: Tensor
    vectors: Tensor
    names: Tensor
    named: Tensor


def objective(
    tokens: Tensor,
    pairs: Pairs,
    rows: Any,
    chosen: Tensor | None,
    scale: Tensor,
    recipe: WarmStartRecipe,
) -> Objective:
    """Contrast, pull towards names and other answers, and scale.

    Args:
        tokens: (K, P, D) visual tokens of a step's pictures, float32.
        rows: (K,) which of the pairs' pictures they are.
        chosen: (K, languages) the languages that count; None: all.
        scale: scalar, one over the temperature.
    """
    device = tokens.device
    vectors = tokens.mean(1) - pairs.centre
    names = pairs.vectors[rows].to(device)
    named = in_language(pairs.mask[rows], chosen).to(device)
    contrastive = contrastive_loss(vectors, names, named, scale)
    away = alignment_loss(vectors, names, named)
    pull = recipe.alignment_weight * away
    for weight, answers, answered in pairs.others:
        some = in_language(answered[rows], chosen).to(device)
        if some.any():
            pull = pull + weight * alignment_loss(vectors, answers[rows].to(device), some)
    std = (tokens - pairs.centre).std()
    penalty = recipe.scale_weight * (std / pairs.spread).log().pow(2)
    return Objective(contrastive + pull + penalty, contrastive, away, std, vectors, names, named)


def warm_start(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    samples: Sequence[Sample],
    features: Callable[[Sequence[ImageRef]], Tensor],
    recipe: WarmStartRecipe,
    *,
    steps: int,
    seed: int,
    variants: Mapping[Any, Sequence[Path]] | None = None,
    time_budget: float | None = None,
    language_weights: Mapping[str, float] | None = None,
    log: Log | None = None,
) -> dict[str, float]:
    """Train the projector in place; with `recipe.one_language` Parrot too, if the model has it.

    Args:
        model: what it trains is named above, the rest is only read.
        processor: of the model.
        samples: those of kind `recipe.kind` give the names.
        features: paths -> (N, 1 + P, D_v).
        recipe: the knobs.
        steps: of the optimizer; fewer if `time_budget` runs out, the rate decaying accordingly.
        seed: of order and noise.
        variants: other drawings of a picture.
        time_budget: seconds.
        language_weights: of `recipe.one_language`, see `OneLanguage`.
        log: called every 25 steps.

    Returns:
        Last loss, accuracy of the last step (picture to name, mean over languages), seconds.
    """
    started = time.monotonic()
    assert isinstance(model.projector, Projector)
    pairs = Pairs(model, processor, samples, recipe)
    drawings = [[path, *(variants or {}).get(path, ())] for path in pairs.pictures]
    first = features([d[0] for d in drawings[:64]])[:, 1:]
    model.projector.match_scale(first, pairs.centre, pairs.spread)

    model.projector.train()
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng((seed, 2))
    log_scale = nn.Parameter(torch.tensor(-math.log(recipe.temperature)))
    parrot = model.parrot if recipe.one_language else None
    drawing = None
    if recipe.one_language:
        drawing = OneLanguage(
            processor, samples, pairs.kinds, pairs.pictures, pairs.answered, pairs.languages,
            language_weights,
        )  # fmt: skip
    parameters = [*model.projector.parameters(), *(parrot.parameters() if parrot else ())]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": recipe.weight_decay},
         {"params": [log_scale], "weight_decay": 0.0, "scale": 10.0}],
        lr=recipe.learning_rate, fused=True,
    )  # fmt: skip
    last = {"loss_contrastive": math.nan, "cosine": 0.0, "accuracy": 0.0}
    for step in tqdm(range(steps), desc="warm start", unit="step"):
        elapsed = time.monotonic() - started
        progress = max(step / steps, elapsed / time_budget if time_budget else 0.0)
        if progress >= 1:
            break
        rate = recipe.learning_rate * min(1, (step + 1) / 20) * (1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        rows = draw_pictures(rng, len(pairs.pictures), recipe.pictures_per_step, recipe.hard_share)
        paths = [draw_drawing(rng, drawings[r], recipe.variant_share) for r in rows]
        seen = features(paths)
        x = random_tokens(seen[:, 1:], 1 - recipe.token_dropout, generator)
        x = x.to(model.device).float()
        if recipe.feature_noise:
            noise = torch.randn(x.shape, generator=generator).to(x.device)
            x = x + recipe.feature_noise * x.std() * noise
        x = random_channels(x, 1 - recipe.channel_dropout, generator)
        chosen, questions = drawing.draw(rng, rows) if drawing else (None, [])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.device.type == "cpu"):
            projected = model.projector(x)
            if parrot is not None:
                summary = model.projector(seen[:, :1].to(x)).squeeze(1)
                text = [one.to(x.device) for one in processor.steering(questions).values()]
                projected = parrot(projected, summary, *model.steering(len(x), *text))
        scale = log_scale.exp().clamp(max=100.0)
        found = objective(projected.float(), pairs, rows, chosen, scale, recipe)
        optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            last = {
                "loss_contrastive": found.contrastive.item(),
                "cosine": 1 - found.away.item(),
                "accuracy": naming_accuracy(found.vectors.detach(), found.names, found.named),
            }
            if not math.isfinite(last["loss_contrastive"]):
                raise TrainingError(
                    f"warm start, step {step}: the loss is {last['loss_contrastive']}; nothing was "
                    f"written. Lower warm_start.learning_rate (now {recipe.learning_rate:g}), or "
                    f"raise warm_start.temperature (now {recipe.temperature:g})"
                )
            if log is not None:
                log({"step": step, **last, "scale_ratio": found.std.item() / pairs.spread})
    model.projector.eval()
    return {**last, "seconds": time.monotonic() - started}
