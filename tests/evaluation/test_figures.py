"""Every number of a report against MMBench's definition, worked out again with plain dicts."""

import csv
import io
import json
import random
from dataclasses import replace
from itertools import groupby

import pytest
from rich.console import Console

from llava_mole.evaluation.figures import figures, group_records, units_of, yes_no
from llava_mole.evaluation.record_files import read_run, write_run
from llava_mole.evaluation.records import Run, reread
from llava_mole.evaluation.results import (
    COLUMNS,
    cell,
    csv_text,
    make_report,
    markdown,
    percent,
    printable,
    render,
    submission,
    write_report,
)
from llava_mole.evaluation.statistics import wilson
from llava_mole.evaluation.vlmevalkit import rule_choice

TEXTS = ("red car", "blue bird", "green tree", "white house")
CATEGORIES = {
    "ocr": "fine", "social_relation": "relation", "image_style": "coarse", "celebrity": "fine",
}  # fmt: skip
SPLITS = ("dev", "test", "dev2", "")
REPLIES = ("{}", "({})", "Answer: {}", "I am not sure.", "{}. That is what I can see in this one.")


def draw_records(record) -> list:
    """About 200 replies: 22 questions in three languages, two to four options, circular."""
    rng = random.Random(5)
    out = []
    for language in ("ru", "en", "zh"):
        for number in range(22):
            options = "ABCD"[: rng.choice((2, 3, 4))]
            category = rng.choice(list(CATEGORIES))
            right = rng.randrange(len(options))
            able = rng.random() < 0.6
            for k in range(len(options)):
                answer = options[(right + k) % len(options)]
                texts = [TEXTS[(p - k) % len(options)] for p in range(len(options))]
                said = answer if able and rng.random() < 0.95 else rng.choice(options)
                form = rng.choice(REPLIES)
                out.append(
                    record(
                        number + k * 1_000_000, k, file=f"q_{language}.tsv",
                        group=f"q_{language}.tsv/{number}", question_id=str(number),
                        language=language, split=SPLITS[number % 4], category=category,
                        l2=CATEGORIES[category], options=dict(zip(options, texts, strict=True)),
                        answer=answer, reply=form.format(said), finished="sure" not in form,
                        choice=said if "{}" in form else None,
                    )
                )  # fmt: skip
    rng.shuffle(out)  # the order of the file has no say
    return out


@pytest.fixture
def run(record, head):
    records = tuple(draw_records(record))
    return Run(head(plan={"asks": len(records), "batches": 1}), records)


def by_definition(records, key, right) -> dict[str, float]:
    """MMBench: group = index modulo 10^6; a question is right iff every row is; mean over them."""
    groups: dict[tuple[str, int], list] = {}
    for one in records:
        groups.setdefault((one.file, int(one.index) % 10**6), []).append(one)
    found: dict[str, list[bool]] = {}
    for rows in groups.values():
        main = next(one for one in rows if int(one.index) < 10**6)
        found.setdefault(key(main), []).append(all(right(one) for one in rows))
    return {name: sum(rights) / len(rights) for name, rights in found.items() if name}


KEYS = {
    "all": lambda one: "all",
    "language": lambda one: one.language,
    "category": lambda one: one.category,
    "l2-category": lambda one: one.l2,
    "split": lambda one: one.split,
    "language, category": lambda one: f"{one.language}, {one.category}",
    "language, l2-category": lambda one: f"{one.language}, {one.l2}",
}


def cells(run, by, column="accuracy") -> dict[str, float]:
    return {row.name: getattr(row, column) for row in figures(run) if row.by == by}


def whole(run):
    [row] = [row for row in figures(run) if row.by == "all"]
    return row


def test_the_records_are_worth_counting(run):
    assert 180 < len(run.records) < 220
    assert {len(one.options) for one in run.records} == {2, 3, 4}
    assert 0.2 < cells(run, "all")["all"] < 0.8
    assert {row.by for row in figures(run)} == {*KEYS, "mean"}


