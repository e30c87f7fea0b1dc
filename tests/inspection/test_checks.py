"""What is wrong with words is told, at its line; what is right is left alone."""

import pytest

from llava_mole.inspection.language import other_language
from tests.inspection.sets import look, only, record, write


@pytest.fixture
def found(tmp_path):
    """The one finding about a source of one record."""

    def inspect_one(**changes):
        finding = only(look(write(tmp_path, [record(**changes)]), tmp_path))
        assert finding.where == f"{tmp_path / 'train.jsonl'}:1"
        return finding

    return inspect_one


def test_a_sound_record_has_no_finding(tmp_path):
    inspection = look(write(tmp_path, [record()]), tmp_path)
    assert not inspection.findings.counts
    assert inspection.exit_code == 0


@pytest.mark.parametrize(
    ("check", "severity", "changes"),
    [
        ("empty-question", "warning", {"question": " "}),
        ("one-word-question", "note", {"question": "Blobs?"}),
        ("one-word-question", "note", {"question": "谁", "language": "zh", "answer": "几个色块。"}),
        ("answer-is-question", "warning", {"answer": "what can be seen, in THIS picture"}),
        ("leftover-mark", "warning", {"answer": "A few blobs.<|im_end|>"}),
        ("leftover-mark", "warning", {"answer": "A few blobs.\nUSER: What else is there?"}),
        ("leftover-mark", "warning", {"question": "What can be seen in this <video>?"}),
        ("leftover-mark", "warning", {"answer": "<s>A few soft blobs of colour."}),
        ("unbalanced-tag", "warning", {"answer": "<think>There are blobs. A few blobs."}),
        ("unbalanced-tag", "warning", {"answer": "A few</b> soft blobs of colour."}),
        ("control-character", "warning", {"answer": "A few\x07 soft blobs of colour."}),
        ("replacement-character", "warning", {"answer": "A few \ufffd soft blobs of colour."}),
    ],
)
def test_words_that_are_probably_not_meant(found, check, severity, changes):
    finding = found(**changes)
    assert (finding.check, finding.severity) == (check, severity)


@pytest.mark.parametrize(
    ("roles", "said"),
    [("gpt human gpt", "speaks first"), ("human gpt human", "last question has no answer")],
)
def test_a_conversation_that_begins_or_ends_with_the_wrong_side_is_named(tmp_path, roles, said):
    said_by = enumerate(roles.split())
    turns = [{"from": role, "value": f"Words of {role}, {n}."} for n, role in said_by]
    found = only(look(write(tmp_path, [record(None) | {"conversations": turns}]), tmp_path))
    assert (found.check, found.severity) == ("turn-order", "warning")
    assert said in found.message


@pytest.mark.parametrize(
    "answer",
    [
        "<think>Blobs.</think>A few soft blobs.",
        "In C++ that is a std::vector<int>, or List<String> in Java.",
        "The user: a person who looks at soft blobs of colour.",
        "Line one,\n\tline two of what can be seen.",
        "x < 3 and y > 2 in this picture of blobs",
    ],
)
def test_words_that_only_look_odd_are_left_alone(tmp_path, answer):
    assert not look(write(tmp_path, [record(answer=answer)]), tmp_path).findings.counts


def test_an_image_placeholder_in_an_answer_is_an_error(found):
    finding = found(answer="<image> A few blobs.")
    assert (finding.check, finding.severity) == ("record", "error")
    assert "only a user shows pictures" in finding.message


# --- language -------------------------------------------------------------------------------------

SAID = {
    "en": "What is this a picture of?\nred heart",
    "zh": "这张图片里是什么？\n红心",
    "pt": "O que é isto?\ncoração vermelho",
    "ar": "ما الذي يظهر في الصورة؟\nقلب أحمر",
    "tr": "Bu resimde ne var?\nkırmızı kalp",
    "ru": "Что изображено на картинке?\nкрасное сердце",
}


@pytest.mark.parametrize("declared", SAID)
def test_only_another_language_than_the_declared_one_is_told(declared):
    for language, text in SAID.items():
        other = other_language(text, declared)
        assert (other and other[0]) == (None if language == declared else language)


def test_what_is_too_short_to_tell_is_not_accused():
    assert [other_language(text, "pt") for text in ("7", "A", "OK", "?", "", "yin yang")] == [
        None
    ] * 6


def test_regions_and_other_spellings_of_a_code_are_understood():
    assert other_language(SAID["pt"], "pt-BR") is None
    assert other_language(SAID["zh"], "cn") is None
    assert other_language("Was ist auf diesem Bild zu sehen?\nein rotes Herz", "en")[0] == "de"


def test_a_wrongly_declared_language_is_told_at_its_line(found):
    finding = found(question="Que imagem é esta?", answer="Um coração vermelho.")
    assert (finding.check, finding.severity, finding.value) == ("language", "warning", "pt")


def test_a_language_that_cannot_be_checked_is_noted_once(tmp_path):
    inspection = look(
        write(tmp_path, [record(language="xx"), record("1.png", language="xx")]), tmp_path
    )
    finding = only(inspection)
    assert (finding.check, finding.severity, finding.value) == ("language-unknown", "note", "xx")
    assert "2 samples" in finding.message
