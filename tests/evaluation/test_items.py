"""The benchmark's TSV: what is read, and every refusal with its row and column."""

import pytest

from llava_mole.data.images import load_image
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.items import accepted, first_of_each, read_items
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
        ({"row1_index": "0"}, r"tsv:3: column index: '0' is the row's of line 2 already"),
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
    with pytest.raises(DataError, match=r"x.tsv:2: 3 cells, the header has 6 columns"):
        read_items(path, "en")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="header of several columns"):
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


# ---------------------------------------------------------------------- files as published


def test_a_picture_may_be_another_row_index_forwards_too(row, table):
    path = table([row(5, image="9"), row(9), row(1_000_005, image="9")])
    first, holder, turned = read_items(path, "en")
    assert first.image is holder.image is turned.image
    assert load_image(first.image).size == (24, 24)


def test_rows_with_the_same_picture_share_it(row, table):
    one, other = read_items(table([row(1), row(2, image=row(1)["image"])]), "en")
    assert one.image is other.image
    assert one.picture == other.picture


def test_a_reference_to_a_reference_is_none(row, table):
    with pytest.raises(DataError, match=r":4: column image: '2' is neither a picture"):
        read_items(table([row(1), row(2, image="1"), row(3, image="2")]), "en")


@pytest.mark.parametrize("empty", ["", "NaN", "nan", " "])
def test_an_empty_cell_or_nan_is_no_option(row, table, empty):
    [item] = read_items(table([row(C=empty, D=empty, hint=empty, category=empty)]), "en")
    assert item.options == {"A": "a cat", "B": "a dog"}
    assert (item.hint, item.category) == ("", "")


def test_five_options(row, table):
    [item] = read_items(table([row() | {"E": "a cow", "answer": "E"}]), "en")
    assert item.options["E"] == item.right == "a cow"
    with pytest.raises(DataError, match=r"'E' is none of the options A, B, C, D"):
        read_items(table([row(answer="E")]), "en")


@pytest.mark.parametrize("column", ["l2-category", "L2-category"])
def test_l2_category_in_either_spelling(row, table, column):
    cells = row()
    del cells["l2-category"]
    [item] = read_items(table([cells | {column: "logic_reasoning"}]), "en")
    assert item.l2 == "logic_reasoning"


def test_columns_in_another_order_and_others_beside_them(row, table):
    cells = row() | {"g_index": "0"}
    turned = read_items(table([dict(reversed(cells.items()))]), "en")
    assert turned == read_items(table([row()]), "en")


def test_columns_that_nothing_needs_may_be_missing(row, table):
    cells = row()
    for name in ("hint", "C", "D", "category", "source", "l2-category", "comment", "split"):
        del cells[name]
    [item] = read_items(table([cells]), "en")
    assert item.options == {"A": "a cat", "B": "a dog"}
    assert (item.hint, item.category, item.l2, item.split) == ("", "", "", "")


def test_quoted_cells_hold_tabs_and_line_breaks(row, table):
    path = table([row(0, hint='Line "1"\n\tline 2', question="What\nis it?"), row(1, answer="Q")])
    with pytest.raises(DataError, match=r"\.tsv:5: column answer: 'Q'"):
        read_items(path, "en")
    bad: list[DataError] = []
    [item] = read_items(path, "en", bad_rows=bad)
    assert (item.hint, item.question) == ('Line "1"\n\tline 2', "What\nis it?")
    assert len(bad) == 1


def test_windows_line_ends_and_a_byte_order_mark(row, table):
    path = table([row(0), row(1, question="Что?")])
    expected = read_items(path, "ru")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_items(path, "ru") == expected


def test_base64_in_lines(row, table):
    whole = row()["image"]
    lines = "\n".join(whole[n : n + 76] for n in range(0, len(whole), 76))
    [item] = read_items(table([row(image=lines)]), "en")
    assert load_image(item.image).size == (24, 24)


# ---------------------------------------------------------------------- kinds of answers


def test_hidden_answers(row, table):
    path = table([row(answer="")])
    with pytest.raises(DataError, match="are the answers of this split hidden"):
        read_items(path, "en")
    [item] = read_items(path, "en", hidden=True)
    assert (item.answer, len(item.options)) == ("", 4)
    cells = row()
    del cells["answer"]
    [item] = read_items(table([cells]), "en", hidden=True)
    assert item.answer == ""
    with pytest.raises(DataError, match=":1: no column answer"):
        read_items(table([cells]), "en")


