"""Shared beginnings against `generate` and against whole passes, for every family."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_mole.configuration import ParrotConfig
from llava_mole.decoding import padded
from llava_mole.evaluation.asks import Unit, make_units
from llava_mole.evaluation.items import Item
from llava_mole.evaluation.models import decoding
from llava_mole.evaluation.models.decoding import common_beginning, prefill_parts
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.protocol import Protocol
from llava_mole.mole.methods import METHODS
from tests import helpers

PROTOCOL = Protocol(passes="circular_generated", max_new_tokens=6)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    helpers.picture(seed).save(file, "PNG")
    return file.getvalue()


def item(number: int, options: tuple[str, ...], question: str = "What is it?") -> Item:
    letters = "ABCD"[: len(options)]
    by_letter = dict(zip(letters, options, strict=True))
    return Item(
        index=str(number), question=question, hint="", options=by_letter,
        answer="A", category="", language="en", image=png(number), picture=str(number), split="",
        comment="", tags={}, source=f"x.tsv:{number}", file="x.tsv",
    )  # fmt: skip


def units(protocol: Protocol = PROTOCOL) -> list[Unit]:
    """Questions of several lengths, two to four options of unequal length."""
    return make_units(
        [
            item(0, ("cat", "dog", "a red cow", "hen")),
            item(1, ("up", "down")),
            item(2, ("car", "dog", "blue", "hen"), "Which?"),
            item(3, ("one", "two", "three")),
        ],
        protocol,
    )


def generated(ours: OurModel, unit: Unit, protocol: Protocol) -> list[str]:
    """The readable twin: one pass at a time, from the same features (the store's bfloat16)."""
    model, processor, replies = ours.model, ours.processor, []
    for ask in unit.asks:
        content = [{"type": "text", "text": ask.prompt}]
        if protocol.picture:
            content.insert(0, {"type": "image", "image": ask.item.image})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True, return_dict=True, add_generation_prompt=True,
        )  # fmt: skip
        if inputs.pop("pixel_values", None) is not None:
            inputs["image_features"] = ours.features([ask.item.image])
        out = model.generate(**inputs, max_new_tokens=protocol.max_new_tokens, do_sample=False)
        said = out[0, inputs["input_ids"].shape[1] :]
        replies.append(processor.decode(said, skip_special_tokens=True).strip())
    return replies


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_replies_are_those_of_generate(tiny_model, family):
    model, processor = tiny_model(family, mole=True, lora=True, dtype="float32")
    ours = OurModel(model, processor, PROTOCOL)
    assert ours.share
    asked = units()
    for part in ([asked[0]], [asked[1]], [asked[2]], [asked[3]]):
        said = [[reply.text for reply in unit] for unit in ours.answer(part)]
        assert said == [generated(ours, unit, PROTOCOL) for unit in part]


def test_a_batch_answers_as_each_question_alone(tiny_model):
    model, processor = tiny_model("gemma3_text", mole=True)
    ours = OurModel(model, processor, PROTOCOL)
    same = [make_units([item(n, ("cat", "dog", "cow", "hen"))], PROTOCOL)[0] for n in range(5)]
    assert len(set(ours.lengths(same))) == 1
    assert ours.answer(same) == [ours.answer([unit])[0] for unit in same]


@pytest.mark.parametrize("answer", ["generate", "letters"])
def test_shared_and_whole_passes_agree(tiny_model, answer):
    model, processor = tiny_model("qwen2", mole=True, chat_template="chatml")
    protocol = Protocol(passes="circular_generated", answer=answer, max_new_tokens=5)
    shared = OurModel(model, processor, protocol)
    whole = OurModel(model, processor, protocol, share=False)
    for unit in units(protocol):
        for one, other in zip(shared.answer([unit])[0], whole.answer([unit])[0], strict=True):
            assert one.text == other.text
            if answer == "letters":
                assert one.scores == pytest.approx(other.scores, abs=1e-4)  # float32


def test_letters_are_log_probabilities_of_the_first_token(tiny_model):
    model, processor = tiny_model("llama")
    protocol = Protocol(passes="vanilla", answer="letters")
    unit = units(protocol)[0]
    scores = OurModel(model, processor, protocol).answer([unit])[0][0].scores
    content = [
        {"type": "image", "image": unit.asks[0].item.image},
        {"type": "text", "text": unit.asks[0].prompt},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, add_generation_prompt=True,
    )  # fmt: skip
    with torch.inference_mode():
        expected = model(**inputs).logits[0, -1].log_softmax(-1)
    for letter, score in scores.items():
        token = processor.tokenizer(letter, add_special_tokens=False)["input_ids"][0]
        # features are kept in bfloat16 by the store, the direct pass has them in float32
        assert score == pytest.approx(float(expected[token]), abs=0.05)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_of_experts_answers_as_generate_does(tiny_model, method):
    model, processor = tiny_model("llama", mole=METHODS[method](num_experts=8, r=2))
    ours = OurModel(model, processor, PROTOCOL)
    # Routed by the prompt: nothing of it can be shared.
    assert ours.share == (method != "conditional_mixlora")
    unit = units()[0]
    assert [r.text for r in ours.answer([unit])[0]] == generated(ours, unit, PROTOCOL)


