"""Two runs on the same questions: pairs, exact tests, differences, files."""

import csv
import json
from dataclasses import replace

import pytest

from llava_mole.errors import DataError
from llava_mole.evaluation.comparison import (
    compare,
    different_settings,
    draw,
    pair,
    to_csv,
    to_markdown,
)
from llava_mole.evaluation.record_files import read_run, write_run
from llava_mole.evaluation.records import Run
from llava_mole.evaluation.statistics import holm


@pytest.fixture
def runs(record, head):
    """{language: (both right, only the first, only the second, none)} -> two runs."""

    def make(**counts):
        left, right = [], []
        for language, numbers in counts.items():
            kinds = [kind for kind, n in enumerate(numbers) for _ in range(n)]
            for number, kind in enumerate(kinds):
                about = {"language": language, "group": f"{language}/{number}"}
                about |= {"category": "even" if number % 2 == 0 else "odd"}
                left.append(record(number, choice="A" if kind in (0, 1) else "B", **about))
                right.append(record(number, choice="A" if kind in (0, 2) else "B", **about))
        return Run(head(), tuple(left)), Run(head(), tuple(right))

    return make


def row_of(rows, by, name="all"):
    [row] = [row for row in rows if (row.by, row.name) == (by, name)]
    return row


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 5, 14 / 64),  # 2 · (1 + 6) / 2^6
        (5, 1, 14 / 64),
        (0, 6, 2 / 64),
        (2, 2, 1.0),
        (0, 0, 1.0),
        (3, 9, 2 * (1 + 12 + 66 + 220) / 4096),
    ],
)
def test_mcnemar(runs, only_first, only_second, p):
    row = row_of(compare(pair(*runs(en=(4, only_first, only_second, 3)))), "all")
    assert (row.only_first, row.only_second) == (only_first, only_second)
    assert row.p == pytest.approx(p, rel=1e-12)


def test_a_difference_is_second_less_first(runs):
    first, second = runs(en=(4, 1, 5, 10))
    row = row_of(compare(pair(first, second)), "all")
    assert (row.n, row.first, row.second) == (20, 0.25, 0.45)
    assert row.difference == pytest.approx(0.2)
    assert row.low < 0.2 < row.high
    other = row_of(compare(pair(second, first)), "all")
    assert other.difference == pytest.approx(-0.2)
    assert (other.low, other.high) == pytest.approx((-row.high, -row.low), abs=0.03)


def test_runs_that_are_equal_differ_by_nothing(runs):
    first, _ = runs(en=(5, 3, 0, 2), ru=(1, 1, 1, 1))
    for row in compare(pair(first, first)):
        assert (row.difference, row.low, row.high) == (0.0, 0.0, 0.0)
        assert row.p in (None, 1.0)


def test_holm_corrects_within_a_division(runs):
    rows = compare(pair(*runs(en=(9, 0, 9, 9), tr=(9, 1, 5, 9), ru=(9, 1, 9, 9))))
    languages = [row for row in rows if row.by == "language"]
    assert [row.name for row in languages] == ["en", "tr", "ru"]
    p = {"en": 2 / 2**9, "ru": 2 * 11 / 2**10, "tr": 14 / 64}
    for row in languages:
        assert row.p == pytest.approx(p[row.name])
    corrected = {row.name: row.p_holm for row in languages}
    assert corrected == pytest.approx({"en": 3 * p["en"], "ru": 2 * p["ru"], "tr": p["tr"]})
    whole = row_of(rows, "all")
    assert whole.p_holm == whole.p  # one test, nothing to correct


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_mean_of_languages_is_tested_by_questions(runs):
    rows = compare(pair(*runs(en=(4, 0, 6, 0), ru=(1, 1, 0, 0))))
    mean = row_of(rows, "mean", "of languages")
    assert mean.difference == pytest.approx((0.6 - 0.5) / 2)
    # Four questions changed one way, one the other: signs at random reach that often.
    assert mean.p == mean.p_holm
    assert 0.05 < mean.p <= 1


