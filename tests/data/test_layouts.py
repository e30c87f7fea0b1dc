"""Every layout gives the same kind of sample; what it cannot say truthfully it refuses by name."""

import base64
import json
from pathlib import Path

import pytest

from llava_mole.data import Sample, SourceSpec, open_source
from llava_mole.data.layouts import LAYOUTS, detect_layout
from llava_mole.errors import DataError
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.prompts import ask
from tests.data.mutations import picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c d.png"):
        (tmp_path / name).write_bytes(picture(len(name)))
    return tmp_path


def read(root: Path, *records: dict, **options) -> Sample:
    """The last record's sample."""
    path = root / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), "utf-8")
    spec = SourceSpec(path, **{"language": "en", **options})
    return open_source(spec, cache_dir=root / "cache")[len(records) - 1]


def refusal(root: Path, *records: dict, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(root, *records, **options)
    message = str(caught.value)
    assert message.startswith(f"{root}/data.jsonl:{len(records)}: ")
    return message


def texts(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


def said(*contents, **more) -> dict:
    roles = ["user", "assistant"] * len(contents)
    pairs = zip(roles, contents, strict=False)
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


# --- llava ----------------------------------------------------------------------------------------


def llava(question, answer="A cat.", **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **more}


def test_the_published_files_quirks_are_read(root):
    last = read(root, llava("What is it?\n<image>", image="a.png", id="000000033471"))
    assert last.messages()[0]["content"][1] == {"type": "image"}
    assert last.metadata == {"id": "000000033471"}
    text_only = read(root, llava("Hello?", id="wgByO4Y_0", model=""))
    assert (text_only.images, text_only.metadata) == ((), {"id": "wgByO4Y_0", "model": ""})


def test_turns_of_one_role_in_a_row_become_one(root):
    turns = [("human", "<image>"), ("human", "What is it?"), ("gpt", "A cat."), ("gpt", "Black.")]
    record = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    sample = read(root, record | {"image": "a.png"})
    assert texts(sample) == [("user", "<image>\nWhat is it?"), ("assistant", "A cat.\nBlack.")]


def test_pictures_of_a_list_stand_in_reading_order(root):
    sample = read(root, llava("<image> or <image>?", image=["b.png", "a.png"]))
    assert sample.images == (root / "b.png", root / "a.png")


def test_a_record_of_another_layout_is_told_apart_in_words(root):
    message = refusal(root, llava("Hi"), llava("Hi"), said("Hi", "Ho"))
    assert "'messages'" in message
    assert "most records of this source are of the layout llava" in message


# --- messages -------------------------------------------------------------------------------------


def test_typed_parts_keep_their_order_and_every_character(root):
    parts = [
        {"type": "text", "text": "First:\n"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "b.png"},
        {"type": "text", "text": "\nWhich?"},
    ]
    sample = read(root, said(parts, [{"type": "text", "text": "The first."}]))
    assert sample.images == (root / "a.png", root / "b.png")
    shown = [part if part["type"] == "text" else {"type": "image"} for part in parts]
    assert sample.messages()[0]["content"] == shown
    assert sample.turns[1].text == "The first."


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "c d.png"},
        {"type": "image", "url": "file://{root}/c%20d.png"},
        {"type": "image_url", "image_url": {"url": "file://localhost{root}/c d.png"}},
        {"type": "image_url", "image_url": "c d.png"},
        {"type": "image", "image": "{root}/c d.png"},
    ],
)
def test_a_picture_in_a_file_may_be_named_in_every_way_in_use(root, part):
    record = json.loads(json.dumps(said([part], "Yes.")).replace("{root}", str(root)))
    [image] = read(root, record).images
    assert image == root / "c d.png"


CONTENT = base64.b64encode(picture(1)).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CONTENT}"}},
        {"type": "image", "image": f"data:image/png;base64,{CONTENT}"},
        {"type": "image", "base64": CONTENT},
        {"type": "image", "source": {"type": "base64", "media_type": "x", "data": CONTENT}},
    ],
)
def test_a_picture_may_be_in_the_record_itself(root, part):
    assert read(root, said([part], "Yes.")).images == (picture(1),)


