"""Every file of `eval/` as a user runs it: what it says of itself, and its four files."""

import csv
import io
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mole.evaluation.benchmark import KINDS
from llava_mole.evaluation.metrics import METRICS
from llava_mole.evaluation.record_files import read_run
from llava_mole.languages import LANGUAGES

EVAL = Path(__file__).resolve().parents[2] / "eval"
DEFAULTS = {
    "chartqa": ("vanilla", "short", 32),
    "docvqa": ("vanilla", "short", 32),
    "mmbench": ("circular", "vlmevalkit", 64),
    "mmmb": ("vanilla", "parrot", 64),
    "mtl_mmbench": ("circular", "parrot", 64),
    "pathvqa": ("vanilla", "question", 64),
    "pope": ("vanilla", "short", 16),
    "scienceqa": ("vanilla", "llava", 64),
}
FILES = {"predictions.jsonl", "report.json", "report.csv", "report.md"}


@pytest.fixture
def start(monkeypatch, tmp_path) -> Callable[..., int]:
    """(name, arguments) -> exit code of `python eval/NAME.py …`."""

    def call(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [f"eval/{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EVAL / f"{name}.py"), run_name="__main__")
        return int(ended.value.code or 0)

    return call


@pytest.fixture
def run_on(start, tmp_path) -> Callable[..., dict]:
    """(name, file, arguments) -> report.json; the four files are there."""

    def call(name: str, path: Path, *arguments: object, model: str = "majority") -> dict:
        out = tmp_path / "out"
        files = ["--data", path, "--out", out, "--model", model, "--quiet", "--device", "cpu"]
        assert start(name, *files, *arguments) == 0
        assert {file.name for file in out.iterdir() if not file.name.startswith(".")} >= FILES
        return json.loads((out / "report.json").read_text("utf-8"))

    return call


def figure(report: dict, by: str = "all", name: str = "all") -> dict:
    [row] = [row for row in report["figures"] if (row["by"], row["name"]) == (by, name)]
    return row


# ---------------------------------------------------------------------- what they say


def test_every_file_is_tested_here():
    assert {path.stem for path in EVAL.glob("*.py")} == {*DEFAULTS, "compare"}


@pytest.mark.parametrize("name", DEFAULTS)
def test_help_tells_the_default_protocol(start, capsys, name):
    assert start(name, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    passes, style, tokens = DEFAULTS[name]
    for default in (passes, "generate", style):
        assert f"default: {default}. " in said
    assert f"default: {tokens}" in said
    assert f"python eval/{name}.py --model" in said
    assert f"accelerate launch eval/{name}.py" in said


def test_help_of_compare(start, capsys):
    assert start("compare", "--help") == 0
    assert "McNemar's exact p-value" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_description_is_sound(script, name):
    own = script(name).BENCHMARK
    assert own.name == name
    assert own.kind in KINDS
    assert own.metric in {"choice", *METRICS}
    assert (own.metric == "choice") == (own.kind != "open")
    own.protocol.check()
    names = [file.name.casefold() for file in own.files]
    assert names
    assert len({*names}) == len(names)
    for file in own.files:
        assert file.language in LANGUAGES
        assert bool(file.repo) != file.url.startswith("https://")
        assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
    hashes = [file.md5 for file in own.files if file.md5]
    assert len({*hashes}) == len(hashes)


@pytest.mark.parametrize(("name", "prefix"), [("mmmb", "mmmb_"), ("mtl_mmbench", "mmbench_dev_")])
def test_six_languages_by_name(script, name, prefix):
    own = script(name).BENCHMARK
    told = {file.name: file.language for file in own.files}
    assert told == {
        f"{prefix}{code}.tsv": {"cn": "zh"}.get(code, code)
        for code in ("ar", "cn", "en", "pt", "ru", "tr")
    }


def test_languages_and_splits_of_mmbench(script):
    own = script("mmbench").BENCHMARK
    told = {file.name: (file.language, file.split, file.hidden) for file in own.files}
    assert told["MMBench_DEV_EN.tsv"] == ("en", "dev", False)
    assert told["MMBench_DEV_CN_V11.tsv"] == ("zh", "dev_v11", False)
    assert told["MMBench_TEST_CN.tsv"] == ("zh", "test", True)
    assert told["MMBench_TEST_EN_V11.tsv"] == ("en", "test_v11", False)
    assert sum(len(names) for names in own.groups.values()) == 20
    assert len(own.groups) == 6


# ---------------------------------------------------------------------- small files


def open_row(row, index: int, answer: str, **cells: str) -> dict[str, str]:
    made = row(index)
    return (
        {name: made[name] for name in ("index", "question", "image")} | {"answer": answer} | cells
    )


@pytest.mark.parametrize("model", ["random", "majority"])
def test_mmbench(run_on, circular, table, model):
    rows = [*circular(0), *circular(1, 3, category="ocr"), *circular(2, 2)]
    report = run_on("mmbench", table(rows, "MMBench_DEV_EN.tsv"), model=model)
    assert (figure(report)["n"], figure(report)["asks"]) == (3, 9)
    assert figure(report, "category", "ocr")["n"] == 1
    assert report["passes_of_questions"] == {"2": 1, "3": 1, "4": 1}
    assert report["data"][0]["published"] is False
    assert figure(report)["chance"] == pytest.approx((1 / 4 + 1 / 27 + 1 / 256) / 3)


def test_mmbench_in_vanilla_asks_each_question_once(run_on, circular, table):
    path = table([*circular(0), *circular(1)], "MMBench_DEV_EN.tsv")
    report = run_on("mmbench", path, "--passes", "vanilla")
    assert (figure(report)["n"], figure(report)["asks"], figure(report)["accuracy"]) == (2, 2, 1.0)


def test_mmbench_with_hidden_answers(run_on, circular, table, tmp_path):
    rows = [line | {"answer": ""} for line in circular(0)]
    report = run_on("mmbench", table(rows, "MMBench_TEST_EN.tsv"), model="random")
    assert (report["figures"], report["hidden_answers"]) == ([], 4)
    text = (tmp_path / "out" / "submission.tsv").read_text("utf-8")
    lines = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert [line["index"] for line in lines] == ["0", "1000000", "2000000", "3000000"]
    assert {line["prediction"] for line in lines} <= set("ABCD")


RUSSIAN = {
    "question": "Какое животное изображено на картинке?",
    "A": "кошка", "B": "собака", "C": "лошадь", "D": "овца",
}  # fmt: skip


def test_mtl_mmbench_in_two_languages(run_on, circular, table, tmp_path):
    english = table([*circular(0), *circular(1)], "mmbench_dev_en.tsv")
    russian = table([*circular(0, **RUSSIAN), *circular(1, **RUSSIAN)], "mmbench_dev_ru.tsv")
    report = run_on("mtl_mmbench", english, "--data", english, russian)
    assert [row["name"] for row in report["figures"] if row["by"] == "language"] == ["en", "ru"]
    assert figure(report, "mean", "of languages")["n"] == 4
    run = read_run(tmp_path / "out" / "predictions.jsonl")
    assert {one.prompt.split("\n")[-1] for one in run.records} == {
        "Answer with the option's letter from the given choices directly.",
        "Ответьте буквой варианта из предложенных вариантов напрямую.",
    }


def test_mmmb_in_both_protocols(run_on, row, table):
    """Six rows, two of which are one question's yes and no."""
    yes_no = {"A": "Yes", "B": "No", "C": "", "D": ""}
    rows = [row(n) for n in range(4)]
    rows += [row(4, question="Is it a cat?", answer="A", **yes_no)]
    rows += [row(1_000_004, question="Is it a dog?", answer="B", **yes_no)]
    path = table(rows, "mmmb_en.tsv")
    report = run_on("mmmb", path)
    assert (figure(report)["n"], figure(report)["accuracy"]) == (6, pytest.approx(5 / 6))
    report = run_on("mmmb", path, "--passes", "paired", "--fresh")
    assert (figure(report)["n"], figure(report)["accuracy"]) == (5, pytest.approx(4 / 5))
    assert figure(report)["every"] == pytest.approx(5 / 6)
    report = run_on("mmmb", path, "--passes", "circular_generated", "--fresh")
    assert (figure(report)["n"], figure(report)["asks"]) == (6, 20)


def test_mmmb_by_language_column(run_on, tsv):
    report = run_on("mmmb", tsv("test"), "--languages", "cn", "ar", "--limit", "4", model="random")
    assert [row["n"] for row in report["figures"] if row["by"] == "language"] == [4, 4]
    assert report["selection"]["languages"] == ["zh", "ar"]
    assert len(report["data"][0]["sha256"]) == 64


def test_scienceqa(run_on, row, table, tmp_path):
    rows = [row(n, hint="It has fur.") for n in range(3)]
    report = run_on("scienceqa", table(rows, "ScienceQA_TEST.tsv"))
    assert figure(report)["accuracy"] == 1.0
    prompt = read_run(tmp_path / "out" / "predictions.jsonl").records[0].prompt
    assert prompt.startswith("It has fur.\nWhich animal is in picture 0?\nA. a cat\n")


def test_pope(run_on, row, table, tmp_path):
    said = [("Yes", "random,popular"), ("No", "popular"), ("Yes", "adversarial"),
            ("Yes", "random")]  # fmt: skip
    rows = [
        open_row(row, n, answer, question=f"Is there a cat in picture {n}?", category=category)
        for n, (answer, category) in enumerate(said)
    ]
    report = run_on("pope", table(rows, "POPE.tsv"))  # majority: always yes
    assert set(report["yes_no"]) == {"all", "random", "popular", "adversarial"}
    assert report["yes_no"]["popular"] == pytest.approx(
        {"n": 2, "accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3, "yes_share": 1}
    )
    assert report["yes_no"]["random"]["f1"] == 1.0
    assert figure(report)["accuracy"] == 0.75
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "| popular | 2 | 50.0 | 50.0 | 100.0 | 66.7 | 100.0 |" in text
    prompt = read_run(tmp_path / "out" / "predictions.jsonl").records[0].prompt
    assert prompt.endswith("?\nAnswer the question using a single word or phrase.")


def test_chartqa(run_on, row, table):
    rows = [open_row(row, n, answer, split="human") for n, answer in
            enumerate(("20", "20", "20.9", "22", "red"))]  # fmt: skip
    report = run_on("chartqa", table(rows, "ChartQA_TEST.tsv"))  # majority says 20
    assert figure(report)["accuracy"] == pytest.approx(3 / 5)
    assert figure(report, "split", "human")["n"] == 5


def test_docvqa(run_on, row, table):
    rows = [open_row(row, n, answer) for n, answer in
            enumerate(("['Acme', 'Acme Inc.']", "['Acme', 'acme']", "Acne", "Zebra"))]  # fmt: skip
    report = run_on("docvqa", table(rows, "DocVQA_VAL.tsv"))
    assert figure(report)["accuracy"] == pytest.approx((1 + 1 + 0.75 + 0) / 4)
    assert (figure(report)["chance"], figure(report)["vlmevalkit"]) == (None, None)


def test_docvqa_with_hidden_answers(run_on, row, table, tiny_model_dir, tmp_path):
    """A model's replies go into submission.tsv as they are."""
    rows = [open_row(row, n, "") for n in range(3)]
    path = table(rows, "DocVQA_TEST.tsv")
    report = run_on("docvqa", path, "--max-new-tokens", "4", model=str(tiny_model_dir))
    assert (report["figures"], report["hidden_answers"]) == ([], 3)
    text = (tmp_path / "out" / "submission.tsv").read_text("utf-8")
    lines = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    run = read_run(tmp_path / "out" / "predictions.jsonl")
    assert [line["prediction"] for line in lines] == [one.reply for one in run.records]
    assert [line["index"] for line in lines] == ["0", "1", "2"]


def test_a_saved_model_from_its_folder_to_a_report(run_on, tsv, tiny_model_dir, tmp_path):
    arguments = ["--languages", "cn", "ar", "--limit", "4", "--max-new-tokens", "4"]
    report = run_on("mmmb", tsv("test"), *arguments, model=str(tiny_model_dir))
    assert [row["n"] for row in report["figures"] if row["by"] == "language"] == [4, 4]
    first, *_ = read_run(tmp_path / "out" / "predictions.jsonl").records
    assert first.prompt.endswith("\nأجب مباشرةً بحرف الخيار من الاختيارات المعطاة.")


def test_pathvqa(run_on, row, table):
    rows = [open_row(row, n, answer) for n, answer in
            enumerate(("yes", "yes", "no", "the left lung"))]  # fmt: skip
    report = run_on("pathvqa", table(rows, "PathVQA_TEST.tsv"))
    assert figure(report, "answer type", "closed")["accuracy"] == pytest.approx(2 / 3)
    assert figure(report, "answer type", "open")["accuracy"] == 0.0


@pytest.mark.parametrize("name", ["chartqa", "docvqa", "pathvqa"])
@pytest.mark.parametrize(
    "arguments", [["--answer", "options"], ["--passes", "paired"], ["--style", "parrot"]]
)
def test_texts_have_no_options_to_ask_about(start, row, table, tmp_path, capsys, name, arguments):
    path = table([open_row(row, 0, "red")], "q_en.tsv")
    files = ["--data", path, "--out", tmp_path / "out", "--model", "majority"]
    assert start(name, *files, *arguments) == 2
    assert "answers are texts" in capsys.readouterr().err


def test_figures_from_predictions_alone(run_on, start, circular, table, tmp_path):
    run_on("mmbench", table([*circular(0), *circular(1)], "MMBench_DEV_EN.tsv"), model="random")
    predictions = tmp_path / "out" / "predictions.jsonl"
    again = tmp_path / "again"
    arguments = ["--from-predictions", predictions, "--out", again]
    assert start("mmbench", *arguments) == 0
    for name in ("report.json", "report.csv", "report.md"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert start("mmbench", *arguments, "--reread") == 0


def test_without_a_model_there_is_nothing_to_ask(start, tmp_path, capsys):
    assert start("mmmb", "--out", tmp_path / "out") == 2
    assert "error: --model is missing" in capsys.readouterr().err


def test_a_model_that_is_not_there(start, row, table, tmp_path, capsys):
    files = ["--data", table([row()]), "--out", tmp_path / "out"]
    assert start("mmmb", *files, "--model", tmp_path) == 2
    assert "no config.json there" in capsys.readouterr().err


# ---------------------------------------------------------------------- from predictions


def test_a_report_from_predictions_is_the_same_and_stands_beside_no_other_run(
    start, run_on, row, table, tmp_path, capsys
):
    data = table([row(0), row(1)])
    report = run_on("mmmb", data)
    source = tmp_path / "out"
    assert start("mmmb", "--from-predictions", source, "--out", tmp_path / "again") == 0
    for name in ("report.json", "report.csv", "report.md"):
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()
    other = ["--data", data, "--model", "random", "--quiet", "--device", "cpu"]
    assert start("mmmb", *other, "--out", tmp_path / "other") == 0
    before = (tmp_path / "other" / "report.json").read_bytes()
    assert start("mmmb", "--from-predictions", source, "--out", tmp_path / "other") == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / "other" / "report.json").read_bytes() == before
    assert report["model"]["name"] == "majority"


def test_replies_that_were_read_anew_say_so(start, run_on, row, table, tmp_path):
    run_on("mmmb", table([row(0), row(1)]))
    path = tmp_path / "out" / "predictions.jsonl"
    head, *lines = path.read_text("utf-8").splitlines()
    changed = json.loads(head)
    now, changed["run"]["extraction_version"] = changed["run"]["extraction_version"], -7
    path.write_text("\n".join([json.dumps(changed), *lines]) + "\n", "utf-8")
    out = tmp_path / "again"
    assert start("mmmb", "--from-predictions", path, "--reread", "--out", out) == 0
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert (report["extraction_version"], report["read_before_by_version"]) == (now, -7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reread"], "--reread goes with --from-predictions"),
        (["--check-batches", "-1"], "must not be negative"),
        (["--device", "foo"], "--device foo"),
        (["--dtype", "foo"], "--dtype foo: try auto"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    start, row, table, tmp_path, tiny_model_dir, capsys, options, message
):
    own = ["--data", table([row(0)]), "--out", tmp_path / "out", "--model", tiny_model_dir]
    assert start("mmmb", *own, "--quiet", *options) == 2
    assert message in capsys.readouterr().err


def test_what_is_in_the_way_of_a_report_is_told_before_anything_is_asked(
    start, row, table, tmp_path, capsys
):
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    own = ["--data", table([row(0)]), "--out", tmp_path / "out", "--model", "random", "--quiet"]
    assert start("mmmb", *own) == 2
    assert "report.md: not a file" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
