"""Passes and groups: what is asked, and what is right only together."""

from dataclasses import replace

import pytest

from llava_mole.errors import DataError
from llava_mole.evaluation.asks import affirmed, is_turned, make_units, rotations, unturned
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.protocol import Protocol

ABCD = {"A": "cat", "B": "dog", "C": "horse", "D": "sheep"}


def told(units):
    """Group -> (turn, index, answer) of its asks."""
    return {
        unit.group: [(ask.turn, ask.item.index, ask.item.answer) for ask in unit.asks]
        for unit in units
    }


def passes(item, index, count, step=1):
    """Items of a question's first `count` passes, each option moved by k · step."""
    first = item(index, options=ABCD)
    out = []
    for k in range(count):
        turned = {a: list(ABCD.values())[(n - k * step) % 4] for n, a in enumerate("ABCD")}
        right = next(a for a, text in turned.items() if text == "cat")
        out.append(item(index + k * 1_000_000, options=turned, answer=right))
    assert out[0] == first
    return out


# ---------------------------------------------------------------------- vanilla


def test_vanilla_asks_each_row_by_itself(item):
    units = make_units([item(3), item(8)], Protocol())
    assert told(units) == {"q.tsv/3": [(0, "3", "A")], "q.tsv/8": [(0, "8", "A")]}
    assert units[0].asks[0].scored == ("A", "B")


def test_vanilla_leaves_out_turned_rows_and_no_others(item):
    rows = [*passes(item, 1, 4), item(2), item(1_000_002, question="Another?")]
    assert list(told(make_units(rows, Protocol()))) == [
        "q.tsv/1", "q.tsv/2", "q.tsv/1000002",
    ]  # fmt: skip


def test_a_row_is_turned_if_words_and_right_answer_are_the_same(item):
    first = item(1, options=ABCD)
    moved = {"A": "sheep", "B": "cat", "C": "dog", "D": "horse"}
    assert is_turned(item(1_000_001, options=moved, answer="B"), first)
    assert is_turned(item(1_000_001, options=moved, answer=""), first)  # hidden
    assert not is_turned(item(1_000_001, options=moved, answer="A"), first)
    assert not is_turned(item(1_000_001, options=ABCD | {"A": "cow"}, answer="A"), first)
    assert not is_turned(item(1_000_001, options=moved, answer="B", question="Who?"), first)
    assert not is_turned(first, first)
    assert not is_turned(item(1_000_001, options=moved, answer="B"), None)


def test_rows_of_two_files_never_belong_together(item):
    rows = [item(1), item(1_000_001, file="other.tsv", options={"A": "dog", "B": "cat"})]
    assert unturned(rows) == rows


# ---------------------------------------------------------------------- circular


@pytest.mark.parametrize("options", [2, 3, 4])
@pytest.mark.parametrize("step", [1, -1])
def test_circular_groups_the_rows_of_a_file(table, circular, options, step):
    rows = [*circular(7, options, step), *circular(2, 4, step)]
    items = read_items(table(rows), "en")
    units = make_units(items, Protocol(passes="circular"))
    assert [unit.group for unit in units] == ["questions_en.tsv/7", "questions_en.tsv/2"]
    assert [ask.turn for ask in units[0].asks] == list(range(options))
    letters = [ask.item.answer for ask in units[0].asks]
    assert sorted(letters) == list("ABCD"[:options])  # right at every letter once
    assert letters[1] == "ABCD"[step % options]


def test_circular_rows_may_come_in_any_order(item):
    rows = [*passes(item, 1, 4), *passes(item, 2, 4)]
    units = make_units(rows[::-1], Protocol(passes="circular"))
    assert {unit.group: [ask.turn for ask in unit.asks] for unit in units} == {
        "q.tsv/2": [0, 1, 2, 3], "q.tsv/1": [0, 1, 2, 3],
    }  # fmt: skip


