"""A benchmark's pictures and questions are found in a source, and both places are named."""

import json

import pytest
from PIL import Image

from llava_mole.errors import DataError
from llava_mole.inspection.wording import Wordings, normalised
from tests.inspection.sets import (
    all_findings,
    encoded,
    look,
    only,
    record,
    scene,
    write,
    write_benchmark,
)


def row(image, question="Which of these is it?", a="soft blobs", b="a cat", **more):
    return {"question": question, "A": a, "B": b, "answer": "A", "image": image, **more}


@pytest.fixture
def leak(tmp_path):
    """The one finding where 2.png is replaced by `content` and the benchmark shows scene 2."""

    def find(content: bytes, **options):
        spec = write(tmp_path, [record("0.png"), record("2.png")])
        (tmp_path / "2.png").write_bytes(content)
        rows = [row(scene(7)), row(scene(2)), row(scene(2), "Who took it?")]
        bench = write_benchmark(tmp_path / "bench.tsv", rows)
        inspection = look(spec, tmp_path, against=[bench], **options)
        finding = only(inspection)
        assert finding.where == f"{spec.path}:2"
        assert finding.value == f"{bench}:3"
        assert f"{bench}:3" in finding.message
        assert "rows there: 2; records here: 1" in finding.message
        return finding, inspection

    return find


def test_the_same_file_is_found(leak):
    finding, inspection = leak(encoded(scene(2)))
    assert (finding.severity, finding.check) == ("error", "leak-picture")
    assert "the same file" in finding.message
    assert inspection.exit_code == 1


def test_the_same_pixels_in_another_file_are_found(leak):
    finding, _ = leak(encoded(scene(2), "BMP"))
    assert "the same pixels" in finding.message


def test_a_picture_rescaled_and_saved_as_jpeg_is_found(leak):
    small = scene(2).resize((57, 57))
    finding, _ = leak(encoded(small, "JPEG", quality=60))
    assert (finding.severity, finding.check) == ("error", "leak-picture")
    assert "looks the same" in finding.message


def test_a_grey_picture_with_its_edge_cut_off_is_found(leak):
    finding, _ = leak(encoded(scene(2).crop((2, 3, 95, 96)).convert("L")))
    assert finding.check in ("leak-picture", "leak-picture-alike")


def test_what_only_looks_the_same_can_be_made_a_warning(leak):
    small = scene(2).resize((57, 57))
    finding, _ = leak(encoded(small, "JPEG", quality=60), same_from=0.9999)
    assert (finding.severity, finding.check) == ("warning", "leak-picture-alike")
    finding, _ = leak(encoded(scene(2)), same_from=0.9999)
    assert (finding.severity, finding.check) == ("error", "leak-picture")


def test_other_pictures_are_not(tmp_path):
    spec = write(tmp_path, [record(f"{n}.png", f"What is number {n} about?") for n in range(4)])
    rows = [row(scene(n)) for n in range(100, 140)]
    bench = write_benchmark(tmp_path / "bench.tsv", rows)
    assert not look(spec, tmp_path, against=[bench]).findings.counts


def test_the_same_drawing_in_another_colour_is_another_picture(tmp_path):
    spec = write(tmp_path, [record("red.png")])
    drawn = scene(1).convert("L")
    colours = [Image.merge("RGB", [drawn.point(lambda v, s=s: int(v * s)) for s in share])
               for share in ((1, 0.3, 0.3), (0.3, 0.3, 1))]  # fmt: skip
    (tmp_path / "red.png").write_bytes(encoded(colours[0]))
    bench = write_benchmark(tmp_path / "bench.tsv", [row(colours[1])])
    assert not look(spec, tmp_path, against=[bench]).findings.counts


