"""A tiny sweep that is really trained, and folders of runs that were written by hand."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from llava_mole.cli import build_parser
from llava_mole.evaluation.tables import Prediction, write_predictions
from llava_mole.folders import sha256_file
from llava_mole.sweeping.one_run import do_run
from llava_mole.sweeping.plan import plan_runs
from llava_mole.sweeping.run_folder import write_json
from llava_mole.sweeping.scoring import SHOWN, WITHHELD, settings_of
from llava_mole.sweeping.sweep_file import Sweep, read_sweep
from tests.evaluation.conftest import rows, write
from tests.helpers import picture

LANGUAGES = {"en": "What is it?", "tr": "Bu nedir?"}
RATES = {"projector": 0.01, "lora": 0.01}


# ---------------------------------------------------------------------- really trained


def write_samples(folder: Path, count: int = 6) -> Path:
    """Pictures named in two languages, as LLaVA JSON."""
    (folder / "images").mkdir(parents=True)
    items = []
    for index in range(count):
        picture(index).save(folder / "images" / f"{index}.png")
        for language, question in LANGUAGES.items():
            turns = [{"from": "human", "value": f"<image>\n{question}"},
                     {"from": "gpt", "value": f"thing {chr(97 + index)} {language}"}]  # fmt: skip
            items.append({"image": f"images/{index}.png", "conversations": turns,
                          "domain": "tiny", "language": language, "kind": "naming"})  # fmt: skip
    (folder / "train.json").write_text(json.dumps(items), encoding="utf-8")
    return folder / "train.json"


def write_questions(folder: Path) -> Path:
    """eval_dev.tsv and eval_test.tsv: two kinds, three languages, six pictures."""
    folder.mkdir(parents=True)
    for split in ("dev", "test"):
        table = [row for row in rows(split) if row["category"] != "yes_no"]
        write(folder / f"eval_{split}.tsv", table)
    return folder


def write_sweep(folder: Path, parts: Any, **changes: Any) -> Path:
    """A sweep of LoRA against experts, two seeds, two domains of questions, and its recipe.

    Args:
        changes: dotted keys of the sweep file -> values.
    """
    train = write_samples(folder / "data")
    for domain in ("shapes", "noise"):
        write_questions(folder / domain)
    recipe = {
        "output_dir": "unused",
        "model": {
            "language_model": str(parts.language_model("llama")),
            "vision_model": f"local-dir:{parts.tower('cnn')}",
            "dtype": "float32",
            "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "lora_dropout": 0.1},
        },
        "data": {"sources": [{"path": str(train)}]},
        "training": {"logging_steps": 1, "disable_tqdm": True},
        "stages": [{"name": "instruct", "steps": 3, "pictures_per_step": 2,
                    "questions_per_picture": 2, "learning_rates": RATES}],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    experts = {"num_experts": 2, "r": 2, "lora_alpha": 4}
    moe = {"model.experts": experts, "stages.instruct.learning_rates.experts": 0.01,
           "stages.instruct.learning_rates.routers": 0.01}  # fmt: skip
    sweep: dict[str, Any] = {
        "base": "recipe.yaml",
        "output_dir": str(folder / "out"),
        "seeds": [0, 1],
        "arms": {"lora": {}, "moe": {"about": "with experts", "set": moe}},
        "evaluate": {
            "domains": {name: str(folder / name) for name in ("shapes", "noise")},
            "items": 4, "languages": ["en", "zh"],
        },
        "claims": {"experts_help": {"first": "moe", "second": "lora"}},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = sweep
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def sweep_file(tmp_path: Path, tiny_parts: Any) -> Callable[..., Path]:
    """(arms__lora__set={…}) -> the file, nothing trained yet."""

    def make(**changes: Any) -> Path:
        return write_sweep(tmp_path, tiny_parts, **changes)

    return make


@pytest.fixture(scope="session")
def trained_once(tiny_parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep file whose four runs are done."""
    gc.freeze()  # a run collects garbage thrice; what all the other modules hold is none
    folder = tmp_path_factory.mktemp("sweep")
    path = write_sweep(folder, tiny_parts)
    sweep = read_sweep(path)
    for run in plan_runs(sweep, path):
        do_run(sweep, run)
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The sweep file of a copy of these runs, to be changed by a test."""
    out = tmp_path / "out"
    shutil.copytree(trained_once / "out", out)
    values = yaml.safe_load((trained_once / "sweep.yaml").read_text(encoding="utf-8"))
    values |= {"output_dir": str(out), "base": str(trained_once / "recipe.yaml")}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def edit(path: Path, **changes: Any) -> Sweep:
    """Change keys of a sweep file, `a__b` for a.b, and read it."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = values
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return read_sweep(path)


# ---------------------------------------------------------------------- the command


