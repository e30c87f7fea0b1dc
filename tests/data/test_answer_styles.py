"""Answer styles: the same questions, other looks of their answers, trained and scored alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_mole.clone import load_builder
from llava_mole.evaluation.items import read_items
from tests.helpers import picture

common = load_builder("common")
styles = load_builder("answer_styles")
WORDS = {
    "en": "red",
    "zh": "红色",
    "pt": "vermelho",
    "ar": "أحمر",
    "tr": "kırmızı şirin",
    "ru": "красный",
}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """As builders write it: one picture, a colour and a lettered choice in each language."""

    def write(work: Path) -> dict[str, Any]:
        (work / "images").mkdir()
        picture(1).save(work / "images" / "p.png")
        asked = {"image": "images/p.png", "domain": "toys", "template": "x.0"}
        items = [
            common.llava_item(question="?", answer=word, language=language, kind="colour", **asked)
            for language, word in WORDS.items()
        ]
        items.append(
            common.llava_item(question="?", answer="B", language="en", kind="choice", **asked)
        )
        common.write_json(work / "train.json", items, one_a_line=True)
        rows = [
            common.tsv_row(
                question="?", options=[word, "x"], right=0, kind=kind, picture="p", source="toys",
                group="", item=number, template="x.0", split="test", language=language,
            )
            for number, kind in enumerate(("colour", "choice"))
            for language, word in WORDS.items()
        ]  # fmt: skip
        common.write_evaluation(work, "toys", "test", rows)
        return {"train_items": len(items), "pictures": {"train": 1}}

    common.publish(tmp_path / "toys", "toys", write)
    return tmp_path / "toys"


def answers(folder: Path) -> dict[tuple[str, str], str]:
    items = json.loads((folder / "train.json").read_text("utf-8"))
    return {(item["kind"], item["language"]): item["conversations"][-1]["value"] for item in items}


EXPECTED = {
    "capitals": {"en": "RED", "tr": "KIRMIZI ŞİRİN", "ru": "КРАСНЫЙ", "zh": "红色"},
    "sentence": {"en": "The answer is red.", "zh": "答案是红色。", "ru": "Ответ: красный."},
    "json": {"ar": '{"answer": "أحمر"}', "en": '{"answer": "red"}'},
}


@pytest.mark.parametrize("style", styles.STYLES)
def test_answers_and_options_take_the_style_in_every_file(
    style: str, built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "styled"
    assert styles.main(["--data", str(built), "--style", style, "--out", str(out)]) == 0
    found = answers(out)
    for language, text in EXPECTED[style].items():
        assert found["colour", language] == text
    assert found["choice", "en"] == "B"
    for item in read_items(out / "eval_test.tsv"):
        plain = [WORDS[item.language], "x"]
        styled = [styles.STYLES[style](text, item.language) for text in plain]
        assert list(item.options.values()) == (plain if item.category == "choice" else styled)
        if item.category == "colour":
            assert item.right == found["colour", item.language]
    [pass_0, pass_1, *_] = read_items(out / "benchmark" / "toys_test_cn.tsv", "zh")
    assert pass_0.right == pass_1.right == found["colour", "zh"]


def test_all_but_the_answers_is_as_it_was(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "styled"
    manifest = styles.restyle(built, out, "sentence")
    assert (manifest["answer_style"], manifest["made_of"], manifest["train_items"]) == (
        "sentence", "toys", 7
    )  # fmt: skip
    assert {p.relative_to(out) for p in out.rglob("*")} == {
        p.relative_to(built) for p in built.rglob("*")
    }
    before, after = (json.loads((f / "train.json").read_text("utf-8")) for f in (built, out))
    for old, new in zip(before, after, strict=True):
        assert old["conversations"][0] == new["conversations"][0]
        assert {**old, "conversations": 0} == {
            key: value
            for key, value in {**new, "conversations": 0}.items()
            if key != "answer_style"
        }
    plain, styled = (read_items(f / "eval_test.tsv") for f in (built, out))
    assert [(i.question, i.answer, i.image, i.comment) for i in plain] == [
        (i.question, i.answer, i.image, i.comment) for i in styled
    ]


def test_what_cannot_be_restyled_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(data: Path, out: Path) -> str:
        assert styles.main(["--data", str(data), "--style", "json", "--out", str(out)]) == 2
        return capsys.readouterr().err

    assert "no folder of a builder" in said(tmp_path, tmp_path / "x")
    assert "not an earlier build" in said(built, built)  # never in place
    styles.restyle(built, tmp_path / "once", "capitals")
    assert "in the style 'capitals' already" in said(tmp_path / "once", tmp_path / "twice")
