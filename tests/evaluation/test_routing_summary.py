"""Routing of several models side by side: kept, tabled and drawn as the reports have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from llava_mole.errors import DataError
from llava_mole.evaluation.probes import Probe
from llava_mole.evaluation.routing import PARTS, look
from llava_mole.evaluation.routing_report import figures
from llava_mole.evaluation.routing_summary import (
    draw_cells,
    draw_gates,
    draw_information,
    draw_use,
    information_rows,
    read_summaries,
    summary,
    told,
    write_summary,
)
from llava_mole.mole.router import Router
from tests.helpers import assistant, picture, user

QUESTIONS = {"en": "What is shown here?", "ru": "Что это?"}
SEEDS = (3, 11)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> list[Probe]:
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for number, domain in enumerate(("charts", "flags")):
        for index in range(4):
            path = folder / f"{domain}-{index}.png"
            picture(10 * number + index).save(path)
            answer = assistant(f"{domain} {index}")
            made += [
                Probe([user(question, str(path)), answer], domain, language, str(path), path.name)
                for language, question in QUESTIONS.items()
            ]
    return made


@pytest.fixture(scope="module")
def reports(tiny_model: Callable[..., Any], probes: list[Probe]) -> dict[str, dict[str, Any]]:
    """File name -> what the report found: an arm with both, one with experts, one with Parrot."""
    found = {}
    for arm, options in {
        "both": {"mole": True, "parrot": True}, "experts": {"mole": True}, "gate": {"parrot": True},
    }.items():  # fmt: skip
        for seed in SEEDS:
            model, processor = tiny_model("llama", **options)
            torch.manual_seed(seed)
            for router in (part for part in model.modules() if isinstance(part, Router)):
                for weight in router.parameters():
                    torch.nn.init.normal_(weight, 0, 2)
            routing = look(model, processor, probes, progress=False)
            known = figures(routing, shuffles=9, seed=0)
            found[f"{arm}-seed-{seed}.json"] = {"about": {"data": "made"}, **known}
    return found


@pytest.fixture
def folder(reports: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    for name, found in reports.items():
        write_summary(found, tmp_path / "routing" / name)
    return tmp_path / "routing"


def test_figures_are_the_reports(reports: dict[str, dict[str, Any]], folder: Path) -> None:
    read = read_summaries(folder)
    assert {arm: list(seeds) for arm, seeds in read.items()} == {
        "both": list(SEEDS), "experts": list(SEEDS), "gate": list(SEEDS)
    }  # fmt: skip
    every = {(one.arm, one.part, one.label): one for one in told(read)}
    parts = {arm: [part for own, part, label in every if (own, label) == (arm, "domain")]
             for arm in read}  # fmt: skip
    assert parts == {"both": [*PARTS, "gate"], "experts": list(PARTS), "gate": ["gate"]}
    for row, seed in enumerate(SEEDS):
        found = reports[f"both-seed-{seed}.json"]
        for one in found["information"]["words"]["language"]:
            assert 0 <= one["p"] <= 1
        for key, column in {"corrected": "bits", "p": "p"}.items():
            wanted = [one[key] for one in found["information"]["words"]["language"]]
            got = getattr(every["both", "words", "language"], column)[row]
            np.testing.assert_allclose(got, wanted, atol=1e-6)
        gate = found["gate"]["information_domain"]["corrected"]
        assert every["both", "gate", "domain"].bits[row].tolist() == pytest.approx([gate], abs=1e-6)
        [flags] = [use["share"] for use in found["use"]["picture"]
                   if use["domain"] == "flags" and use["language"] is None]  # fmt: skip
        kept = read["both"][seed]["use"]["picture"]["domain"]["flags"]
        assert_close(torch.tensor(kept), torch.tensor(flags), atol=1e-4, rtol=0)
    bits = every["both", "words", "language"].bits
    assert not np.allclose(bits[0], bits[1])  # seeds differ, so a mix-up would be seen


def test_the_table_has_means_over_seeds(folder: Path) -> None:
    read = read_summaries(folder)
    lines = [line.strip("| ").split(" | ") for line in information_rows(told(read)).splitlines()]
    assert "domain, of 1.00 bits" in lines[0][3]
    assert [line[:3] for line in lines[2:]] == [
        *(["both", part, "2"] for part in (*PARTS, "gate")),
        *(["experts", part, "2"] for part in PARTS),
        ["gate", "gate", "2"],
    ]
    known = [read["experts"][seed]["information"]["answer"]["domain"] for seed in SEEDS]
    bits = np.array([one["bits"] for one in known])
    sure = (np.array([one["p"] for one in known]) < 0.05).mean()
    [row] = [line for line in lines if line[:2] == ["experts", "answer"]]
    assert row[3:6] == [f"{bits.mean():.3f}", f"{bits.mean(0).max():.3f}", f"{100 * sure:.0f} %"]


def test_they_can_be_drawn(folder: Path, tmp_path: Path) -> None:
    read = read_summaries(folder)
    draw_information(read, tmp_path / "domain.png", "domain")
    draw_information({"both": read["both"]}, tmp_path / "one.png", "domain")
    draw_gates(read, tmp_path / "gates.png")
    draw_use(read, tmp_path / "use.png", "picture", "domain")
    for part in ("picture", "words", "answer"):
        draw_cells(read, tmp_path / f"cells-{part}.png", part)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert sizes["domain.png"] > sizes["one.png"] > 1000
    assert min(sizes.values()) > 1000
    gate, experts = {"gate": read["gate"]}, {"experts": read["experts"]}
    with pytest.raises(DataError, match="no arm has experts"):
        draw_information(gate, tmp_path / "none.png", "domain")
    with pytest.raises(DataError, match="no arm has experts"):
        draw_use(gate, tmp_path / "none.png", "picture", "domain")
    with pytest.raises(DataError, match="no arm has experts by domain and language"):
        draw_cells(gate, tmp_path / "none.png", "words")
    with pytest.raises(DataError, match="no arm has Parrot's gate"):
        draw_gates(experts, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_summary_is_small_and_names_its_model(
    reports: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    found = reports["both-seed-3.json"]
    assert "probes" not in summary(found)
    for name in ("both.json", "both-seed-x.json", "seed-3.json"):
        with pytest.raises(DataError, match=f"{name}: its name says which model"):
            write_summary(found, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_does_not_go_together_is_refused(
    reports: dict[str, dict[str, Any]], folder: Path
) -> None:
    write_summary(
        {**reports["both-seed-3.json"], "about": {"data": "other"}}, folder / "both-seed-4.json"
    )
    with pytest.raises(DataError, match=r"both-seed-4\.json: other data than both-seed-11\.json"):
        read_summaries(folder)
    write_summary(reports["experts-seed-3.json"], folder / "both-seed-4.json")
    with pytest.raises(DataError, match=r"both-seed-4\.json: other parts than both-seed-"):
        read_summaries(folder)
    (folder / "both-seed-4.json").unlink()
    (folder / ".both-seed-5.json").write_text("{", "utf-8")  # of a call that was killed
    assert list(read_summaries(folder)) == ["both", "experts", "gate"]
    for text in ("{", "[]", '{"information": {"words": {}}}'):
        (folder / "gate-seed-4.json").write_text(text, "utf-8")
        with pytest.raises(DataError, match=r"gate-seed-4\.json: no summary of routing"):
            read_summaries(folder)
    (folder / "gate-seed-4.json").unlink()
    (folder / "notes.json").write_text(json.dumps({}), "utf-8")
    with pytest.raises(DataError, match=r"notes\.json: its name"):
        read_summaries(folder)
