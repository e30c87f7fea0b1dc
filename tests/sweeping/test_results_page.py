"""benchmarks/results.py: the page's blocks follow from the packs, words around them stay."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.packing import write_pack
from tests.sweeping.conftest import load_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Results

Words before.
<!-- mine dev claims -->
<!-- end -->
Words between.
<!-- mine dev domains -->
| what stood here before |
<!-- end -->
Words after. ![claims](pictures/mine-dev-claims.png)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load_script("results", monkeypatch)


@pytest.fixture
def words(written: Any, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a call, on a page with one experiment that is packed."""
    claims = {"it": {"first": "b", "second": "a", "about": "b is better"}}
    sweep = written(lambda arm, *_: {"a": 0.4, "b": 0.7}[arm], claims=claims)
    write_pack(sweep, read_answers(sweep, "dev"), tmp_path / "packs" / "mine")
    values = {
        "base": "unused.yaml", "output_dir": str(sweep.out), "seeds": sweep.seeds,
        "arms": {"a": {}, "b": {}}, "claims": claims,
        "evaluate": {"domains": sweep.evaluate.domains, "items": sweep.evaluate.items,
                     "languages": sweep.evaluate.languages, "withheld": sweep.evaluate.withheld},
    }  # fmt: skip
    (tmp_path / "mine-sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    monkeypatch.setattr(script, "EXPERIMENTS", tmp_path)
    (tmp_path / "page.md").write_text(PAGE, "utf-8")
    return ["--packs", str(tmp_path / "packs"), "--pages", str(tmp_path / "page.md"),
            "--pictures", str(tmp_path / "pictures")]  # fmt: skip


def test_blocks_are_filled_and_words_stay(script: Any, words: list[str], tmp_path: Path) -> None:
    assert script.main([*words, "--check"]) == 1
    assert script.main(words) == 0
    page = (tmp_path / "page.md").read_text("utf-8")
    for text in (
        "Words before.",
        "Words between.",
        "Words after.",
        "| b is better | +",
        "supported",
    ):
        assert text in page
    assert "what stood here before" not in page
    interval = r"[+-]\d+\.\d to [+-]\d+\.\d"
    assert re.search(rf"\| b is better \| \+\S+ \| {interval} \| {interval} \| ", page)
    assert script.main([*words, "--check"]) == 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine-dev-claims.png"]


def test_a_block_of_nothing_known_is_refused(script: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- other dev claims -->\n<!-- end -->\n", "utf-8")
    with pytest.raises(SystemExit, match="packs are mine dev"):
        script.main(words)


def test_arms_are_told_apart_by_what_they_are(
    script: Any, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("<!-- mine dev arms -->\n<!-- end -->\n", "utf-8")
    assert script.main(words) == 0
    lines = (tmp_path / "page.md").read_text("utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines[3:-1]] == ["| a", "| b"]
    (tmp_path / "page.md").write_text("<!-- mine dev differences -->\n<!-- end -->\n", "utf-8")
    assert script.main(words) == 0
    [row] = (tmp_path / "page.md").read_text("utf-8").splitlines()[3:-1]
    assert row.startswith("| b is better | b less a | +")


def test_regimes_are_claims_of_several_experiments(
    script: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text("<!-- every dev regimes -->\n<!-- end -->\n", "utf-8")
    monkeypatch.setattr(script, "REGIMES", (("plain", "mine", "dev", "it", "none such", "it"),))
    assert script.main(words) == 0
    [row] = (tmp_path / "page.md").read_text("utf-8").splitlines()[3:-1]
    assert re.fullmatch(r"\| plain \| (\+\S+ \(\S+ to \S+\)) \| – \| \1 \|", row)
    monkeypatch.setattr(script, "REGIMES", (("plain", "other", "dev", "it", "it", "it"),))
    with pytest.raises(SystemExit, match="no pack of other, dev"):
        script.main(words)


def test_margins_are_shown_by_domain(script: Any, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine-sweep.yaml"
    values = yaml.safe_load(file.read_text("utf-8"))
    values["claims"]["kept"] = {**values["claims"]["it"], "about": "kept", "no_worse": 0.05}
    file.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    (tmp_path / "page.md").write_text("<!-- mine dev margins -->\n<!-- end -->\n", "utf-8")
    assert script.main(words) == 0
    head, _, row = (tmp_path / "page.md").read_text("utf-8").splitlines()[1:-1]
    domains = list(values["evaluate"]["domains"])
    assert head.strip("| ").split(" | ") == domains
    assert len(re.findall(r"\+\S+ \(\S+ to \S+\)", row)) == len(domains)
    assert row.startswith("| kept |")


def test_claims_are_shown_seed_by_seed(script: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "<!-- mine dev seeds -->\n<!-- end -->\n<!-- mine dev claims -->\n<!-- end -->\n", "utf-8"
    )
    assert script.main(words) == 0
    head, _, row, *rest = (tmp_path / "page.md").read_text("utf-8").splitlines()[1:]
    seeds = yaml.safe_load((tmp_path / "mine-sweep.yaml").read_text("utf-8"))["seeds"]
    assert head.strip("| ").split(" | ") == [f"seed {seed}" for seed in seeds]
    about, *found = row.strip("| ").split(" | ")
    assert about == "b is better"
    [mean] = [line.split(" | ")[1] for line in rest if line.startswith("| b is better")]
    assert fmean(map(float, found)) == pytest.approx(float(mean), abs=0.1)


@pytest.fixture
def routed(tmp_path: Path, words: list[str]) -> Path:
    """Routing of one of the packed runs, and a page that shows it."""
    pack = json.loads((tmp_path / "packs" / "mine" / "dev.json").read_text("utf-8"))
    digest = pack["runs"]["b/seed-0"]["done"]["digest"]
    known = {"entropy": 1.0, "bits": [0.25], "limit": [0.1], "p": [0.01]}
    kept = {"data": "made", "cells": [], "shuffles": 9, "seed": 0, "run": digest, "use": {},
            "languages_shuffled_within": "picture", "routers": ["layers.0.mlp"], "experts": [2],
            "information": {"words": {"domain": known, "language": known}}}  # fmt: skip
    path = tmp_path / "packs" / "mine" / "routing-dev" / "b-seed-0.json"
    path.parent.mkdir()
    path.write_text(json.dumps(kept), "utf-8")
    (tmp_path / "page.md").write_text(
        "![](mine-dev-routing-domain.png)\n<!-- mine dev routing -->\n<!-- end -->\n", "utf-8"
    )
    return path


def test_routing_stands_beside_the_answers_of_its_run(
    script: Any, words: list[str], routed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words) == 0
    assert "| b | words | 1 | 0.250 |" in (tmp_path / "page.md").read_text("utf-8")
    assert script.main([*words, "--check"]) == 0
    (tmp_path / "pictures" / "mine-dev-routing-domain.png").unlink()
    capsys.readouterr()
    assert script.main([*words, "--check"]) == 1
    assert "mine-dev-routing-domain.png: not there" in capsys.readouterr().out
    other = json.loads(routed.read_text("utf-8")) | {"run": "another"}
    routed.write_text(json.dumps(other), "utf-8")
    with pytest.raises(SystemExit, match=r"b-seed-0\.json: not of the run that is packed"):
        script.main(words)
    stray = routed.rename(routed.with_name("c-seed-0.json"))  # of no run at all
    stray.write_text(json.dumps(other | {"run": None}), "utf-8")
    with pytest.raises(SystemExit, match=r"c-seed-0\.json: not of the run that is packed"):
        script.main(words)
    stray.unlink()
    with pytest.raises(SystemExit, match="no routing is packed"):
        script.main(words)


def test_the_page_in_the_repository_is_what_its_packs_say(script: Any) -> None:
    assert script.main(["--check"]) == 0
