"""A sample turns into Hugging Face chat messages with every picture in its place."""

from pathlib import Path

from llava_mole.data.sample import Sample, Turn


def sample(*turns: Turn, images: int = 0) -> Sample:
    files = tuple(Path(f"{number}.png") for number in range(images))
    return Sample(turns, files, "photos", "en", "a.json:1")


def test_each_placeholder_becomes_an_image_part_in_its_place():
    conversation = sample(
        Turn("user", "<image>\nCompare it with <image> please."),
        Turn("assistant", "They differ."),
        images=2,
    )
    assert conversation.messages() == [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "Compare it with "},
                {"type": "image"},
                {"type": "text", "text": " please."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "They differ."}]},
    ]


def test_a_picture_may_come_last_and_the_separating_line_break_goes():
    parts = sample(Turn("user", "What is this?\n<image>"), images=1).messages()[0]["content"]
    assert parts == [{"type": "text", "text": "What is this?"}, {"type": "image"}]


def test_other_line_breaks_and_spaces_stay():
    text = "A. one\nB. two\n\nAnswer: "
    parts = sample(Turn("user", text)).messages()[0]["content"]
    assert parts == [{"type": "text", "text": text}]


def test_pictures_side_by_side_need_no_text_between():
    parts = sample(Turn("user", "<image><image>"), images=2).messages()[0]["content"]
    assert parts == [{"type": "image"}, {"type": "image"}]