@pytest.mark.parametrize("by", KEYS)
def test_circular_accuracy(run, by):
    expected = by_definition(run.records, KEYS[by], lambda one: one.choice == one.answer)
    assert cells(run, by) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by", KEYS)
def test_first_passes_alone_are_vanilla(run, by):
    firsts = [one for one in run.records if int(one.index) < 10**6]
    expected = by_definition(firsts, KEYS[by], lambda one: one.choice == one.answer)
    assert cells(run, by, "first") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by", KEYS)
def test_vanilla_runs_count_every_row(run, by):
    rows = tuple(
        replace(one, group=f"{one.file}/{one.index}", turn=0) for one in run.records
    )  # fmt: skip
    names = {KEYS[by](one) for one in rows} - {""}
    expected = {}
    for name in names:
        members = [one for one in rows if KEYS[by](one) == name]
        expected[name] = sum(one.choice == one.answer for one in members) / len(members)
    assert cells(Run(run.head, rows), by) == pytest.approx(expected, abs=1e-12)
    assert cells(run, by, "every") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by", KEYS)
def test_vlmevalkit_needs_its_rule_to_be_right_in_every_row(run, by):
    expected = by_definition(
        run.records, KEYS[by], lambda one: rule_choice(one.reply, one.options) == one.answer
    )
    assert cells(run, by, "vlmevalkit") == pytest.approx(expected, abs=1e-12)
    assert cells(run, "all", "vlmevalkit")["all"] < cells(run, "all")["all"]


def test_counts_and_shares(run):
    row = whole(run)
    unread = sum(one.choice is None for one in run.records)
    assert (row.n, row.asks) == (66, len(run.records))
    assert row.unparsed == row.unfinished == unread / len(run.records) > 0
    sizes = [len({*rows}) for _, rows in groupby(
        sorted((one.group, one.turn) for one in run.records), key=lambda pair: pair[0]
    )]  # fmt: skip
    assert row.chance == pytest.approx(sum((1 / n) ** n for n in sizes) / len(sizes))
    assert sum(r.n for r in figures(run) if r.by == "category") == 66


def test_mean_of_languages(run):
    languages = cells(run, "language")
    assert list(languages) == ["en", "zh", "ru"]
    [mean] = [row for row in figures(run) if row.by == "mean"]
    assert mean.accuracy == pytest.approx(sum(languages.values()) / 3)
    assert mean.n == 66


def test_accuracy_is_the_mean_of_questions_and_not_of_categories(record, head):
    rows = [record(n, category="often", choice="A") for n in range(9)]
    rows += [record(9, category="rare", choice="B")]
    run = Run(head(), tuple(rows))
    assert cells(run, "all")["all"] == 0.9
    assert cells(run, "category") == {"often": 1.0, "rare": 0.0}


def test_category_and_split_are_those_of_pass_0(record, head):
    rows = [
        record(1, 0, category="a", split="dev"),
        record(1_000_001, 1, group="q.tsv/1", category="b", split="test"),
    ]
    run = Run(head(), tuple(rows))
    assert cells(run, "category") == {"a": 1.0}
    assert cells(run, "split") == {"dev": 1.0}


def test_a_reply_without_a_choice_is_wrong(record, head):
    run = Run(head(), (record(1, choice=None), record(2), record(3), record(4)))
    row = whole(run)
    assert (row.accuracy, row.unparsed) == (0.75, 0.25)


def test_one_pass_unread_makes_its_question_wrong(record, head):
    rows = (record(1, 0), record(1_000_001, 1, group="q.tsv/1", choice=None))
    row = whole(Run(head(), rows))
    assert (row.accuracy, row.first, row.every) == (0.0, 1.0, 0.5)


def test_hidden_answers_give_no_figure(record, head):
    hidden = [record(n, answer=None, choice="B") for n in range(3)]
    assert figures(Run(head(), tuple(hidden))) == []
    report = make_report(Run(head(), tuple(hidden)))
    assert (report["figures"], report["hidden_answers"]) == ([], 3)
    assert "- answers hidden: 3 asks; see submission.tsv" in markdown(report)
    assert report["hidden_questions"] == 3
    row = whole(Run(head(), (*hidden, record(7))))
    assert (row.n, row.accuracy) == (1, 1.0)


