"""Ridge start: an rbf projector solved for in closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from llava_mole.configuration import ProjectorConfig
from llava_mole.data.sample import Sample, Turn
from llava_mole.features import FeatureStore
from llava_mole.projector import root
from llava_mole.training import ridge
from llava_mole.training.recipe import WarmStartRecipe
from llava_mole.training.ridge import mean_direction, ridge_start
from llava_mole.training.warm_start import Pairs
from tests.training.test_warm_start import NAMES

TONES = {"white": "hell", "yellow": "hell", "black": "dunkel", "blue": "dunkel"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("colours")
    made = []
    for colour, names in NAMES.items():
        path = root / f"{colour}.png"
        Image.new("RGB", (16, 16), colour).save(path)
        asked = Turn("user", "<image>\n?")
        for language, name in zip(("de", "tr"), names, strict=True):
            turns = (asked, Turn("assistant", name))
            made.append(Sample(turns, (path,), "colours", language, "x:1", {"kind": "naming"}))
        if colour in TONES:
            turns = (asked, Turn("assistant", TONES[colour]))
            made.append(Sample(turns, (path,), "colours", "de", "x:1", {"kind": "tone"}))
    return made


@pytest.fixture
def variants(samples: list[Sample], tmp_path: Path) -> dict[Path, list[Path]]:
    """Every picture also darker."""
    found = {}
    for path in dict.fromkeys(sample.images[0] for sample in samples):
        darker = tmp_path / path.name
        Image.open(path).point(lambda value: int(0.8 * value)).save(darker)
        found[path] = [darker]
    return found


Made = tuple[Any, Any, FeatureStore]


@pytest.fixture
def make(tiny_model: Callable[..., Any]) -> Callable[..., Made]:
    def make(units: int = 8, width: float = 0.2, **options: Any) -> Made:
        projector = ProjectorConfig(type="rbf", units=units, width=width)
        model, processor = tiny_model("gemma3_text", awake=False, projector=projector, **options)
        return model, processor, FeatureStore(model, processor.image_processor)

    return make


def start(parts: Made, samples: list[Sample], seed: int = 0, **options: Any) -> dict[str, float]:
    model, processor, features = parts
    variants = options.pop("variants", None)
    recipe = WarmStartRecipe(method="ridge", **options)
    return ridge_start(model, processor, samples, features, recipe, seed=seed, variants=variants)


def test_pictures_are_told_apart_by_their_names(
    make: Callable[..., Made], samples: list[Sample]
) -> None:
    parts = make()
    logged: list[dict[str, Any]] = []
    recipe = WarmStartRecipe(method="ridge", ridge=1e-4)
    done = ridge_start(parts[0], parts[1], samples, parts[2], recipe, seed=0, log=logged.append)
    assert done["accuracy"] == 1
    assert done["cosine"] > 0.5  # a mean of two languages' names: at most about 0.7
    assert logged[0]["units"] == 6
    assert logged[0]["cosine"] == done["cosine"]


def test_the_solution_is_that_of_the_whole_least_squares_problem(
    make: Callable[..., Made], samples: list[Sample], variants: dict[Path, list[Path]]
) -> None:
    """Twin: every row at once, the penalty as further rows, in numpy."""
    parts = model, processor, features = make(units=12)
    also, penalised = {"tone": 4.0}, 0.05
    start(parts, samples, variants=variants, also=also, ridge=penalised)
    pairs = Pairs(model, processor, samples, WarmStartRecipe(also=also))
    rows, targets = [], []
    for number, picture in enumerate(pairs.pictures):
        wanted = pairs.vectors[number].numpy().mean(0)
        if picture.stem in TONES:  # in one language only; weights relative to alignment's 3
            wanted = wanted + 4 / 3 * pairs.others[0][1][number, 0].numpy()
        for path in (picture, *variants[picture]):
            seen = features([path])[0, 1:].double().numpy()
            tokens = seen / np.sqrt(np.abs(seen) + 1e-4) - model.projector.mean.double().numpy()
            tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
            cosines = tokens @ model.projector.centres.double().numpy().T
            rows.append(np.exp((cosines - 1) / 0.2).mean(0))
            targets.append(wanted)
    system, right = np.array(rows), np.array(targets)
    penalty = np.sqrt(penalised * np.diag(system.T @ system).mean()) * np.eye(12)
    expected, *_ = np.linalg.lstsq(
        np.vstack([system, penalty]), np.vstack([right, np.zeros((12, right.shape[1]))]), rcond=None
    )
    found = model.projector.values.weight.detach().T
    assert_close(found, torch.tensor(expected).float(), rtol=2e-3, atol=2e-4)


def test_units_stand_at_the_drawings(
    make: Callable[..., Made], samples: list[Sample], variants: dict[Path, list[Path]]
) -> None:
    parts = make(units=15)
    start(parts, samples, variants=variants)
    projector = parts[0].projector
    norms = projector.centres.norm(dim=-1)
    assert_close(norms[:12], torch.ones(12))
    assert not norms[12:].any()  # more units than drawings: the rest are silent
    assert not projector.values.weight[:, 12:].any()
    drawing = next(iter(variants.values()))[0]
    mean = parts[2]([drawing])[:, 1:].float().mean(1)
    assert projector.kernel(mean)[0].max().item() == pytest.approx(1, abs=1e-4)
    assert projector.kernel(mean)[0].argmax() == 1


def test_of_more_drawings_than_units_some_are_chosen_by_the_seed(
    make: Callable[..., Made], samples: list[Sample], variants: dict[Path, list[Path]]
) -> None:
    states = []
    for seed in (0, 0, 1):
        parts = make(units=5)
        done = start(parts, samples, seed=seed, variants=variants)
        assert done["accuracy"] > 1 / 6
        states.append(parts[0].projector.centres.clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_answers_of_other_kinds_pull_too(make: Callable[..., Made], samples: list[Sample]) -> None:
    near = []
    for also in ({}, {"tone": 6.0}):
        parts = model, processor, features = make()
        start(parts, samples, also=also)
        pairs = Pairs(model, processor, samples, WarmStartRecipe(also={"tone": 1.0}))
        _, vectors, mask = pairs.others[0]
        seen = model.projector(features(pairs.pictures)[:, 1:].float()).mean(1) - pairs.centre
        cosines = torch.nn.functional.cosine_similarity(seen, vectors[:, 0], dim=-1)
        near.append(cosines[mask[:, 0]].mean().item())
    assert near[1] > near[0] + 0.2


def test_tokens_have_the_length_of_the_embeddings_they_meet(
    make: Callable[..., Made], samples: list[Sample]
) -> None:
    """Also those of a picture unlike any that is known, which must not fade."""
    parts = model, processor, features = make()
    start(parts, samples)
    pairs = Pairs(model, processor, samples, WarmStartRecipe())
    known = features(pairs.pictures)[:, 1:].float()
    for tokens in (known, torch.randn(3, 4, known.shape[-1]) * 50):
        lengths = (model.projector(tokens) - pairs.centre).norm(dim=-1)
        expected = pairs.spread * model.config.text_config.hidden_size**0.5
        assert_close(lengths, torch.full_like(lengths, expected), rtol=1e-3, atol=1e-3)


def test_only_the_projector_changes(make: Callable[..., Made], samples: list[Sample]) -> None:
    parts = make(mole=True)
    before = {name: value.clone() for name, value in parts[0].state_dict().items()}
    start(parts, samples)
    moved = {n for n, v in parts[0].state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {
        "projector.mean", "projector.centres", "projector.scale",
        "projector.values.weight", "projector.offset",
    }  # fmt: skip
    assert not parts[0].projector.training


def test_the_mean_direction_is_over_the_languages_that_there_are() -> None:
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    assert mean_direction(vectors, mask).tolist() == [[0.5, 0.5], [3.0, 0.0]]
    assert mean_direction(vectors, torch.zeros(2, 2, dtype=torch.bool)).abs().sum() == 0


def test_pictures_without_an_answer_of_a_kind_go_to_their_names_alone(
    make: Callable[..., Made], samples: list[Sample]
) -> None:
    parts = model, processor, features = make()
    start(parts, samples, also={"tone": 6.0}, ridge=1e-4)
    pairs = Pairs(model, processor, samples, WarmStartRecipe())
    seen = model.projector(features(pairs.pictures)[:, 1:].float()).mean(1) - pairs.centre
    cosines = torch.nn.functional.cosine_similarity(seen, pairs.vectors.mean(1), dim=-1)
    for picture, cosine in zip(pairs.pictures, cosines.tolist(), strict=True):
        assert (cosine > 0.9) == (picture.stem not in TONES), picture


def test_the_solution_does_not_hang_on_how_many_are_worked_on_at_a_time(
    make: Callable[..., Made],
    samples: list[Sample],
    variants: dict[Path, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for chunk, pictures in ((ridge.CHUNK, ridge.PICTURES), (1, 5)):
        monkeypatch.setattr(ridge, "CHUNK", chunk)
        monkeypatch.setattr(ridge, "PICTURES", pictures)
        parts = make(units=10)
        start(parts, samples, variants=variants)
        found.append(parts[0].projector.state_dict())
    for name, value in found[0].items():
        assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    # The mean is over all drawings, also those without a unit.
    pictures = dict.fromkeys(sample.images[0] for sample in samples)
    everything = [path for picture in pictures for path in (picture, *variants[picture])]
    tokens = parts[2](everything)[:, 1:].float().mean(1)
    assert_close(found[0]["mean"], root(tokens).mean(0), rtol=1e-4, atol=1e-5)


def test_plain_pictures_get_a_unit_before_re_drawings(
    make: Callable[..., Made], samples: list[Sample], variants: dict[Path, list[Path]]
) -> None:
    parts = make(units=7)
    done = start(parts, samples, variants=variants, ridge=1e-4)
    assert done["accuracy"] == 1
    plain = parts[2](list(variants))[:, 1:].float().mean(1)
    nearest = parts[0].projector.kernel(plain).amax(-1)
    assert_close(nearest, torch.ones(6), rtol=1e-3, atol=1e-3)


def test_a_picture_far_from_all_units_does_not_underflow(
    make: Callable[..., Made], samples: list[Sample]
) -> None:
    model, _, _ = parts = make(width=0.01)
    start(parts, samples)
    away = -model.projector.centres[:6].mean(0, keepdim=True)
    tokens = model.projector(10 * away.view(1, 1, -1)) - model.projector.offset
    assert_close(tokens.norm(dim=-1), model.projector.scale.view(1, 1), rtol=1e-3, atol=1e-3)
