"""Forward pass and generation: what a cache, padding, a batch, a missing image do not change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache

from llava_mole.configuration import LlavaMoleConfig, ParrotConfig
from llava_mole.errors import ConfigError, DataError
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.mole import MoleConfig, samples_by_expert
from tests.helpers import (
    FAMILIES,
    WINDOW,
    assistant,
    gradients,
    picture,
    random_ids,
    training_batch,
    user,
)

EVERYTHING = {"mole": True, "lora": True, "parrot": True}
# Float32 sums in another order: logits of order 10 agree to a few 1e-5.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
LONG = "A question that is longer than any sliding window?"


def chats() -> list[list[dict[str, Any]]]:
    """Rows of different lengths with one, two and no picture."""
    return [
        [user("What is this?", picture(1))],
        [user("Compare these two, please.", picture(2), picture(3))],
        [user(LONG)],
        [user("One", picture(4)), assistant("a cat"), user("and this", picture(5))],
    ]


def generation_inputs(processor: Any, rows: list[Any], **options: Any) -> dict[str, Tensor]:
    return dict(
        processor.apply_chat_template(rows, tokenize=True, add_generation_prompt=True, **options)
    )


# ---------------------------------------------------------------------- cache, batch, padding


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache_gives_the_logits_of_the_full_sequence(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, processor = tiny_model(family, **EVERYTHING)
    inputs = generation_inputs(processor, [[user(LONG, picture())]])
    rest = random_ids(1, 2 * WINDOW)
    ids = torch.cat([inputs["input_ids"], rest], dim=1)
    images = {k: inputs[k] for k in ("pixel_values", "question_ids", "question_mask")}
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits
        cache = DynamicCache(config=model.language_model.config)
        prompt = inputs["input_ids"].shape[1]
        out = model(**inputs, cache=cache, use_cache=True)
        assert_close(out.logits, full[:, :prompt], **CLOSE)
        for step in range(prompt, ids.shape[1]):
            out = model(
                input_ids=ids[:, step : step + 1],
                attention_mask=torch.ones(1, step + 1, dtype=torch.long),
                cache=cache,
                use_cache=True,
            )
            assert_close(out.logits[:, 0], full[:, step], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_generates_what_each_row_generates_alone(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, processor = tiny_model(family, **EVERYTHING)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    inputs = generation_inputs(processor, chats())
    assert (inputs["attention_mask"][:, 0] == 0).any()
    together = model.generate(**inputs, **options)
    for index, chat in enumerate(chats()):
        alone = model.generate(**generation_inputs(processor, [chat]), **options)
        new = together.sequences[index, inputs["input_ids"].shape[1] :]
        assert new.tolist() == alone.sequences[0, -6:].tolist()
        for batched, single in zip(together.logits, alone.logits, strict=True):
            assert_close(batched[index], single[0], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logit(tiny_model: Callable[..., Any], family: str, side: str) -> None:
    model, processor = tiny_model(family, **EVERYTHING)
    batch = generation_inputs(processor, chats(), padding_side=side)
    logits = model(**batch).logits
    for index, chat in enumerate(chats()):
        real = batch["attention_mask"][index].bool()
        alone = model(**generation_inputs(processor, [chat])).logits
        assert_close(logits[index, real], alone[0], **CLOSE)


def test_padding_changes_no_loss_and_no_statistic(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("gemma3_text", mole=MoleConfig(num_experts=3, r=2))
    batch = training_batch(processor, [[user("What?", picture()), assistant("a cat")]])
    plain = model(**batch)
    use = samples_by_expert(model)
    extra = 5
    for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        batch[key] = torch.nn.functional.pad(batch[key], (0, extra), value=fill)
    padded = model(**batch)
    for name, value in plain.losses.items():
        assert_close(padded.losses[name], value, rtol=1e-5, atol=1e-5)
    assert_close(samples_by_expert(model), use)


# ---------------------------------------------------------------------- generate()


def test_decode_steps_do_not_see_the_images_again(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    seen = []
    model.vision_tower.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    inputs = generation_inputs(processor, chats()[:2])
    model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert seen == [3]


def test_without_a_cache_generation_gives_the_same_tokens(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    inputs = generation_inputs(processor, chats())
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, use_cache=False, **options), cached)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_beams_repeat_the_images_of_a_row_together(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, processor = tiny_model(family, **EVERYTHING)
    options = {"max_new_tokens": 5, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    rows = chats()
    inputs = generation_inputs(processor, rows)
    together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for index, chat in enumerate(rows):
        single = generation_inputs(processor, [chat])
        alone = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
        assert together[index].tolist() == alone[0].tolist()


def test_every_beam_gets_its_own_rows_images_in_order(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    inputs = generation_inputs(processor, chats()[:2])  # one image, then two
    seen: list[Tensor] = []
    model.vision_tower.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    steering: list[Tensor] = []
    model.parrot.register_forward_hook(lambda m, args, out: steering.append(args[3]))
    model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    order = [0, 0, 1, 2, 1, 2]
    assert_close(seen[0], inputs["pixel_values"][order], rtol=0, atol=0)
    assert torch.equal(steering[0], inputs["question_mask"][order])


def test_prefill_computes_the_last_logits_only(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    ids = random_ids(2, 9)
    last = model(input_ids=ids, logits_to_keep=1).logits
    assert last.shape[1] == 1
    assert_close(last[:, 0], model(input_ids=ids).logits[:, -1])


# ---------------------------------------------------------------------- with and without images


def kinds_of_batch() -> dict[str, list[list[dict[str, Any]]]]:
    return {
        "text only": [[user("Hello there"), assistant("hi")]],
        "image without a question": [[user("", picture()), assistant("a cat")]],
        "several images in a turn": [[user("Both?", picture(1), picture(2)), assistant("no")]],
        "images in several turns": [
            [user("A", picture(1)), assistant("x"), user("B", picture(2)), assistant("y")]
        ],
        "mixed": [
            [user("Hello there"), assistant("hi")],
            [user("Both?", picture(1), picture(2)), assistant("no")],
            [user("", picture(3)), assistant("a cat")],
        ],
    }


@pytest.mark.parametrize("kind", kinds_of_batch())
def test_every_kind_of_batch_trains_every_part(tiny_model: Callable[..., Any], kind: str) -> None:
    """Also a text-only one: a parameter without gradient on one rank would hang the others."""
    model, processor = tiny_model("llama", **EVERYTHING)
    model.requires_grad_(True).train()
    out = model(**training_batch(processor, kinds_of_batch()[kind]))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    unused = {"vision_tower.visual.proj"}  # open_clip's projection comes after the tokens we read
    assert {name for name, p in model.named_parameters() if p.grad is None} <= unused


def test_an_idle_visual_side_gets_a_gradient_of_zero(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    model.requires_grad_(True).train()
    model(**training_batch(processor, kinds_of_batch()["text only"])).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("projector.", "parrot.")):
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("tower", ["vit", "cnn"])
def test_an_idle_visual_side_leaves_the_loss_alone(
    tiny_model: Callable[..., Any], tower: str
) -> None:
    model, processor = tiny_model("llama", tower=tower, **EVERYTHING)
    batch = training_batch(processor, kinds_of_batch()["text only"])
    expected = model.eval()(**batch).loss
    model.requires_grad_(True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert_close(model(**batch).loss, expected, rtol=1e-6, atol=1e-6)
    assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert model.vision_tower.training


def test_a_frozen_tower_with_batch_norms_is_the_same_in_training(
    tiny_model: Callable[..., Any],
) -> None:
    model, processor = tiny_model("llama", tower="cnn")
    pixels = processor.image_processor([picture(1), picture(2)])["pixel_values"]
    expected = model.encode_images(pixels)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    assert_close(model.encode_images(pixels), expected, rtol=0, atol=0)
    assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


def test_rows_of_a_mixed_batch_compute_what_they_compute_alone(
    tiny_model: Callable[..., Any],
) -> None:
    model, processor = tiny_model("llama", **EVERYTHING)
    rows = kinds_of_batch()["mixed"]
    together = model(**training_batch(processor, rows)).logits[0]
    alone = [model(**training_batch(processor, [row])).logits[0] for row in rows]
    assert_close(together, torch.cat(alone), **CLOSE)


def test_image_features_stand_in_for_pixels(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", tower="cnn", parrot=True)
    batch = training_batch(processor, [[user("What?", picture()), assistant("a cat")]])
    expected = model(**batch).logits
    batch["image_features"] = model.encode_images(batch.pop("pixel_values"))
    assert_close(model(**batch).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("cut", [1, 4])
def test_a_placeholder_mismatch_is_refused_with_both_counts(
    tiny_model: Callable[..., Any], cut: int
) -> None:
    model, processor = tiny_model("llama")
    batch = generation_inputs(processor, [[user("Both?", picture(1), picture(2))]])
    places = (batch["input_ids"][0] == processor.image_token_id).nonzero().squeeze(1)
    batch["input_ids"][0, places[:cut]] = 40
    wanted = f"{8 - cut} image placeholders in input_ids but 8 visual tokens .2 images of 4"
    with pytest.raises(DataError, match=wanted):
        model(**batch)
    text = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with pytest.raises(DataError, match=f"{8 - cut} image placeholders .* but 0 visual tokens"):
        model(**text)


def test_no_supervised_token_is_refused(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    ids = random_ids(1, 5)
    with pytest.raises(DataError, match="no supervised token"):
        model(input_ids=ids, labels=torch.full_like(ids, -100))


# ---------------------------------------------------------------------- the loss and its gradient


def test_the_loss_is_the_sum_of_its_named_parts(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama", mole=MoleConfig(num_experts=3, r=2, balance_coef=0.7))
    out = model(**training_batch(processor, kinds_of_batch()["mixed"]))
    assert set(out.losses) == {"language", "balance"}
    assert_close(out.loss, sum(out.losses.values()))
    assert out.losses["balance"] > 0.7 / 3 - 1e-3


def test_routers_that_pool_the_prompt_are_told_where_it_ends(
    tiny_model: Callable[..., Any],
) -> None:
    model, _ = tiny_model("llama", mole=MoleConfig(method="conditional_mixlora", r=2))
    ids = random_ids(1, 8)
    labels = torch.full_like(ids, -100)
    labels[0, 5:] = ids[0, 5:]
    model(input_ids=ids, labels=labels)
    assert model.prefix_depends_on_question
    assert model.mole.prompt_mask.tolist() == [[True] * 5 + [False] * 3]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "qwen3"])
def test_activation_checkpointing_changes_no_loss_gradient_or_statistic(
    tiny_model: Callable[..., Any], family: str
) -> None:
    found = []
    for checkpointing in (False, True):
        mole = MoleConfig(num_experts=3, r=2, gate="scaled", balance_coef=0.5)
        model, processor = tiny_model(family, mole=mole, lora=True, parrot=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or "mole" in name or "projector" in name)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            layers = model.language_model.model.layers
            assert all(layer.gradient_checkpointing for layer in layers)
        model.train()
        out = model(**training_batch(processor, kinds_of_batch()["mixed"]))
        use = samples_by_expert(model)
        out.loss.backward()
        found.append((out.losses, use, gradients(model)))
    # The same operations on the same numbers, computed twice.
    assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    assert any("mole_router" in name for name in found[0][2])


def test_a_frozen_tower_keeps_no_graph(tiny_model: Callable[..., Any]) -> None:
    model, processor = tiny_model("llama")
    batch = generation_inputs(processor, [[user("What?", picture())]])
    assert not model.encode_images(batch["pixel_values"]).requires_grad
    model.vision_tower.requires_grad_(True)
    assert model.encode_images(batch["pixel_values"]).requires_grad


# ---------------------------------------------------------------------- as a user gets it


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_answers_text_as_its_language_model(
    tiny_model: Callable[..., Any], family: str
) -> None:
    model, processor = tiny_model(family, awake=False, **EVERYTHING)
    plain, _ = tiny_model(family, awake=False)
    ids = processor.apply_chat_template([user(LONG)], tokenize=True)["input_ids"]
    assert_close(
        model(input_ids=ids).logits, plain.language_model(input_ids=ids).logits, rtol=0, atol=0
    )


def test_parrot_at_its_start_leaves_images_unchanged(tiny_model: Callable[..., Any]) -> None:
    with_parrot, processor = tiny_model("llama", awake=False, parrot=True)
    without, _ = tiny_model("llama", awake=False)
    without.projector.load_state_dict(with_parrot.projector.state_dict())
    batch = generation_inputs(processor, [[user("What?", picture())]])
    text = {k: v for k, v in batch.items() if not k.startswith("question")}
    assert_close(with_parrot(**batch).logits, without(**text).logits, rtol=0, atol=0)


def test_released_parrot_runs_with_the_class_token_as_a_visual_token(
    tiny_model: Callable[..., Any],
) -> None:
    model, processor = tiny_model(
        "llama", parrot=ParrotConfig.released(num_experts=2), vision_select="cls_patch"
    )
    batch = generation_inputs(processor, [[user("What?", picture())]])
    assert (batch["input_ids"] == processor.image_token_id).sum() == 5
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_questions_decide_whether_a_prefix_may_be_shared(tiny_model: Callable[..., Any]) -> None:
    assert tiny_model("llama", parrot=True)[0].prefix_depends_on_question
    assert not tiny_model("llama")[0].prefix_depends_on_question


def test_an_image_token_outside_the_vocabulary_is_refused(tiny_model: Callable[..., Any]) -> None:
    model, _ = tiny_model("llama")
    values = {**model.config.to_dict(), "image_token_id": 272}
    with pytest.raises(ConfigError, match="image_token_id=272 is outside"):
        LlavaMoleForConditionalGeneration(LlavaMoleConfig.from_dict(values))