def test_a_question_with_one_hidden_pass_has_no_figure(record, head):
    rows = (record(1, 0), record(1_000_001, 1, group="q.tsv/1", answer=None))
    assert figures(Run(head(), rows)) == []


def test_partly_hidden_questions_are_counted(record, head):
    """One hidden answer takes a question, all its passes with it, out of the figures."""
    rows = [record(n + k * 1_000_000, k, group=f"q.tsv/{n}", answer=None if n == k == 1 else "A")
            for n in range(3) for k in range(2)]  # fmt: skip
    report = make_report(Run(head(), tuple(rows)))
    assert report["figures"][0]["n"] == 2
    assert (report["hidden_answers"], report["hidden_questions"]) == (1, 1)
    assert "hidden: 1 asks; see submission.tsv; left out of all figures: 1 q" in markdown(report)
    whole = make_report(Run(head(), tuple(rows[:2])))
    assert (whole["hidden_answers"], whole["hidden_questions"]) == (0, 0)
    assert "hidden" not in markdown(whole)


def test_likelihoods_have_no_vlmevalkit_column(record, head):
    scored = record(1, scores={"A": -1.0, "B": -2.0})
    row = whole(Run(head(), (scored,)))
    assert (row.accuracy, row.vlmevalkit) == (1.0, None)


def test_graded_scores_are_averaged(record, head):
    rows = [
        record(n, options={}, answer=None, answers=("cat",), choice=None, score=score)
        for n, score in enumerate((0.5, 1.0, 0.0))
    ]
    rows[2] = replace(rows[2], answers=("yes",))
    run = Run(head(metric="pathvqa"), tuple(rows))
    assert cells(run, "all")["all"] == 0.5
    assert cells(run, "answer type") == {"open": 0.75, "closed": 0.0}
    row = whole(run)
    assert (row.chance, row.vlmevalkit, row.unparsed) == (None, None, 0.0)


# ---------------------------------------------------------------------- intervals


def test_an_interval_contains_its_accuracy(run):
    for row in figures(run):
        assert 0 <= row.low <= row.accuracy <= row.high <= 1, row


def test_a_perfect_run(record, head):
    run = Run(head(), tuple(record(n, language=code, group=f"{code}/{n}")
                            for n in range(40) for code in ("en", "tr")))  # fmt: skip
    low, _ = wilson(40, 40)
    assert low == pytest.approx(0.912, abs=1e-3)
    assert {(row.accuracy, row.low, row.high) for row in figures(run)} == {(1.0, low, 1.0)}
    assert "Wilson's" in make_report(run)["intervals"]
    assert "| all | 80 | 100.0 | 91.2 to 100.0 |" in markdown(make_report(run))


def test_a_run_that_has_nothing_right(record, head):
    run = Run(head(), tuple(record(n, choice="B") for n in range(40)))
    assert (whole(run).accuracy, whole(run).low) == (0.0, 0.0)
    assert whole(run).high == pytest.approx(0.088, abs=1e-3)


def test_an_interval_narrows_with_questions_and_not_with_languages(record, head):
    """The same question in six languages is drawn as one."""

    def width(count, languages):
        rows = [
            record(n, group=f"{code}/{n}", choice="AB"[n % 2], language=code)
            for n in range(count) for code in languages
        ]  # fmt: skip
        row = whole(Run(head(), tuple(rows)))
        return row.high - row.low

    assert width(400, ["en"]) < 0.6 * width(100, ["en"])
    assert width(100, ["en", "ru", "tr"]) == pytest.approx(width(100, ["en"]), abs=0.02)


def test_questions_of_two_files_are_two_though_their_index_is_one(record, head):
    """Drawn as one, the right and the wrong one would cancel out in every draw."""
    rows = [record(n, file=file, group=f"{file}/{n}", choice=choice)
            for n in range(50) for file, choice in (("a.tsv", "A"), ("b.tsv", "B"))]  # fmt: skip
    row = whole(Run(head(), tuple(rows)))
    assert row.accuracy == 0.5
    assert row.high - row.low == pytest.approx(2 * 1.96 * (0.25 / 100) ** 0.5, rel=0.1)


