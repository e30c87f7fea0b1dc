"""Malformed benchmark files through the command line: one line that says where, nothing lost."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mole.evaluation.record_files import read_run

EN = "questions_en.tsv"


def error_of(capsys) -> str:
    """The one line on stderr; it is no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines, lines
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def refused(evaluate, tmp_path, capsys) -> Callable[..., str]:
    """Arguments -> the message; checks what holds for every refusal."""

    def call(*arguments: object, **how: str) -> str:
        assert evaluate("--data", *arguments, **how) == 2
        assert not (tmp_path / "out" / "predictions.jsonl").exists()
        assert not (tmp_path / "out" / "report.json").exists()
        return error_of(capsys)

    return call


@pytest.fixture
def report(evaluate, tmp_path) -> Callable[..., dict]:
    """Arguments, --skip-bad-rows -> report.json."""

    def call(*arguments: object, **how: str) -> dict:
        assert evaluate("--skip-bad-rows", "--data", *arguments, **how) == 0
        made = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
        text = (tmp_path / "out" / "report.md").read_text("utf-8")
        assert f"- rows left out: {len(made['left_out'])}\n" in text
        return made

    return call


def rows_with(row, **changes: str) -> list[dict[str, str]]:
    """Six good rows; the third with other cells."""
    rows = [row(n) for n in range(6)]
    rows[2] |= changes
    return rows


# ---------------------------------------------------------------------- single rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": "1"}, ":4: column index: '1' is the row's of line 3 already"),
        ({"index": ""}, ":4: column index: empty"),
        ({"answer": "E"}, ":4: column answer: 'E' is none of the options A, B, C, D"),
        ({"answer": ""}, ":4: column answer: empty"),
        ({"B": "", "C": "", "D": ""}, ":4: columns A to D: 1 options"),
        ({"question": ""}, ":4: column question: empty"),
        ({"image": ""}, ":4: column image: '' is neither a picture in base64"),
        ({"image": "99"}, ":4: column image: '99' is neither"),
        ({"question": "Какое животное?"}, ":4: column question: in Cyrillic script"),
    ],
)
def test_a_malformed_row(row, table, refused, report, changes, message):
    path = table(rows_with(row, **changes))
    assert f"{path}{message}" in refused(path)
    made = report(path)
    [left_out] = made["left_out"]
    assert left_out.startswith(f"{EN}{message}")
    assert made["figures"][0]["n"] == 5


@pytest.mark.parametrize("kind", ["base64", "text", "bomb", "cut", "svg", "html"])
def test_a_broken_picture(row, table, refused, report, broken_picture, kind):
    path = table(rows_with(row, image=broken_picture[kind]))
    assert f"{path}:4: column image: " in refused(path)
    made = report(path)
    assert [text.startswith(f"{EN}:4: column image: ") for text in made["left_out"]] == [True]
    assert made["figures"][0]["n"] == 5


def test_a_blind_run_does_not_open_pictures(row, table, evaluate, broken_picture):
    path = table(rows_with(row, image=broken_picture["cut"]))
    assert evaluate("--data", path, "--blind") == 0


def test_a_question_of_many_passes_is_left_out_whole(table, circular, refused, report):
    rows = circular(1) + circular(2)
    rows[7] |= {"answer": "E"}  # the last pass of the second
    path = table(rows)
    assert f"{path}:9: column answer" in refused(path, passes="circular")
    made = report(path, passes="circular")
    assert made["figures"][0]["n"] == 1
    assert [text.split(": ")[1] for text in made["left_out"]] == ["column answer", "column index"]


def test_words_of_a_file_are_no_markup(row, table, report, capsys):
    """The terminal's library reads [/b] as a tag."""
    rows = [*rows_with(row, answer="[/b]"), row(7, category="[/red]")]
    assert report(table(rows))["figures"][0]["n"] == 6
    said = capsys.readouterr()
    assert "column answer: '[/b]' is none of" in said.err
    assert "[/red]" in said.out


def test_an_index_of_many_digits_is_a_name(row, table, evaluate):
    assert evaluate("--data", table([row(0), row(1) | {"index": "7" * 150}])) == 0


# ---------------------------------------------------------------------- whole files


def test_a_column_that_is_missing(row, table, refused):
    rows = rows_with(row)
    for one in rows:
        del one["answer"], one["B"]
    assert f"{EN}:1: no column B, answer; found index, question, hint, A, C" in refused(table(rows))


