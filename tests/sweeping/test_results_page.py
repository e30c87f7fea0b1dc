"""benchmarks/results.py: the page's blocks follow from the packs, words around them stay."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.packing import write_pack

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
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks/results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


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
    return ["--packs", str(tmp_path / "packs"), "--page", str(tmp_path / "page.md"),
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
    assert script.main([*words, "--check"]) == 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine-dev-claims.png"]


def test_a_block_of_nothing_known_is_refused(script: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- other dev claims -->\n<!-- end -->\n", "utf-8")
    with pytest.raises(SystemExit, match="packs are mine dev"):
        script.main(words)


def test_routing_is_asked_for_only_where_it_is_packed(
    script: Any, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text("<!-- mine dev routing -->\n<!-- end -->\n", "utf-8")
    with pytest.raises(SystemExit, match=r"parts claims.*notes$"):
        script.main(words)
    known = {"entropy": 1.0, "bits": [0.25], "limit": [0.1], "p": [0.01]}
    kept = {"data": "made", "cells": [], "routers": ["layers.0.mlp"], "experts": [2], "use": {},
            "information": {"words": {"domain": known, "language": known}}}  # fmt: skip
    folder = tmp_path / "packs" / "mine" / "routing-dev"
    folder.mkdir()
    (folder / "b-seed-1.json").write_text(json.dumps(kept), "utf-8")
    (tmp_path / "page.md").write_text(
        "![](mine-dev-routing-domain.png)\n<!-- mine dev routing -->\n<!-- end -->\n", "utf-8"
    )
    assert script.main(words) == 0
    assert "| b | words | 1 | 0.250 |" in (tmp_path / "page.md").read_text("utf-8")
    assert (tmp_path / "pictures" / "mine-dev-routing-domain.png").is_file()


def test_the_page_in_the_repository_is_what_its_packs_say(script: Any) -> None:
    assert script.main(["--check"]) == 0
