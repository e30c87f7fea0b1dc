"""Routing of held-out questions: what the pass did, counted apart, whatever the model has."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from llava_mole.configuration import ParrotConfig
from llava_mole.errors import ConfigError, DataError
from llava_mole.evaluation.probes import Probe, read_probes, spread
from llava_mole.evaluation.routing import PARTS, look, shuffled_within
from llava_mole.evaluation.routing_pictures import router_names
from llava_mole.evaluation.routing_report import write_report
from llava_mole.evaluation.routing_summary import read_summaries
from llava_mole.mole import MoleConfig
from llava_mole.processing import IGNORE
from tests.helpers import assistant, picture, user

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "routing_report.py"
QUESTIONS = {"en": "What is shown here?", "ru": "Что это?"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """LLaVA JSON of two domains: four pictures each, asked in two languages."""
    folder = tmp_path_factory.mktemp("probes")
    paths = []
    for number, domain in enumerate(("charts", "flags")):
        items = []
        for index in range(4):
            name = f"{domain}-{index}.png"
            picture(10 * number + index).save(folder / name)
            items += [
                {"image": name, "language": language, "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": f"{domain} {index}"}]}
                for language, question in QUESTIONS.items()
            ]  # fmt: skip
        path = folder / f"{domain}.json"
        path.write_text(json.dumps(items), encoding="utf-8")
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def probes(files: list[Path]) -> list[Probe]:
    return [probe for path in files for probe in read_probes(path.stem, path)]


@pytest.fixture(scope="module")
def parts(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama", mole=True, parrot=True)


@pytest.fixture(scope="module")
def routing(parts: Any, probes: list[Probe]) -> Any:
    return look(*parts, probes, rows_per_batch=3, features=pixels(parts), progress=False)


def pixels(parts: Any) -> Callable[..., torch.Tensor]:
    """Features in float32, so that a pass of the test's own sees the same."""
    model, processor = parts
    return lambda images: model.encode_images(
        processor.image_processor(list(images))["pixel_values"]
    )


# ---------------------------------------------------------------------- what is asked


def test_a_language_has_its_probes_evenly_over_the_file(files: list[Path]) -> None:
    assert spread(["en", "ru"] * 5, 2) == [0, 1, 8, 9]
    assert spread(["en"] * 3, None) == [0, 1, 2]
    few = read_probes("charts", files[0], per_language=2)
    assert [probe.language for probe in few] == ["en", "ru"] * 2
    assert len({probe.picture for probe in few}) == 2
    with pytest.raises(ConfigError, match="items=0"):
        read_probes("charts", files[0], per_language=0)


def test_a_benchmark_file_is_asked_as_the_reports_ask_it(tmp_path: Path) -> None:
    import base64
    import io

    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    columns = ["index", "question", "A", "B", "answer", "category", "image", "language", "comment"]
    rows = [
        ["0", "Which?", "red", "blue", "B", "attribute", image, "en", "picture=p;item=0"],
        ["1", "Which?", "red", "blue", "B", "choice", "0", "en", "picture=p;item=1"],
    ]
    path = tmp_path / "eval_test.tsv"
    path.write_text("\n".join("\t".join(row) for row in [columns, *rows]), encoding="utf-8")
    answered, lettered = read_probes("openmoji", path)
    assert answered.messages[-1]["content"] == "blue"
    assert lettered.messages[-1]["content"] == "B"
    assert "A. red" in lettered.messages[0]["content"][1]["text"]
    assert answered.picture == lettered.picture == ("openmoji", "p")


# ---------------------------------------------------------------------- what is counted


def test_shares_are_those_of_a_pass_of_its_own(
    parts: Any, probes: list[Probe], routing: Any
) -> None:
    """Padding, batches and order change nothing; a token counts for one part."""
    model, processor = parts
    for number in (0, 5, 15):
        probe = probes[number]
        encoded = processor.encode(probe.messages)
        images = [part["image"] for part in probe.messages[0]["content"] if part["type"] == "image"]
        with torch.inference_mode():
            model(**processor.batch([encoded], images))
        ids, labels = torch.tensor(encoded.input_ids), torch.tensor(encoded.labels)
        is_picture, is_answer = ids == processor.image_token_id, labels != IGNORE
        wanted = {"all": torch.ones_like(is_answer), "picture": is_picture, "answer": is_answer,
                  "words": ~is_picture & ~is_answer}  # fmt: skip
        for place, record in enumerate(model.mole.records):
            assert routing.routers[place] == record.name
            for part in PARTS:
                mean = record.chosen()[wanted[part]].mean(0)
                assert_close(routing.shares[part][number, place], mean, rtol=1e-5, atol=1e-6)
        assert [int(routing.tokens[part][number]) for part in PARTS] == [
            int(wanted[part].sum()) for part in PARTS
        ]


