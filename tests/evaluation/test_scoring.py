"""Option likelihoods: tree rows, single rows and the model's plain full logits say the same."""

import random

import pytest
import torch

from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.scoring import OptionScore, Query, choose, score_options
from llava_mole.mole import MoleConfig
from tests import helpers

QUERIES = [
    Query("What is this?", ("cat", "red apple", "red"), helpers.picture(1), "en"),
    Query("这是什么？", ("猫", "红苹果"), helpers.picture(2), "zh"),
    Query("ما هذا؟", ("قطة", "تفاحة", "أحمر", "لا"), helpers.picture(3), "ar"),
    Query("And without a picture?", ("yes", "no"), None, "en"),
    Query("Which letter?\nA. cat\nB. dog", ("A", "B"), helpers.picture(1), "en"),
]


def plain(model, processor, query: Query) -> list[float]:
    """The definition: one conversation, all logits, the answer's log-probabilities summed."""
    sums = []
    for option in query.options:
        encoded = processor.encode(query.messages(option))
        images = [] if query.image is None else [query.image]
        batch = processor.batch([encoded], images)
        if model.mole is not None:
            model.mole.provide(answers=torch.tensor([encoded.labels]) != -100)
        with torch.no_grad():
            logits = model(**batch).logits[0].float().log_softmax(-1)
        sums.append(sum(float(logits[i - 1, t]) for i, t in enumerate(encoded.labels) if t != -100))
    return sums


def numbers(scores) -> torch.Tensor:
    return torch.tensor([option.logprob for options in scores for option in options])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2"])
@pytest.mark.parametrize("share_prompt", [True, False])
def test_scores_are_those_of_the_full_logits(tiny_model, family, share_prompt):
    model, processor = tiny_model(family, mole=True, lora=True, parrot=True)
    scores = score_options(
        model, processor, QUERIES, share_prompt=share_prompt, rows_per_batch=3, progress=False
    )
    expected = torch.tensor([s for query in QUERIES for s in plain(model, processor, query)])
    torch.testing.assert_close(numbers(scores), expected, rtol=1e-4, atol=1e-3)


def test_experts_that_are_routed_by_the_prompt_do_not_see_the_options(tiny_model):
    experts = MoleConfig(method="conditional_mixlora", num_experts=6, r=2, gate="scaled")
    model, processor = tiny_model(mole=experts)
    scores = score_options(model, processor, QUERIES, rows_per_batch=3, progress=False)
    expected = torch.tensor([s for query in QUERIES for s in plain(model, processor, query)])
    torch.testing.assert_close(numbers(scores), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match="routed by the whole prompt"):
        score_options(model, processor, QUERIES, share_prompt=True, progress=False)


@pytest.mark.parametrize("template", ["gemma", "chatml", "vicuna_v1"])
def test_every_template_ends_its_answers(tiny_model, template):
    model, processor = tiny_model(chat_template=template)
    scores = score_options(model, processor, QUERIES[:1], progress=False)
    expected = plain(model, processor, QUERIES[0])
    torch.testing.assert_close(numbers(scores), torch.tensor(expected), rtol=1e-4, atol=1e-3)
    more = 2 if template == "vicuna_v1" else 1  # its answers begin with a space
    said = [len("cat") + more, len("red apple") + more, 3 + more]
    assert [option.tokens for option in scores[0]] == said


def test_results_come_back_in_the_callers_order(tiny_model):
    model, processor = tiny_model(mole=True)
    scores = score_options(model, processor, QUERIES, progress=False)
    order = list(range(len(QUERIES)))
    random.Random(0).shuffle(order)
    again = score_options(model, processor, [QUERIES[i] for i in order], progress=False)
    for place, index in enumerate(order):
        torch.testing.assert_close(
            numbers([again[place]]), numbers([scores[index]]), rtol=1e-4, atol=1e-3
        )


def test_the_picture_matters_and_can_be_withheld(tiny_model):
    model, processor = tiny_model(awake=False)
    shown, other, withheld = (
        Query("What is this?", ("cat", "dog"), image, "en")
        for image in (helpers.picture(1), helpers.picture(2), None)
    )
    a, b, c = score_options(model, processor, [shown, other, withheld], progress=False)
    assert a != b
    assert c != a
    assert numbers([c]) == pytest.approx(torch.tensor(plain(model, processor, withheld)), rel=1e-4)


def test_given_features_replace_the_tower(tiny_model):
    model, processor = tiny_model()
    query = Query("What is this?", ("cat", "dog"), b"a key, never opened", "en")
    other = Query("What is this?", ("cat", "dog"), helpers.picture(5), "en")
    pixels = processor.image_processor([helpers.picture(5)])["pixel_values"]
    asked = []

    def features(pictures):
        asked.extend(pictures)
        return model.encode_images(pixels)[[0] * len(pictures)]

    got = score_options(model, processor, [query, query], features=features, progress=False)
    assert asked == [b"a key, never opened"]
    expected = score_options(model, processor, [other], progress=False)
    torch.testing.assert_close(numbers(got[:1]), numbers(expected), rtol=1e-4, atol=1e-3)


def test_training_mode_is_left_as_it_was(tiny_model):
    model, processor = tiny_model()
    model.train()
    score_options(model, processor, QUERIES[:1], progress=False)
    assert model.training


def test_refuses_what_has_no_likelihood(tiny_model):
    model, processor = tiny_model()
    with pytest.raises(DataError, match="options"):
        score_options(model, processor, [Query("?", ("cat", " "), None, "en")], progress=False)
    limit = model.config.text_config.max_position_embeddings
    too_long = Query("?" * (limit + 1), ("a",), None, "en")
    with pytest.raises(DataError, match=f"context holds {limit}"):
        score_options(model, processor, [too_long], progress=False)


def test_choice_by_normalization():
    short, long = OptionScore(-2.0, 2, -1.5), OptionScore(-2.4, 4, -0.1)
    assert choose([short, long], "sum") == 0
    assert choose([short, long], "mean") == 1
    assert choose([short, long], "sum_without_end") == 0
    assert choose([short, long], "mean_without_end") == 0
    assert choose([short, short]) == 0
    with pytest.raises(ConfigError, match="allowed are mean"):
        choose([short, long], "median")
