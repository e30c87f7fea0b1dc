"""Prompts of published evaluations, word for word, with a hint and without."""

import pytest

from llava_mole.errors import ConfigError
from llava_mole.evaluation.prompts import HAN, prompt_of
from llava_mole.evaluation.protocol import Protocol
from llava_mole.languages import LANGUAGES

QUESTION = {
    "en": "What is it?",
    "zh": "这是什么？",
    "pt": "O que é?",
    "ar": "ما هذا؟",
    "tr": "Bu nedir?",
    "ru": "Что это?",
}
HINT = {
    "en": "A pet.",
    "zh": "一只宠物。",
    "pt": "Um animal.",
    "ar": "حيوان أليف.",
    "tr": "Bir hayvan.",
    "ru": "Питомец.",
}
OPTIONS = {
    "en": ("cat", "dog"),
    "zh": ("猫", "狗"),
    "pt": ("gato", "cão"),
    "ar": ("قطة", "كلب"),
    "tr": ("kedi", "köpek"),
    "ru": ("кошка", "собака"),
}
PARROT = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接用给定选项中的选项字母回答。",
    "pt": "Responda diretamente com a letra da opção das escolhas dadas.",
    "ar": "أجب مباشرةً بحرف الخيار من الاختيارات المعطاة.",
    "tr": "Verilen seçeneklerden doğrudan seçeneğin harfi ile cevap verin.",
    "ru": "Ответьте буквой варианта из предложенных вариантов напрямую.",
}
LLAVA = dict.fromkeys(LANGUAGES, "Answer with the option's letter from the given choices directly.")
LLAVA |= {"zh": "请直接回答选项字母。"}
LMMS_EVAL = dict.fromkeys(
    LANGUAGES, "Answer with the option's letter from the given choices directly."
)
LMMS_EVAL |= {"zh": "请直接使用所提供的选项字母作为答案回答。"}
LMMS_EVAL |= {"ru": "Выбери правильный вариант ответа буквой."}
OURS = {
    "en": "Answer with the letter.",
    "zh": "请回答选项字母。",
    "pt": "Responda com a letra.",
    "ar": "أجب بحرف الخيار.",
    "tr": "Harfle yanıtlayın.",
    "ru": "Ответьте буквой.",
}


@pytest.fixture
def asked(item):
    """(language, style, hint shown or not) -> prompt."""

    def ask(language, style, hint=False, **values):
        one = item(
            question=QUESTION[language],
            hint=HINT[language] if hint else "",
            options=dict(zip("AB", OPTIONS[language], strict=True)),
            language=language,
        )
        return prompt_of(one, Protocol(style=style, **values))

    return ask


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("style", "closing"), [("parrot", PARROT), ("llava", LLAVA), ("letters", OURS)]
)
def test_question_options_and_a_closing_line(asked, style, closing, language):
    one, other = OPTIONS[language]
    bare = f"{QUESTION[language]}\nA. {one}\nB. {other}\n{closing[language]}"
    assert asked(language, style) == bare
    assert asked(language, style, hint=True) == f"{HINT[language]}\n{bare}"


def test_parrot_in_english_whole(asked):
    assert asked("en", "parrot", hint=True) == (
        "A pet.\n"
        "What is it?\n"
        "A. cat\n"
        "B. dog\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(
    "han", [{"question": "Where is 北京?"}, {"hint": "北京"}, {"options": {"A": "北", "B": "x"}}]
)
def test_llava_closes_in_chinese_wherever_there_is_han(item, han):
    closed = prompt_of(item(**han), Protocol(style="llava"))
    assert closed.endswith("\n请直接回答选项字母。")
    assert HAN.search("北")
    assert not HAN.search("Où ? ですか")


def test_parrot_closes_by_the_row_language_whatever_the_text_is(item):
    closed = prompt_of(item(question="What is it?", language="ru"), Protocol(style="parrot"))
    assert closed.endswith(f"\n{PARROT['ru']}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_vlmevalkit_has_english_words_in_every_language(asked, language):
    one, other = OPTIONS[language]
    bare = (
        f"Question: {QUESTION[language]}\n"
        "Options:\n"
        f"A. {one}\n"
        f"B. {other}\n"
        "Please select the correct answer from the options above. \n"
    )
    assert asked(language, "vlmevalkit") == bare
    assert asked(language, "vlmevalkit", hint=True) == f"Hint: {HINT[language]}\n{bare}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_lmms_eval_has_a_blank_line_before_the_last(asked, language):
    one, other = OPTIONS[language]
    bare = (
        f"{QUESTION[language]} There are several options:\n"
        f"A. {one}\n"
        f"B. {other}\n"
        "\n"
        f"{LMMS_EVAL[language]}"
    )
    assert asked(language, "lmms_eval") == bare
    assert asked(language, "lmms_eval", hint=True) == f"{HINT[language]} {bare}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_question_alone(asked, language):
    assert asked(language, "question") == QUESTION[language]
    assert asked(language, "question", hint=True) == f"{HINT[language]}\n{QUESTION[language]}"


def test_short_has_llavas_line(asked):
    line = "Answer the question using a single word or phrase."
    assert asked("en", "short") == f"What is it?\n{line}"
    assert asked("en", "short", hint=True) == f"A pet.\nWhat is it?\n{line}"
    assert asked("ru", "short") == f"Что это?\n{line}"


def test_a_template_of_ones_own(asked):
    template = "<{hint}>{question}|{options}|{{}}"
    bare = asked("en", "template", template=template)
    assert bare == "<>What is it?|A. cat\nB. dog|{}"
    told = asked("en", "template", hint=True, template=template)
    assert told == "<A pet.\n>What is it?|A. cat\nB. dog|{}"


def test_braces_in_a_question_are_left_alone(item):
    one = item(question="What is {options} in {hint}?")
    template = Protocol(style="template", template="Q: {question}")
    assert prompt_of(one, template) == "Q: What is {options} in {hint}?"


def test_five_options_keep_their_letters(item):
    one = item(options=dict(zip("ABDEF", "vwxyz", strict=True)))
    assert prompt_of(one, Protocol(style="parrot")).split("\n")[1:-1] == [
        "A. v", "B. w", "D. x", "E. y", "F. z",
    ]  # fmt: skip


def test_an_unknown_style_is_an_error(item):
    with pytest.raises(ConfigError, match="prompt style 'x' is not known"):
        prompt_of(item(), Protocol(style="x"))