def test_fewer_passes_than_options_are_whole(item):
    """Official files keep "none of the above" last, or do not turn a question at all."""
    kept = {"A": "horse", "B": "cat", "C": "dog", "D": "sheep"}
    rows = [item(5, options=ABCD), item(1_000_005, options=kept, answer="B")]
    rows += [item(6, options=ABCD)]
    units = make_units(rows, Protocol(passes="circular"))
    assert [len(unit.asks) for unit in units] == [2, 1]


def test_a_pass_that_is_missing_in_between_is_an_error(item):
    rows = passes(item, 4, 4)
    del rows[2]
    with pytest.raises(DataError, match=r"q\.tsv:6: column index: question 4 has passes \[0, 1, 3"):
        make_units(rows, Protocol(passes="circular"))


def test_a_first_pass_that_is_missing_is_an_error(item):
    with pytest.raises(DataError, match=r"has passes \[1, 2, 3\], expected 0, 1"):
        make_units(passes(item, 4, 4)[1:], Protocol(passes="circular"))


def test_more_passes_than_options_are_an_error(item):
    extra = item(4_000_004, options=ABCD)
    with pytest.raises(DataError, match="at most 4, one an option"):
        make_units([*passes(item, 4, 4), extra], Protocol(passes="circular"))


def test_a_pass_with_other_many_options_is_an_error(item):
    rows = passes(item, 4, 4)
    rows[2] = replace(rows[2], options={"A": "cat", "B": "dog"}, answer="A")
    with pytest.raises(DataError, match=r"q\.tsv:2000006: columns A to D: 2 options, but 4"):
        make_units(rows, Protocol(passes="circular"))


def test_a_pass_in_other_words_is_asked_and_told(item):
    """As in files that were translated row by row."""
    rows = passes(item, 4, 4)
    (unit,) = make_units(rows, Protocol(passes="circular"))
    assert not unit.reworded
    rows[2] = replace(rows[2], question="Where is it?")
    (unit,) = make_units(rows, Protocol(passes="circular"))
    assert unit.reworded
    assert len(unit.asks) == 4


def test_a_file_without_circular_rows_is_an_error(item):
    with pytest.raises(DataError, match="ask with passes=circular_generated"):
        make_units([item(1), item(2)], Protocol(passes="circular"))


def test_bad_rows_collects_questions_that_are_not_whole(item):
    other = passes(item, 2, 4)
    other[1] = replace(other[1], options={"A": "cat", "B": "dog"}, answer="A")
    gap = [row for row in passes(item, 3, 4) if row.turn != 1]
    bad: list[DataError] = []
    rows = [*passes(item, 1, 4), *other, *gap]
    assert list(told(make_units(rows, Protocol(passes="circular"), bad))) == ["q.tsv/1"]
    assert len(bad) == 2
    assert "question 3 has passes [0, 2, 3]" in str(bad[1])


def test_a_question_that_may_have_lost_its_last_pass_is_left_out(item):
    """With fewer passes to get right it would count as right more often."""
    rows = [*passes(item, 1, 4), *passes(item, 2, 3)]
    bad = [DataError("q.tsv:12: column image: broken base64")]
    assert list(told(make_units(rows, Protocol(passes="circular"), bad))) == ["q.tsv/1"]
    assert "q.tsv:4: column index: question 2 has 3 passes for 4 options" in str(bad[1])
    elsewhere = [DataError("r.tsv:12: column image: broken base64")]
    assert len(make_units(rows, Protocol(passes="circular"), elsewhere)) == 2


# ---------------------------------------------------------------------- circular_generated


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_generated_passes_move_each_option_up_a_letter(item, count):
    letters = "ABCDE"[:count]
    options = {letter: f"text {letter}" for letter in letters}
    turned = rotations(item(9, options=options, answer="B"))
    assert [one.right for one in turned] == ["text B"] * count
    assert [one.answer for one in turned][:2] == ["B", letters[2 % count]]
    for letter in letters:  # every option at every letter once
        assert sorted(one.options[letter] for one in turned) == sorted(options.values())
    assert [one.index for one in turned] == [str(9 + k * 1_000_000) for k in range(count)]
    assert turned[0].options == options


