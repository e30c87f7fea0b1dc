"""LanguageConditionedMoE: paper and released code pinned by number, and who steers which image."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from llava_mole.configuration import ParrotConfig
from llava_mole.errors import ConfigError, DataError
from llava_mole.parrot import LanguageConditionedMoE
from tests.helpers import assistant, picture, user

D = 6


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, D)), rng.normal(size=D), rng.normal(size=(4, D))


def run(module: LanguageConditionedMoE, *parts: np.ndarray) -> np.ndarray:
    tokens, summary, question = (torch.tensor(part, dtype=torch.float32)[None] for part in parts)
    mask = torch.ones(1, question.shape[1], dtype=torch.bool)
    return module(tokens, summary, question, mask)[0].detach().numpy()


def weights_by_hand(module: LanguageConditionedMoE, q: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Eq. 2 and 3: attend over the question, then the router."""
    z = softmax(e @ q / math.sqrt(D)) @ e
    return softmax(module.router.weight.detach().numpy() @ z)


def test_paper_option_is_eq_2_to_5_with_two_matrices() -> None:
    torch.manual_seed(0)
    module = LanguageConditionedMoE(D, ParrotConfig.paper(num_experts=3, hidden_size=7, alpha=0.6))
    h, q, e = numbers()
    w = weights_by_hand(module, q, e)
    moe = 0.0
    for share, expert in zip(w, module.experts, strict=True):
        assert expert.gate is None
        up, down = expert.up.weight.detach().numpy(), expert.down.weight.detach().numpy()
        moe = moe + share * (silu(h @ up.T) @ down.T)
    np.testing.assert_allclose(run(module, h, q, e), h + 0.6 * moe, rtol=1e-4, atol=1e-5)


def test_released_option_is_the_codes_swiglu_with_the_originals_scaled_by_a_tenth() -> None:
    torch.manual_seed(0)
    module = LanguageConditionedMoE(D, ParrotConfig.released(num_experts=3, hidden_size=7))
    h, q, e = numbers()
    w = weights_by_hand(module, q, e)
    moe = 0.0
    for share, expert in zip(w, module.experts, strict=True):
        gate, up, down = (
            getattr(expert, name).weight.detach().numpy() for name in ("gate", "up", "down")
        )
        moe = moe + share * ((silu(h @ gate.T) * (h @ up.T)) @ down.T)
    np.testing.assert_allclose(run(module, h, q, e), moe + 0.1 * h, rtol=1e-4, atol=1e-5)


def test_the_two_sides_disagree_exactly_where_the_config_says() -> None:
    paper, code = ParrotConfig.paper().to_dict(), ParrotConfig.released().to_dict()
    assert {key for key in paper if paper[key] != code[key]} == {
        "expert", "residual", "alpha", "condition_on"
    }  # fmt: skip


def test_top_k_keeps_the_best_experts_and_renormalises_them() -> None:
    torch.manual_seed(0)
    dense = LanguageConditionedMoE(D, ParrotConfig(num_experts=4))
    sparse = LanguageConditionedMoE(D, ParrotConfig(num_experts=4, top_k=2))
    sparse.load_state_dict(dense.state_dict())
    summary, question = torch.randn(3, D), torch.randn(3, 5, D)
    mask = torch.ones(3, 5, dtype=torch.bool)
    full, kept = dense.gate(summary, question, mask), sparse.gate(summary, question, mask)
    assert_close(full.sum(1), torch.ones(3))
    assert (kept > 0).sum(1).tolist() == [2, 2, 2]
    assert_close(kept.sum(1), torch.ones(3))
    best = full.topk(2, dim=1)
    assert_close(kept.gather(1, best.indices), best.values / best.values.sum(1, keepdim=True))


@pytest.mark.parametrize("expert", ["silu_mlp", "swiglu"])
def test_switching_it_on_changes_nothing_at_the_start(expert: str) -> None:
    module = LanguageConditionedMoE(D, ParrotConfig(expert=expert))
    h, q, e = numbers()
    np.testing.assert_array_equal(run(module, h, q, e), h.astype(np.float32))


def test_it_learns_from_the_start_although_it_is_the_identity() -> None:
    module = LanguageConditionedMoE(D, ParrotConfig(num_experts=2))
    h, q, e = (torch.tensor(part, dtype=torch.float32)[None] for part in numbers())
    module(h, q, e, torch.ones(1, 4, dtype=torch.bool)).square().sum().backward()
    for expert in module.experts:
        assert expert.down.weight.grad.abs().max() > 0


