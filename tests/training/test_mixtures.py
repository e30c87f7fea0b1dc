"""Mixtures in recipes: shares, filters, what does not fit, passes, packing, and `mix`."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from llava_mole.cli import main
from llava_mole.errors import ConfigError, DataError
from llava_mole.features import FeatureStore
from llava_mole.training.data import read_data
from llava_mole.training.mix import mix
from llava_mole.training.run import run_recipe
from llava_mole.training.schema import load_mixture, load_recipe


def write_source(folder: Path, name: str, count: int, *, language: str, words: int = 2) -> Path:
    """Items about the pictures of `data`, with answers of so many words."""
    items = [
        {
            "image": f"images/{number % 6}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is number {number}?"},
                {"from": "gpt", "value": " ".join(["word"] * words)},
            ],
            "domain": name,
            "language": language,
            "kind": "naming",
        }
        for number in range(count)
    ]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


@pytest.fixture
def two_sources(data: Path, recipe_file: Path) -> Path:
    """A recipe over a large source and a small one, one stage."""
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    large = write_source(data, "large", 60, language="en")
    small = write_source(data, "small", 6, language="tr")
    recipe["data"]["sources"] = [{"path": str(large)}, {"path": str(small)}]
    recipe["stages"] = [{**recipe["stages"][1], "questions_per_picture": 1}]
    del recipe["stages"][0]["steps"]
    recipe_file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return recipe_file


def quiet() -> Console:
    return Console(record=True, width=120, file=open("/dev/null", "w"))


def log_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_pass_shows_every_sample_once(two_sources: Path) -> None:
    report = mix(two_sources, ["stages.instruct.passes=1"], console=quiet())
    assert [(s.drawn, s.distinct) for s in report.sources] == [(60, 60), (6, 6)]
    assert report.shares["languages"]["en"] == pytest.approx((60 / 66, 60 / 66))
    assert report.shares["languages"]["tr"] == pytest.approx((6 / 66, 6 / 66))


def test_temperature_evens_shares_and_says_what_is_repeated(two_sources: Path) -> None:
    overrides = ["data.temperature=1e9", "stages.instruct.passes=1"]
    console = quiet()
    report = mix(two_sources, overrides, console=console)
    assert [s.drawn for s in report.sources] == [60, 60]
    (warning,) = report.warnings()
    assert "small: each of its 6 samples comes 10.0 times" in warning
    assert "comes 10.0 times" in " ".join(console.export_text().split())


def test_a_repeat_limit_holds_and_is_reported(two_sources: Path) -> None:
    overrides = ["data.temperature=1e9", "data.repeat_limit=2", "stages.instruct.passes=1"]
    report = mix(two_sources, overrides, console=quiet())
    assert report.sources[1].drawn == 12
    assert "held at its repeat limit of 2" in report.warnings()[0]


def test_a_stage_of_passes_trains_that_many_rows(two_sources: Path, tmp_path: Path) -> None:
    recipe = load_recipe(two_sources, ["stages.instruct.passes=0.5"])
    run_recipe(recipe)
    steps = [line["step"] for line in log_lines(tmp_path / "run") if "loss" in line]
    assert max(steps) == 17  # 33 rows, two a step


def test_a_packed_run_trains_alike(two_sources: Path, tmp_path: Path) -> None:
    """Same weights, same rows: the first loss is that of separate rows, with less padding."""
    first = []
    for name, packing in (("plain", "null"), ("packed", "200")):
        out = tmp_path / name
        overrides = [f"output_dir={out}", f"stages.instruct.packing={packing}",
                     "stages.instruct.steps=1", "stages.instruct.pictures_per_step=6"]  # fmt: skip
        run_recipe(load_recipe(two_sources, overrides))
        first.append(next(line for line in log_lines(out) if "loss" in line))
    # Float32 sums in another order.
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-4)
    assert first[1]["real_tokens"] >= first[0]["real_tokens"]


def test_what_is_too_long_is_refused_by_name_before_training(two_sources: Path, data: Path) -> None:
    long = write_source(data, "long", 2, language="en", words=60)
    recipe = load_recipe(two_sources, [f"data.sources.1.path={long}", "data.max_length=60"])
    with pytest.raises(DataError, match=r"2 of 62 samples are longer than 60.*long\.json:1.*drop"):
        run_recipe(recipe)


def test_a_stage_that_starts_over_says_so_and_how_to_go_on(
    two_sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["stages.instruct.steps=3", "training={logging_steps: 1}"]
    run_recipe(load_recipe(two_sources, overrides))
    (stage,) = (tmp_path / "run" / "stages").iterdir()
    shutil.rmtree(stage / "model")  # as if it had been killed at its end
    with caplog.at_level(logging.WARNING):
        run_recipe(load_recipe(two_sources, overrides))
    assert "its first 3 steps are done again (training.save_steps" in caplog.text


def test_save_steps_alone_write_checkpoints_to_go_on_from(
    two_sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["stages.instruct.steps=3", "training={save_steps: 2}"]
    run_recipe(load_recipe(two_sources, overrides))
    (stage,) = (tmp_path / "run" / "stages").iterdir()
    assert (stage / "checkpoint-2" / "trainer_state.json").is_file()
    shutil.rmtree(stage / "model")
    shutil.rmtree(stage / "checkpoint-3", ignore_errors=True)
    with caplog.at_level(logging.INFO):
        run_recipe(load_recipe(two_sources, overrides))
    assert "goes on after step 2" in caplog.text


def test_many_short_turns_are_too_long_as_well(two_sources: Path, data: Path) -> None:
    turns = [{"from": side, "value": "a"} for _ in range(300) for side in ("human", "gpt")]
    items = [{"id": str(n), "language": "tr", "conversations": turns[: 2 * n]} for n in (1, 300)]
    many = data / "many.json"
    many.write_text(json.dumps(items), encoding="utf-8")
    recipe = load_recipe(two_sources, [f"data.sources.1.path={many}", "data.max_length=1100",
                                       "model.chat_template=chatml"])  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 62 samples are longer than 1100.*many\.json:1"):
        run_recipe(recipe)


def test_mix_leaves_out_what_training_leaves_out(two_sources: Path, data: Path) -> None:
    long = write_source(data, "long", 1, language="tr", words=5000)
    overrides = [f"data.sources.1.path={long}", "data.too_long=drop"]
    report = mix(two_sources, [*overrides, "data.max_length=99999999"], console=quiet())
    assert report.sources[1].left_out == {"too long": 1}
    with pytest.raises(DataError, match="longer than"):
        mix(two_sources, overrides[:1], console=quiet())


def test_what_is_too_long_may_be_left_out_counted_and_listed(
    two_sources: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = write_source(data, "long", 6, language="tr", words=60)
    items = json.loads(long.read_text(encoding="utf-8"))
    items[0]["conversations"][1]["value"] = "short"
    long.write_text(json.dumps(items), encoding="utf-8")
    overrides = [f"data.sources.1.path={long}", "data.max_length=60", "data.too_long=drop",
                 "stages.instruct.steps=2"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        run_recipe(load_recipe(two_sources, overrides))
    assert "5 of 66 samples are longer than 60 tokens" in caplog.text
    lines = (tmp_path / "run" / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    assert all("long.json:1" in json.loads(line)["where"] for line in lines)
    assert {json.loads(line)["source"] for line in lines} == {"long"}
    assert "long: 5 of 6" in caplog.text
    report = mix(two_sources, overrides, console=quiet())
    assert report.sources[1].left_out == {"too long": 5}


def test_features_go_to_disk_and_the_next_run_finds_them(
    two_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"data.feature_cache={{folder: {tmp_path / 'features'}}}"
    overrides = [cache, "stages.instruct.steps=2"]
    first = run_recipe(load_recipe(two_sources, overrides))
    kept = first.features(read_data(load_recipe(two_sources).data).pictures())
    assert any((tmp_path / "features").rglob("*"))
    calls = []
    compute = FeatureStore._compute

    def counted(self: FeatureStore, pictures: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(pictures))
        return compute(self, pictures, *rest, **options)

    monkeypatch.setattr(FeatureStore, "_compute", counted)
    again = run_recipe(load_recipe(two_sources, [*overrides, f"output_dir={tmp_path / 'again'}"]))
    assert sum(calls) == 0
    assert again.features(read_data(load_recipe(two_sources).data).pictures()).equal(kept)


def test_sources_of_different_layouts_are_mixed(two_sources: Path, data: Path) -> None:
    asked = {"type": "text", "text": "Is it?"}
    answered = {"role": "assistant", "content": "yes"}
    lines = [
        {"messages": [{"role": "user", "content": [{"type": "image"}, asked]}, answered],
         "images": ["images/1.png"]}
        for _ in range(5)
    ]  # fmt: skip
    path = data / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = f"{{path: {path}, language: en, domain: chat}}"
    values = yaml.safe_load(two_sources.read_text(encoding="utf-8"))
    values["data"]["sources"][1] = yaml.safe_load(source)
    two_sources.write_text(yaml.safe_dump(values), encoding="utf-8")
    report = mix(two_sources, ["stages.instruct.passes=1"], console=quiet())
    assert [s.described for s in report.sources] == [
        "LLaVA JSON list, 60 items",
        "messages JSONL, 5 items",
    ]
    assert set(report.shares["domains"]) == {"large", "chat"}


def test_the_data_section_may_be_a_file_of_its_own(two_sources: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(two_sources.read_text(encoding="utf-8"))
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump(values["data"]), encoding="utf-8")
    values["data"] = "mixture.yaml"
    two_sources.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert load_recipe(two_sources).data == load_mixture(tmp_path / "mixture.yaml")
    assert load_recipe(two_sources, ["data.temperature=3"]).data.temperature == 3
    report = mix(tmp_path / "mixture.yaml", ["data.sources.1.weight=null"], console=quiet())
    assert report.rows == 66


def test_every_problem_of_a_mixture_is_listed_at_once(two_sources: Path) -> None:
    overrides = ["data.temperature=0", "data.length=never", "data.sources.0.weight=1",
                 "data.too_long=cut", "data.sources.1.keep={language: [en]}"]  # fmt: skip
    with pytest.raises(ConfigError) as found:
        load_recipe(two_sources, overrides)
    for part in ("temperature=0", "too_long='cut'", "keep.language: unknown key; did you mean"):
        assert part in str(found.value)
    with pytest.raises(ConfigError) as found:
        load_recipe(two_sources, ["data.length=never", "data.sources.0.weight=1"])
    assert "length='never'" in str(found.value)
    assert "weight is given for large but not for small" in str(found.value)


def test_mix_prints_saves_a_picture_and_a_report(
    two_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, report = tmp_path / "out" / "mix.png", tmp_path / "out" / "mix.json"
    code = main(["mix", str(two_sources), "--show", "3", "--picture", str(picture),
                 "--json", str(report), "stages.instruct.passes=1"])  # fmt: skip
    assert code == 0
    text = capsys.readouterr().out
    assert "large.json:" in text
    assert "What is number" in text
    with Image.open(picture) as drawn:
        assert drawn.width > 500
    saved = json.loads(report.read_text(encoding="utf-8"))
    assert saved["rows"] == 66
    assert saved["sources"][0]["tokens_per_sample"] > 5


def test_the_picture_of_a_mix_goes_to_the_output_folder_or_beside_the_mixture(
    two_sources: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "two.yaml"
    mixture.write_text(yaml.safe_dump(yaml.safe_load(two_sources.read_text("utf-8"))["data"]))
    out = tmp_path / "run"
    assert main(["mix", str(two_sources), "--no-tokens", f"output_dir={out}"]) == 0
    assert main(["mix", str(mixture)]) == 0
    for picture in (out / "mix.png", tmp_path / "two.mix.png"):
        with Image.open(picture) as drawn:
            assert drawn.width > 500
        picture.unlink()
    assert main(["mix", str(mixture), "--no-picture"]) == 0
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml not found"),
        (["RECIPE", "data.kind_weights={namign: 2}"],
         "kind_weights.namign: no sample is of that kind; there are"),
        (["RECIPE", f"data.length={10**400}"], "must be at most"),
        (["RECIPE", f"data.sources.0.path={'x' * 5000}"], "x: no such file"),
        (["RECIPE", "--json", "/"], "--json /: is a folder"),
        (["RECIPE", "--json", "/proc/x/y.json"], "--json /proc/x/y.json: "),
        (["RECIPE", "--picture", "mix.xyz"], "png, pdf, svg"),
        (["RECIPE", "--stage", "warm"], "has the language stages instruct"),
        (["RECIPE", "data.sources.0.keep={languages: [xx]}"], "no sample has 'xx'"),
        (["RECIPE", "data.sources.0.keep={max_bytes: 1}", "data.sources.1.keep={max_bytes: 1}"],
         "every one of 66 samples is left out (over 1 bytes)"),
    ],
)  # fmt: skip
def test_mix_says_what_is_wrong(
    two_sources: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    argv = [str(two_sources) if word == "RECIPE" else word for word in arguments]
    assert main(["mix", *argv, f"output_dir={two_sources.parent / 'out'}"]) == 2
    assert said in capsys.readouterr().err


def test_languages_come_in_the_shares_that_the_recipe_says(two_sources: Path, data: Path) -> None:
    both = json.loads(Path(data / "train.json").read_text(encoding="utf-8"))
    (data / "both.json").write_text(json.dumps(both), encoding="utf-8")
    overrides = [f"data.sources=[{{path: {data / 'both.json'}}}]",
                 "data.language_weights={en: 84, tr: 16}", "data.length=200",
                 "stages.instruct.passes=1"]  # fmt: skip
    report = mix(two_sources, overrides, console=quiet())
    assert [source.name for source in report.sources] == ["both/en", "both/tr"]
    assert report.shares["languages"]["en"] == pytest.approx((0.84, 0.84))
    with pytest.raises(ConfigError, match=r"language_weights: nothing for 'tr'"):
        mix(two_sources, [*overrides, "data.language_weights={en: 1}"], console=quiet())


def test_a_warm_start_reads_what_takes_part_alone(two_sources: Path, data: Path) -> None:
    path = data / "train.json"
    everything = read_data(load_recipe(two_sources, [f"data.sources=[{{path: {path}}}]"]).data)
    assert everything.kept() is everything.samples
    for filtered in (
        [f"data.sources=[{{path: {path}, keep: {{languages: [tr]}}}}]"],
        [f"data.sources=[{{path: {path}}}]", "data.language_weights={tr: 1, en: 0}"],
    ):
        read = read_data(load_recipe(two_sources, filtered).data)
        kept = list(read.kept())
        assert [sample.source for sample in kept] == [
            sample.source for sample in read.samples if sample.language == "tr"
        ]
        assert len(kept) == 6
        assert kept[-1] == read.kept()[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.language_weights={en: -1}"], r"language_weights.en=-1.0: must be a finite number"),
        (["data.language_weights={en: 0}"], "language_weights: all are 0"),
        (["data.language_weights={en: 1}", "data.sources.large.cap=5"], "cap=5 limits a size"),
    ],
)
def test_language_weights_that_make_no_sense_are_refused_at_once(
    two_sources: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(two_sources, overrides)
