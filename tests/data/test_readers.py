"""LLaVA JSON and JSONL: what is read, and that every refusal names file, line and value."""

import json
from pathlib import Path

import pytest
from PIL import Image

from llava_mole.data.readers import read_llava_json
from llava_mole.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def item(image="a.png", question="<image>\nWhat is this?", answer="A cat.", **more) -> dict:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    content = {"conversations": said, "language": "en", **more}
    return content if image is None else {"image": image, **content}


def write(root: Path, text: str, name: str = "train.json") -> Path:
    path = root.parent / name
    path.write_text(text, "utf-8")
    return path


def refusal(root: Path, *items: object, **options) -> str:
    path = write(root, "\n".join(json.dumps(entry) for entry in items), "bad.jsonl")
    with pytest.raises(DataError) as caught:
        read_llava_json(path, root, **options)
    return str(caught.value).replace(str(root.parent), "")


def test_a_list_and_jsonl_give_the_same_samples(root):
    items = [item(id=7), item("b.png", answer="Um gato.", language="pt", domain="x")]
    first = read_llava_json(write(root, json.dumps(items, indent=1)), root)
    second = read_llava_json(
        write(root, "\n".join(json.dumps(i) for i in items), "train.jsonl"), root
    )
    assert [s.turns for s in first] == [s.turns for s in second]
    assert first[0].images == (root / "a.png",)
    assert [turn.role for turn in first[0].turns] == ["user", "assistant"]
    assert (first[0].domain, first[1].domain, first[1].language) == ("train", "x", "pt")


def test_all_other_keys_are_kept(root):
    path = write(root, json.dumps([item(id=7, kind="naming", picture="1F431")]))
    sample = read_llava_json(path, root)[0]
    assert sample.metadata == {"id": 7, "kind": "naming", "picture": "1F431"}


def test_the_line_is_where_the_item_begins(root):
    text = "[\n" + json.dumps(item()) + ",\n\n" + json.dumps(item(), indent=2) + ",\n"
    text += json.dumps(item()) + "]\n"
    path = write(root, text)
    lines = [int(s.source.rsplit(":", 1)[1]) for s in read_llava_json(path, root)]
    starts = [n for n, line in enumerate(text.split("\n"), 1) if line.startswith("{")]
    assert lines == starts


def test_roles_of_both_dialects_a_system_turn_and_several_pictures(root):
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "<image> or <image>?"},
        {"from": "assistant", "value": "The first."},
    ]
    entry = {"image": ["a.png", "b.png"], "conversations": said}
    sample = read_llava_json(write(root, json.dumps([entry])), root, domain="d", language="en")[0]
    assert [turn.role for turn in sample.turns] == ["system", "user", "assistant"]
    assert sample.images == (root / "a.png", root / "b.png")


def test_text_only_items_and_a_byte_order_mark_are_fine(root):
    path = write(root, "\ufeff" + json.dumps(item(None, "Hello?")))
    assert read_llava_json(path, root)[0].images == ()


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (["no", "object"], "['no', 'object']"),
        (item() | {"conversations": []}, "[]"),
        (item() | {"conversations": "hi"}, "'hi'"),
        (item() | {"conversations": [{"from": "human", "value": "hi"}]}, "no answer"),
        (item() | {"conversations": [{"from": "robot", "value": "hi"}]}, "'robot'"),
        (item() | {"conversations": [{"who": "human", "value": "hi"}]}, "'who'"),
        (item() | {"conversations": [{"from": "human", "value": 3}]}, "3"),
        (item(answer="  "), "empty"),
        (item(question="What is this?"), "0 <image>"),
        (item(question="<image><image>"), "2 <image>"),
        (item(None), "1 <image>"),
        (item(image=[]), "1 <image>"),
        (item(image=5), "5"),
        (item(image=""), "''"),
        (item(question="Q", answer="<image>"), "only a user"),
        (item("gone.png"), "'gone.png' not found"),
        (item("../outside.png"), "'../outside.png' leads outside"),
        (item("/etc/hostname"), "'/etc/hostname' leads outside"),
        (item("nul\0.png"), "no usable path"),
        (item("."), "'.' not found"),
        (item(language=None), "'language' is None"),
        (item(domain=""), "'domain' is ''"),
    ],
)
def test_a_bad_item_is_refused_with_file_line_and_value(root, entry, found):
    message = refusal(root, item(), entry)
    assert message.startswith("/bad.jsonl:2: ")
    assert found in message


