"""Before the first question: pictures that do not open, text that is in another language."""

import pytest

from llava_mole.errors import DataError
from llava_mole.evaluation.asks import make_units
from llava_mole.evaluation.checks import check_languages, check_pictures, foreign_script
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.protocol import Protocol

TURKISH = (
    "Bu resimde hangi hayvan görülüyor?",
    "Fotoğraftaki çocuk ne yapıyor?",
    "Arabanın rengi nedir?",
    "Resimde kaç tane ağaç vardır?",
    "Bu yapı hangi şehirde bulunmaktadır?",
)
CHINESE = (
    "图片中的动物是什么？", "照片里的孩子在做什么？", "这辆汽车是什么颜色的？", "图中有几棵树？",
    "这座建筑在哪个城市？", "桌子上放着什么东西？", "哪一个人站在左边？", "天气怎么样？",
    "这张照片是在哪里拍的？", "图中的房子有几层？",
)  # fmt: skip
PORTUGUESE = (
    "Qual é o animal que aparece nesta fotografia?",
    "O que a criança está fazendo na imagem?",
    "Qual é a cor do carro que está estacionado na rua?",
    "Quantas árvores podem ser vistas na imagem?",
    "Em que cidade fica este edifício?",
)
RUSSIAN = "Какое животное изображено на этой фотографии?"
ENGLISH = "Which of the animals is standing next to the tree?"


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bomb", "too many pixels|60,000 × 60,000"),
        ("cut", "truncated or damaged JPEG"),
        ("svg", "an SVG drawing, not a raster picture"),
        ("html", "an HTML page"),
    ],
)
def test_a_broken_picture_is_named_by_file_line_and_column(
    row, table, broken_picture, kind, message
):
    items = read_items(table([row(0), row(1, image=broken_picture[kind])]), "en")
    with pytest.raises(DataError, match=rf"questions_en\.tsv:3: column image: .*({message})"):
        check_pictures(items, progress=False)


@pytest.mark.parametrize("kind", ["base64", "text"])
def test_a_cell_that_is_no_base64_is_named_while_reading(row, table, broken_picture, kind):
    with pytest.raises(DataError, match=r"_en\.tsv:3: column image: broken base64"):
        read_items(table([row(0), row(1, image=broken_picture[kind])]), "en")


def test_every_row_of_a_broken_picture_is_counted_and_left_out(
    row, table, circular, broken_picture
):
    """Two questions with all their passes show it; a third has a picture of its own."""
    rows = [*circular(1, image=broken_picture["cut"]), *circular(2, image="1"), *circular(3)]
    bad: list[DataError] = []
    kept = check_pictures(read_items(table(rows), "en"), bad, progress=False)
    assert {item.base for item in kept} == {"3"}
    assert len(bad) == 8
    lines = [int(str(error).split(":")[1]) for error in bad]
    assert lines == list(range(2, 10))
    assert len(make_units(kept, Protocol(passes="circular"), bad)) == 1


def test_a_broken_picture_of_one_pass_takes_its_question_with_it(
    row, table, circular, broken_picture
):
    """Passes that each hold a file of their own: the last one's is broken."""
    rows = circular(1) + circular(2)
    rows[3]["image"] = broken_picture["cut"]
    bad: list[DataError] = []
    kept = check_pictures(read_items(table(rows), "en"), bad, progress=False)
    units = make_units(kept, Protocol(passes="circular"), bad)
    assert [unit.group for unit in units] == ["questions_en.tsv/2"]
    assert len(bad) == 2


def test_whole_pictures_are_kept_in_order(row, table):
    items = read_items(table([row(n) for n in range(5)]), "en")
    assert check_pictures(items, progress=False) == items


# ---------------------------------------------------------------------- languages


def test_cyrillic_in_a_turkish_file_is_an_error(item):
    rows = [item(n, question=q, language="tr") for n, q in enumerate([*TURKISH, RUSSIAN])]
    with pytest.raises(DataError, match=r"q\.tsv:7: column question: in Cyrillic script.*'tr'"):
        check_languages(rows)
    bad: list[DataError] = []
    kept, doubtful = check_languages(rows, bad)
    assert ([one.question for one in kept], doubtful) == (list(TURKISH), [])
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("question", "language", "script"),
    [
        (RUSSIAN, "en", "Cyrillic"),
        (CHINESE[0], "pt", "Han"),
        (CHINESE[0], "ru", "Han"),
        ("ما الحيوان الموجود في الصورة؟", "zh", "Arabic"),
        (RUSSIAN, "ru", ""),
        ("Что такое DNA?", "tr", ""),  # Latin letters too: not this check's
        (ENGLISH, "ar", ""),
        ("1 + 1 = ?", "zh", ""),
    ],
)
def test_foreign_script(question, language, script):
    assert foreign_script(question, language) == script


def untranslated(item, count):
    english = [f"{ENGLISH} Picture {n}." for n in range(count)]
    asked = [*(CHINESE * 2)[: 20 - count], *english]
    options = {"A": "猫", "B": "狗"}
    return [
        item(n, question=q, language="zh", options=options) for n, q in enumerate(asked)
    ]  # fmt: skip


def test_some_untranslated_questions_are_told(item):
    rows = untranslated(item, 4)  # 20 % of them
    kept, doubtful = check_languages(rows)
    assert kept == rows
    assert doubtful == ["q.tsv:18", "q.tsv:19", "q.tsv:20", "q.tsv:21"]


def test_many_untranslated_questions_are_an_error_of_the_file(item):
    with pytest.raises(
        DataError, match=r"q\.tsv:17: .*5 of 20 questions declared 'zh' look like 'en'"
    ):
        check_languages(untranslated(item, 5))
    with pytest.raises(DataError, match="is the language right"):
        check_languages(untranslated(item, 5), [])  # no row of its own is at fault


def test_later_passes_do_not_count_again(item):
    rows = untranslated(item, 4)
    again = [item(1_000_000 + n, question=rows[n].question, language="zh") for n in (16, 17)]
    assert len(check_languages([*rows, *again])[1]) == 4


def test_portuguese_declared_turkish_is_an_error(item):
    rows = [item(n, question=q, language="tr") for n, q in enumerate(PORTUGUESE)]
    with pytest.raises(DataError, match=r"questions declared 'tr' look like 'pt' \(also q\.tsv:"):
        check_languages(rows)


@pytest.mark.parametrize(
    ("language", "questions"), [("tr", TURKISH), ("zh", CHINESE), ("pt", PORTUGUESE)]
)
def test_questions_in_their_own_language_pass(item, language, questions):
    rows = [item(n, question=q, language=language) for n, q in enumerate(questions)]
    assert check_languages(rows) == (rows, [])


def test_files_are_judged_one_by_one(item):
    """Three doubtful questions of three are too many, however many good files stand beside."""
    rows = [item(n, question=q, language="zh", file="a.tsv") for n, q in enumerate(CHINESE * 3)]
    rows += [
        item(n, question=f"{ENGLISH} {n}", language="zh", file="b.tsv", source=f"b.tsv:{n + 2}")
        for n in range(3)
    ]
    with pytest.raises(DataError, match=r"b\.tsv:2: .*3 of 3"):
        check_languages(rows)
