"""VLMEvalKit's rule: its steps, and where it reads a reply otherwise than a person would."""

from pathlib import Path

import pytest

from llava_mole.evaluation.vlmevalkit import (
    REFUSALS,
    STRIPPED,
    expected_hit,
    rule_choice,
    rule_choice_2024,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "vlmevalkit-rule.md"
PETS = {"A": "cat", "B": "dog", "C": "red car", "D": "bird"}  # 17 characters


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("Answer: B", "B"),
        ("B\nexplanation", "B"),
        ("Ответ: B", "B"),
        ("A cat", "A"),
        ("dog", "B"),
        ("The best answer is **D**.", "D"),
        ("Z", "Z"),
        ("Cannot determine the answer", "Z"),
        ("b", None),
        ("A or B", None),
        ("<B>", None),
        ('"B"', None),
        ("答案是B", None),
        ("选B", None),
        ("В", None),
        ("", None),
        ("cat and dog", None),
        ("B. dog because it is clearly a dog here", None),
    ],
)
def test_outputs_of_the_released_rule(reply, choice):
    assert rule_choice(reply, PETS) == choice


@pytest.mark.parametrize("mark", STRIPPED)
def test_thirteen_marks_are_space(mark):
    assert len(STRIPPED) == 13
    assert rule_choice(f"x{mark}B{mark}x", PETS) == "B"


@pytest.mark.parametrize("mark", list("\"'<>-/?`") + list("：。、（）،؟"))
def test_other_marks_stay_with_the_letter(mark):
    assert rule_choice(f"{mark}B{mark}", PETS) is None


@pytest.mark.parametrize(
    ("reply", "now", "then"),
    [
        ("B one two three", "B", "B"),
        ("B one two three four", None, "B"),
        # The first occurrence counts, not the last one.
        ("B one two three four B", None, "B"),
        ("B B B B B", None, "B"),
    ],
)
def test_the_letter_is_among_the_last_four_tokens(reply, now, then):
    assert rule_choice(reply, PETS) == now
    assert rule_choice_2024(reply, PETS) == then


def test_a_text_is_looked_for_in_short_replies_only():
    at_most = "dog " + 30 * "."  # 34 = 2 · 17
    assert rule_choice(at_most, PETS) == "B"
    assert rule_choice(at_most + ".", PETS) is None
    assert rule_choice_2024(at_most + ".", PETS) == "B"


def test_a_letter_too_early_leaves_the_texts_to_decide():
    assert rule_choice("A small bird in a tree", PETS) == "D"
    assert rule_choice_2024("A small bird in a tree", PETS) == "A"


def test_a_text_is_found_in_any_case_and_inside_words():
    assert rule_choice("DOGMA", PETS) == "B"
    assert rule_choice("Red Car", PETS) == "C"


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_z_and_case_matters(refusal):
    assert rule_choice(f"B {refusal}", PETS) == "Z"
    assert rule_choice(refusal.lower(), PETS) is None


def test_z_beside_a_letter_is_the_letter():
    assert rule_choice("Z B", PETS) == "B"
    assert rule_choice("one Z two three four five", PETS) == "Z"


def test_a_failed_call_is_no_letter():
    assert rule_choice("Failed to obtain answer via API B", PETS) is None


def test_options_are_left_as_they_are():
    options = {"A": "CAT", "B": "Dog"}
    assert rule_choice("cat", options) == "A"
    assert options == {"A": "CAT", "B": "Dog"}


def test_letters_that_are_no_options_do_not_count():
    assert rule_choice("C", {"A": "yes", "B": "no"}) is None


@pytest.mark.parametrize(
    ("reply", "hit"), [("B", 1), ("A", 0), ("Z", 0), ("cat and dog", 1 / 5), ("b", 1 / 5)]
)
def test_expected_hit_is_that_of_a_draw_where_the_rule_cannot_tell(reply, hit):
    assert expected_hit(reply, PETS, "B") == pytest.approx(hit)


ANIMALS = "cat|dog|cow|horse"
RU = "кошка|собака|корова|лошадь"
ZH = "猫|狗|牛|马"

# reply; options; the rule now; the rule of 2024; what the reply says ("" : nothing, or two things)
DIFFERENCES = [
    # en
    ("b", ANIMALS, None, None, "B"),
    ('"B"', ANIMALS, None, None, "B"),
    ("B. It is a dog, as its ears show.", ANIMALS, None, "B", "B"),
    ("The animal in the picture is a dog.", ANIMALS, None, "B", "B"),
    ("The answer is not B.", ANIMALS, "B", "B", ""),
    ("Not a cat.", ANIMALS, "A", "A", ""),
    ("The answer is D, a dog.", ANIMALS, "D", "D", ""),
    ("He has no plan B.", "golfer|swimmer|runner", "B", "B", ""),
    ("A man riding a horse on the beach.", "He swims|He runs|He rides", None, "A", ""),
    # pt
    ("A cor é azul.", "vermelho|azul|verde", "A", "A", "B"),
    ("A segunda opção.", "cama|sofá|cadeira|mesa", "A", "A", "B"),
    ("Não sei.", "Sim|Não", "B", "B", ""),
    ("Não é a B.", "pedra|papel|tesoura", "B", "B", ""),
    # ru
    ("А", RU, None, None, "A"),
    ("витамин C", "витамин A|витамин C|витамин D", "C", "C", "B"),
    ("Ответ B, так как у неё есть хвост.", RU, None, "B", "B"),
    ("Точно не A.", RU, "A", "A", ""),
    # ar
    ("ب", "قطة|كلب|بقرة|حصان", None, None, "B"),
    ("B، لأنه ينبح", "قطة|كلب|بقرة|حصان", None, None, "B"),
    ("الخيار الثاني", "قطة|كلب|بقرة|حصان", None, None, "B"),
    # zh
    ("答案是B", ZH, None, None, "B"),
    ("（D）", ZH, None, None, "D"),
    ("这是一只蜗牛。", ZH, "C", "C", ""),
    ("不是猫。", ZH, "A", "A", ""),
    # tr
    ("Cevap B'dir.", "kedi|köpek|inek|at", None, None, "B"),
    ("A değil, B'dir.", "kedi|köpek|inek|at", "A", "A", "B"),
    ("ISLAK", "kuru|ıslak|soğuk", None, None, "B"),
    ("A şıkkı kesinlikle değil.", "kedi|köpek|inek|at", "A", "A", ""),
]


def choices(texts):
    return dict(zip("ABCD", texts.split("|"), strict=False))


@pytest.mark.parametrize(("reply", "texts", "now", "then", "says"), DIFFERENCES)
def test_where_the_rule_and_a_reader_differ(reply, texts, now, then, says):
    assert rule_choice(reply, choices(texts)) == now
    assert rule_choice_2024(reply, choices(texts)) == then
    assert says != (now or "") or says != (then or "")


def test_the_document_has_every_difference():
    rows = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert [row[:5] for row in rows] == [
        [f"`{reply}`", texts.replace("|", " · "), now or "–", then or "–", says or "no option"]
        for reply, texts, now, then, says in DIFFERENCES
    ]
