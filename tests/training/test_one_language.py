"""A warm start in one language at a time: who is drawn, and what Parrot makes of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llava_mole.configuration import ParrotConfig
from llava_mole.data.sample import Sample
from llava_mole.errors import ConfigError, DataError
from llava_mole.features import FeatureStore
from llava_mole.training.history import rates
from llava_mole.training.one_language import OneLanguage
from llava_mole.training.recipe import WarmStartRecipe
from llava_mole.training.schema import load_recipe
from llava_mole.training.warm_start import name_vectors, names_of_pictures, warm_start
from tests.training.colours import named_colours

QUESTIONS = {"de": "Welche Farbe?", "tr": "Hangi renk?"}
RECIPE = WarmStartRecipe(
    one_language=True, pictures_per_step=6, feature_noise=0.05, token_dropout=0.25
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Six colours, named in two languages."""
    root = tmp_path_factory.mktemp("colours")
    return named_colours(root, QUESTIONS)


def parts(tiny_model: Callable[..., Any], condition_on: str | None) -> tuple[Any, Any, Any]:
    parrot = condition_on and ParrotConfig(num_experts=2, hidden_size=32, condition_on=condition_on)
    model, processor = tiny_model("gemma3_text", awake=False, parrot=parrot)
    return model, processor, FeatureStore(model, processor.image_processor)


@torch.no_grad()
def closeness(some: Any, samples: list[Sample], language: str) -> float:
    """Mean cosine of the visual tokens to the names of a language, asked in that language."""
    model, processor, features = some
    names = names_of_pictures(samples, "naming")
    pictures = list(names)
    vectors, mask = name_vectors(model, processor, list(names.values()), [language])
    assert mask.all()
    asked = [processor.question_ids(QUESTIONS[language])] * len(pictures)
    tokens = model.visual_tokens(features(pictures), **processor.steering(asked)).float().mean(1)
    return F.cosine_similarity(tokens - tokens.mean(0), vectors[:, 0]).mean().item()


def test_parrot_learns_which_way_a_picture_goes_for_which_language(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    """With the question alone to tell the languages; its controls, as large, can't."""
    found = {}
    for condition_on in (None, "nothing", "turn"):
        some = parts(tiny_model, condition_on)
        warm_start(some[0], some[1], samples, some[2], RECIPE, steps=500, seed=0)
        found[condition_on] = min(closeness(some, samples, language) for language in QUESTIONS)
    assert found["turn"] > 0.8
    assert found["turn"] > found["nothing"] + 0.1
    assert found["turn"] > found[None] + 0.1


def test_the_projector_and_parrot_learn_and_nothing_else(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    model, processor, features = parts(tiny_model, "turn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    warm_start(model, processor, samples, features, RECIPE, steps=3, seed=0)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in moved} == {"projector", "parrot"}
    assert {name for name in model.state_dict() if name.startswith("parrot.")} <= moved


def test_in_all_languages_at_once_parrot_stays_as_it_is(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    model, processor, features = parts(tiny_model, "turn")
    before = {name: value.clone() for name, value in model.parrot.state_dict().items()}
    plain = dataclasses.replace(RECIPE, one_language=False)
    warm_start(model, processor, samples, features, plain, steps=3, seed=0)
    assert all(value.equal(before[name]) for name, value in model.parrot.state_dict().items())


def draw(processor: Any, samples: list[Sample], weights: dict[str, float] | None) -> OneLanguage:
    pictures = list(names_of_pictures(samples, "naming"))
    answered = torch.ones(len(pictures), 2, dtype=torch.bool)
    return OneLanguage(processor, samples, ["naming"], pictures, answered, list(QUESTIONS), weights)


@pytest.mark.parametrize(("weights", "share"), [(None, 0.5), ({}, 0.5), ({"de": 3, "tr": 1}, 0.75)])
def test_languages_are_drawn_by_their_weights_each_with_a_question_of_its_own(
    tiny_model: Callable[..., Any],
    samples: list[Sample],
    weights: dict[str, float] | None,
    share: float,
) -> None:
    _, processor, _ = parts(tiny_model, "turn")
    chosen, questions = draw(processor, samples, weights).draw(
        np.random.default_rng(0), [0, 1, 2, 3] * 500
    )
    assert (chosen.sum(1) == 1).all()
    assert abs(chosen[:, 0].float().mean().item() - share) < 0.03
    ids = {language: processor.question_ids(text) for language, text in QUESTIONS.items()}
    wanted = [ids["de" if german else "tr"] for german in chosen[:, 0]]
    assert questions == wanted


def test_a_picture_without_an_answer_in_any_language_that_counts_is_named(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    _, processor, _ = parts(tiny_model, "turn")
    with pytest.raises(DataError, match=r"red\.png: has answers in languages of weight 0 alone"):
        draw(processor, samples, {"ar": 1})


def test_released_parrot_is_steered_by_the_whole_prompt(
    tiny_model: Callable[..., Any], samples: list[Sample]
) -> None:
    """As in a language stage: role tags too, the picture's place left out."""
    _, processor, _ = parts(tiny_model, "unlabelled")
    (question,) = draw(processor, samples, {"de": 1}).draw(np.random.default_rng(0), [0])[1]
    encoded = processor.encode(samples[0].messages())
    *expected, _ = [  # the last is what the template writes after the answer
        token
        for token, label in zip(encoded.input_ids, encoded.labels, strict=True)
        if label == -100 and token != processor.image_token_id
    ]
    assert question == expected
    assert len(question) > len(processor.question_ids(QUESTIONS["de"]))


ON = ["stages.warm.parrot=true", "stages.instruct.share_prefix=false"]


def test_parrot_in_a_warm_start_that_would_not_train_it_is_refused(recipe_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"parrot=true .*: a warm start trains Parrot in one lang"
    ):
        load_recipe(recipe_file, ON)
    load_recipe(recipe_file, [*ON, "stages.warm.warm_start.one_language=true"])
    earlier = ["stages.instruct.parrot=true", "stages.instruct.share_prefix=false"]
    again = ["stages.parrot.kind=warm_start", "stages.parrot.parrot=false"]
    with pytest.raises(ConfigError, match=r"\(parrot\)\.parrot=true .*earlier stage"):
        load_recipe(recipe_file, [*earlier, *again])
    ridge = ["model.projector={type: rbf}", "stages.warm.warm_start.method=ridge"]
    with pytest.raises(
        ConfigError, match=r"parrot=true \(here, .*\): method ridge trains no Parrot"
    ):
        load_recipe(recipe_file, [*ON, *ridge])


def test_the_model_s_history_says_that_parrot_was_trained(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [*ON, "stages.warm.warm_start.one_language=true"])
    assert rates(recipe.stages[0], parrot=True) == {"projector": 1e-3, "parrot": 1e-3}
    assert rates(recipe.stages[0], parrot=False) == {"projector": 1e-3}
