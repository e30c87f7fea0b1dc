"""The benchmark's TSV: what is read, and every refusal with its row and column."""

import pytest

from llava_mole.data.images import load_image
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.prompts import ask


def test_reads_options_pictures_and_tags(tsv):
    items = read_items(tsv())
    assert len(items) == 54
    first, second, yes = items[0], items[1], items[36]
    assert first.options == {"A": "cat", "B": "red apple", "C": "blue car", "D": "tree"}
    assert first.right == "cat"
    assert (second.language, second.picture, second.tags["item"]) == ("ar", "P0", "0")
    assert second.image is first.image  # a reference to the row that holds it
    assert load_image(first.image).size == (24, 24)
    assert yes.options == {"A": "Yes", "B": "No"}


def test_a_language_can_be_given_and_cn_is_chinese(tsv):
    path = tsv()
    lines = [line.split("\t")[:-1] for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join("\t".join(line) for line in lines), "utf-8")
    assert {item.language for item in read_items(path, "cn")} == {"zh"}
    with pytest.raises(DataError, match="no column language"):
        read_items(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row1_index": "0"}, r"tsv:3: column index: '0' is row 2's already"),
        ({"row0_image": "!" * 80}, r"tsv:2: column image: broken base64"),
        ({"row1_image": "77"}, r"tsv:3: column image: '77' is neither"),
        ({"row1_image": "2"}, r"tsv:3: column image: '2' is neither"),
        ({"row36_answer": "C"}, r"tsv:38: column answer: 'C' is none of the options A, B"),
        ({"row0_answer": "NaN"}, r"answers of this split hidden"),
        ({"row36_B": ""}, r"tsv:38: columns A to D: 1 options"),
        ({"row0_question": " "}, r"tsv:2: column question: empty"),
        ({"row0_language": "xx"}, r"tsv:2: language 'xx'"),
    ],
)
def test_malformed_rows_are_refused_by_row_and_column(tsv, change, message):
    with pytest.raises(DataError, match=message):
        read_items(tsv(**change))


def test_malformed_files_are_refused(tmp_path):
    path = tmp_path / "x.tsv"
    with pytest.raises(DataError, match="cannot be read"):
        read_items(path)
    path.write_text("index\tquestion\n1\tWhat?\n")
    with pytest.raises(DataError, match="no column A, B, answer, image"):
        read_items(path, "en")
    path.write_text("index\tquestion\tA\tB\tanswer\timage\n1\tWhat?\ta\n")
    with pytest.raises(DataError, match=r"x.tsv:2: more or fewer cells"):
        read_items(path, "en")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a UTF-8 TSV"):
        read_items(path, "en")


def test_prompt_styles(tsv):
    item = read_items(tsv())[2]
    assert ask(item, "answers", None).question == "什么？"
    assert ask(item, "answers", None).options == ("猫", "红苹果", "蓝色汽车", "树")
    letters = ask(item, "parrot", item.image)
    assert letters.question == (
        "什么？\nA. 猫\nB. 红苹果\nC. 蓝色汽车\nD. 树\n请直接用给定选项中的选项字母回答。"
    )
    assert letters.options == ("A", "B", "C", "D")
    with pytest.raises(ConfigError, match="allowed are answers, letters, parrot"):
        ask(item, "letter", None)
