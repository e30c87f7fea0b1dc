"""LlavaMoleProcessor: placeholders, labels and pictures of a conversation, and every refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from llava_mole.errors import ConfigError, DataError
from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor
from llava_mole.templates.choosing import template_source
from tests.helpers import assistant, byte_tokenizer, picture, user


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[..., Any]) -> LlavaMoleProcessor:
    return tiny_model("llama")[1]


def placeholders(processor: Any, ids: Any) -> int:
    return sum(int(token) == processor.image_token_id for token in ids)


def test_each_image_becomes_its_tower_tokens_where_it_stands(processor: Any) -> None:
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "image": picture(1)},
                {"type": "text", "text": "b"},
                {"type": "image", "image": picture(2)},
            ],
        }
    ]
    encoded = processor.encode(chat)
    image = 4 * "<image>"
    assert processor.decode(encoded.input_ids) == f"<bos>a{image}b{image}\n"
    assert encoded.questions == [processor.question_ids("ab")] * 2


def test_several_images_and_turns_keep_their_order(processor: Any) -> None:
    chat = [user("A", picture(1), picture(2)), assistant("x"), user("B", picture(3))]
    batch = processor.apply_chat_template(chat, tokenize=True)
    assert placeholders(processor, batch["input_ids"][0]) == 12
    for index in range(3):
        alone = processor.image_processor(picture(index + 1))["pixel_values"][0]
        assert_close(batch["pixel_values"][index], alone, rtol=0, atol=0)
    a, b = (processor.question_ids(text) for text in "AB")
    assert batch["question_ids"].tolist() == [a, a, b]


def test_rows_are_padded_left_to_generate_and_right_to_train(processor: Any) -> None:
    rows = [[user("Hi")], [user("A longer one")]]
    generate = processor.apply_chat_template(rows, tokenize=True, add_generation_prompt=True)
    train = processor.apply_chat_template(rows, tokenize=True)
    assert generate["attention_mask"][0].tolist() == sorted(generate["attention_mask"][0].tolist())
    assert train["attention_mask"][0, 0] == 1
    assert train["attention_mask"][0, -1] == 0
    assert generate["input_ids"][0, 0] == processor.tokenizer.pad_token_id


def test_text_only_rows_carry_no_pixels(processor: Any) -> None:
    batch = processor.apply_chat_template([[user("Hi")]], tokenize=True)
    assert set(batch) == {"input_ids", "attention_mask"}


def test_an_image_without_text_has_an_empty_question(processor: Any) -> None:
    batch = processor.apply_chat_template([user("", picture())], tokenize=True)
    assert not batch["question_mask"].any()
    assert placeholders(processor, batch["input_ids"][0]) == 4


def test_the_assistant_mask_is_the_label_mask(processor: Any) -> None:
    chat = [user("Hi", picture()), assistant("there")]
    batch = processor.apply_chat_template(chat, tokenize=True, return_assistant_tokens_mask=True)
    mask = batch["assistant_masks"][0].bool()
    assert processor.decode(batch["input_ids"][0][mask]) == "there<eos>"


def test_ready_made_text_takes_images_too(processor: Any) -> None:
    batch = processor(images=[picture(1), picture(2)], text="<image>x<image>y")
    assert placeholders(processor, batch["input_ids"][0]) == 8
    assert batch["pixel_values"].shape[0] == 2
    nested = processor(images=[[picture(1)], [picture(2)]], text=["<image>x", "<image>y"])
    assert nested["pixel_values"].shape[0] == 2


def test_a_picture_may_be_a_path(processor: Any, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    chat = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}]}]
    found = processor.apply_chat_template(chat, tokenize=True)["pixel_values"]
    assert_close(found, processor.image_processor(picture(1))["pixel_values"], rtol=0, atol=0)


def test_steering_reads_all_unlabelled_text_where_the_released_code_does(
    tiny_model: Callable[..., Any],
) -> None:
    made = tiny_model("llama")[1]
    made.condition_on = "unlabelled"
    chat = [user("A", picture(1)), assistant("secret"), user("B")]
    (question,) = made.encode(chat).questions
    assert made.decode(question) == "<bos>A\n\nB\n"


# ---------------------------------------------------------------------- refusals


def test_an_empty_conversation_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match="empty conversation"):
        processor.apply_chat_template([], tokenize=True)
    with pytest.raises(DataError, match="empty conversation"):
        processor.encode([])


def test_a_literal_placeholder_in_the_text_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match="1 images renders 2 '<image>' placeholders"):
        processor.encode([user("What is <image> here?", picture())])


def test_a_count_of_images_that_differs_is_refused_with_both_counts(processor: Any) -> None:
    encoded = [processor.encode([user("Both", picture(1), picture(2))])]
    with pytest.raises(DataError, match="2 <image> placeholders in the text but 1 images"):
        processor.batch(encoded, [picture(1)])
    with pytest.raises(DataError, match="1 <image> placeholders in the text but 2 images"):
        processor(images=[picture(1), picture(2)], text="<image>?")


def test_an_image_part_without_a_picture_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match="an image part without a picture"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}], tokenize=True
        )


def test_nothing_is_fetched_from_a_remote_address(processor: Any) -> None:
    chat = [{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}]
    with pytest.raises(DataError, match="remote pictures are not fetched"):
        processor.apply_chat_template(chat, tokenize=True)


def test_a_picture_alone_needs_text(processor: Any) -> None:
    with pytest.raises(DataError, match="pass text="):
        processor(images=picture())


def test_a_broken_picture_is_refused_by_name(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        processor.image_processor([path])


def test_a_placeholder_that_is_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_token='<img>' is not a token"):
        LlavaMoleProcessor(LlavaMoleImageProcessor({}), byte_tokenizer(), image_token="<img>")


def test_a_processor_without_template_says_what_to_do() -> None:
    made = LlavaMoleProcessor(LlavaMoleImageProcessor({}), byte_tokenizer())
    with pytest.raises(ConfigError, match="no chat template"):
        made.encode([user("Hi")])


def test_a_tokenizers_template_without_marks_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="no label mask can be made"):
        template_source("tokenizer", tokenizer, "<image>")


def test_pixels_are_open_clips_own_preprocessing(processor: Any) -> None:
    made = processor.image_processor(Image.new("RGB", (30, 20), "white"))["pixel_values"]
    # White is 1, and (1 - mean) / std of the tower's config is 1 again.
    assert_close(made, torch.ones(1, 3, 16, 16))