def parsed(*words: str) -> argparse.Namespace:
    return build_parser("sweep").parse_args(["sweep", *words])


def recording() -> Console:
    return Console(file=io.StringIO(), record=True, width=200)


# ---------------------------------------------------------------------- written by hand


def prediction(
    domain: str, language: str, kind: str, number: int, right: bool, condition: str = SHOWN
) -> Prediction:
    """One question of its own about picture `number`."""
    return Prediction(
        index=f"{language}-{kind}-{number}", source="eval_dev.tsv", condition=condition,
        language=language, kind=kind, picture=f"{domain}-{number}", shown=None, style="answers",
        prompt="What?", letters=("A", "B"), texts=("cat", "dog"), scored=("cat", "dog"),
        logprobs=(-1.0, -2.0) if right else (-2.0, -1.0), end_logprobs=(0.0, 0.0), tokens=(1, 1),
        normalization="mean", chosen="A" if right else "B", answer="A", correct=right,
    )  # fmt: skip


Rate = Callable[[str, int, str, str, int], float]
"""(arm, seed, domain, language, picture) -> chance of a right answer."""


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Sweep]:
    """(rate, arms=…, seeds=…, domains=…, claims=…) -> a sweep whose runs are on disk, as if they
    had been trained: every file that a report reads, in its real format."""

    def make(
        rate: Rate,
        *,
        arms: Mapping[str, dict[str, Any]] | None = None,
        seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
        domains: tuple[str, ...] = ("shapes", "noise"),
        pictures: int = 60,
        withheld: bool = False,
        orders: Mapping[tuple[str, int], str] | None = None,
        **more: Any,
    ) -> Sweep:
        out = tmp_path / "out"
        values = {
            "base": "recipe.yaml", "output_dir": str(out), "seeds": list(seeds),
            "arms": {name: dict(arm) for name, arm in (arms or {"a": {}, "b": {}}).items()},
            "evaluate": {"domains": dict.fromkeys(domains, "nowhere"), "withheld": withheld},
            **more,
        }  # fmt: skip
        path = tmp_path / "written.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        sweep = read_sweep(path)
        for arm in sweep.arm_names():
            for seed in seeds:
                order = (orders or {}).get((arm, seed), f"order-{seed}")
                write_run(sweep, arm, seed, rate, pictures, order)
        return sweep

    return make


def sign(folder: Path, split: str = "dev") -> None:
    """Have scored.json say that predictions were written as they are now."""
    path = folder / "predictions" / split / "scored.json"
    scored = json.loads(path.read_text("utf-8"))
    for domain, mark in scored["domains"].items():
        mark["predictions"] = sha256_file(path.with_name(f"{domain}.jsonl"))
    write_json(path, scored)


def write_run(sweep: Sweep, arm: str, seed: int, rate: Rate, pictures: int, order: str) -> None:
    folder = sweep.out / "runs" / arm / f"seed-{seed}"
    lots = np.random.default_rng([seed, *arm.encode()])
    marks = {}
    for domain in sweep.domains_of(arm):
        made = []
        for number in range(pictures):
            for language in ("en", "tr"):
                right = lots.random() < rate(arm, seed, domain, language, number)
                made.append(prediction(domain, language, "naming", number, bool(right)))
                if sweep.evaluate.withheld:
                    blind = bool(lots.random() < 0.5)
                    made.append(prediction(domain, language, "naming", number, blind, WITHHELD))
        write_predictions(made, folder / "predictions" / "dev" / f"{domain}.jsonl")
        marks[domain] = {"questions": len(made), "accuracy": 0.5, "seconds": 1.0}
    scored = {"settings": settings_of(sweep), "split": "dev", "domains": marks}
    write_json(folder / "predictions" / "dev" / "scored.json", scored)
    sign(folder)
    stages = [{"name": "instruct", "kind": "language", "rows": 6, "rows_per_step": 2,
               "samples": 12, "digest": order, "pieces": [order]}]  # fmt: skip
    write_json(folder / "order.json", {"digest": order, "content": "same", "stages": stages})
    done = {
        "arm": arm, "seed": seed, "digest": arm, "order": order, "steps": 3, "seconds": 6.0,
        "parameters": {"lora": {"total": 100, "trained": 100}}, "minutes": 0.2,
        "step_seconds": 2.0 if arm == "a" else 3.0, "peak_gib": {"process": 1.0},
        "processes": 1, "threads": 1, "device": "cpu", "accuracy": {},
    }  # fmt: skip
    write_json(folder / "done.json", done)
    recipe = {"seed": seed, "arm": arm, "workers": seed}  # workers move no weight
    write_json(folder / "run.json", {"digest": arm, "recipe": recipe})


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/NAME.py as a module."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