def test_generated_passes_equal_stored_ones(item):
    stored = passes(item, 4, 4)
    assert [(one.options, one.answer) for one in rotations(stored[0])] == [
        (one.options, one.answer) for one in stored
    ]


def test_generated_passes_of_hidden_answers(item):
    assert {one.answer for one in rotations(item(options=ABCD, answer=""))} == {""}


def test_generated_passes_start_from_rows_that_are_not_turned(item):
    rows = [*passes(item, 1, 4), item(2)]
    units = make_units(rows, Protocol(passes="circular_generated"))
    assert [(unit.group, len(unit.asks)) for unit in units] == [("q.tsv/1", 4), ("q.tsv/2", 2)]


def test_generated_groups_stay_apart_where_an_index_is_shared_by_two_questions(item):
    """MMMB: index + 10^6 is another question about the picture."""
    rows = [item(5), item(1_000_005, question="Is it a dog?")]
    units = make_units(rows, Protocol(passes="circular_generated"))
    assert [unit.group for unit in units] == ["q.tsv/5", "q.tsv/1000005"]
    assert [unit.asks[0].item.index for unit in units] == ["5", "1000005"]


def test_an_index_that_is_no_number_stays(item):
    assert {one.index for one in rotations(replace(item(), index="x7"))} == {"x7"}


# ---------------------------------------------------------------------- paired


def yes_no(item, index, yes, **values):
    return item(
        index, question=f"Is it {index}?", options={"A": "Yes", "B": "No"},
        answer="A" if yes else "B", **values,
    )  # fmt: skip


def test_pairs_by_index(item):
    rows = [yes_no(item, 5, True), item(6), yes_no(item, 1_000_005, False, picture="Q")]
    units = make_units(rows, Protocol(passes="paired"))
    assert told(units) == {
        "q.tsv/5+1000005": [(0, "5", "A"), (1, "1000005", "B")],
        "q.tsv/6": [(0, "6", "A")],
    }


def test_pairs_by_picture_and_category(item):
    rows = [
        yes_no(item, 1, True, picture="P"),
        yes_no(item, 2, True, picture="P"),
        yes_no(item, 3, False, picture="P", category="colour"),
        yes_no(item, 4, False, picture="Q"),
        yes_no(item, 5, False, picture="P"),
        yes_no(item, 6, False, picture="P"),
        yes_no(item, 7, False, picture="P"),
    ]
    assert list(told(make_units(rows, Protocol(passes="paired")))) == [
        "q.tsv/1+5", "q.tsv/2+6", "q.tsv/3", "q.tsv/4", "q.tsv/7",
    ]  # fmt: skip


def test_two_questions_of_one_index_with_the_same_answer_are_no_pair(item):
    rows = [yes_no(item, 5, True), yes_no(item, 1_000_005, True), yes_no(item, 9, False)]
    assert list(told(make_units(rows, Protocol(passes="paired")))) == [
        "q.tsv/5+9", "q.tsv/1000005",
    ]  # fmt: skip


def test_nothing_to_pair_is_an_error(item):
    with pytest.raises(DataError, match="no two yes/no questions of one picture and category"):
        make_units([item(1), yes_no(item, 2, True)], Protocol(passes="paired"))


@pytest.mark.parametrize(
    ("language", "yes", "no"),
    [
        ("en", "Yes", "No"),
        ("zh", "是", "不是"),
        ("pt", "Sim", "Não"),
        ("ar", "نعم", "لا"),
        ("tr", "Evet", "Hayır"),
        ("ru", "Да", "Нет"),
    ],
)
def test_yes_and_no_in_six_languages(item, language, yes, no):
    options = {"A": no, "B": yes}
    assert affirmed(item(options=options, answer="B", language=language)) is True
    assert affirmed(item(options=options, answer="A", language=language)) is False
    assert affirmed(item(options=options, answer="", language=language)) is None
    assert affirmed(item(options=options | {"C": "?"}, answer="A", language=language)) is None
    assert affirmed(item(options={"A": no, "B": "x"}, answer="A", language=language)) is None
