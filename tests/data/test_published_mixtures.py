"""The published mixtures: each loads, reads its sources as published, gives the paper's shares.

Sources are a few records each, in the papers' proportions, written as their owners publish them;
what data/README.md cleans is cleaned by the code that stands there.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llava_mole.training.data import read_data
from llava_mole.training.mix import MixReport, mix_report, one_pass
from llava_mole.training.schema import load_mixture

ROOT = Path(__file__).resolve().parents[2]
MIXTURES = sorted((ROOT / "data/mixtures").glob("*.yaml"))
README = (ROOT / "data/README.md").read_text(encoding="utf-8").split("## Published datasets")[1]
LANGUAGES = {"zh": ("zh_71k", 71), "pt": ("pt_14k", 14), "ar": ("ar_12k", 12),
             "tr": ("tr_17k", 17), "ru": ("ru_14k", 14)}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAVA_MOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    datasets.disable_progress_bars()
    return tmp_path


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (seed % 256, 90, seed // 256)).save(file, "PNG")
    return file.getvalue()


def write_picture(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png(len(path)))


def write_llava(path: str, count: int, image: str, *, text_only: int = 0) -> None:
    """A JSON list as LLaVA publishes it; the last records have no picture."""
    records: list[dict[str, Any]] = []
    for number in range(count):
        shown = number < count - text_only
        asked = "<image>\nWhat is this?" if shown else "Say hello."
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"Number {number}."}]
        records.append({"id": str(number), "conversations": turns})
        records[-1].update({"image": image} if shown else {"model": ""})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(records), encoding="utf-8")


def write_llava_665k() -> None:
    write_picture("datasets/images/coco/train2017/1.jpg")
    path = "datasets/llava-665k/llava_v1_5_mix665k.json"
    write_llava(path, 665, "coco/train2017/1.jpg", text_only=41)


def write_sharegpt4v(name: str, count: int) -> None:
    write_picture("datasets/images/sam/images/sa_1.jpg")
    write_llava(f"datasets/sharegpt4v/{name}.json", count, "sam/images/sa_1.jpg")


def write_parrot_languages() -> None:
    write_llava_665k()
    for name, count in LANGUAGES.values():
        path = f"datasets/parrot/sharegpt_4v/sharegpt4v_sft_{name}.json"
        write_llava(path, count, "coco/train2017/1.jpg")


def write_parrot_captions() -> None:
    image = "00453/004539375.jpg"
    write_picture(f"datasets/images/llava/llava_pretrain/images/{image}")
    write_llava("datasets/llava-pretrain/blip_laion_cc_sbu_558k.json", 558, image)
    for name, count in (("laion-12k", 12), ("cc12m-645k", 645)):
        write_picture(f"datasets/images/parrot_{name.split('-')[0]}/1.jpg")
        write_llava(f"datasets/parrot/{name}.json", count, "1.jpg")


def write_parquet(path: str, count: int, columns: dict[str, str]) -> None:
    images = [{"bytes": png(number), "path": f"{number}.jpg"} for number in range(count)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    texts = {
        name: [f"{text} {number}?" for number in range(count)] for name, text in columns.items()
    }
    pq.write_table(pa.table({"image": images, **texts}), path)


def write_three_domains() -> None:
    """M3IT, ShareGPT4V, UReader and PathVQA, a record for 10,000."""
    m3it = {"instruction": "Answer.", "inputs": "What is", "outputs": "Thing"}
    write_parquet("datasets/m3it/data/train-00000-of-00153-1a2b.parquet", 124, m3it)
    pathvqa = {"question": "Where", "answer": "Canals of Hering"}
    for split, count in (("train", 2), ("test", 3)):
        path = f"datasets/pathvqa/data/{split}-00000-of-00001-3c4d.parquet"
        write_parquet(path, count, pathvqa)
    write_sharegpt4v("sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k", 67)
    write_picture("datasets/ureader/ureader_images/ChartQA/1.png")
    Path("datasets/ureader/ureader_json").mkdir(parents=True)
    for part, answers in (("train", ["Nigeria"] * 60 + [None]), ("val", ["1997"] * 5)):
        lines = [json.dumps(ureader_record(answer)) + "\n" for answer in answers]
        Path(f"datasets/ureader/ureader_json/{part}.jsonl").write_text("".join(lines))
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, {})


def ureader_record(answer: str | None) -> dict[str, Any]:
    said = [("user", "<image>"), ("user", "Which bar is longest?"), ("assistant", answer)]
    return {
        "image": ["ChartQA/1.png"], "prompt": "", "text": "", "system_instruction": "",
        "conversations": [{"from": role, "value": text} for role, text in said],
        "task_type": "qa_sft",
    }  # fmt: skip


def report_of(name: str, *overrides: str) -> MixReport:
    data = read_data(load_mixture(ROOT / f"data/mixtures/{name}.yaml", overrides), progress=False)
    return mix_report(data, one_pass(data, 1), progress=False)


def drawn(report: MixReport) -> dict[str, int]:
    return {source.name: source.drawn for source in report.sources}


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_a_mixture_loads_and_names_only_what_the_readme_tells_to_download(path: Path) -> None:
    assert f"mixtures/{path.name}" in README
    for source in load_mixture(path).sources:
        for place in filter(None, (source.path, source.image_root)):
            parent = "/".join(Path(place).parts[:2])
            assert f"{parent}/" in README, f"{place} of {source.name}"


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_the_first_line_tells_how_to_look_at_the_mixture(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# llava-mole mix data/mixtures/{path.name}: ")


@pytest.mark.parametrize(
    ("name", "write", "pictured"),
    [
        ("llava-665k", write_llava_665k, 624),
        (
            "llava-mole-stage1",
            lambda: write_sharegpt4v("share-captioner_coco_lcs_sam_1246k_1107", 1246),
            1246,
        ),
    ],
)
def test_a_mix_of_one_file_is_drawn_once(
    here: Path, name: str, write: Callable[[], None], pictured: int
) -> None:
    write()
    report = report_of(name)
    (source,) = report.sources
    assert (source.realised, source.passes, source.distinct) == (1.0, 1.0, source.held)
    assert report.shares["languages"] == {"en": (1.0, 1.0)}
    data = read_data(load_mixture(ROOT / f"data/mixtures/{name}.yaml"), progress=False)
    assert int(data.sources[0].index().images.sum()) == pictured
    assert report.warnings() == []


def test_llava_mole_mixes_23_11_and_4_parts_of_three_domains(here: Path) -> None:
    write_three_domains()
    report = report_of("llava-mole-general-document-biomedical", "data.length=380")
    assert drawn(report) == {"m3it": 160, "sharegpt4v": 70, "ureader": 110, "pathvqa": 40}
    realised = {name: share for name, (_, share) in report.shares["domains"].items()}
    assert realised == pytest.approx(
        {"general": 230 / 380, "document": 110 / 380, "biomedical": 40 / 380}
    )
    held = {source.name: source.held for source in report.sources}
    assert held == {"m3it": 124, "sharegpt4v": 67, "ureader": 65, "pathvqa": 2}
    (warning,) = report.warnings()
    assert "pathvqa: each of its 2 samples comes 20.0 times" in warning


def test_llava_moles_other_mixes_are_overrides(here: Path) -> None:
    write_three_domains()
    name = "llava-mole-general-document-biomedical"
    two = drawn(report_of(name, "data.sources.pathvqa.weight=0", "data.length=340"))
    assert two == {"m3it": 160, "sharegpt4v": 70, "ureader": 110, "pathvqa": 0}
    twice = drawn(report_of(name, "data.length=760"))
    assert twice == {"m3it": 320, "sharegpt4v": 140, "ureader": 220, "pathvqa": 80}


def test_three_domains_keep_questions_answers_and_pictures(here: Path) -> None:
    write_three_domains()
    recipe = load_mixture(ROOT / "data/mixtures/llava-mole-general-document-biomedical.yaml")
    m3it, _, ureader, pathvqa = read_data(recipe, progress=False).sources
    said = {source.name: [turn.text for turn in source[0].turns] for source in (m3it, pathvqa)}
    assert said["m3it"] == ["<image>\nAnswer. 0?\nWhat is 0?", "Thing 0?"]
    assert said["pathvqa"] == ["<image>\nWhere 0?", "Canals of Hering 0?"]
    assert pathvqa[0].images == (png(0),)
    assert len(pathvqa) == 2
    assert [turn.text for turn in ureader[0].turns] == ["<image>\nWhich bar is longest?", "Nigeria"]
    assert ureader[0].images[0] == Path("datasets/ureader/ureader_images/ChartQA/1.png")


def test_parrots_captions_come_once(here: Path) -> None:
    write_parrot_captions()
    report = report_of("parrot-stage1")
    assert drawn(report) == {"llava-558k": 558, "laion-12k": 12, "cc12m-645k": 645}
    assert all(source.passes == 1 for source in report.sources)
    without = ("data.sources.laion-12k=null", "data.sources.cc12m-645k=null")
    assert drawn(report_of("parrot-stage1", *without)) == {"llava-558k": 558}


def test_parrots_six_languages_come_in_the_papers_shares(here: Path) -> None:
    write_parrot_languages()
    report = report_of("parrot-stage2")
    counts = {"en": 665, **{language: count for language, (_, count) in LANGUAGES.items()}}
    expected = {language: count / 793 for language, count in counts.items()}
    realised = {name: share for name, (_, share) in report.shares["languages"].items()}
    assert realised == pytest.approx(expected)
    assert all(source.passes == 1 for source in report.sources)


def test_parrots_small_languages_gain_by_temperature(here: Path) -> None:
    write_parrot_languages()
    report = report_of("parrot-stage2", "data.temperature=2", "data.repeat_limit=4")
    realised = {name: share for name, (_, share) in report.shares["languages"].items()}
    assert realised["en"] == pytest.approx(0.60, abs=0.01)
    assert max(source.passes for source in report.sources) == pytest.approx(4)