def test_parts_without_a_name_take_the_side_list_in_order_or_by_index(root):
    nameless = {"type": "image", "text": None}
    content = [nameless, {"type": "text", "text": "or"}, nameless]
    side = ["a.png", "b.png"]
    assert read(root, said(content, "a", images=side)).images == (root / "a.png", root / "b.png")
    picked = [{**nameless, "index": 1}, {**nameless, "index": 0}]
    assert read(root, said(picked, "a", images=side)).images == (root / "b.png", root / "a.png")


def test_written_placeholders_take_the_side_list(root):
    sample = read(root, said("<image>Is this <image>?", "No.", images=["a.png", "b.png"]))
    assert sample.images == (root / "a.png", root / "b.png")


def test_pictures_whose_place_nothing_says_stand_before_the_first_question(root):
    sample = read(root, said("What is it?", "A cat.", images=["a.png", "b.png"]))
    assert sample.turns[0].text == "<image><image>\nWhat is it?"


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (said("<image><image>", "a", images=["a.png"]), "2 <image> in the messages but 1"),
        (said("<image>", "a", images=["a.png", "b.png"]), "show 1 of them"),
        (said([{"type": "image"}], "a"), "1 <image> in the messages but 0"),
        (said([{"type": "image", "index": 3}], "a", images=["a.png"]), "1 <image>"),
        (said([{"type": "image", "image": "http://x.org/a.png"}], "a"), "nothing is fetched"),
        (said([{"type": "image", "image": "a.png", "url": "b.png"}], "a"), "named twice"),
        (said([{"type": "video", "video": "a.mp4"}], "a"), "'video'"),
        (said([{"type": "text", "text": "an <image> tag"}], "a"), "written out"),
        (said("q", [{"type": "image", "image": "a.png"}]), "only a user shows pictures"),
        (said("q", "a", images=["a.png"], image="b.png"), "expected one of the two"),
        (said("q", "a", videos=["a.mp4"]), "'videos' is ['a.mp4']: videos are not supported"),
        (said("q", "a", objects={"bbox": [[1, 2]]}), "'objects'"),
        (said("q", "a", rejected_response="b"), "preference data"),
        (said("q", "a", tools="[]"), "tool calls are not supported"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "x", "loss": False}]}, "'loss' is False"),
        ({"messages": [{"role": "assistant", "content": "x", "train": False}]}, "'train' is"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "'weight' is 0"),
        ({"messages": [{"role": "user", "content": "x", "train": True}]}, "only answers are"),
        ({"messages": [{"role": "assistant", "content": None}]}, "'content' is None"),
        (said("q", " "), "the answer is empty"),
        (said("q", "\ud800"), "half a character"),
        (said("q"), "no answer"),
    ],
)
def test_messages_that_cannot_be_learnt_as_they_are_written_are_refused(root, record, found):
    assert found in refusal(root, record)


# --- ms-swift, alpaca, nanoVLM --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "more"),
    [("gpt", {"train": False}), ("gpt", {"weight": 0}), ("gpt", {"loss": False}),
     ("gpt", {"weight": 0.5}), ("gpt", {"train_detail": [{"begin_offset": 0}]}),
     ("human", {"train": True})],
)  # fmt: skip
def test_turns_that_ask_for_another_mask_are_refused(root, who, more):
    record = llava("q")
    next(turn for turn in record["conversations"] if turn["from"] == who).update(more)
    assert f"'{next(iter(more))}' is " in refusal(root, record)


def test_turns_that_ask_for_the_mask_there_is_are_read(root):
    record = llava("q")
    question, answer = record["conversations"]
    question.update(train=False, weight=0)
    answer.update(train=True, weight=1, loss=1.0)
    assert texts(read(root, record)) == texts(read(root, llava("q")))


def test_swift_query_response_history_and_system(root):
    record = {
        "query": "And <image>?",
        "response": "A dog.",
        "history": [["<image>What?", "A cat."]],
        "system": "Be brief.",
        "images": ["a.png", "b.png"],
    }
    sample = read(root, record)
    assert texts(sample) == [
        ("system", "Be brief."),
        ("user", "<image>What?"),
        ("assistant", "A cat."),
        ("user", "And <image>?"),
        ("assistant", "A dog."),
    ]
    assert sample.images == (root / "a.png", root / "b.png")


def test_swift_by_name_reads_messages_too(root):
    record = said("<image>What?", "A cat.", images="a.png")
    assert read(root, record, format="swift") == read(root, record, format="messages")


