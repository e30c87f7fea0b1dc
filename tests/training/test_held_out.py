"""Evaluation while training: exact sums, no trace left in training, the best checkpoint kept."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from llava_mole.cli import main
from llava_mole.data.collator import Collator
from llava_mole.errors import ConfigError
from llava_mole.evaluation.asks import make_units
from llava_mole.evaluation.harness import evaluate
from llava_mole.evaluation.items import read_items
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.protocol import Protocol
from llava_mole.modeling import IGNORE
from llava_mole.training.data import read_data
from llava_mole.training.dry_run import dry_run
from llava_mole.training.held_out import HeldOut
from llava_mole.training.recipe import DataRecipe, SourceRecipe
from llava_mole.training.result import summary
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_recipe
from tests.evaluation.conftest import rows, write
from tests.helpers import assistant, training_batch, user

TURNS = [("en", "What is it?", "a cat"), ("tr", "Bu nedir?", "uzun bir cevap, evet"),
         ("en", "And this one?", "no"), ("tr", "Ne renk?", "yeşil")]  # fmt: skip


@pytest.fixture
def held_out_file(data: Path) -> Path:
    """Answers of different lengths, two languages, two domains, one without a picture."""
    items = []
    for number, (language, question, answer) in enumerate(TURNS * 2):
        shown = {"image": f"images/{number % 6}.png"} if number != 5 else {}
        text = f"<image>\n{question}" if shown else question
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
        domain = "tiny" if number % 3 else "other"
        items.append({**shown, "conversations": turns, "domain": domain, "language": language})
    path = data / "held.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def made(model: Any, processor: Any, *sources: SourceRecipe) -> tuple[HeldOut, Collator]:
    opened = read_data(DataRecipe(list(sources)), progress=False)
    collator = Collator(
        processor,
        share_prefix=True,
        parrot=model.parrot is not None,
        max_length=512,
        packing=128,
        load_pixels=lambda images: processor.image_processor(list(images))["pixel_values"],
    )
    return HeldOut(opened, processor, seed=0), collator


@pytest.mark.parametrize("parrot", [False, True])
def test_losses_are_means_over_tokens_whatever_the_batch(
    tiny_model: Any, held_out_file: Path, parrot: bool
) -> None:
    model, processor = tiny_model("llama", mole=True, lora=True, parrot=parrot)
    held_out, collator = made(model, processor, SourceRecipe(str(held_out_file)))
    found = {
        size: held_out.evaluate(model, collator, batch_size=size, progress=False)
        for size in (1, 3, 8)
    }
    sums: dict[str, list[float]] = defaultdict(list)
    for number in range(len(held_out)):
        sample = held_out[number]
        question, answer = (turn.text.removeprefix("<image>\n") for turn in sample.turns)
        batch = training_batch(processor, [[user(question, *sample.images), assistant(answer)]])
        with torch.no_grad():
            loss = float(model(**batch).losses["language"])
        tokens = int((batch["labels"][:, 1:] != IGNORE).sum())
        for cell in (
            "",
            "source_held_",
            f"domain_{sample.domain}_",
            f"language_{sample.language}_",
        ):
            sums[cell] += [loss * tokens], [tokens]
    for cell, pairs in sums.items():
        total = sum(p[0] for p in pairs[0::2]) / sum(p[0] for p in pairs[1::2])
        for metrics in found.values():  # float32 sums of rows that are padded differently
            assert metrics[f"{cell}loss"] == pytest.approx(total, rel=2e-6), cell
    assert found[1].keys() == {"tokens", "seconds", *(f"{cell}loss" for cell in sums)}
    assert found[1]["tokens"] == sum(p[0] for p in sums[""][1::2])
    # A mean of means would be another number.
    means = [a[0] / b[0] for a, b in zip(sums[""][0::2], sums[""][1::2], strict=True)]
    assert not math.isclose(sum(means) / len(means), found[1]["loss"], rel_tol=1e-3)


def test_letters_are_scored_as_the_evaluation_scores_them(tiny_model: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "eval.tsv", [row for row in rows("train") if row["A"]])
    model, processor = tiny_model("llama", mole=True)
    held_out, collator = made(model, processor, SourceRecipe(str(path), domain="letters"))
    found = held_out.evaluate(model, collator, batch_size=4)
    protocol = Protocol(answer="letters", style="letters")
    run = evaluate(
        make_units(read_items(path), protocol), OurModel(model, processor, protocol), protocol,
        tmp_path / "out", about={"format": 1, "benchmark": "test", "title": "", "data": [],
                                 "left_out": []}, progress=False,
    )  # fmt: skip
    right = [record.score for record in run.records]
    assert 0 < sum(right) < len(right) == len(held_out)
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["source_eval_accuracy"] == found["accuracy"]
    by_language = defaultdict(list)
    for record in run.records:
        by_language[record.language].append(record.score)
    for language, scores in by_language.items():
        assert found[f"language_{language}_accuracy"] == pytest.approx(sum(scores) / len(scores))


def test_some_of_a_source_are_always_the_same(tiny_model: Any, held_out_file: Path) -> None:
    model, processor = tiny_model("llama")
    source = SourceRecipe(str(held_out_file))
    some = [made(model, processor, replace(source, samples=3))[0] for _ in range(2)]
    whole, _ = made(model, processor, source)
    chosen = [[item.record for item in one.items] for one in some]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 3 < len(whole)


def with_held_out(recipe_file: Path, held_out: Path, **training: Any) -> Path:
    """One language stage, with dropout, with or without evaluation."""
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    recipe["data"]["held_out"] = [{"path": str(held_out)}]
    recipe["model"]["experts"] = {"method": "smora", "num_experts": 8, "lora_dropout": 0.2}
    recipe["model"]["lora"]["lora_dropout"] = 0.2
    recipe["stages"] = [{**recipe["stages"][1], "steps": 4}]
    recipe["training"] |= {"eval_steps": 1, "disable_tqdm": True, **training}
    path = recipe_file.with_name("held.yaml")
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(out)}:{name}": value
        for path in out.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_is_the_same_to_the_bit_with_and_without_evaluation(
    recipe_file: Path, held_out_file: Path, tmp_path: Path
) -> None:
    path = with_held_out(recipe_file, held_out_file, save_strategy="no")
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    options = ["training.eval_on_start=true", f"output_dir={seen}"]
    run_recipe(load_recipe(path, options))
    options = ["training.eval_strategy=no", "training.eval_steps=null", f"output_dir={unseen}"]
    run_recipe(load_recipe(path, options))
    found, expected = weights(seen / "model"), weights(unseen / "model")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    scored = [line for line in lines(seen) if "eval_loss" in line]
    assert [line["step"] for line in scored] == [0, 1, 2, 3, 4]
    drop = {"seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    rest = [
        [{k: v for k, v in line.items() if k not in drop} for line in lines(out)
         if "eval_loss" not in line] for out in (seen, unseen)
    ]  # fmt: skip
    assert rest[0] == rest[1]
    assert json.loads((seen / "model" / "config.json").read_text()) == json.loads(
        (unseen / "model" / "config.json").read_text()
    )


@pytest.mark.parametrize("worst", [True, False])
def test_the_best_checkpoint_stays_and_is_what_the_stage_leaves(
    recipe_file: Path, held_out_file: Path, tmp_path: Path, worst: bool
) -> None:
    """The best is early where the worst is held to be best; only one checkpoint may stay."""
    path = with_held_out(
        recipe_file, held_out_file, load_best_model_at_end=True, save_steps=1, save_total_limit=1,
        metric_for_best_model="language_tr_loss", greater_is_better=worst,
    )  # fmt: skip
    result = run_recipe(load_recipe(path))
    out = tmp_path / "run"
    values = {e["step"]: e["eval_language_tr_loss"] for e in lines(out) if "eval_loss" in e}
    best = (max if worst else min)(values, key=values.__getitem__)
    end = result.ends["instruct"]
    assert end.best == ("eval_language_tr_loss", values[best], best)
    assert end.best_is_kept
    said = summary(load_recipe(path), result)
    assert f"model: {out / 'model'} (the best of stage instruct)" in said
    assert f"best: instruct, eval_language_tr_loss {values[best]:.4g} at step {best}" in said
    assert "time: " in said
    assert "peak memory: process " in said
    stage = out / "stages" / "1-instruct"
    kept = {path.name for path in stage.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-4"}
    found, expected = weights(out / "model"), weights(stage / f"checkpoint-{best}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if best != 4:
        last = weights(stage / "checkpoint-4")
        assert not all(torch.equal(found[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.held_out=[]", "nothing is held out; name sources under data.held_out"),
        ("data.held_out.0.weight=2", r"data.held_out.0.weight: not read"),
    ],
)
def test_evaluation_keys_that_make_no_sense_are_refused(
    recipe_file: Path, held_out_file: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(with_held_out(recipe_file, held_out_file), [change])


def test_a_metric_that_no_evaluation_gives_is_refused_before_training(
    recipe_file: Path, held_out_file: Path, tmp_path: Path
) -> None:
    path = with_held_out(recipe_file, held_out_file, metric_for_best_model="language_tk_loss")
    with pytest.raises(ConfigError, match="did you mean 'language_tr_loss'"):
        run_recipe(load_recipe(path))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_dry_run_shows_what_is_held_out(
    recipe_file: Path, held_out_file: Path, tmp_path: Path
) -> None:
    letters = write(tmp_path / "letters.tsv", rows("train")[:9])
    path = with_held_out(recipe_file, held_out_file)
    both = [{"path": str(held_out_file), "samples": 5}, {"path": str(letters), "domain": "d"}]
    console = Console(record=True, width=160, file=io.StringIO())
    dry_run(load_recipe(path, [f"data.held_out={json.dumps(both)}"]), console)
    text = console.export_text()
    assert "loss, right letters" in text
    assert "ar 3, en 3, zh 3" in text


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [pytest.param("false", marks=pytest.mark.thorough), "true"])
def test_two_workers_find_the_same_losses_to_the_bit(
    fsdp: str, recipe_file: Path, held_out_file: Path, tmp_path: Path
) -> None:
    """Also where the model lies in pieces, one of them with pictures while the other has none."""
    path = with_held_out(recipe_file, held_out_file, save_strategy="no", eval_on_start=True)
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        options = [f"workers={workers}", f"output_dir={out}", "stages.instruct.steps=1"]
        options.append(f"training.fsdp={fsdp}")
        assert main(["train", "--config", str(path), *options]) == 0
        (first, *_) = (line for line in lines(out) if "eval_loss" in line)
        found.append({k: v for k, v in first.items() if k != "eval_seconds"})
    assert found[0]["step"] == 0
    assert found[0] == found[1]


@pytest.mark.parametrize("change", ["none", "held_out", "metric"])
def test_a_best_score_of_other_held_out_samples_does_not_count(
    recipe_file: Path, held_out_file: Path, tmp_path: Path, change: str
) -> None:
    path = with_held_out(
        recipe_file, held_out_file, load_best_model_at_end=True, save_steps=1,
        metric_for_best_model="loss",
    )  # fmt: skip
    run_recipe(load_recipe(path))
    stage = tmp_path / "run" / "stages" / "1-instruct"
    kept = json.loads((stage / "checkpoint-2" / "trainer_state.json").read_text())
    kept |= {"best_metric": -1.0, "best_global_step": 1}  # better than any loss can be
    mark = json.loads((stage / "checkpoint-2" / "stage.json").read_text())
    text = json.dumps(kept)
    (stage / "checkpoint-2" / "trainer_state.json").write_text(text)
    mark["files"]["trainer_state.json"] = len(text)
    (stage / "checkpoint-2" / "stage.json").write_text(json.dumps(mark))
    changes = {"none": [], "held_out": ["data.held_out.0.samples=5"],
               "metric": ["training.metric_for_best_model=language_tr_loss"]}[change]  # fmt: skip
    result = run_recipe(load_recipe(path, changes), resume=stage / "checkpoint-2")
    assert (result.ends["instruct"].best[2] == 1) == (change == "none")


@pytest.mark.parametrize("how", ["link", "dots"])
def test_training_data_under_another_path_are_not_held_out(
    recipe_file: Path, data: Path, how: str
) -> None:
    other = data / "other.json" if how == "link" else data / "images" / ".." / "train.json"
    if how == "link":
        other.symlink_to(data / "train.json")
    with pytest.raises(ConfigError, match=r"also in data\.sources"):
        load_recipe(with_held_out(recipe_file, other))