def test_the_languages_of_a_question_are_one_trial(runs):
    """Six copies of one question's difference say no more than one does."""
    copies = dict.fromkeys(("en", "zh", "pt", "ar", "tr", "ru"), (1, 0, 0, 0))
    whole = row_of(compare(pair(*runs(**copies))), "all")
    assert whole.n == 6
    assert whole.p == pytest.approx(1.0, abs=1e-3)
    assert 2 / 2**6 < 0.05  # what six trials would have said


def test_graded_scores_have_no_p(record, head):
    def run(*scores):
        return Run(head(metric="anls"), tuple(
            record(n, options={}, answer=None, answers=("x",), choice=None, score=score)
            for n, score in enumerate(scores)
        ))  # fmt: skip

    row = row_of(compare(pair(run(0.5, 1.0), run(1.0, 1.0))), "all")
    assert (row.only_first, row.only_second, row.p, row.p_holm) == (None, None, None, None)
    assert row.difference == 0.25


def test_questions_count_as_right_in_all_their_passes(record, head):
    def run(*choices):
        return Run(head(), tuple(
            record(k * 1_000_000, k, group="q.tsv/0", choice=choice)
            for k, choice in enumerate(choices)
        ))  # fmt: skip

    row = row_of(compare(pair(run("A", "A"), run("A", "B"))), "all")
    assert (row.n, row.first, row.second, row.only_first) == (1, 1.0, 0.0, 1)


def test_questions_of_two_files_are_drawn_apart(record, head):
    """One index in two files: a gain in one and a loss in the other do not cancel in each draw."""

    def run(**choices):
        return Run(head(), tuple(
            record(n, file=file, group=f"{file}/{n}", choice=choice)
            for file, choice in choices.items() for n in range(50)
        ))  # fmt: skip

    row = row_of(compare(pair(run(a="A", b="B"), run(a="B", b="A"))), "all")
    assert row.difference == 0.0
    assert (row.low, row.high) == pytest.approx((-0.196, 0.196), abs=0.03)


# ---------------------------------------------------------------------- pairs


def test_pairs_must_match(runs):
    first, second = runs(en=(3, 0, 0, 3))
    less = Run(second.head, second.records[1:])
    with pytest.raises(DataError, match="5 questions in common, 1 in the first run alone, 0 in"):
        pair(first, less)
    assert len(pair(first, less, common=True)) == 5


def test_runs_with_nothing_in_common(record, head):
    first, second = Run(head(), (record(1),)), Run(head(), (record(2),))
    for common in (False, True):
        with pytest.raises(DataError, match="0 questions in common"):
            pair(first, second, common=common)


@pytest.mark.parametrize("key", ["benchmark", "metric"])
def test_another_benchmark(record, head, key):
    with pytest.raises(DataError, match=f"runs of {key} '.*' and 'x' can't be compared"):
        pair(Run(head(), (record(1),)), Run(head(**{key: "x"}), (record(1),)))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"question": "Where?"}, "question"),
        ({"options": {"A": "cat", "B": "cow"}}, "options"),
        ({"answer": "B"}, "answer"),
    ],
)
def test_the_same_index_with_another_question(record, head, changes, name):
    """Two editions of a file under one name."""
    first, second = Run(head(), (record(1),)), Run(head(), (record(1, **changes),))
    with pytest.raises(DataError, match=rf"question q\.tsv/1: its {name} in the first run differ"):
        pair(first, second)


def test_other_passes_of_a_question(record, head):
    more = (record(1), record(1_000_001, 1, group="q.tsv/1"))
    with pytest.raises(DataError, match="1 passes in the first run, 2 in the second"):
        pair(Run(head(), (record(1),)), Run(head(), more))


def test_hidden_answers_cannot_be_compared(record, head):
    hidden = Run(head(), (record(1, answer=None),))
    with pytest.raises(DataError, match="its answer is hidden"):
        pair(hidden, hidden)


def test_other_settings_are_told(record, head):
    first = Run(head(), (record(1),))
    protocol = head()["protocol"] | {"style": "llava"}
    second = Run(head(protocol=protocol, model={"name": "other"}), (record(1),))
    assert different_settings(first, first) == []
    assert different_settings(first, second) == ['protocol.style: there "parrot", now "llava"']