def test_alpaca_joins_instruction_and_input_by_a_line_break(root):
    record = {"instruction": "<image>Describe.", "input": "Briefly.", "output": "A cat."}
    sample = read(root, {**record, "images": ["a.png"], "history": [["Hi", "Hello"]]})
    assert texts(sample)[0] == ("user", "Hi")
    assert texts(sample)[2] == ("user", "<image>Describe.\nBriefly.")
    assert "0 in 'images'" in refusal(root, record)


def test_nanovlm_puts_its_pictures_before_the_first_question(root):
    pairs = [{"user": "What?", "assistant": "A cat."}, {"user": "Sure?", "assistant": "Yes."}]
    sample = read(root, {"images": ["a.png", "b.png"], "texts": pairs, "source": "vqa"})
    assert sample.turns[0].text == "<image><image>\nWhat?"
    assert (len(sample.turns), sample.metadata) == (4, {"source": "vqa"})
    assert "'assistant' is None" in refusal(root, {"texts": [{"user": "What?"}]})


# --- LLaMA-Factory --------------------------------------------------------------------------------


def factory(root: Path, entry: dict, *records: dict, name: str = "mine") -> Sample:
    (root / "data.json").write_text(json.dumps(list(records)), "utf-8")
    entry = {"file_name": "data.json", **entry}
    (root / "dataset_info.json").write_text(json.dumps({"mine": entry}), "utf-8")
    spec = SourceSpec(f"{root}/dataset_info.json:{name}", language="en")
    return open_source(spec, cache_dir=root / "cache")[0]


@pytest.mark.parametrize(
    "record",
    [
        {"question": "What?", "answer": "A cat."},
        {"question": "What?", "answers": ["A cat.", "cat"], "questionId": 7},
        {"query": "What?", "label": ["A cat."]},
        {"instruction": "What?", "inputs": None, "outputs": "A cat."},
    ],
)
def test_a_table_of_questions_and_answers_is_read_under_its_usual_columns(root, record):
    sample = read(root, record | {"image": "a.png"})
    assert texts(sample) == [("user", "<image>\nWhat?"), ("assistant", "A cat.")]
    assert [image.name for image in sample.images] == ["a.png"]
    assert set(sample.metadata) <= {"questionId"}


def test_m3its_own_files_hold_pictures_in_base64(root):
    picture = (root / "a.png").read_bytes()
    record = {"instruction": "Answer.", "inputs": "What?", "outputs": "A cat.",
              "image_base64_str": [base64.b64encode(picture).decode()]}  # fmt: skip
    sample = read(root, record)
    assert texts(sample)[0] == ("user", "<image>\nAnswer.\nWhat?")
    assert sample.images == (picture,)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"question": "", "answer": "A cat."}, "'question' empty"),
        ({"question": "What?", "answer": 2}, "'answer' is 2"),
        ({"question": "What?", "answers": [{"answer": "cat"}]}, "'answers' is [{"),
        ({"question": "What?", "answer": "B", "choices": ["a", "b"]}, "'choices'"),
        ({"question": "?", "answer": "B", "image": "a.png", "image_base64_str": ["eA=="]},
         "expected one of the two"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_learnt_is_refused(root, record, found):
    assert found in refusal(root, record)


def test_dataset_info_renames_columns_and_tags(root):
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "pics", "system": "rule"},
        "tags": {
            "role_tag": "role", "content_tag": "text", "user_tag": "u", "assistant_tag": "a",
        },
    }  # fmt: skip
    talk = [{"role": "u", "text": "<image>?"}, {"role": "a", "text": "A cat."}]
    sample = factory(root, entry, {"talk": talk, "pics": ["a.png"], "rule": "Be brief."})
    assert texts(sample)[0] == ("system", "Be brief.")
    assert sample.images == (root / "a.png",)
    assert (sample.domain, sample.source) == ("mine", f"{root}/data.json:1")


