"""The arms' page: every arm is a recipe that validates, built as the page says, sizes matched."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_mole.configuration import ParrotConfig
from llava_mole.training.schema import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "configs" / "experiments" / "arms.md"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("arms_script", ROOT / "benchmarks" / "arms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()
ARMS = {arm.name: arm for arm in script.ARMS}


def numbers() -> dict[str, list[int | None]]:
    """Arm -> its line of the page: projector, lora, experts, routers, parrot, together."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `(\w+)` \|", line):
            cells = [cell.strip().replace(",", "") for cell in line.split("|")[3:-1]]
            found[match[1]] = [int(cell) if cell else None for cell in cells]
    return found


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_validates_and_stands_on_the_page_with_what_to_type(name: str) -> None:
    arm = ARMS[name]
    recipe = load_recipe(ROOT / arm.base, (*script.STARTER, *arm.overrides))
    rates = next(stage for stage in recipe.stages if stage.name == "instruct").learning_rates
    line = numbers()[name]
    trained = dict(zip(script.PARTS, line, strict=False))
    assert {part for part in trained if trained[part] is not None} == set(rates)
    assert sum(filter(None, line[:-1])) == line[-1]
    page = PAGE.read_text(encoding="utf-8")
    assert all(shlex.quote(override) in page for override in arm.overrides)


def test_the_page_has_the_arms_and_no_others() -> None:
    assert list(numbers()) == list(ARMS)


def test_arms_of_experts_are_as_large_as_the_plain_lora_of_their_rank() -> None:
    found = numbers()
    for name, arm in ARMS.items():
        if arm.base == script.DOMAINS and name != "mix":
            assert found[name][-1] == pytest.approx(found["rank"][-1], rel=0.03), name


def test_controls_of_parrot_are_as_large_as_parrot() -> None:
    found = numbers()
    for name in ("parrot_picture", "parrot_nothing", "parrot_paper", "even_languages"):
        assert found[name] == found["parrot"]
    assert found["parrot_released"][4] == pytest.approx(found["parrot"][4], rel=0.01)


@pytest.mark.parametrize(
    ("arm", "form"),
    [("parrot_paper", ParrotConfig.paper), ("parrot_released", ParrotConfig.released)],
)
def test_the_two_forms_of_parrot_are_those_of_the_configuration(arm: str, form: Any) -> None:
    recipe = load_recipe(ROOT / ARMS[arm].base, (*script.STARTER, *ARMS[arm].overrides))
    parrot = recipe.model.parrot
    assert parrot == form(num_experts=6, hidden_size=parrot.hidden_size)


@pytest.mark.parametrize("base", [script.DOMAINS, script.LANGUAGES])
def test_the_base_recipes_draw_the_five_domains_alike(base: str) -> None:
    recipe = load_recipe(ROOT / base, script.STARTER)
    names = [source.name for source in recipe.data.sources]
    assert names == ["charts", "documents", "flags", "digits", "openmoji"]
    assert {source.weight for source in recipe.data.sources} == {1}


@pytest.mark.parametrize(
    ("first", "then", "languages"),
    [("base", script.DOMAINS, None), ("base-english", script.LANGUAGES, ["en"])],
)
def test_the_model_that_arms_start_from_is_made_of_the_parts_they_are_counted_on(
    first: str, then: str, languages: list[str] | None
) -> None:
    base = load_recipe(ROOT / script.FOLDER / f"{first}.yaml")
    counted = load_recipe(ROOT / then, script.STARTER)
    for key in ("language_model", "vision_model", "vision_grid", "chat_template", "projector"):
        assert getattr(base.model, key) == getattr(counted.model, key), key
    assert [source.keep.languages for source in base.data.sources] == [languages] * 5
    paths = [source.path for source in counted.data.sources]
    assert [source.path for source in base.data.sources] == paths


def test_84_percent_are_english() -> None:
    weights = load_recipe(ROOT / script.LANGUAGES, script.STARTER).data.language_weights
    assert weights is not None
    assert weights["en"] == 84
    assert sum(weights.values()) == 100