# ---------------------------------------------------------------------- showing it


def test_a_table_to_read(runs):
    rows = compare(pair(*runs(en=(4, 0, 20, 16), ru=(4, 1, 5, 10))))
    text = to_markdown(rows, "plain", "mole")
    assert "| all | n | plain | mole | difference | 95 % interval |" in text
    assert "| en | 40 | 10.0 | 60.0 | +50.0 |" in text
    assert "| 0 / 20 | < 0.0001 | < 0.0001 |" in text
    assert "| ru | 20 | 25.0 | 45.0 | +20.0 |" in text
    assert "| 1 / 5 | 0.2188 | 0.2188 |" in text
    assert "| mean of languages | 60 | 17.5 | 52.5 | +35.0 |" in text
    assert next(csv.DictReader(to_csv(rows).splitlines()))["name"] == "all"


def test_names_are_escaped_in_tables(runs):
    first, second = runs(en=(4, 0, 20, 16))
    first, second = (
        Run(run.head, tuple(replace(one, category="a|b\n\x1b[2J") for one in run.records))
        for run in (first, second)
    )
    lines = to_markdown(compare(pair(first, second)), "p|q", "m\n\x1bo").splitlines()
    assert lines[0].startswith(r"| all | n | p\|q | m �o | difference |")
    assert sum(line.startswith(r"| a\|b �[2J | 40 | ") for line in lines) == 1
    assert {line.replace(r"\|", "").count("|") for line in lines if line} == {10}


@pytest.mark.parametrize("name", ["q$x^{", "$x^{$", r"\$a", "a\nb", "\x1b\0\ud800"])
def test_any_name_is_drawn(runs, tmp_path, name):
    first, second = runs(en=(4, 0, 20, 16))
    second, first = (
        Run(run.head, tuple(replace(one, category=name) for one in run.records))
        for run in (second, first)
    )
    draw(compare(pair(first, second)), tmp_path / "x.png", name, name)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def predicted(evaluate, row, circular, table, tmp_path):
    """Folders of the random baseline's and the majority's predictions on six questions."""
    rows = [line for n in range(6) for line in circular(n, 2 + n % 3, category="ab"[n % 2])]
    path = table(rows)
    for model in ("random", "majority"):
        out = tmp_path / "runs" / model / "own"
        code = evaluate("--data", path, "--out", out, passes="circular", model=model)
        assert code == 0
    return tmp_path / "runs" / "random" / "own", tmp_path / "runs" / "majority" / "own"