def plain(row, **cells):
    made = row(**cells)
    return {name: made[name] for name in ("index", "question", "answer", "image")}


@pytest.mark.parametrize(("answer", "letter"), [("Yes", "A"), ("no", "B"), (" NO ", "B")])
def test_yes_no(row, table, answer, letter):
    [item] = read_items(table([plain(row, answer=answer)]), "en", kind="yes_no")
    assert (item.options, item.answer) == ({"A": "Yes", "B": "No"}, letter)


def test_yes_no_refuses_another_word(row, table):
    with pytest.raises(DataError, match="column answer: 'maybe' is neither Yes nor No"):
        read_items(table([plain(row, answer="maybe")]), "en", kind="yes_no")


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("14", ("14",)),
        ("['a cat', \"cat's\"]", ("a cat", "cat's")),
        ('["a cat", "cat"]', ("a cat", "cat")),
        ("[1, 2]", ("[1, 2]",)),
        ("[sic]", ("[sic]",)),
        ("[]", ("[]",)),
        ("[__import__('os').getcwd()]", ("[__import__('os').getcwd()]",)),
    ],
)
def test_open_answers(row, table, cell, answers):
    [item] = read_items(table([plain(row, answer=cell)]), "en", kind="open")
    assert (item.options, item.answer, item.answers) == ({}, "", answers)


def test_open_answers_may_be_hidden(row, table):
    [item] = read_items(table([plain(row, answer="")]), "en", kind="open", hidden=True)
    assert item.answers == ()


# ---------------------------------------------------------------------- language, bad rows


def test_a_language_column_must_not_contradict_the_given_one(tsv):
    with pytest.raises(DataError, match=r":3: column language: 'ar' in a file of 'en'"):
        read_items(tsv(), "en")


def test_bad_rows_are_collected_and_the_rest_is_read(row, table):
    bad: list[DataError] = []
    rows = [row(0), row(1, answer="Z"), row(2, image="!" * 80), row(0), row(4)]
    assert [item.index for item in read_items(table(rows), "en", bad_rows=bad)] == ["0", "4"]
    assert [str(error).split(": ")[0].rsplit(":", 1)[1] for error in bad] == ["3", "4", "5"]


def test_a_file_without_rows_is_refused_whatever_an_earlier_one_had(row, table):
    bad = [DataError("another file's")]
    path = table([row()])
    path.write_text(path.read_text("utf-8").split("\n")[0] + "\n", "utf-8")
    with pytest.raises(DataError, match="a header and no row; was the file cut"):
        read_items(path, "en", bad_rows=bad)


def test_question_of_a_row(item):
    assert (item(1_000_007).base, item(1_000_007).turn, item(7).turn) == ("7", 1, 0)
    assert item(1_000_007).group == item(7).group == "q.tsv/7"
    assert item(7).question_id == item(7, language="ru", file="q_ru.tsv").question_id == "7"
    assert item(7, tags={"item": "3"}).question_id == "naming/3"


def test_first_questions_of_each_language_with_all_passes(item):
    rows = [item(n + k * 1_000_000, language=code) for code in ("en", "ru") for n in (4, 2, 9)
            for k in range(2)]  # fmt: skip
    kept = first_of_each(rows, 2)
    assert [(one.language, one.index) for one in kept] == [
        (code, str(n)) for code in ("en", "ru") for n in (4, 1_000_004, 2, 1_000_002)
    ]
    assert first_of_each(rows, None) == rows


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a', 'b']", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("[1, 2]", ("[1, 2]",)),
        ("[" * 3000 + "]" * 3000, ("[" * 3000 + "]" * 3000,)),
        ("[__import__('os')]", ("[__import__('os')]",)),
    ],
)
def test_lists_of_answers_are_data_and_nothing_else(cell, texts):
    assert accepted(cell) == texts


def test_a_list_of_answers_as_numpy_prints_it_is_refused():
    with pytest.raises(DataError, match="without commas"):
        accepted("['a' 'b']")
