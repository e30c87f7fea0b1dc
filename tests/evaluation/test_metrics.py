"""Metrics of text answers, against values worked out by hand from their definitions."""

import math

import pytest

from llava_mole.errors import DataError
from llava_mole.evaluation.metrics import (
    METRICS,
    anls,
    clean,
    exact,
    is_closed,
    levenshtein,
    normalized_words,
    pathvqa,
    pathvqa_closed,
    pathvqa_open,
    relaxed_accuracy,
    yes_no_rates,
)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (" cat \n", "cat"),
        ("cat<|im_end|>\n", "cat"),
        ("<s> cat </s><pad><pad>", "cat"),
        ("cat<end_of_turn>", "cat"),
        ("cat<｜end▁of▁sentence｜>", "cat"),
        ("a < b > c", "a < b > c"),
        ("<b>cat</b>", "<b>cat</b>"),
        ("cat.", "cat."),
        ("one</s>two", "one</s>two"),
        ("</s>", ""),
    ],
)
def test_clean_takes_off_space_and_special_tokens_at_the_ends_alone(reply, text):
    assert clean(reply) == text


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [
        ("10.5", "10", 1),  # 5 % to the digit
        ("10.6", "10", 0),
        ("9.5", "10", 1),
        ("-9.5", "-10", 1),
        ("-10", "10", 0),
        ("12.", "12", 1),
        (" 12\n", "12", 1),
        ("12</s>", "12", 1),
        ("50%", "0.5", 1),
        ("50%", "50", 0),
        ("50", "50%", 0),
        ("49 %", "50%", 1),
        ("%", "50%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # a gold zero is compared as text
        ("0", "0.0", 0),
        ("0%", "0", 0),
        ("1,000", "1000", 0),
        ("1,000", "1,000", 1),
        ("1,001", "1,000", 0),
        ("$5", "5", 0),
        ("5 kg", "5", 0),
        ("nan", "nan", 0),
        ("nan", "5", 0),
        ("NaN", "0", 0),
        ("inf", "inf", 0),
        ("1e3", "1000", 1),
        ("Blue", "blue", 1),
        ("blue.", "blue", 0),
        ("light blue", "blue", 0),
        ("", "blue", 0),
    ],
)
def test_relaxed_accuracy_of_chartqa(reply, gold, score):
    assert relaxed_accuracy(reply, [gold]) == score


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [
        ("cat", "cat", 1),
        (" CAT ", "cat", 1),
        ("cart", "cat", 3 / 4),
        ("ab", "ax", 1 / 2),  # exactly the threshold stays
        ("abc", "axy", 0),  # 1/3
        ("abcde", "abxyz", 0),  # 2/5
        ("abcde", "abcyz", 3 / 5),
        ("a  b", "a b", 1),
        # Four characters as they came, three once the spaces are one: 1 - 1/4.
        ("a  c", "a b", 3 / 4),
        # Outer space of the reply does not lengthen it: 1/3, not 1 - 2/13.
        ("abc" + 10 * " ", "axy", 0),
        ("cat.", "cat", 3 / 4),
        ("", "cat", 0),
        ("", "", 1),
        ("the invoice number is 12345", "12345", 0),
    ],
)
def test_anls_of_docvqa(reply, gold, score):
    assert anls(reply, [gold]) == pytest.approx(score)


def test_anls_threshold():
    assert anls("abc", ["axy"], threshold=0.3) == pytest.approx(1 / 3)
    assert anls("ab", ["ax"], threshold=0.51) == 0