def test_a_picture_of_one_colour_is_found_by_its_pixels_only(tmp_path):
    spec = write(tmp_path, [record("white.png"), record("cream.png", "And what is this one?")])
    for name, colour in (("white", (255, 255, 255)), ("cream", (250, 250, 240))):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (64, 64), colour)))
    bench = write_benchmark(tmp_path / "b.tsv", [row(Image.new("RGB", (64, 64), "white"))])
    found = look(spec, tmp_path, against=[bench]).findings
    assert [f.where for f in found.first["leak-picture"]] == [f"{spec.path}:1"]
    assert found.first["benchmark-blank"][0].where == f"{bench}:2"


def test_several_benchmarks_are_searched(tmp_path):
    spec = write(tmp_path, [record("0.png"), record("1.png", "What is on this one?")])
    benches = [write_benchmark(tmp_path / f"{n}.tsv", [row(scene(n))]) for n in (0, 1, 9)]
    inspection = look(spec, tmp_path, against=benches)
    found = inspection.findings.first["leak-picture"]
    assert [f.value for f in found] == [f"{benches[0]}:2", f"{benches[1]}:2"]
    assert [b["pictures"] for b in inspection.benchmarks] == [1, 1, 1]


# --- questions ------------------------------------------------------------------------------------


def test_text_is_compared_without_case_width_punctuation_and_digit_shapes():
    assert normalised("  What’s “THIS”,\n it is №５?") == "what s this it is no5"
    assert normalised("٣ صور") == normalised("3 صـور") == "3 صور"
    assert normalised("STRASSE") == normalised("Straße") == "strasse"
    assert normalised("a\u200bb") == "ab"
    assert normalised("?!") == ""


def test_a_question_with_its_options_is_found_however_they_are_laid_out(tmp_path):
    wordings = Wordings()
    wordings.add(0, "Which animal is it?", ("red fox", "grey wolf"))
    for text in (
        "Which animal is it?\nA. red fox\nB. grey wolf\nAnswer with the letter.",
        "Please look. which ANIMAL is it? (A) grey wolf (B) red fox",
        "Hint: look.\nWhich animal is it?\n1) red fox; 2) grey wolf",
        "Question: Which animal is it?\nA. red fox\nB. grey wolf",
        "1) Which animal is it? red fox, grey wolf",
        "Look at the picture, which animal is it: red fox or grey wolf?",
    ):
        assert wordings.find(text) == ([0], [])
    assert wordings.find("Which animal is it?\nA. red fox\nB. blue whale") == (
        [], ["which animal is it"],
    )  # fmt: skip
    assert wordings.find("Which animal is it in? red fox, grey wolf") == ([], [])


def test_an_open_question_counts_only_if_its_words_are_its_own():
    wordings = Wordings()
    wordings.add(0, "What is this?", ())
    wordings.add(1, "Which of the three bridges was built before the war?", ())
    wordings.add(2, "这三座桥中哪一座是在战争前建成的？", ())
    assert wordings.find("What is this?") == ([], ["what is this"])
    assert wordings.find("Which of the three bridges was built before the war?")[0] == [1]
    assert wordings.find("这三座桥中哪一座是在战争前建成的？")[0] == [2]


def test_a_leaked_question_names_both_places(tmp_path):
    asked = "Which of these is it?\nA. soft blobs\nB. a cat"
    spec = write(tmp_path, [record(), record("1.png", asked)])
    bench = write_benchmark(tmp_path / "bench.tsv", [row(scene(8), "No?"), row(scene(7))])
    finding = only(look(spec, tmp_path, against=[bench]))
    assert (finding.severity, finding.check) == ("warning", "leak-question")
    assert (finding.where, finding.value) == (f"{spec.path}:2", f"{bench}:3")


@pytest.mark.parametrize("shown", ["<image>{}", "{}<image>", "<image> Answer briefly: {}"])
def test_a_leaked_question_is_found_beside_its_placeholder(tmp_path, shown):
    asked = shown.format("Which of these is it?") + "\nA. soft blobs\nB. a cat"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "A"}]
    spec = write(tmp_path, [{**record("1.png"), "conversations": turns}])
    bench = write_benchmark(tmp_path / "bench.tsv", [row(scene(7))])
    finding = only(look(spec, tmp_path, against=[bench]))
    assert (finding.check, finding.value) == ("leak-question", f"{bench}:2")


