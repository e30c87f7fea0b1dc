"""ChatEngine: pieces of text as they come, errors instead of silence, and a stop that stops."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_mole.errors import CheckpointError, DataError
from llava_mole.serving.chat import ChatEngine, fill_pictures

RED = Image.new("RGB", (32, 32), "red")
QUESTION = [{"role": "user", "content": "<image>\nWhat is it?"}]


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> ChatEngine:
    return ChatEngine.from_folder(tiny_model_dir, device="cpu")


def test_pieces_join_to_what_generate_says(engine: ChatEngine) -> None:
    pieces = list(engine.stream(QUESTION, [RED], max_new_tokens=12, min_new_tokens=12))
    inputs = engine.processor.apply_chat_template(
        fill_pictures(QUESTION, [RED]),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    ids = engine.model.generate(**inputs, max_new_tokens=12, min_new_tokens=12)
    said = ids[0, inputs["input_ids"].shape[1] :]
    assert len(pieces) > 1
    assert "".join(pieces) == engine.processor.tokenizer.decode(said, skip_special_tokens=True)


def test_several_turns_and_no_picture(engine: ChatEngine) -> None:
    turns = [
        {"role": "user", "content": "<image> <image> Which is larger?"},
        {"role": "assistant", "content": "The first."},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "image"}]},
    ]
    engine.answer(turns, [RED, RED, RED], max_new_tokens=2)
    engine.answer([{"role": "user", "content": "Hello"}], max_new_tokens=2)


def test_two_conversations_at_once_do_not_mix(engine: ChatEngine) -> None:
    blue = Image.new("RGB", (32, 32), "blue")
    alone = [engine.answer(QUESTION, [picture], max_new_tokens=8) for picture in (RED, blue)]
    together: dict[int, str] = {}

    def ask(index: int, picture: Image.Image) -> None:
        together[index] = engine.answer(QUESTION, [picture], max_new_tokens=8)

    threads = [threading.Thread(target=ask, args=(i, p)) for i, p in enumerate((RED, blue))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[0], together[1]] == alone


def test_closing_the_stream_stops_the_generation(engine: ChatEngine) -> None:
    many, begun = 1900, []
    submit = engine.submit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "submit", lambda *a, **k: begun.append(submit(*a, **k)) or begun[-1])
        stream = engine.stream(QUESTION, [RED], max_new_tokens=many, min_new_tokens=many)
        assert isinstance(stream, Iterator)
        next(stream)
    stream.close()
    engine.answer(QUESTION, [RED], max_new_tokens=1)
    while engine.batcher.load() != (0, 0):
        time.sleep(0.01)
    [generation] = begun
    assert generation.finish_reason == "cancelled"
    assert len(generation.tokens) < many


def test_an_error_while_generating_reaches_the_reader(engine: ChatEngine) -> None:
    with pytest.raises(DataError, match="temperature"):
        list(engine.stream(QUESTION, [RED], temperature=-1.0))


@pytest.mark.parametrize(("text", "count"), [("<image> <image> x", 1), ("x", 1), ("<image> x", 0)])
def test_pictures_and_places_must_match(engine: ChatEngine, text: str, count: int) -> None:
    expected = f"{text.count('<image>')} <image> placeholders in the text but {count} images"
    with pytest.raises(DataError, match=expected):
        list(engine.stream([{"role": "user", "content": text}], [RED] * count))


def test_a_picture_that_is_none_is_named(engine: ChatEngine, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"note\.png"):
        list(engine.stream(QUESTION, [tmp_path / "note.png"]))


def test_longer_than_the_context_is_told(engine: ChatEngine) -> None:
    limit = engine.model.config.get_text_config().max_position_embeddings
    with pytest.raises(DataError, match=f"the model's context {limit}"):
        list(engine.stream([{"role": "user", "content": "word " * limit}]))


def test_answers_end_with_the_context(engine: ChatEngine) -> None:
    limit = engine.model.config.get_text_config().max_position_embeddings
    filler = engine.processor.tokenizer("x " * limit, add_special_tokens=False)["input_ids"]
    text = engine.processor.tokenizer.decode(filler[: limit - 24])
    inputs = engine.processor.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    room = limit - inputs["input_ids"].shape[1]
    assert 0 < room < 30
    said = "".join(engine.stream([{"role": "user", "content": text}], max_new_tokens=99))
    ids = engine.model.generate(**inputs, max_new_tokens=room)[0, -room:]
    assert said == engine.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_missing_folder_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="make quickstart"):
        ChatEngine.from_folder(tmp_path / "none")


def test_weights_keep_their_dtype(engine: ChatEngine) -> None:
    saved = engine.model.config.get_text_config().dtype
    assert engine.model.get_input_embeddings().weight.dtype == (saved or torch.float32)