def test_a_column_that_stands_twice(row, table, refused):
    path = table(rows_with(row))
    path.write_text(path.read_text("utf-8").replace("hint", "A", 1), "utf-8")
    assert f"{EN}:1: expected a header of several columns, each once" in refused(path)


def test_files_of_two_languages_in_one(row, table, refused):
    portuguese = "O que a criança está fazendo na imagem que foi tirada na rua?"
    rows = [row(n) | {"question": f"{portuguese} {n}"} for n in range(3)]
    rows += [row(n) for n in range(3, 6)]
    message = refused(table(rows))
    assert f"{EN}:2: column question: 3 of 6 questions declared 'en' look like 'pt'" in message


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_cut_within_the_last_row(row, table, refused, report):
    path = table(rows_with(row))
    cut(path, path.read_bytes().rindex(b"a horse"))
    assert f"{path}:7: 6 cells, the header has 14 columns" in refused(path)
    made = report(path)
    assert (len(made["left_out"]), made["figures"][0]["n"]) == (1, 5)


def test_cut_within_a_picture(row, table, refused, report):
    cells = row(5)
    last = {name: cells[name] for name in cells if name != "image"} | {"image": cells["image"]}
    others = [{name: row(n)[name] for name in last} for n in range(5)]
    path = table([*others, last])
    cut(path, len(path.read_bytes()) - 1 - 401)
    assert f"{path}:7: column image: " in refused(path)
    made = report(path)
    assert (len(made["left_out"]), made["figures"][0]["n"]) == (1, 5)