@pytest.mark.parametrize("condition_on", ["turn", "unlabelled"])
def test_pictures_conditioned_on_the_question_are_shared_where_its_words_are_the_same(
    tiny_model, condition_on
):
    parrot = ParrotConfig(num_experts=3, hidden_size=16, condition_on=condition_on)
    model, processor = tiny_model("llama", parrot=parrot)
    ours = OurModel(model, processor, PROTOCOL)
    for unit in units():
        assert len(ours._trees(unit)) == 1  # a byte a token: no seams
        said = [reply.text for reply in ours.answer([unit])[0]]
        assert said == generated(ours, unit, PROTOCOL)


def test_a_pass_in_other_words_has_a_picture_of_its_own(tiny_model):
    """As where a tokenizer joins letters across the seam of two options."""
    model, processor = tiny_model("llama", parrot=ParrotConfig(num_experts=3, hidden_size=16))
    ours = OurModel(model, processor, PROTOCOL)
    unit = units()[0]
    other = replace(unit.asks[2], prompt=unit.asks[2].prompt.replace("hen", "fox"))
    mixed = Unit((*unit.asks[:2], other, unit.asks[3]))
    assert [numbers for numbers, _ in ours._trees(mixed)] == [[0, 1, 3], [2]]
    assert [reply.text for reply in ours.answer([mixed])[0]] == generated(ours, mixed, PROTOCOL)


def test_without_a_picture_the_text_alone_is_asked(tiny_model):
    model, processor = tiny_model("llama", mole=True)
    blind = Protocol(passes="circular_generated", max_new_tokens=5, picture=False)
    ours = OurModel(model, processor, blind)
    for unit in units(blind):
        said = [reply.text for reply in ours.answer([unit])[0]]
        assert said == generated(ours, unit, blind)


def test_the_common_beginning_holds_the_picture_and_leaves_a_token():
    picture = {3}
    assert common_beginning([[1, 3, 3, 5, 6], [1, 3, 3, 5, 7]], picture) == 4
    assert common_beginning([[1, 3, 3, 5], [1, 3, 3, 5]], picture) == 3
    assert common_beginning([[1, 5, 3], [1, 6, 3]], picture) == 0  # the picture is behind
    assert common_beginning([[1, 5], [2, 5]], picture) == 0


def test_a_row_is_as_wide_as_itself_asks_for():
    assert [padded(n) for n in (1, 16, 17, 512, 513)] == [16, 16, 32, 512, 576]


def test_passes_that_show_different_pictures_share_nothing(tiny_model):
    model, processor = tiny_model("llama", mole=True)
    ours = OurModel(model, processor, PROTOCOL)
    unit = units()[0]
    second = replace(unit.asks[1], item=replace(unit.asks[1].item, image=png(77)))
    mixed = Unit((unit.asks[0], second, *unit.asks[2:]))
    said = [reply.text for reply in ours.answer([mixed])[0]]
    assert said == generated(ours, mixed, PROTOCOL)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_prompts_are_computed_together_where_they_are_of_one_width_and_not_too_many(sizes):
    parts = prefill_parts(sizes)
    assert sorted(number for part in parts for number in part) == list(range(len(sizes)))
    for part in parts:
        widths = {padded(sizes[number]) for number in part}
        assert len(widths) == 1
        assert len(part) == 1 or len(part) * widths.pop() <= decoding.PREFILL_TOKENS


@pytest.mark.parametrize("room", [1, 100_000])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_questions_of_unlike_length_are_decoded_together(tiny_model, monkeypatch, family, room):
    """Each row with a pass of its own, or rows of one width together: the replies stay."""
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", room)
    model, processor = tiny_model(family, mole=True, lora=True, dtype="float32")
    ours = OurModel(model, processor, PROTOCOL)
    asked = units()
    assert len(set(ours.lengths(asked))) > 1
    said = [[reply.text for reply in replies] for replies in ours.answer(asked)]
    assert said == [generated(ours, unit, PROTOCOL) for unit in asked]