def test_a_link_that_leads_out_of_the_root_is_refused(root):
    secret = root.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    (root / "link.png").symlink_to(secret)
    (root / "inner.png").symlink_to(root / "a.png")
    assert "leads outside" in refusal(root, item("link.png"))
    path = write(root, json.dumps([item("inner.png")]))
    assert read_llava_json(path, root)[0].images == (root / "inner.png",)


def test_missing_pictures_are_counted_together(root):
    message = refusal(root, item("x.png"), item(), item("y.png"), item("x.png"))
    assert "bad.jsonl:1: image 'x.png' not found" in message
    assert "(2 more like it)" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"a": 1},\n{"b": oops}\n]', 3),
        ('[\n{"a": 1}\n{"b": 1}\n]', 3),
        ('[\n{"a": 1},\n', 3),
        ('[\n{"a": 1}\n', 3),
        ("[" * 100_000, 1),
    ],
)
def test_bad_json_in_a_list_is_refused_with_its_line(root, text, line):
    good = json.dumps(item())
    text = text.replace('{"a": 1}', good).replace('{"b": 1}', good)
    with pytest.raises(DataError, match=rf"train\.json:{line}: bad JSON"):
        read_llava_json(write(root, text), root)


def test_bad_json_in_a_line_is_refused_with_its_line(root):
    text = json.dumps(item()) + "\n\n" + '{"image": \n'
    with pytest.raises(DataError, match=r"bad\.jsonl:3: bad JSON"):
        read_llava_json(write(root, text, "bad.jsonl"), root)


def test_something_after_the_list_is_refused(root):
    text = json.dumps([item()]) + "\n" + json.dumps([item()])
    with pytest.raises(DataError, match=r"train\.json:2: .*nothing after"):
        read_llava_json(write(root, text), root)


@pytest.mark.parametrize("text", ["", "[]", "\n \n"])
def test_a_file_without_items_is_refused(root, text):
    with pytest.raises(DataError, match="no items"):
        read_llava_json(write(root, text), root)


def test_a_missing_file_and_another_encoding_are_refused(root):
    with pytest.raises(DataError, match="no such file"):
        read_llava_json(root / "none.json", root)
    path = root.parent / "latin.json"
    path.write_bytes(b'\n\n{"a": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.json:3: not UTF-8"):
        read_llava_json(path, root)


def test_line_separators_inside_a_string_do_not_cut_a_line(root):
    text = json.dumps(item(answer="a\u2028b\x85c"), ensure_ascii=False)
    sample = read_llava_json(write(root, text + "\n" + text, "s.jsonl"), root)[1]
    assert sample.turns[1].text == "a\u2028b\x85c"
    assert sample.source.endswith("s.jsonl:2")


@pytest.mark.parametrize("start", ["", "[\n"])
@pytest.mark.parametrize("value", ["[" * 200_000, "9" * 5000])
def test_json_beyond_the_parsers_limits_is_an_error_with_its_line(root, start, value):
    path = write(root, start + '{"a": ' + value + "}", "deep.json")
    with pytest.raises(DataError, match=rf"deep\.json:{1 + len(start) // 2}: bad JSON"):
        read_llava_json(path, root)


def test_a_kind_is_a_word(root):
    assert ":1: 'kind' is ['naming']" in refusal(root, item(kind=["naming"]))