def test_units_are_questions_in_all_their_languages(record):
    def units(*questions):
        rows = [record(n, file=file, group=f"{file}/{n}", language=language, question_id=name)
                for n, (file, language, name) in enumerate(questions)]  # fmt: skip
        return list(units_of(group_records(rows)).values())

    languages = [("q_en.tsv", "en", "7"), ("q_tr.tsv", "tr", "7"), ("q_en.tsv", "en", "8")]
    assert units(*languages) == ["7", "7", "8"]
    one, two, other = units(*languages[1:], ("p_tr.tsv", "tr", "7"))
    assert (len({one, two, other}), two) == (3, "8")
    # One picture's questions in one file are drawn together, as their comment's `item` says.
    assert (
        units(*[("q.tsv", "en", "choice/7")] * 2, ("q.tsv", "tr", "choice/7")) == ["choice/7"] * 3
    )


# ---------------------------------------------------------------------- POPE's rates


def test_yes_no_rates_by_exploded_category(record, head):
    said = [("A", "A", "random,popular"), ("A", "B", "popular"), (None, "A", "adversarial"),
            ("B", "B", "random, adversarial")]  # fmt: skip
    rows = [
        record(n, options={"A": "Yes", "B": "No"}, choice=choice, answer=answer, category=category)
        for n, (choice, answer, category) in enumerate(said)
    ]
    rates = yes_no(Run(head(), tuple(rows)))
    assert set(rates) == {"all", "random", "popular", "adversarial"}
    assert rates["all"] == pytest.approx(
        {"n": 4, "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_share": 0.5}
    )
    assert rates["popular"]["precision"] == 0.5
    assert rates["random"]["f1"] == 1.0
    assert rates["adversarial"]["recall"] == 0.0
    text = markdown(make_report(Run(head(), tuple(rows))))
    assert "| yes/no | n | accuracy | precision | recall | F1 | yes said |" in text
    assert "| popular | 2 | 50.0 | 50.0 | 100.0 | 66.7 | 100.0 |" in text


def test_yes_no_is_said_in_every_language(record, head):
    words = {"en": ("Yes", "No"), "zh": ("是", "不是"), "pt": ("Sim", "Não"), "ar": ("نعم", "لا"),
             "tr": ("Evet", "Hayır"), "ru": ("Нет", "Да")}  # fmt: skip
    rows = [
        record(n, language=code, options={"A": one, "B": two}, choice="A", answer="A")
        for n, (code, (one, two)) in enumerate(words.items())
    ]
    assert yes_no(Run(head(), tuple(rows)))["all"] == pytest.approx(
        {"n": 6, "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_share": 5 / 6}
    )


def test_yes_no_is_left_out_where_nothing_is(run):
    assert yes_no(run) == {}
    assert "yes_no" not in make_report(run)


# ---------------------------------------------------------------------- files