def test_padding_of_the_question_changes_nothing() -> None:
    torch.manual_seed(0)
    module = LanguageConditionedMoE(D, ParrotConfig.paper(num_experts=3))
    h, q, e = (torch.tensor(part, dtype=torch.float32)[None] for part in numbers())
    mask = torch.ones(1, 4, dtype=torch.bool)
    padded = torch.cat([e, 100 * torch.ones(1, 3, D)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    assert_close(module(h, q, padded, padded_mask), module(h, q, e, mask))


def test_a_picture_without_text_gets_uniform_weights() -> None:
    module = LanguageConditionedMoE(D, ParrotConfig(num_experts=4))
    weights = module.gate(torch.randn(1, D), torch.randn(1, 3, D), torch.zeros(1, 3).bool())
    assert_close(weights, torch.full((1, 4), 0.25))


@pytest.mark.parametrize(
    ("key", "value"),
    [("expert", "swiglo"), ("residual", "x"), ("condition_on", "image"), ("last_matrix", "0"),
     ("num_experts", 0), ("top_k", 7), ("top_k", 0)],
)  # fmt: skip
def test_a_bad_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"parrot.{key}"):
        ParrotConfig(**{key: value})


# ---------------------------------------------------------------------- which text steers an image


@pytest.fixture(scope="module")
def steered(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama", parrot=ParrotConfig(num_experts=3, hidden_size=16))


def visual(steered: Any, chat: list[Any], **options: Any) -> torch.Tensor:
    """(N, P, D) visual tokens of a conversation, as the forward pass makes them."""
    model, processor = steered
    batch = processor.apply_chat_template(chat, tokenize=True, **options)
    features = model.encode_images(batch["pixel_values"])
    return model.visual_tokens(features, batch["question_ids"], batch["question_mask"])


def chat(first: str = "What is it?", answer: str = "A cat", second: str = "And here?") -> list[Any]:
    return [user(first, picture(1)), assistant(answer), user(second, picture(2))]


def test_each_image_sees_the_text_of_its_own_turn_only(steered: Any) -> None:
    base = visual(steered, chat())
    other_second = visual(steered, chat(second="Quelle couleur?"))
    assert_close(other_second[0], base[0], rtol=0, atol=0)
    assert not torch.allclose(other_second[1], base[1], atol=1e-4)
    other_first = visual(steered, chat(first="Quelle couleur?"))
    assert not torch.allclose(other_first[0], base[0], atol=1e-4)
    # The batch pads the questions to another length here.
    assert_close(other_first[1], base[1], rtol=1e-5, atol=1e-6)


def test_the_answer_steers_no_image(steered: Any) -> None:
    assert_close(visual(steered, chat(answer="Un chien")), visual(steered, chat()), rtol=0, atol=0)


def test_training_and_inference_condition_alike(steered: Any) -> None:
    one = [user("What is it?", picture(1))]
    training = visual(steered, [*one, assistant("A cat")])
    inference = visual(steered, one, add_generation_prompt=True)
    assert_close(training, inference, rtol=0, atol=0)


def test_a_second_turn_never_rewrites_the_first_image(steered: Any) -> None:
    first = visual(steered, chat()[:1], add_generation_prompt=True)
    later = visual(steered, [*chat()[:2], user("Sure?")], add_generation_prompt=True)
    assert_close(later, first, rtol=0, atol=0)


def test_several_images_of_a_turn_share_its_text_and_each_is_conditioned(steered: Any) -> None:
    together = visual(steered, [user("Compare them", picture(1), picture(2))])
    for index, seed in enumerate((1, 2)):
        alone = visual(steered, [user("Compare them", picture(seed))])
        assert_close(together[index], alone[0], rtol=1e-5, atol=1e-6)
    model, processor = steered
    batch = processor.apply_chat_template(
        [user("Compare them", picture(1), picture(2))], tokenize=True
    )
    plain = model.projector(model.encode_images(batch["pixel_values"]))[:, 1:]
    for index in (0, 1):
        assert not torch.allclose(together[index], plain[index], atol=1e-4)


def test_unlabelled_conditioning_reads_every_turn_but_the_answers(
    tiny_model: Callable[..., Any],
) -> None:
    steered = tiny_model("llama", parrot=ParrotConfig.released(num_experts=3, hidden_size=16))
    base = visual(steered, chat())
    assert not torch.allclose(visual(steered, chat(second="Et là?"))[0], base[0], atol=1e-4)
    assert_close(visual(steered, chat(answer="Un chien")), base, rtol=0, atol=0)


def test_an_image_without_its_question_is_refused(steered: Any) -> None:
    model, processor = steered
    batch = processor.apply_chat_template(chat(), tokenize=True)
    features = model.encode_images(batch["pixel_values"])
    with pytest.raises(DataError, match="pass question_ids"):
        model.visual_tokens(features)
    with pytest.raises(DataError, match="2 images but 1 questions"):
        model.visual_tokens(features, batch["question_ids"][:1])


# ---------------------------------------------------------------------- controls without language


def control(condition_on: str, **changes: Any) -> ParrotConfig:
    return ParrotConfig(num_experts=3, hidden_size=16, condition_on=condition_on, **changes)


@pytest.mark.parametrize("condition_on", ["picture", "nothing"])
def test_a_control_has_the_parameters_of_the_conditioned_module(condition_on: str) -> None:
    def shapes(config: ParrotConfig) -> dict[str, Any]:
        return {k: v.shape for k, v in LanguageConditionedMoE(D, config).state_dict().items()}

    assert shapes(control(condition_on)) == shapes(control("turn"))


def test_the_picture_steers_by_its_summary_and_nothing_by_a_constant() -> None:
    torch.manual_seed(0)
    h, q, e = numbers()
    for condition_on, steering in (("picture", q), ("nothing", np.ones(D))):
        module = LanguageConditionedMoE(D, control(condition_on, last_matrix="default"))
        summary = torch.tensor(q, dtype=torch.float32)[None]
        by_hand = softmax(module.router.weight.detach().numpy() @ steering)
        np.testing.assert_allclose(module.gate(summary)[0].detach().numpy(), by_hand, rtol=1e-5)
        np.testing.assert_array_equal(run(module, h, q, e), run(module, h, q, e[:1] + 1))


@pytest.mark.parametrize("condition_on", ["picture", "nothing"])
def test_no_question_changes_a_controls_visual_tokens(
    condition_on: str, tiny_model: Callable[..., Any]
) -> None:
    steered = tiny_model("llama", parrot=control(condition_on))
    base = visual(steered, chat())
    assert_close(visual(steered, chat("Quelle couleur?", second="Et là?")), base, rtol=0, atol=0)
    model, processor = steered
    assert not model.prefix_depends_on_question
    batch = processor.apply_chat_template(chat(), tokenize=True)
    features = model.encode_images(batch["pixel_values"])
    assert_close(model.visual_tokens(features), base, rtol=0, atol=0)
    gates = model.language_gate(features)
    same = bool((gates[0] - gates[1]).abs().max() < 1e-6)
    assert same == (condition_on == "nothing")


@pytest.mark.parametrize("condition_on", ["picture", "nothing"])
def test_a_controls_router_learns(condition_on: str) -> None:
    torch.manual_seed(0)
    module = LanguageConditionedMoE(D, control(condition_on, last_matrix="default"))
    h, q, _ = (torch.tensor(part, dtype=torch.float32)[None] for part in numbers())
    module(h, q).square().sum().backward()
    assert module.router.weight.grad.abs().max() > 0


def test_a_control_is_saved_and_read_again(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model, processor = tiny_model("llama", parrot=control("picture"))
    model.save_pretrained(tmp_path / "model", processor=processor)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "steered by picture, not language" in card
    again = type(model).from_pretrained(tmp_path / "model")
    assert again.config.parrot_part == control("picture")
    features = model.encode_images(torch.randn(2, 3, 16, 16))
    assert_close(again.visual_tokens(features), model.visual_tokens(features))


def test_a_config_without_the_controls_reads_as_it_always_did() -> None:
    saved = {key: v for key, v in ParrotConfig().to_dict().items() if key != "condition_on"}
    assert ParrotConfig.from_dict(saved).condition_on == "turn"
    assert ParrotConfig.from_dict({**saved, "condition_on": "unlabelled"}).reads_question