def test_from_two_predictions_to_files(predicted, script, tmp_path, capsys):
    out = tmp_path / "compared"
    capsys.readouterr()
    assert script("compare").main([*map(str, predicted), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "# majority/own against random/own" in said.out
    assert {path.name for path in out.iterdir()} == {
        f"majority-own.{end}" for end in ("json", "csv", "md", "png")
    }
    found = json.loads((out / "majority-own.json").read_text("utf-8"))
    assert (found["first"], found["second"]) == ("random/own", "majority/own")
    whole = found["differences"][0]
    first, second = (read_run(folder / "predictions.jsonl") for folder in predicted)
    assert whole["n"] == 6
    assert whole["difference"] == pytest.approx(whole["second"] - whole["first"])
    assert found["differences"] == [vars(row) for row in compare(pair(first, second))]
    assert (out / "majority-own.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_different_questions_need_common(predicted, script, tmp_path, capsys):
    shorter = read_run(predicted[1] / "predictions.jsonl")
    plan = shorter.head["plan"] | {"asks": len(shorter.records) - 2}
    shorter = Run(shorter.head | {"plan": plan}, shorter.records[2:])
    write_run(shorter, tmp_path / "short" / "predictions.jsonl")
    arguments = [str(predicted[0]), str(tmp_path / "short"), "--out", str(tmp_path / "c")]
    arguments += ["--names", "one", "two"]
    capsys.readouterr()
    assert script("compare").main(arguments) == 2
    assert "error: 5 questions in common, 1 in the first run alone" in capsys.readouterr().err
    assert script("compare").main([*arguments, "--common"]) == 0
    found = json.loads((tmp_path / "c" / "two.json").read_text("utf-8"))
    assert (found["first"], found["differences"][0]["n"]) == ("one", 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name two runs or more"),
        (["RUN", "--names", "a"], "1 names for 2 runs"),
        (["RUN", "RUN", "--names", "a", "b", "b"], "--names: b stands twice"),
        (["RUN", "RUN", "--names", "a", "x/y", "x-y"], "'x/y' and 'x-y' would both write x-y.md"),
        (["RUN", "RUN", "--names", "a", "b", ""], "--names: ''"),
        (["RUN", "RUN", "--names", "a", "b", "c\0"], r"--names: 'c\x00'"),
        (["/no/run"], "no predictions can be read"),
        (["/no\0run"], "a path with a NUL character"),
        (["/" + 300 * "r"], "File name too long"),
    ],
)
def test_what_cannot_be_compared(predicted, script, tmp_path, capsys, arguments, message):
    arguments = [str(predicted[1]) if part == "RUN" else part for part in arguments]
    code = script("compare").main([str(predicted[0]), *arguments, "--out", str(tmp_path / "c")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("out", "name", "message"),
    [
        ("/dev/null/x", "b", "error: --out /dev/null/x: b.md, .csv, .json, .png cannot be written"),
        ("FOLDER/" + 300 * "o", "b", "(File name too long)"),
        ("FOLDER/c", 300 * "n", "(File name too long)"),
        ("FOLDER/c\0", "b", "a path with a NUL character"),
        ("FOLDER/file", "b", "cannot be written ("),
        ("FOLDER/file/\x1b[2J", "b", "/file/�[2J: b.md"),
    ],
)
def test_where_nothing_can_be_written(predicted, script, tmp_path, capsys, out, name, message):
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    arguments = [*map(str, predicted), "--out", out.replace("FOLDER", str(tmp_path))]
    assert script("compare").main([*arguments, "--names", "a", name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err


def test_any_name_can_be_given(predicted, script, tmp_path, capsys):
    capsys.readouterr()
    arguments = [*map(str, predicted), "--out", str(tmp_path / "c")]
    names = ["p|$x^{", "q$x^{\x1b[31m|\udcff"]
    assert script("compare").main([*arguments, "--names", *names]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out.startswith(r"# q$x^{�[31m\|� against p\|$x^{" + "\n")
    stem = "q$x^{�[31m|�"
    assert said.out.endswith(f"/{stem}.png\n")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        f"{stem}.{end}" for end in ("json", "csv", "md", "png")
    }


def test_the_first_name_is_no_file(predicted, script, tmp_path):
    """It may look like another's: only the others are written."""
    arguments = [*map(str, predicted), "--out", str(tmp_path / "c"), "--names", "x/y", "x-y"]
    assert script("compare").main(arguments) == 0


def test_settings_do_not_steer_the_terminal(predicted, script, tmp_path, capsys):
    run = read_run(predicted[1] / "predictions.jsonl")
    selection = run.head["selection"] | {"split": "|\x9b2J"}
    write_run(Run(run.head | {"selection": selection}, run.records), tmp_path / "o.jsonl")
    arguments = [str(predicted[0]), str(tmp_path / "o.jsonl"), "--out", str(tmp_path / "c")]
    capsys.readouterr()
    assert script("compare").main([*arguments, "--names", "a", "b"]) == 0
    assert 'selection.split: there null, now "|�2J"' in capsys.readouterr().err
    text = (tmp_path / "c" / "b.md").read_text("utf-8")
    assert r'- not the same: selection.split: there null, now "\|�2J"' in text


def test_names_are_the_shortest_ends_that_differ(script, tmp_path):
    names_of = script("compare").names_of
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert names_of(folders) == ["a/x", "b/x"]
    assert names_of([folders[0], folders[1] / "predictions.jsonl"]) == ["a/x", "b/x"]
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([folders[0], folders[0]]) == ["run 1", "run 2"]