def test_reports_are_the_same_byte_for_byte(run, tmp_path):
    write_run(run, tmp_path / "predictions.jsonl")
    for name in ("one", "two"):
        again = read_run(tmp_path / "predictions.jsonl")
        write_report(make_report(again), tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert {*one} == {"report.json", "report.csv", "report.md"}


def test_everything_follows_from_the_predictions_file(run, tmp_path):
    write_run(run, tmp_path / "predictions.jsonl")
    again = read_run(tmp_path / "predictions.jsonl")
    assert again == run
    assert make_report(again) == make_report(run)


def test_csv_has_every_figure(run):
    rows = list(csv.DictReader(io.StringIO(csv_text(make_report(run)["figures"]))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(figures(run))
    assert rows[0]["accuracy"] == f"{cells(run, 'all')['all']:.6f}"


def test_json_is_json(record, head, tmp_path):
    hidden = Run(head(), (record(answer=None),))
    for run in (hidden, Run(head(), (record(),))):
        write_report(make_report(run), tmp_path)
        text = (tmp_path / "report.json").read_text("utf-8")
        assert json.loads(text, parse_constant=pytest.fail)["benchmark"] == "own"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50.0"), (1.0, "100.0"), (0.0, "0.0"), (2 / 3, "66.7"), (0.12345, "12.3"),
     (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_percent(value, text):
    assert percent(value) == text


def test_the_table_to_read(record, head):
    rows = tuple(record(n, choice="AAAB"[n % 4], category="ocr") for n in range(1200))
    text = markdown(make_report(Run(head(), rows)))
    assert "| all | 1,200 | 75.0 |" in text
    assert "| ocr | 1,200 | 75.0 |" in text
    assert "- files: q.tsv (no published hash, 000000000000)" in text
    assert "- model: random\n" in text
    assert "- passes: circular (" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [("a|b", r"a\|b"), ("a\\|b", r"a\\\|b"), ("a\r\n\tb\u2028c", "a b c"), ("a_b*", "a_b*"),
     ("\x1b[31m\x9b", "�[31m�"), ("\ud800", "�"), ("قطة\u200f", "قطة\u200f"), (3, "3")],
)  # fmt: skip
def test_cells_of_markdown_tables(value, text):
    assert cell(value) == text


def test_names_do_not_break_the_report(record, head):
    said = {"options": {"A": "Yes", "B": "No"}, "category": "a|b\n# c", "l2": "l|2", "split": "s|"}
    data = [head()["data"][0] | {"name": "q|\n.tsv"}]
    about = head(data=data, title="T\n| |", model={"kind": "baseline", "name": "m\n# n|"})
    text = markdown(make_report(Run(about, (record(1, **said), record(2, **said)))))
    lines = text.splitlines()
    assert lines[0] == r"# T \| \|"
    assert r"- model: m # n\|" in lines
    assert r"- files: q\| .tsv (no published hash, 000000000000)" in lines
    assert sum(line.startswith(r"| a\|b # c | ") for line in lines) == 2  # by category; yes/no
    assert [line for line in lines if line.startswith("#")] == lines[:1]
    for line in lines:
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") in (9, 8)


def test_names_do_not_steer_the_terminal(record, head):
    run = Run(head(), (record(1, category="\x1b[2Jred\x07\r\x9b1m"), record(2, category="[b]x[/]")))
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(render(figures(run), "Own: \x1b]0;title\x07"))
    said = capture.get()
    assert printable(said.replace("\n", "")) == said.replace("\n", "")
    assert "�[2Jred���1m" in said
    assert "[b]x[/]" in said
    assert "Own: �]0;title�" in said


def test_what_was_left_out_is_counted(record, head):
    text = markdown(make_report(Run(head(left_out=["a.tsv:3: …", "a.tsv:4: …"]), (record(),))))
    assert "- rows left out: 2\n" in text


def test_a_submission_has_a_row_for_each_ask(record, head):
    rows = (
        record(5, answer=None, choice="B", options={"A": "a", "B": "b\tb", "C": "c"}, l2="x"),
        record(1_000_005, 1, answer=None, choice=None, reply="no\nidea", split="test"),
    )
    lines = list(csv.reader(io.StringIO(submission(Run(head(), rows))), delimiter="\t"))
    assert lines == [
        ["index", "question", "A", "B", "C", "prediction", "category", "l2-category", "split"],
        ["5", "Which?", "a", "b\tb", "c", "B", "", "x", ""],
        ["1000005", "Which?", "cat", "dog", "", "no\nidea", "", "", "test"],
    ]


def test_replies_read_anew(record, head):
    before = record(1, reply="B", choice="A", score=1.0)
    [after] = reread([before], "choice")
    assert (after.choice, after.score) == ("B", 0.0)
    [graded] = reread(
        [record(2, options={}, answer=None, answers=("9.8",), reply="10", score=0.0)], "relaxed"
    )
    assert (graded.choice, graded.score) == (None, 1.0)


def test_groups_come_in_the_order_of_their_first_record(run):
    groups = group_records(run.records)
    assert [group.head.group for group in groups] == list(
        dict.fromkeys(one.group for one in run.records)
    )
    assert all(group.head.turn == 0 for group in groups)
