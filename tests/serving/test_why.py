"""The explanation is what the model did: routes of the pass, gates of the module."""

import pytest
import torch
from PIL import Image

from llava_mole.configuration import ParrotConfig
from llava_mole.mole import MoleConfig
from llava_mole.mole.methods import METHODS
from llava_mole.serving.chat import ChatEngine, fill_pictures
from llava_mole.serving.why import average_gates, explain, grid_of, seen
from tests import helpers

TURNS = [
    {"role": "user", "content": "<image><image>What is it?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "And the other?"},
]
PICTURES = [helpers.picture(1), helpers.picture(2)]


@pytest.fixture(scope="module")
def parts(tiny_model):
    return tiny_model("llama", mole=True, parrot=True, dtype="float32")


@pytest.fixture(scope="module")
def why(parts):
    return explain(*parts, fill_pictures(TURNS, PICTURES), "A dog.")


def pixels(processor, pictures):
    return processor.image_processor(list(pictures))["pixel_values"]


def test_tokens_are_those_of_the_conversation(parts, why):
    model, _ = parts
    per_image = model.config.vision_part.tokens_per_image
    shown = [(t.picture, t.place) for t in why.tokens if t.kind == "picture"]
    assert shown == [(image, place) for image in range(2) for place in range(per_image)]
    answer = "".join(t.text for t in why.tokens if t.kind == "answer")
    assert answer.startswith("A dog.")
    assert "cat" in "".join(t.text for t in why.tokens if t.kind == "words")
    rows, columns = why.grid
    assert rows * columns == per_image == model.config.vision_part.num_patches


def test_experts_are_those_of_the_pass(parts, why):
    """Read from the records of a pass of the test's own."""
    model, processor = parts
    messages = fill_pictures(TURNS, PICTURES)
    said = {"role": "assistant", "content": "A dog."}
    batch = processor.apply_chat_template([*messages, said], tokenize=True)
    with torch.inference_mode():
        model(**batch)
    assert list(why.routers) == [record.name for record in model.mole.records]
    for number, record in enumerate(model.mole.records):
        expected = record.probs.argmax(-1).tolist()  # top-1
        assert [token.experts[number] for token in why.tokens] == expected
    assert why.num_experts == model.config.mole_part.num_experts
    assert sum(why.use("answer")) == pytest.approx(1)
    overlay = why.overlay(1, 0)
    flat = [expert for row in overlay for expert in row]
    assert flat == [t.experts[0] for t in why.tokens if t.picture == 1]


def test_gates_follow_the_question_and_have_averages(parts):
    model, processor = parts
    asked = {"en": ["What is it?", "Which colour?"], "ru": ["Что это?", "Какого цвета?"]}
    usual = average_gates(model, processor, asked, pixels(processor, PICTURES))
    assert set(usual) == {"en", "ru"}
    for gate in usual.values():
        assert sum(gate) == pytest.approx(1, abs=1e-5)
    ask = [{"role": "user", "content": "<image>Что это?"}]
    found = explain(model, processor, fill_pictures(ask, PICTURES[:1]), "Кот.")
    [gate] = found.gates
    alone = average_gates(model, processor, {"ru": ["Что это?"]}, pixels(processor, PICTURES[:1]))[
        "ru"
    ]
    assert list(gate) == pytest.approx(alone, abs=1e-6)  # the same numbers in another batch
    assert "question in Russian" in found.sentence("ru", usual)


def test_a_picture_is_shown_as_the_tower_sees_it(parts):
    _, processor = parts
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (0, 0, 100, 100))
    shown = seen(processor, pixels(processor, [wide])[0])
    side = processor.image_processor.preprocess["size"]
    assert shown.size == ((side, side) if isinstance(side, int) else tuple(side)[::-1])
    assert shown.getpixel((shown.width // 2, shown.height // 2))[0] > 240


def test_a_model_without_experts_says_so(tiny_model):
    model, processor = tiny_model("llama", mole=None)
    found = explain(model, processor, fill_pictures(TURNS, PICTURES), "A dog.")
    assert (found.routers, found.gates, found.num_experts) == ((), (), 0)
    assert found.overlay(0, 0) is None
    assert "no experts" in found.sentence()
    assert grid_of(model) is not None


def test_it_is_asked_for_while_answers_are_written(parts, why):
    engine = ChatEngine(*parts)
    long = engine.submit([{"role": "user", "content": "Tell me more."}], (), None)
    assert engine.explain(TURNS, "A dog.", PICTURES) == why
    long.cancel()
    with pytest.raises(ZeroDivisionError):
        engine.batcher.call(lambda: 1 / 0)
    assert engine.answer(TURNS, PICTURES, max_new_tokens=2) is not None
    engine.close()


@pytest.mark.parametrize("condition", ["picture", "nothing"])
def test_a_gate_that_reads_no_question_says_so(tiny_model, condition):
    model, processor = tiny_model(
        "llama", parrot=ParrotConfig(num_experts=3, hidden_size=16, condition_on=condition)
    )
    found = explain(model, processor, fill_pictures(TURNS, PICTURES), "A dog.")
    assert "Whatever the question" in found.sentence("ru")
    assert "Russian" not in found.sentence("ru")


def test_a_shared_expert_is_told_beside_those_that_are_chosen(tiny_model, tmp_path):
    mixture = MoleConfig(num_experts=3, r=2, lora_alpha=4.0, shared_expert_r=2)
    model, processor = tiny_model("llama", mole=mixture)
    found = explain(model, processor, fill_pictures(TURNS, PICTURES), "A dog.")
    assert found.num_experts == 3
    assert "3 experts, parts that share its work beside one that always works;" in found.sentence()
    model.save_pretrained(tmp_path / "model", processor=processor)
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "3 experts, rank 2, and a shared one of rank 2" in card


def test_of_several_experts_the_one_with_the_largest_gate_is_shown(tiny_model):
    model, processor = tiny_model("gemma3_text", mole=METHODS["loramoe"](num_experts=3, r=2))
    said = explain(model, processor, fill_pictures(TURNS, PICTURES), "A dog.")
    shown = []
    for number, record in enumerate(model.mole.records):
        expected = record.probs.argmax(-1).tolist()
        assert [token.experts[number] for token in said.tokens] == expected
        shown += expected
    assert len(set(shown)) > 1
