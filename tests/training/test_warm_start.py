"""Warm start: pictures are pulled towards their names, and nothing else is touched."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import DataError
from llava_mole.features import FeatureStore
from llava_mole.training.recipe import WarmStartRecipe
from llava_mole.training.warm_start import (
    Pairs,
    alignment_loss,
    contrastive_loss,
    draw_drawing,
    draw_pictures,
    embedding_statistics,
    name_vectors,
    names_of_pictures,
    random_channels,
    warm_start,
)
from tests.training.colours import NAMES, named_colours

KNOBS = ("alignment_weight", "also", "pictures_per_step")
RECIPE = WarmStartRecipe(pictures_per_step=6, feature_noise=0.05, token_dropout=0.25)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("colours")
    return named_colours(root, {"de": "?", "tr": "?"})


@pytest.fixture
def parts(tiny_model: Callable[..., Any]) -> tuple[Any, Any, FeatureStore]:
    model, processor = tiny_model("gemma3_text", awake=False, mole=True)
    return model, processor, FeatureStore(model, processor.image_processor)


def run(parts: Any, samples: list[Sample], **options: Any) -> dict[str, float]:
    model, processor, features = parts
    knobs = {name: options.pop(name) for name in KNOBS if name in options}
    recipe = dataclasses.replace(RECIPE, **knobs)
    return warm_start(
        model, processor, samples, features, recipe, **{"steps": 400, "seed": 0, **options}
    )


def test_pictures_come_to_be_told_apart_by_name(parts: Any, samples: list[Sample]) -> None:
    logged: list[dict[str, Any]] = []
    before = run(parts, samples, steps=1)
    after = run(parts, samples, log=logged.append)
    assert after["loss_contrastive"] < 0.5 * before["loss_contrastive"]
    assert after["accuracy"] > 0.9
    assert {"step", "loss_contrastive", "cosine", "accuracy", "scale_ratio"} <= logged[0].keys()


def test_alignment_brings_pictures_closer_to_their_names(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    cosines = []
    for weight in (0.0, 3.0):
        model, processor = tiny_model("gemma3_text", awake=False)
        features = FeatureStore(model, processor.image_processor)
        last = run((model, processor, features), samples, alignment_weight=weight)
        cosines.append(last["cosine"])
    assert cosines[1] > cosines[0] + 0.05


def test_answers_of_other_kinds_pull_too(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    """Half of the pictures also have a tone, which no name holds."""
    tones = {"white": "hell", "yellow": "hell", "black": "dunkel", "blue": "dunkel"}
    both = list(samples)
    for sample in samples:
        tone = tones.get(sample.images[0].stem)
        if tone and sample.language == "de":
            turns = (sample.turns[0], Turn("assistant", tone))
            both.append(dataclasses.replace(sample, turns=turns, metadata={"kind": "tone"}))
    near = []
    for also in ({}, {"tone": 5.0}):
        model, processor = tiny_model("gemma3_text", awake=False)
        features = FeatureStore(model, processor.image_processor)
        run((model, processor, features), both, also=also)
        named = names_of_pictures(both, "tone")
        vectors, mask = name_vectors(model, processor, list(named.values()), ["de"])
        seen = model.projector(features(list(named))[:, 1:].float()).mean(1)
        seen = seen - model.projector(features(list(dict.fromkeys(
            s.images[0] for s in samples)))[:, 1:].float()).mean((0, 1))  # fmt: skip
        near.append(1 - alignment_loss(seen, vectors, mask).item())
    assert near[1] > near[0] + 0.1


def test_of_several_kinds_a_picture_is_called_by_the_first_that_it_has(
    samples: list[Sample],
) -> None:
    """As where domains are mixed: some pictures have a name, others a country."""
    pictures = list(dict.fromkeys(sample.images[0] for sample in samples))
    flags, both = pictures[::2], pictures[0]
    mixed = [sample for sample in samples if sample.images[0] not in flags[1:]]
    for picture in flags:
        turns = (samples[0].turns[0], Turn("assistant", f"land {picture.stem}"))
        mixed.append(
            dataclasses.replace(
                samples[0], images=(picture,), turns=turns, metadata={"kind": "country"}
            )
        )
    named = names_of_pictures(mixed, ["naming", "country"])
    assert set(named) == set(pictures)
    assert named[both] == names_of_pictures(mixed, "naming")[both]
    assert named[flags[1]] == {samples[0].language: f"land {flags[1].stem}"}
    assert names_of_pictures(mixed, ["country", "naming"])[both] != named[both]
    with pytest.raises(DataError, match=r"warm_start.kind: 0 pictures have .* kind 'digit'"):
        names_of_pictures(mixed, ["naming", "digit"])


def test_pictures_without_a_name_are_pulled_to_their_other_answers(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    """A third of the pictures has no name, only a tone: a step may hold none that has one."""
    pictures = sorted({sample.images[0] for sample in samples})
    unnamed = pictures[::3]
    tones = dict(zip(unnamed, ["hell", "dunkel"] * len(unnamed), strict=False))
    both = [sample for sample in samples if sample.images[0] not in tones]
    for picture, tone in tones.items():
        like = next(s for s in samples if s.images[0] == picture and s.language == "de")
        turns = (like.turns[0], Turn("assistant", tone))
        both.append(dataclasses.replace(like, turns=turns, metadata={"kind": "tone"}))
    model, processor = tiny_model("gemma3_text", awake=False)
    features = FeatureStore(model, processor.image_processor)
    recipe = dataclasses.replace(RECIPE, also={"tone": 3.0})
    assert set(Pairs(model, processor, both, recipe).pictures) == set(pictures)
    run((model, processor, features), both, also={"tone": 3.0}, pictures_per_step=2)
    seen = model.projector(features(pictures)[:, 1:].float()).mean(1).detach()
    seen = (seen - seen.mean(0))[[pictures.index(picture) for picture in unnamed]]
    vectors, mask = name_vectors(model, processor, [{"de": t} for t in tones.values()], ["de"])
    assert 1 - alignment_loss(seen, vectors, mask).item() > 0.3


def test_alignment_loss_without_a_pair_is_zero_with_a_gradient_of_zeros() -> None:
    pictures = torch.randn(2, 3, requires_grad=True)
    loss = alignment_loss(pictures, torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert pictures.grad is not None
    assert (pictures.grad == 0).all()


def test_alignment_loss_is_one_minus_the_mean_cosine_of_real_pairs() -> None:
    pictures = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    names = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert alignment_loss(pictures, names, mask).item() == pytest.approx(1 - (1 + 0 - 1) / 3)


def test_a_share_of_pictures_is_shown_re_drawn() -> None:
    rng = np.random.default_rng(0)
    drawings = [Path("plain"), Path("a"), Path("b")]
    drawn = [draw_drawing(rng, drawings, 0.4) for _ in range(4000)]
    assert 0.37 < 1 - drawn.count(drawings[0]) / 4000 < 0.43
    assert abs(drawn.count(drawings[1]) - drawn.count(drawings[2])) < 200
    assert {draw_drawing(rng, drawings[:1], 1.0) for _ in range(9)} == {drawings[0]}


def test_runs_of_neighbours_reach_both_ends_of_a_source_alike() -> None:
    rng = np.random.default_rng(0)
    drawn = np.zeros(60)
    for _ in range(3000):
        rows = draw_pictures(rng, 60, 12, 1.0)
        assert len(rows) == len(set(rows.tolist())) == 12
        drawn[rows] += 1
    assert 0.9 < drawn[:15].sum() / drawn[-15:].sum() < 1.1


def test_channel_dropout_takes_whole_channels_of_a_picture() -> None:
    ones = torch.ones(4, 5, 200)
    kept = random_channels(ones, 0.8, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert torch.equal(kept, kept[:, :1].expand_as(kept))  # the same in every token
    assert not torch.equal(kept[0], kept[1])  # another draw for every picture
    assert 0.9 < kept.mean() < 1.1
    assert random_channels(ones, 1.0, torch.Generator()) is ones


def test_a_name_is_what_the_assistant_said_last(samples: list[Sample]) -> None:
    asked_on = [dataclasses.replace(s, turns=(*s.turns, Turn("user", "and?"))) for s in samples]
    assert names_of_pictures(asked_on, "naming") == names_of_pictures(samples, "naming")


def test_only_the_projector_learns(parts: Any, samples: list[Sample]) -> None:
    model = parts[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(parts, samples, steps=3)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved
    assert all(name.startswith("projector.") for name in moved)
    assert not model.projector.training


def test_the_same_seed_gives_the_same_projector(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    states = []
    for seed in (0, 0, 1):
        model, processor = tiny_model("gemma3_text", awake=False)
        features = FeatureStore(model, processor.image_processor)
        run((model, processor, features), samples, steps=5, seed=seed)
        states.append(model.projector.layers[0].weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_time_budget_ends_it(parts: Any, samples: list[Sample]) -> None:
    started = time.monotonic()
    run(parts, samples, steps=1_000_000, time_budget=0.3)
    assert time.monotonic() - started < 20


def test_projected_pictures_have_the_scale_of_the_embeddings_they_meet(
    parts: Any, samples: list[Sample]
) -> None:
    """Gemma multiplies its embeddings by sqrt(D): measured, not assumed."""
    model, processor, features = parts
    run(parts, samples, steps=1)
    ids = [t for s in samples for t in processor.question_ids(s.turns[-1].text)]
    mean, std = embedding_statistics(model, ids)
    received = model.get_input_embeddings()(torch.tensor(sorted(set(ids))))
    assert std == pytest.approx((received - received.mean(0)).std().item())
    seen = model.projector(features([s.images[0] for s in samples])[:, 1:].float())
    # One step of AdamW moves each weight by 5e-5 at most.
    assert_close(seen.mean((0, 1)), mean, rtol=0.05, atol=0.05 * std)
    assert 0.2 * std < (seen - mean).std() <= 1.1 * std


def test_names_are_centred_per_language_so_that_language_is_no_clue(parts: Any) -> None:
    model, processor, _ = parts
    names = [{"de": de, "tr": tr} for de, tr in NAMES.values()]
    names[0].pop("tr")
    vectors, mask = name_vectors(model, processor, names, ["de", "tr"])
    assert mask.tolist() == [[True, False]] + [[True, True]] * 5
    assert_close(vectors.norm(dim=-1)[mask], torch.ones(11))
    table = model.get_input_embeddings()
    plain = torch.stack(
        [table(torch.tensor(processor.question_ids(de))).mean(0) for de, _ in NAMES.values()]
    )
    centred = plain - plain.mean(0)
    expected = torch.nn.functional.normalize(centred, dim=-1)
    assert_close(vectors[:, 0], expected.detach(), rtol=1e-4, atol=1e-5)


def test_contrastive_loss_is_the_mean_of_both_directions_over_languages() -> None:
    rng = np.random.default_rng(0)
    pictures, names = rng.normal(size=(3, 4)), rng.normal(size=(3, 2, 4))
    names /= np.linalg.norm(names, axis=-1, keepdims=True)
    mask = np.array([[True, True], [True, True], [True, False]])
    unit = pictures / np.linalg.norm(pictures, axis=-1, keepdims=True)
    losses = []
    for column in range(2):
        rows = mask[:, column]
        logits = 5.0 * unit[rows] @ names[rows, column].T
        for direction in (logits, logits.T):
            shifted = np.exp(direction - direction.max(1, keepdims=True))
            share = shifted / shifted.sum(1, keepdims=True)
            losses.append(-np.log(np.diag(share)).mean())
    found = contrastive_loss(
        torch.tensor(pictures), torch.tensor(names), torch.tensor(mask), torch.tensor(5.0)
    )
    assert found.item() == pytest.approx(np.mean(losses))


def test_data_without_names_is_refused_with_what_to_do(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="0 pictures have a sample of kind 'caption'"):
        names_of_pictures(samples, "caption")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_step_draws_each_picture_once(share: float) -> None:
    drawn = draw_pictures(np.random.default_rng(0), 100, 32, share)
    assert len(set(drawn.tolist())) == len(drawn) == 32
    everything = draw_pictures(np.random.default_rng(0), 5, 32, share)
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tower", ["vit", "cnn"])
def test_features_of_a_picture_are_kept_and_are_the_towers(
    tiny_model: Callable[..., Any], samples: list[Sample], tower: str
) -> None:
    model, processor = tiny_model("llama", tower=tower)
    features = FeatureStore(model, processor.image_processor)
    paths: list[Path] = [samples[0].images[0], samples[2].images[0]]
    found = features([*paths, paths[0]])
    assert torch.equal(found[0], found[2])
    assert torch.equal(features(paths), found[:2])
    assert len(features.memory) == 2
    expected = model.encode_images(processor.image_processor(paths)["pixel_values"])
    # Folded batch norms round elsewhere, so a value may fall on the next bfloat16: 2^-7.
    assert_close(found[:2].float(), expected, rtol=2**-7, atol=2**-7 * expected.abs().max().item())