def test_dataset_info_reads_alpaca_unless_told_otherwise(root):
    entry = {"columns": {"prompt": "q", "response": "a", "query": None}}
    assert texts(factory(root, entry, {"q": "Hi", "a": "Hello"})) == [
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"ranking": True}, "'ranking' is True: preference data"),
        ({"script_url": "x.py"}, "'script_url' is 'x.py': loading scripts are not run"),
        ({"hf_hub_url": "org/name"}, "'hf_hub_url'"),
        ({"num_samples": 10}, "'num_samples'"),
        ({"columns": {"kto_tag": "label"}}, "'columns.kto_tag' is 'label': preference data"),
        ({"columns": {"tools": "tools"}}, "'columns.tools'"),
        ({"columns": {"videos": "v"}}, "'columns.videos'"),
        ({"columns": {"messages": "m"}}, "'columns' holds 'messages'; expected prompt"),
        ({"formatting": "chatml"}, "'formatting' is 'chatml'"),
        ({"colums": {}}, "unknown key 'colums'"),
        ({"file_name": "../data.json"}, "leads outside"),
        ({"file_name": "none.json"}, "no such file"),
        ({"formatting": "sharegpt", "tags": {"user_tag": "gpt"}}, "the same name"),
    ],
)
def test_dataset_info_refuses_by_name_what_is_not_read(root, entry, found):
    with pytest.raises(DataError) as caught:
        factory(root, entry, {"instruction": "a", "output": "b"})
    assert str(caught.value).startswith(f"{root}/dataset_info.json: 'mine': ")
    assert found in str(caught.value)


def test_dataset_info_names_its_entries(root):
    record = {"instruction": "a", "output": "b"}
    with pytest.raises(DataError, match="did you mean 'mine'"):
        factory(root, {}, record, name="mime")
    with pytest.raises(DataError, match="say which of its data sets"):
        open_source(SourceSpec(root / "dataset_info.json"))


# --- MMBench --------------------------------------------------------------------------------------


def tsv(root: Path, *rows: dict, name: str = "bench.tsv") -> Path:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "image", "language"]
    lines = ["\t".join(columns)]
    lines += ["\t".join(row.get(column, "") for column in columns) for row in rows]
    path = root / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


ROW = {"index": "1", "question": "What?", "A": "a cat", "B": "a dog", "answer": "B",
       "image": CONTENT, "language": "zh"}  # fmt: skip


def test_a_benchmark_row_is_asked_as_the_evaluation_asks_it(root):
    hinted = {**ROW, "index": "2", "hint": "Look.", "C": "NaN", "D": "a cow", "image": "1"}
    path = tsv(root, ROW, hinted)
    source = open_source(SourceSpec(path), cache_dir=root / "cache")
    for sample, item in zip(source.samples(), read_items(path), strict=True):
        query = ask(item, "letters", item.image)
        asked, _ = sample.messages()
        assert [part.get("text") for part in asked["content"]] == [None, query.question]
        assert query.messages()[0]["content"][1]["text"] == query.question
        assert sample.turns[1].text == item.answer
        assert sample.images == (picture(1),)
        assert sample.language == "zh"
    assert source[1].metadata == {"index": "2", "letters": "ABD"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"answer": ""}, "are the answers of this split hidden?"),
        ({"answer": "C"}, "'C' is none of the options A, B"),
        ({"B": "NaN"}, "1 options, at least two"),
        ({"question": "nan"}, "column question: empty"),
        ({"image": "77"}, "'77' is neither a picture in base64 nor the index"),
        ({"image": "#" * 80}, "broken base64"),
        ({"language": "xx"}, "'language' is 'xx'; options are asked for in en, zh"),
        ({"question": "a <image>"}, "written out"),
    ],
)
def test_a_bad_benchmark_row_is_refused_with_its_line(root, change, found):
    source = open_source(SourceSpec(tsv(root, {**ROW, **change})), cache_dir=root / "cache")
    with pytest.raises(DataError) as caught:
        source[0]
    assert str(caught.value).startswith(f"{root}/bench.tsv:2: ")
    assert found in str(caught.value)


# --- detection ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (llava("q", image="a.png"), "llava"),
        (llava("q"), "llava"),
        (llava("q", images=["a.png"]), "sharegpt"),
        (said("q", "a"), "messages"),
        ({"query": "q", "response": "a"}, "swift"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"texts": []}, "nanovlm"),
        (ROW, "mmbench"),
    ],
)
def test_the_keys_tell_the_layout(record, name):
    assert detect_layout([record], ["x:1"]).name == name


def test_one_odd_record_does_not_change_the_layout_of_the_others():
    records = [{"broken": 1}, said("q", "a"), said("q", "a"), llava("q")]
    assert detect_layout(records, ["x:1"] * 4).name == "messages"


def test_records_of_no_layout_are_shown_with_their_keys_and_every_layouts_needs(root):
    message = refusal(root, {"prompt": "q", "completion": "a"})
    assert "found the keys 'completion', 'prompt'" in message
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.needs}" in message