def test_anls_of_a_very_long_reply_is_quick():
    assert anls("word " * 1_000_000, ["word"]) == 0


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ],
)
def test_levenshtein(one, other, distance):
    assert levenshtein(one, other) == distance


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Left Lung.", ["left", "lung"]),
        ("none, two; ten", ["0", "2", "10"]),
        ("well-known", ["well", "known"]),
        # A space beside one hyphen: every hyphen goes without a trace.
        ("well-known - here", ["wellknown", "here"]),
        # A grouped number: every mark goes without a trace.
        ("1,000 well-known", ["1000", "wellknown"]),
        ("red,blue", ["red", "blue"]),
        ("0.5 cm", ["0.5", "cm"]),
        ("2.", ["2"]),
        ("e.g. U.S.", ["eg", "us"]),
        ("heart: normal", ["heart:", "normal"]),
        ("don't", ["don't"]),
        ("", []),
    ],
)
def test_words_of_llava_med(text, words):
    assert normalized_words(text) == words


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [
        ("left lung", "the left lung", 1),
        ("lung", "left lung", 1 / 2),
        ("It is in the left lung, I think.", "left lung", 1),
        ("heart", "left lung", 0),
        ("two", "2", 1),
        # LLaVA-Med: 3 / (3 + 1).
        ("lung lung lung", "left lung", 1 / 2),
        # LLaVA-Med: 1 / (1 + 0).
        ("lung", "lung lung", 1 / 2),
        ("lungs", "lung", 0),
        ("", "lung", 0),
        ("the", "the", 0),
    ],
)
def test_pathvqa_open_is_recall_over_words(reply, gold, score):
    assert pathvqa_open(reply, [gold]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [
        ("Yes.", "yes", 1),
        ("no", "No", 1),
        ("Yes, it is.", "yes", 1),
        ("yes", "no", 0),
        ("no", "yes", 0),
        # "no" is in these, not as a word.
        ("not visible", "no", 0),
        ("I do not know", "no", 0),
        ("normal", "no", 0),
        ("yesterday", "yes", 0),
        ("none", "no", 0),
        ("yes and no", "yes", 0),
        ("yes and no", "no", 0),
        ("no, no", "no", 1),
        ("", "no", 0),
        ("the", "the", 0),
    ],
)
def test_pathvqa_closed_goes_by_words(reply, gold, score):
    assert pathvqa_closed(reply, [gold]) == score


def test_pathvqa_takes_the_rule_of_its_answer():
    assert is_closed(["Yes"])
    assert is_closed(["no."])
    assert not is_closed(["not seen"])
    assert not is_closed(["yes", "maybe"])
    assert not is_closed([])
    assert pathvqa("no yes", ["yes"]) == 0
    assert pathvqa("no yes", ["yes no maybe so"]) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("reply", "gold", "score"),
    [("Cat", "cat", 1), (" cat ", "cat ", 1), ("cat.", "cat", 0), ("a cat", "cat", 0)],
)
def test_exact(reply, gold, score):
    assert exact(reply, [gold]) == score


@pytest.mark.parametrize("name", ["relaxed", "anls", "pathvqa", "exact"])
def test_of_several_answers_the_best_counts(name):
    metric = METRICS[name]
    assert metric("blue", ["red", "blue"]) == metric("blue", ["blue", "red"]) == 1
    assert metric("blue", ["red"]) == 0
    assert isinstance(metric("blue", ["blue"]), float)


@pytest.mark.parametrize("name", METRICS)
def test_hidden_answers_are_refused(name):
    with pytest.raises(DataError, match="no accepted answer"):
        METRICS[name]("blue", [])


def test_rates_of_pope():
    pairs = [
        *[("Yes", "Yes")] * 3,
        *[("Yes", "No")] * 1,
        *[("No", "Yes")] * 2,
        *[("No", "No")] * 2,
        (None, "Yes"),
        (None, "No"),
    ]
    precision, recall = 3 / 4, 3 / 6
    assert yes_no_rates(pairs) == pytest.approx(
        {
            "accuracy": 5 / 10,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "yes_share": 4 / 10,
        }
    )


def test_rates_without_a_yes_are_zero_and_without_a_question_unknown():
    rates = yes_no_rates([("No", "No"), (None, "Yes")])
    assert rates == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0}
    assert all(math.isnan(rate) for rate in yes_no_rates([]).values())


def test_rates_want_yes_and_no():
    with pytest.raises(DataError, match="said 'yes'"):
        yes_no_rates([("yes", "Yes")])
    with pytest.raises(DataError, match="truth 'A'"):
        yes_no_rates([(None, "A")])