def test_cut_within_a_picture_where_base64_is_whole(row, table, refused):
    cells = row(5)
    last = {name: cells[name] for name in cells if name != "image"} | {"image": cells["image"]}
    last["image"] = last["image"][: len(last["image"]) // 8 * 4]
    message = refused(table([last]))
    assert f"{EN}:2: column image: " in message
    assert "truncated or damaged PNG" in message


def test_cut_within_a_quoted_cell(row, table, refused, report):
    rows = [*rows_with(row), row(6, question='Which of the "animals"\n\n is it?')]
    path = table(rows)
    cut(path, path.read_bytes().rindex(b" is it?"))
    assert f"{path}:8: not a TSV row (unexpected end of data)" in refused(path)
    made = report(path)
    assert (len(made["left_out"]), made["figures"][0]["n"]) == (1, 6)


def test_a_quote_that_is_not_closed_costs_its_own_row_only(row, table, refused, report):
    """Rows behind it are whole, also one of several lines; each is asked."""
    rows = [*rows_with(row), row(6, question='Which of the "animals"\n\n is it?')]
    path = table(rows)
    lines = path.read_bytes().split(b"\n")
    cells = lines[2].split(b"\t")
    cells[1] = b'"' + cells[1]
    lines[2] = b"\t".join(cells)
    path.write_bytes(b"\n".join(lines))
    assert f"{path}:3: not a TSV row (" in refused(path)
    made = report(path)
    assert (len(made["left_out"]), made["figures"][0]["n"]) == (1, len(rows) - 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: expected a header of several columns"),
        (b"\n\n\n", ":1: expected a header of several columns"),
        (b"index\tquestion\tA\tB\tanswer\timage\n", ": a header and no row; was the file cut?"),
        ("index\tquestion\tA\tB\tanswer\timage\n1\t?".encode("utf-16"), ":1: "),
        (bytes(range(256)) * 400, ":1: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(4000), ":1: expected a header"),
        (b"PK\x03\x04" + bytes(range(255, 0, -1)) * 40, ":1: "),
        (b"index,question,A,B,answer,image\n1,What?,a,b,A,x\n", ":1: expected a header"),
        (b'{"index": 1}\n', ":1: expected a header"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, refused, content, message):
    path = tmp_path / EN
    path.write_bytes(content)
    assert f"{path}{message}" in refused(path)


def test_text_in_another_encoding(row, table, refused, report):
    path = table(rows_with(row, question="Which café is in the picture?"))
    path.write_bytes(path.read_text("utf-8").encode("latin-1"))
    assert f"{path}:4: not UTF-8" in refused(path)
    assert report(path)["figures"][0]["n"] == 5


def test_a_folder_and_nothing_at_all(tmp_path, refused):
    assert f"--data {tmp_path}: a folder" in refused(tmp_path)
    assert f"--data {tmp_path}/no.tsv: no such file" in refused(tmp_path / "no.tsv")


def test_two_files_of_one_name(row, table, tmp_path, refused):
    first = table([row()])
    (tmp_path / "more").mkdir()
    second = tmp_path / "more" / EN
    second.write_bytes(first.read_bytes())
    assert f"two files are called {EN}; rename one" in refused(first, second)


def test_a_language_that_nothing_tells(row, table, refused):
    path = table([row()], "questions.tsv")
    assert "no column language, and its name does not end in _xx.tsv" in refused(path)
    assert "--languages xx: known are en, zh" in refused(path, "--languages", "xx")


def test_nothing_left_to_ask(row, table, refused):
    path = table([row()])
    said = refused(path, "--categories", "none")
    assert "--categories none: the files have naming" in said
    assert "no question left" in refused(path, "--split", "none")
    assert "no question left" in refused(path, "--languages", "ru")


def test_out_is_a_file(row, table, evaluate, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert evaluate("--data", table([row()])) == 2
    assert "--out" in error_of(capsys)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_cell_of_200_megabytes_costs_little(row, table, tmp_path, refused):
    """csv would take four bytes a character, and twice that while it grows."""
    whole = table([row(0), row(1, image="HERE"), row(2)]).read_bytes()
    before, after = whole.split(b"HERE")
    path = tmp_path / "huge_en.tsv"
    with path.open("wb") as file:
        file.write(before)
        for _ in range(200):
            file.write(b"QUJD" * 250_000)
        file.write(after)
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        path.unlink()
    assert f"{path}:3: column image: more than 67,108,864 characters" in message
    assert peak < 2**29


# ---------------------------------------------------------------------- what was there stays


def test_a_file_that_lies_elsewhere_is_the_same_run(row, table, evaluate, tmp_path, monkeypatch):
    path = table(rows_with(row, answer="E"))
    arguments = ["--skip-bad-rows", "--data"]
    assert evaluate(*arguments, path) == 0
    before = (tmp_path / "out" / "report.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert evaluate(*arguments, path.name) == 0
    assert (tmp_path / "out" / "report.json").read_bytes() == before


def test_a_failing_run_loses_no_earlier_predictions(row, table, evaluate, tmp_path, capsys):
    good = table([row(n) for n in range(4)])
    assert evaluate("--data", good) == 0
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {"predictions.jsonl", "report.json", "report.csv", "report.md"} < {*before}
    capsys.readouterr()
    bad = table(rows_with(row, answer="E"), "bad_en.tsv")
    for arguments in (
        ["--data", bad],
        ["--data", bad, "--fresh"],
        ["--data", tmp_path / "missing.tsv", "--fresh"],
        ["--data", good, "--model", "majority"],  # another run
        ["--data", good, "--style", "letters"],
        ["--data", good, "--model", tmp_path, "--fresh"],  # no model there
        ["--data", good, "--rows-per-batch", "0", "--fresh"],
    ):
        assert evaluate(*arguments) == 2, arguments
        assert error_of(capsys)
        now = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert now == before, arguments


def test_an_edited_file_is_another_run(row, table, evaluate, tmp_path, capsys):
    path = table([row(n) for n in range(4)])
    assert evaluate("--data", path) == 0
    capsys.readouterr()
    table([row(n, question="Which?") for n in range(4)])
    assert evaluate("--data", path) == 2
    assert "holds another run; it differs in data" in error_of(capsys)


def test_fresh_puts_the_earlier_run_aside(row, table, evaluate, tmp_path):
    path = table([row(n) for n in range(4)])
    assert evaluate("--data", path) == 0
    earlier = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert evaluate("--data", path, "--fresh", "--style", "letters") == 0
    assert (tmp_path / "out" / "earlier-1" / "predictions.jsonl").read_bytes() == earlier
    now = read_run(tmp_path / "out" / "predictions.jsonl")
    assert now.head["protocol"]["style"] == "letters"


def test_a_run_that_failed_before_its_first_answer_is_not_in_the_way(
    row, table, tmp_path, script, capsys
):
    """Asked for texts, the random baseline has nothing to draw from; majority has."""
    cells = {name: row()[name] for name in ("index", "question", "answer", "image")}
    path = table([cells | {"answer": "blue"}], "q_en.tsv")
    arguments = ["--data", str(path), "--out", str(tmp_path / "out"), "--quiet", "--model"]
    chartqa = script("chartqa")
    assert chartqa.command.main(chartqa.BENCHMARK, "", [*arguments, "random"]) == 2
    assert "there is no option to draw" in error_of(capsys)
    assert chartqa.command.main(chartqa.BENCHMARK, "", [*arguments, "majority"]) == 0
