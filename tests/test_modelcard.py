"""What a model folder says about itself, and what its parts' licences ask to travel with it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig

from llava_mole import LlavaMoleForConditionalGeneration, provenance
from llava_mole.building import build_model
from llava_mole.configuration import LlavaMoleConfig
from llava_mole.licences import TERMS, Part, whole_licence
from llava_mole.modelcard import ask_for_copy, copy_licences, merged, refresh_card, write_card
from tests.helpers import write_language_model, write_tower

TERMS_TEXT = "the whole licence, word by word"


@pytest.fixture
def saved(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    model, processor = tiny_model("llama", mole=True, lora=True)
    model.save_pretrained(tmp_path / "model", processor=processor)
    return tmp_path / "model"


def base(root: Path, licence: str = "", family: str = "llama", **files: str) -> Path:
    """A language model as published: its card declares a licence, its files lie beside it."""
    folder = write_language_model(root, family)
    (folder / "README.md").write_text(f"---\n{licence}\n---\n# A model\n")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def card(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md").data


def build(tiny_parts: Any, language_model: Path) -> Any:
    """With a tower under the MIT licence."""
    tower = write_tower(language_model.parent / "tower", "vit")
    (tower / "README.md").write_text("---\nlicense: mit\n---\n")
    recipe = tiny_parts.recipe("llama", language_model=language_model)
    recipe.vision_model = f"local-dir:{tower}"
    return build_model(recipe)


# ---------------------------------------------------------------------- metadata


def test_the_metadata_are_what_the_hub_reads(saved: Path) -> None:
    data = card(saved)
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-text-to-text"
    assert {"llava-mole", "mixture-of-lora-experts"} <= set(data.tags)
    # Nothing was trained and the parts are folders without a card: nothing is claimed of them.
    assert data.language is None
    assert data.base_model is None
    assert (data.license, data.license_name) == ("other", "unknown")
    assert "unknown: see where it came from" in (saved / "README.md").read_text()


@pytest.mark.parametrize("licence", ["apache-2.0", "mit"])
def test_permissive_parts_leave_the_choice(tiny_parts: Any, tmp_path: Path, licence: str) -> None:
    folder = base(tmp_path / "b", f"license: {licence}", LICENSE=TERMS_TEXT)
    model, _ = build(tiny_parts, folder)
    model.save_pretrained(tmp_path / "m")
    assert card(tmp_path / "m").license == "apache-2.0"
    copied = tmp_path / "m" / "licences" / "language_model" / "LICENSE"
    assert copied.read_text() == TERMS_TEXT


def test_terms_that_bind_name_the_whole() -> None:
    permissive, gemma = Part("tower", "mit"), Part("Gemma", "gemma")
    llama, unknown = Part("Llama", "llama3.2"), Part("something")
    research = Part("Qwen", "other", "qwen-research", "https://example.org/licence")
    assert whole_licence([permissive, gemma]) == {"license": "gemma"}
    assert whole_licence([permissive, llama]) == {"license": "llama3.2"}
    assert whole_licence([research, permissive]) == {
        "license": "other", "license_name": "qwen-research",
        "license_link": "https://example.org/licence",
    }  # fmt: skip
    assert whole_licence([gemma, llama])["license_name"] == "several"
    assert whole_licence([unknown, permissive])["license_name"] == "unknown"


def test_gemma_is_known_by_its_architecture(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = tiny_model("gemma3_text")
    model.save_pretrained(tmp_path / "m")
    notice = (tmp_path / "m" / "NOTICE").read_text()
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at" in notice
    assert "The language model's own weights: unchanged." in notice


def test_a_card_of_a_part_that_is_no_card_declares_nothing(tiny_parts: Any, tmp_path: Path) -> None:
    folder = base(tmp_path / "b")
    (folder / "README.md").write_text("---\n- a list\n---\n")
    model, _ = build(tiny_parts, folder)
    assert "licence" not in model.config.provenance["language_model"]


# ---------------------------------------------------------------------- licences that ask for more


def test_llamas_licence_is_shown_copied_and_asks_for_a_name(
    tiny_parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base(
        tmp_path / "b", "license: llama3.2", LICENSE__txt=TERMS_TEXT, USE_POLICY__md="policy"
    )
    model, _ = build(tiny_parts, folder)
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path / "m")
    assert "no copy" not in caplog.text
    text = (tmp_path / "m" / "README.md").read_text()
    assert card(tmp_path / "m").license == "llama3.2"
    assert "**Built with Llama**" in text
    assert 'must begin with "Llama"' in text
    assert (
        "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta"
        in (tmp_path / "m" / "NOTICE").read_text()
    )
    beside = tmp_path / "m" / "licences" / "language_model"
    assert sorted(path.name for path in beside.iterdir()) == ["LICENSE.txt", "USE_POLICY.md"]
    model.save_pretrained(tmp_path / "Llama-sees")
    assert "must begin with" not in (tmp_path / "Llama-sees" / "README.md").read_text()


def test_a_licence_text_that_is_not_there_is_asked_for(
    tiny_parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask_for_copy.cache_clear()
    model, _ = build(tiny_parts, base(tmp_path / "b", "license: llama2"))
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path / "m")
        model.save_pretrained(tmp_path / "m")
    assert caplog.text.count("no copy of the Llama 2 Community License lies beside b") == 1
    assert "was not found beside b: add it" in (tmp_path / "m" / "README.md").read_text()


def test_a_licence_of_its_own_is_named_and_linked(tiny_parts: Any, tmp_path: Path) -> None:
    licence = "license: other\nlicense_name: qwen-research\nlicense_link: LICENSE"
    model, _ = build(tiny_parts, base(tmp_path / "b", licence, LICENSE=TERMS_TEXT))
    model.save_pretrained(tmp_path / "m")
    assert "b: qwen-research: see LICENSE" in (tmp_path / "m" / "README.md").read_text()
    assert (tmp_path / "m" / "licences" / "language_model" / "LICENSE").is_file()


def test_the_starters_terms_travel_with_it(starter: Any, tmp_path: Path) -> None:
    text = AutoConfig.from_pretrained(starter.language_model)
    config = LlavaMoleConfig(
        text_config=text, text_source={"name": "starter"}, vision={"model": "starter"}
    )
    config.provenance = provenance.completed(config)
    copied = copy_licences(config, provenance.folders(config), tmp_path)
    write_card(tmp_path, config, "mine", previous=tmp_path / "nothing", copied=copied)
    data = card(tmp_path)
    assert data.license == "gemma"
    assert data.base_model == ["google/gemma-3-270m", "timm/tf_efficientnet_lite0"]
    terms = tmp_path / "licences" / "language_model" / "GEMMA_TERMS.html"
    assert terms.read_bytes() == (starter.root / terms.name).read_bytes()
    assert "`licences/language_model/GEMMA_TERMS.html`" in (tmp_path / "README.md").read_text()


def test_only_licences_are_copied(tiny_parts: Any, tmp_path: Path) -> None:
    folder = base(tmp_path / "b", "license: mit", LICENSE=TERMS_TEXT, notes__txt="private")
    (folder / "license_server.py").write_text("code")
    model, _ = build(tiny_parts, folder)
    model.save_pretrained(tmp_path / "m")
    assert [path.name for path in (tmp_path / "m" / "licences").rglob("*.*")] == []
    assert [path.name for path in (tmp_path / "m" / "licences").rglob("L*")] == ["LICENSE"]


def test_what_is_known_of_a_part_outlives_it(tiny_parts: Any, tmp_path: Path) -> None:
    folder = base(tmp_path / "b", "license: llama3.1", LICENSE=TERMS_TEXT)
    model, _ = build(tiny_parts, folder)
    model.save_pretrained(tmp_path / "m", include_frozen=True)
    shutil.rmtree(folder)
    again = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "m")
    again.save_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "m")
    for name in ("m", "again"):
        assert card(tmp_path / name).license == "llama3.1"
        copied = tmp_path / name / "licences" / "language_model" / "LICENSE"
        assert copied.read_text() == TERMS_TEXT
        assert "base_model" not in card(tmp_path / name).to_dict()


def test_no_path_of_the_machine_is_in_the_card(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    for text in (
        (saved / "README.md").read_text(),
        (saved / "NOTICE").read_text(),
        json.dumps(config["provenance"]),
    ):
        assert "/tmp" not in text
        assert str(saved.parent) not in text


@pytest.mark.parametrize("licence", TERMS)
def test_every_licence_says_where_its_text_is(licence: str) -> None:
    assert TERMS[licence].url.startswith("https://")
    assert "{" not in Part("a part", licence).statement


# ---------------------------------------------------------------------- what was trained


def history(**changes: Any) -> dict[str, Any]:
    return {
        "data": [
            {"name": "drawings", "samples": 1234, "languages": {"en": 1000, "tr": 234},
             "licence": "CC BY-SA 4.0", "attribution": "drawn by somebody"},
            {"name": "charts", "samples": 10, "languages": {"zh": 10}, "hub": "someone/charts"},
        ],
        "stages": [{"name": "instruct", "kind": "language", "steps": 500, "rows": 96,
                    "learning_rates": {"projector": 3e-4, "experts": 1e-3}}],
        "seed": 7, "version": "0.1.0", **changes,
    }  # fmt: skip


def test_training_data_and_rates_are_told(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = tiny_model("llama", mole=True)
    model.config.provenance = {**model.config.provenance, **history()}
    model.save_pretrained(tmp_path / "m")
    data, text = card(tmp_path / "m"), (tmp_path / "m" / "README.md").read_text()
    assert data.language == ["en", "tr", "zh"]
    assert data.datasets == ["someone/charts"]
    assert "| instruct | 500 | 96 | projector: 0.0003, experts: 0.001 |" in text
    assert "| drawings | 1,234 | en, tr | CC BY-SA 4.0 |" in text
    assert "Languages other than en, tr, zh were not trained." in text
    assert "drawn by somebody" in (tmp_path / "m" / "NOTICE").read_text()
    loaded = LlavaMoleForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert loaded.config.provenance["stages"] == history()["stages"]


def test_a_trained_language_model_is_told_to_be_changed(
    tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    model, _ = tiny_model("llama")
    stage = {"name": "a", "kind": "language", "steps": 1, "rows": 1,
             "learning_rates": {"language_model": 1e-5}}  # fmt: skip
    model.config.provenance = {**model.config.provenance, **history(stages=[stage])}
    model.save_pretrained(tmp_path / "m")
    notice = (tmp_path / "m" / "NOTICE").read_text()
    assert "The language model's own weights: changed by training." in notice
    assert "The vision tower's own weights: unchanged." in notice


def test_results_beside_the_run_come_into_the_card(saved: Path) -> None:
    mean = {"condition": "unseen", "kind": "naming", "n": 600, "accuracy": 0.66, "low": 0.58,
            "high": 0.74, "chance": 0.25}  # fmt: skip
    (saved.parent / "report.json").write_text(json.dumps({"after": {"means": [mean]}}))
    refresh_card(saved)
    assert "| unseen | naming | 600 | 66 (58 to 74) | 25 |" in (saved / "README.md").read_text()


def test_a_report_of_something_else_is_no_result(saved: Path) -> None:
    (saved.parent / "report.json").write_text('["another program\'s"]')
    refresh_card(saved)
    assert "## Results" not in (saved / "README.md").read_text()


# ---------------------------------------------------------------------- a person's own words


def test_what_stands_below_the_marker_is_kept(saved: Path, tiny_model: Callable[..., Any]) -> None:
    with (saved / "README.md").open("a") as file:
        file.write("\n## My notes\n")
    model = LlavaMoleForConditionalGeneration.from_pretrained(saved)
    model.config.provenance = {**model.config.provenance, **history()}
    model.save_pretrained(saved)
    text = (saved / "README.md").read_text()
    assert text.endswith("\n## My notes\n")
    assert "| instruct | 500 |" in text


def test_a_card_that_was_changed_is_left_alone_and_told(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = (saved / "README.md").read_text().replace("## Limitations", "## What it cannot do")
    (saved / "README.md").write_text(own)
    model = LlavaMoleForConditionalGeneration.from_pretrained(saved)
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == own
    assert "README.md was changed by hand" in caplog.text


def test_a_card_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    assert merged(tmp_path / "README.md", "# Ours\n") == "# Mine\n"


def test_line_ends_are_no_change(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    (saved / "README.md").write_bytes(text.replace("\n", "\r\n").encode())
    refresh_card(saved)
    assert (saved / "README.md").read_text() == text


def test_an_older_folder_without_provenance_loads_and_gets_one(saved: Path, tmp_path: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    del values["provenance"]
    (saved / "config.json").write_text(json.dumps(values))
    model = LlavaMoleForConditionalGeneration.from_pretrained(saved)
    model.save_pretrained(tmp_path / "new")
    again = LlavaMoleConfig.from_pretrained(tmp_path / "new")
    assert again.provenance["language_model"]["name"] == "llama"
