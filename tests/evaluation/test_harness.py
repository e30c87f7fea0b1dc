"""A run that is killed, resumed or shared between processes ends in the same files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llava_mole.clone import ROOT
from llava_mole.errors import DataError
from llava_mole.evaluation.asks import make_units
from llava_mole.evaluation.harness import compare_batches, evaluate
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.journal import Journal
from llava_mole.evaluation.models.baselines import RandomBaseline
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.plan import make_plan
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.record_files import read_run
from llava_mole.evaluation.results import make_report, write_report
from llava_mole.ranks import free_port

PROTOCOL = Protocol(passes="circular_generated", max_new_tokens=4)
ABOUT = {"format": 1, "benchmark": "test", "title": "Test", "data": [], "left_out": []}
FILES = ("predictions.jsonl", "report.json", "report.csv", "report.md")


def command(model: Path, data: Path, out: Path, *more: str, launch: Sequence = ()) -> list[str]:
    script = [str(ROOT / "eval" / "mmmb.py"), "--model", str(model), "--data", str(data)]
    options = ["--out", str(out), "--passes", "circular_generated", "--max-new-tokens", "4"]
    options += ["--rows-per-batch", "4", "--device", "cpu", "--quiet"]
    return [sys.executable, *launch, *script, *options, *more]


def run(*args, **options) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*args, **options), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def whole(tiny_model_dir, tmp_path_factory) -> tuple[Path, Path]:
    """(questions, folder of an uninterrupted run)."""
    from tests.evaluation.conftest import rows, write

    folder = tmp_path_factory.mktemp("whole")
    data = write(folder / "eval_train.tsv", rows("train")[:36])
    run(tiny_model_dir, data, folder / "out")
    return data, folder / "out"


def same(folder: Path, expected: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert not (folder / "journal").exists()


def journalled(out: Path) -> list[bytes]:
    """Lines on disk, one for each finished batch."""
    lines = (
        line for path in out.glob("journal/*.jsonl") for line in path.read_bytes().split(b"\n")
    )
    return [line for line in lines if line.strip()]


def ask_and_report(model, processor, units, out: Path) -> None:
    ours = OurModel(model, processor, PROTOCOL)
    found = evaluate(units, ours, PROTOCOL, out, about=ABOUT, rows_per_batch=4, progress=False)
    write_report(make_report(found), out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_ten_random_moments_and_resumed_the_report_is_the_same(tiny_model, tsv, tmp_path):
    model, processor = tiny_model("gemma3_text", mole=True, lora=True)
    units = make_units(read_items(tsv())[:36], PROTOCOL)
    started = time.monotonic()
    ask_and_report(model, processor, units, tmp_path / "whole")
    whole = time.monotonic() - started

    out, rng = tmp_path / "killed", random.Random(3)
    done, places = 0, set()
    for number in range(10):
        child = os.fork()
        if not child:  # a copy of this process, model and all
            try:
                ask_and_report(model, processor, units, out)
            finally:
                os._exit(0)
        # Anywhere in what is left of the work, the last ones in its end: the writing of the files.
        time.sleep(whole * (rng.random() * 0.25 if number < 8 else 0.5 + rng.random()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = done
        done = len(journalled(out))
        done = len(units) if (out / "predictions.jsonl").is_file() else done
        assert done >= before  # what was answered stays
        places.add(done)
    assert len(places) > 1  # the kills were spread over the work
    ask_and_report(model, processor, units, out)
    same(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_command_goes_on(tiny_model_dir, whole, tmp_path):
    """The same through the command line, once: models are loaded anew, the lock is free again."""
    data, expected = whole
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(tiny_model_dir, data, out),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(journalled(out)) > 1:
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    run(tiny_model_dir, data, out)
    same(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_processes_share_the_batches_and_the_report_is_the_same(
    tiny_model_dir, whole, tmp_path, processes
):
    data, expected = whole
    # (--cpu would start one process, whatever the number.)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port())]
    probe = tmp_path / "probe.py"
    name = "f\"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}\""
    probe.write_text(f"import os; open({name}, 'w')")
    subprocess.run([sys.executable, *launch, str(probe)], cwd=tmp_path, check=True, timeout=240)
    ranks = sorted(path.name for path in tmp_path.glob("* of *"))
    assert ranks == [f"{rank} of {processes}" for rank in range(processes)]
    run(tiny_model_dir, data, tmp_path / "out", launch=launch)
    same(tmp_path / "out", expected)


def cut_journal(out: Path, batches: int) -> None:
    """As a kill leaves it: some batches, the last line half written."""
    predictions = read_run(out / "predictions.jsonl")
    by_batch: dict[int, list] = {}
    for record in predictions.records:
        by_batch.setdefault(record.batch, []).append(vars(record))
    journal = out / "journal"
    journal.mkdir()
    (journal / "head.json").write_text(json.dumps(predictions.head))
    lines = [json.dumps({"batch": n, "records": by_batch[n]}) + "\n" for n in sorted(by_batch)]
    (journal / "1-a.jsonl").write_text("".join(lines[:batches]) + lines[batches][:100])
    (out / "predictions.jsonl").unlink()


class Counting(RandomBaseline):
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, units):
        self.asked += sum(len(unit.asks) for unit in units)
        return super().answer(units)


def test_only_what_is_missing_is_asked_again(tsv, tmp_path):
    units = make_units(read_items(tsv()), PROTOCOL)
    first = evaluate(units, Counting(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    cut_journal(tmp_path, 5)
    model = Counting()
    again = evaluate(units, model, PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    five = sum(record.batch < 5 for record in first.records)
    assert model.asked == len(first.records) - five
    assert again == first
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    # A run that has ended asks nothing.
    model = Counting()
    assert evaluate(units, model, PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8) == first
    assert model.asked == 0


def test_what_is_no_batch_of_the_plan_counts_as_not_done(tsv, tmp_path):
    units = make_units(read_items(tsv()), PROTOCOL)
    first = evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    cut_journal(tmp_path, 3)
    own = json.loads((tmp_path / "journal" / "1-a.jsonl").read_text().splitlines()[0])
    foreign = [
        {"batch": 5, "records": []},
        {"batch": 99, "records": own["records"]},
        {"batch": 6, "records": own["records"]},
        {"batch": [7], "records": own["records"]},
        {"records": own["records"]},
        ["batch"],
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in foreign)
    (tmp_path / "journal" / "0.jsonl").write_text(lines)
    (tmp_path / "journal" / "x.jsonl").mkdir()
    model = Counting()
    again = evaluate(units, model, PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    assert model.asked == len(first.records) - sum(record.batch < 3 for record in first.records)
    assert again == first
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", ["question", "answer", "picture"])
def test_other_questions_under_the_same_names_are_another_run(tsv, tmp_path, change):
    items = read_items(tsv())[:12]
    units = make_units(items, PROTOCOL)
    evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    cut_journal(tmp_path, 3)
    values = {"question": {"question": "What is that?"}, "answer": {"answer": "B"},
              "picture": {"image": items[-1].image}}  # fmt: skip
    other = make_units([replace(items[0], **values[change]), *items[1:]], PROTOCOL)
    with pytest.raises(DataError, match="holds another run"):
        evaluate(other, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)


def test_a_batch_behind_a_torn_line_is_kept(tsv, tmp_path):
    units = make_units(read_items(tsv())[:12], PROTOCOL)
    first = evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    cut_journal(tmp_path, 2)  # its last line has no end
    keys = [[r.key for r in first.records if r.batch == n] for n in range(6)]
    journal = Journal(tmp_path, first.head, keys, [record.key for record in first.records])
    journal._file = (tmp_path / "journal" / "1-a.jsonl").open("ab", buffering=0)
    journal.add(4, [record for record in first.records if record.batch == 4])
    journal.close()
    assert set(journal.done()) == {0, 1, 4}


def test_a_predictions_file_that_lost_lines_is_no_finished_run(tsv, tmp_path):
    units = make_units(read_items(tsv())[:12], PROTOCOL)
    evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]))
    with pytest.raises(DataError, match="5 predictions, the run asked 48; was it cut"):
        evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 5}, "score is 5"),
        ({"score": float("nan")}, "score is"),
        ({"language": "xx"}, "language is 'xx'"),
        ({"choice": "Z"}, "choice is 'Z'"),
        ({"options": ["a"]}, "options is"),
        ({"answers": "cat"}, "answers is 'cat'"),
        ({"reply": None}, "reply is None"),
        ({"turn": "0"}, "turn is '0'"),
        ({"scores": {}}, "scores is"),
        ({"more": 1}, "does not know"),
    ],
)
def test_an_edited_prediction_is_refused_by_line_and_key(tsv, tmp_path, change, message):
    units = make_units(read_items(tsv())[:12], PROTOCOL)
    evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"predictions.jsonl:4: not a prediction.*{message}"):
        read_run(path)


def test_a_score_that_does_not_follow_is_refused(tsv, tmp_path):
    units = make_units(read_items(tsv())[:12], PROTOCOL)
    run = evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT)
    path = tmp_path / "predictions.jsonl"
    lines = path.read_text().splitlines()
    number = next(n for n, record in enumerate(run.records, start=1) if record.score == 0)
    lines[number] = json.dumps(json.loads(lines[number]) | {"score": 1.0})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"score 1\.0, but"):
        read_run(path)


def test_another_run_in_the_folder_is_refused_and_nothing_is_lost(tsv, tmp_path):
    units = make_units(read_items(tsv()), PROTOCOL)
    evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=ABOUT)
    before = (tmp_path / "predictions.jsonl").read_bytes()
    file = {"name": "other.tsv", "sha256": "0", "published": None}
    other = {**ABOUT, "data": [file]}
    with pytest.raises(DataError, match=r"holds another run; it differs in data: there \[\]"):
        evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=other)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    evaluate(units, RandomBaseline(), PROTOCOL, tmp_path, about=other, fresh=True)
    assert (tmp_path / "earlier-1" / "predictions.jsonl").read_bytes() == before


def test_a_failing_model_keeps_what_was_answered(tsv, tmp_path):
    class Failing(RandomBaseline):
        calls = 0

        def answer(self, units):
            self.calls += 1
            if self.calls == 4:
                raise DataError("the server is gone")
            return super().answer(units)

    units = make_units(read_items(tsv()), PROTOCOL)
    with pytest.raises(DataError, match="server is gone"):
        evaluate(units, Failing(), PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    model = Counting()
    run = evaluate(units, model, PROTOCOL, tmp_path, about=ABOUT, rows_per_batch=8)
    assert model.asked == len(run.records) - 24


def test_batches_hold_one_length_and_do_not_split_questions(tsv):
    units = make_units(read_items(tsv()), PROTOCOL)
    lengths = [(len(unit.asks[0].prompt), len(unit.asks)) for unit in units]
    plan = make_plan(units, lengths, 8)
    seen = sorted(number for batch in plan.batches for number in batch)
    assert seen == list(range(len(units)))
    for batch in plan.batches:
        assert len({lengths[number] for number in batch}) == 1
        assert sum(len(units[number].asks) for number in batch) <= 8
    assert make_plan(units, lengths, 1).batches != plan.batches
    assert plan == make_plan(units, lengths, 8)
    mixed = make_plan(units, lengths, 8, mixed=True)
    assert len(mixed.batches) < len(plan.batches)
    assert sorted(n for batch in mixed.batches for n in batch) == list(range(len(units)))


def test_disagreements_between_batches_are_counted(tiny_model, tsv, tmp_path):
    model, processor = tiny_model("gemma3_text", mole=True)
    units = make_units(read_items(tsv())[:12], PROTOCOL)
    ours = OurModel(model, processor, PROTOCOL)
    found = evaluate(units, ours, PROTOCOL, tmp_path, about=ABOUT, progress=False)
    check = compare_batches(units, ours, found, 5)
    assert (check["questions"], check["asks"]) == (5, 20)
    assert check["other_replies"] == 0  # float32: exact here
    # A reply that was changed on disk is found.
    changed = [vars(record) | {"reply": "X" + record.reply} for record in found.records]
    other = type(found)(found.head, tuple(type(found.records[0])(**values) for values in changed))
    check = compare_batches(units, ours, other, 5)
    assert check["other_replies"] == 20
    assert make_report(found, {"batch_check": check})["batch_check"]["other_replies"] == 20