def test_means_are_of_questions_not_of_tokens(routing: Any) -> None:
    by_both = routing.means("all", "domain", "language")
    assert set(by_both) == {(d, lang) for d in ("charts", "flags") for lang in QUESTIONS}
    rows = [n for n, p in enumerate(routing.probes) if (p.domain, p.language) == ("flags", "ru")]
    assert_close(by_both["flags", "ru"], routing.shares["all"][rows].mean(0))
    [(key, mean)] = routing.means("all").items()
    assert key == ()
    assert_close(mean.sum(1), torch.ones(len(routing.routers)))


def test_information_shuffles_domains_by_picture_and_languages_within_a_domain(
    routing: Any,
) -> None:
    for label in ("domain", "language"):
        found = routing.information("all", label, shuffles=30)
        assert len(found) == len(routing.routers)
        assert all(one.entropy == pytest.approx(1) for one in found)
    # Eight pictures, four a domain: of 70 splits one (and its mirror) is the true one.
    domain = routing.information("answer", "domain", shuffles=300)
    assert max(one.bits for one in domain) > 0


def test_languages_are_shuffled_within_pictures_where_each_has_several(
    probes: list[Probe], routing: Any
) -> None:
    assert shuffled_within(probes) == "picture"
    assert shuffled_within([*probes, replace(probes[0], picture="alone")]) == "domain"
    # Pictures with experts of their own, whatever the language: within pictures nothing changes.
    own = torch.eye(8)[[number // 2 for number in range(16)]][:, None]
    blind = replace(routing, shares={"all": own}, routers=("one",))
    [found] = blind.information("all", "language", shuffles=20)
    assert (found.bits, found.control, found.p) == (pytest.approx(0, abs=1e-12), 0, 1)


def test_without_parrot_picture_tokens_cannot_know_the_language(
    tiny_model: Callable[..., Any], probes: list[Probe]
) -> None:
    """They come before the question; with Parrot they can."""
    model, processor = tiny_model("llama", mole=True)
    plain = look(model, processor, probes, rows_per_batch=1, progress=False)
    assert max(one.bits for one in plain.information("picture", "language")) < 1e-9
    assert max(one.bits for one in plain.information("words", "language")) > 1e-3
    assert plain.gates is None


def test_gates_are_those_of_the_module_by_language(
    parts: Any, probes: list[Probe], routing: Any
) -> None:
    model, processor = parts
    means = routing.gate_means("language")
    assert set(means) == set(QUESTIONS)
    mean, deviation, count = means["ru"]
    assert (count, mean.shape) == (8, (3,))
    assert_close(mean.sum(), torch.tensor(1.0))
    own = [number for number, probe in enumerate(probes) if probe.language == "ru"]
    assert_close(deviation, routing.gates[own].std(0))
    batch = processor.apply_chat_template(probes[own[0]].messages, tokenize=True)
    features = model.encode_images(batch["pixel_values"])
    gate = model.language_gate(features, batch["question_ids"], batch["question_mask"])
    assert_close(routing.gates[own[0]], gate[0].detach(), rtol=1e-5, atol=1e-6)
    assert routing.gate_information("language").corrected > 0


def test_text_without_a_picture_has_no_gate_and_no_picture_tokens(parts: Any) -> None:
    text = Probe([user("Hello?"), assistant("Yes.")], "text", "en", 0, "x:1")
    shown = Probe([user("What?", picture(1)), assistant("A cat.")], "shown", "en", 1, "x:2")
    for probes in ([text], [text, shown]):
        found = look(*parts, probes, features=pixels(parts), progress=False)
        assert found.gates[0].isnan().all()
        assert found.counted("picture") == list(range(1, len(probes)))
        assert (found.gate_information("domain") is None) == (len(probes) == 1)


def test_what_cannot_be_looked_at_is_refused(parts: Any) -> None:
    with pytest.raises(DataError, match="no held-out question"):
        look(*parts, [], progress=False)
    long = Probe([user("x" * 3000), assistant("Yes.")], "text", "en", 0, "long.json:7")
    with pytest.raises(DataError, match=r"long\.json:7: .* the context holds 2048"):
        look(*parts, [long], progress=False)


# ---------------------------------------------------------------------- any model, on a page


NO_PARROT = "Parrot's module is off"
MODELS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": ({}, ["no experts", NO_PARROT]),
    "ragged": (
        {
            "mole": MoleConfig(
                method="mola", num_experts=(2, 4), r=2, target_modules=("up_proj", "down_proj")
            )
        },
        [NO_PARROT],
    ),
    "always": (
        {"mole": MoleConfig(method="multilora", num_experts=2, r=2)},
        ["there is no choice", NO_PARROT],
    ),
    "control": (
        {"parrot": ParrotConfig(num_experts=3, hidden_size=16, condition_on="nothing")},
        ["no experts", "conditioned on nothing, a control"],
    ),
}
METHODS_WITH_GATES = {
    "loramoe": {"num_experts": 3, "r": 2},
    "smora": {"num_experts": 6, "top_k": 2},
    "conditional_mixlora": {"num_experts": 6, "r": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gets_a_page_that_says_what_it_lacks(
    name: str, tiny_model: Callable[..., Any], probes: list[Probe], tmp_path: Path
) -> None:
    options, lacks = MODELS[name]
    model, processor = tiny_model("llama", **options)
    found = look(model, processor, probes, progress=False)
    assert len(found.missing) == len(lacks)
    assert all(part in said for part, said in zip(lacks, found.missing, strict=True))
    figures = write_report(found, tmp_path, title="<b>", about={"model": "x"}, shuffles=3)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;</h1>" in page
    for file in tmp_path.glob("*.png"):
        assert f'src="{file.name}"' in page
    assert bool(figures["use"]) == bool(found.routers) == (tmp_path / "use-domain-all.png").exists()
    assert bool(found.routers) == (tmp_path / "use-cells-words.png").exists()
    assert (found.gates is not None) == (tmp_path / "gate-language.png").exists()
    if name == "control":
        assert figures["gate"]["information_language"]["corrected"] == pytest.approx(0, abs=1e-6)
    if name == "ragged":
        [whole] = [
            use for use in figures["use"]["all"] if not use["domain"] and not use["language"]
        ]
        assert {len(row) for row in whole["share"]} == {2, 4}


@pytest.mark.parametrize("method", METHODS_WITH_GATES)
def test_dense_experts_units_and_sequences_are_seen_by_their_gates(
    method: str, tiny_model: Callable[..., Any], probes: list[Probe]
) -> None:
    model, processor = tiny_model(
        "llama", mole=MoleConfig(method=method, **METHODS_WITH_GATES[method])
    )
    found = look(model, processor, probes, progress=False)
    for part in PARTS:
        assert_close(found.shares[part].sum(2), torch.ones(len(probes), len(found.routers)))
    assert found.information("words", "language", shuffles=2)[0].bits > 0


def test_names_on_axes_are_layers_or_layers_and_linears() -> None:
    assert router_names(["layers.0.mlp", "layers.11.mlp"]) == ["0", "11"]
    assert router_names(["layers.0.mlp.up_proj", "layers.0.mlp.down_proj"]) == [
        "0 up_proj", "0 down_proj"
    ]  # fmt: skip


# ---------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("routing_report_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_a_folder_that_figures_can_be_worked_out_from(
    script: Any, tiny_model: Callable[..., Any], files: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, processor = tiny_model("gemma3_text", mole=True, parrot=True)
    model.save_pretrained(tmp_path / "model", processor=processor)
    out = tmp_path / "routing"
    named = [f"{path.stem}={path}" for path in files]
    arguments = ["--model", str(tmp_path / "model"), "--out", str(out), "--data", *named]
    kept = tmp_path / "kept" / "mixed-seed-1.json"
    few = ["--items", "2", "--examples", "2", "--shuffles", "5", "--quiet", "--summary", str(kept)]
    few += ["--token-map", str(tmp_path / "pages" / "map.png")]
    assert script.main([*arguments, *few]) == 0
    Image.open(tmp_path / "pages" / "map.png").load()
    assert list(read_summaries(kept.parent)["mixed"]) == [1]
    assert "bits a layer" in capsys.readouterr().out
    figures = json.loads((out / "routing.json").read_text(encoding="utf-8"))
    assert {one["probes"] for one in figures["cells"]} == {2}
    shares = load_file(out / "shares.safetensors")
    rows = [n for n, probe in enumerate(figures["probes"]) if probe["domain"] == "flags"]
    [flags] = [use for use in figures["use"]["picture"]
               if use["domain"] == "flags" and not use["language"]]  # fmt: skip
    assert_close(torch.tensor(flags["share"]), shares["picture"][rows].mean(0))
    page = (out / "index.html").read_text(encoding="utf-8")
    pictures = {file.name for file in out.glob("*.png")}
    assert all(f'src="{name}"' in page for name in pictures)
    assert len([name for name in pictures if name.startswith("example-")]) >= 4
    assert "why-words" in page
    assert "why-gate" in page


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [("charts.json", None, "say NAME=FILE"), ("charts=none.json", None, "none.json"),
     ("charts=x.json", "nowhere", "no model folder")],
)  # fmt: skip
def test_the_script_says_what_is_wrong(
    script: Any, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    data: str, model: str | None, message: str,
) -> None:  # fmt: skip
    arguments = ["--model", model or str(tiny_model_dir), "--out", str(tmp_path), "--data", data]
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_place_for_the_token_map_is_looked_at_first(
    script: Any, tiny_model_dir: Path, files: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for place in (tmp_path, Path(), Path("/proc/map.png")):
        words = ["--model", str(tiny_model_dir), "--out", str(tmp_path / "out"), "--quiet",
                 "--data", f"flags={files[0]}", "--token-map", str(place)]  # fmt: skip
        assert script.main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.glob("out/*"))


def test_a_model_without_experts_has_no_token_map(
    script: Any, tiny_model: Callable[..., Any], files: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, processor = tiny_model("gemma3_text")
    model.save_pretrained(tmp_path / "model", processor=processor)
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--quiet",
                 "--data", f"a={files[0]}", "--token-map", str(tmp_path / "map.png")]  # fmt: skip
    assert script.main(arguments) == 2
    assert "nothing to draw, no experts in" in capsys.readouterr().err