def test_a_leaked_picture_whose_question_leaked_too_is_named_there(tmp_path):
    asked = "Which of these is it?\nA. soft blobs\nB. a cat"
    spec = write(tmp_path, [record("1.png"), record("1.png", asked)])
    bench = write_benchmark(tmp_path / "b.tsv", [row(scene(1), "Where is it?"), row(scene(1))])
    path = tmp_path / "out.json"
    look(spec, tmp_path, against=[bench], json_file=path)
    picture, question = all_findings(path)
    assert (picture.check, picture.where, picture.value) == (
        "leak-picture", f"{spec.path}:2", f"{bench}:3",
    )  # fmt: skip
    assert picture.message.endswith("1 ask its question")
    assert question.check == "leak-question"


def test_a_common_wording_is_one_note_however_often_it_stands(tmp_path):
    spec = write(tmp_path, [record(f"{n}.png", "Which of these is it?") for n in range(3)])
    bench = write_benchmark(tmp_path / "bench.tsv", [row(scene(7))])
    finding = only(look(spec, tmp_path, against=[bench]))
    assert (finding.severity, finding.check, finding.value) == ("note", "question-worded-alike", 3)
    assert finding.where == f"{bench}:2"


# --- benchmarks as they come ----------------------------------------------------------------------


def test_a_split_without_answers_or_options_is_read(tmp_path):
    spec = write(tmp_path, [record("1.png")])
    bench = write_benchmark(
        tmp_path / "b.tsv", [{"question": "What is it?", "image": scene(1)}], "index question image"
    )
    assert only(look(spec, tmp_path, against=[bench])).check == "leak-picture"


def test_a_row_that_refers_to_another_rows_picture_shows_it(tmp_path):
    spec = write(tmp_path, [record("1.png")])
    bench = write_benchmark(tmp_path / "b.tsv", [row(scene(1)), row("0", "Whose?")])
    assert "rows there: 2" in only(look(spec, tmp_path, against=[bench])).message


def test_a_row_that_cannot_be_read_is_told_and_the_others_are_compared(tmp_path):
    spec = write(tmp_path, [record("1.png")])
    rows = [row(b"no picture, but long enough to be taken for one by its cell"), row(scene(1))]
    bench = write_benchmark(tmp_path / "b.tsv", rows)
    found = look(spec, tmp_path, against=[bench]).findings.first
    assert [f.where for f in found["benchmark-row"]] == [f"{bench}:2"]
    assert [f.value for f in found["leak-picture"]] == [f"{bench}:3"]


def test_any_source_can_be_the_benchmark(tmp_path):
    (tmp_path / "held").mkdir()
    held = write(tmp_path / "held", [record("3.png", "What did we keep for the test here?")])
    spec = write(tmp_path, [record("2.png"), record("3.png")])
    finding = only(look(spec, tmp_path, against=[held.path]))
    assert (finding.where, finding.value) == (f"{spec.path}:2", f"{held.path}:1")


def test_a_table_without_pictures_or_questions_is_refused(tmp_path):
    spec = write(tmp_path, [record()])
    path = tmp_path / "b.tsv"
    path.write_text("name\tage\nx\t3\n")
    with pytest.raises(DataError, match=r"b\.tsv:1: .*found name, age"):
        look(spec, tmp_path, against=[path])


def test_leaks_found_by_two_processes_are_those_found_by_one(tmp_path):
    spec = write(tmp_path, [record(f"s{n}.png", f"What is number {n}?") for n in range(140)])
    for number in range(140):
        (tmp_path / f"s{number}.png").write_bytes(encoded(scene(number)))
    bench = write_benchmark(tmp_path / "b.tsv", [row(scene(n)) for n in range(60, 200)])
    whole = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.json"
        look(spec, tmp_path, against=[bench], json_file=path, workers=workers)
        whole.append(json.loads(path.read_text()))
    assert whole[0] == whole[1]
    assert whole[0]["by_check"] == {"leak-picture": {"error": 80}}
