"""Recipes: all of it is checked before anything loads, and every problem is told at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_mole.errors import ConfigError
from llava_mole.training.reading import read_mapping
from llava_mole.training.schema import load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def good() -> dict[str, Any]:
    return {
        "output_dir": "out",
        "model": {
            "language_model": "starter",
            "experts": {"num_experts": 4, "r": 8},
            "parrot": {"num_experts": 6},
            "lora": {"r": 16, "target_modules": ["q_proj"]},
        },
        "data": {"sources": [{"path": "train.json"}], "kind_weights": {"naming": 2.0}},
        "stages": [
            {"name": "align", "steps": 10, "learning_rates": {"projector": 1e-3}},
            {
                "name": "instruct",
                "learning_rates": {"experts": 2e-4, "projector": "1e-4"},
                "training": {"gradient_accumulation_steps": 2},
            },
        ],
        "training": {"max_grad_norm": 1.0},
    }


def write(tmp_path: Path, values: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def problems(tmp_path: Path, values: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load_recipe(write(tmp_path, values), overrides)
    return str(refused.value).splitlines()[1:]


def test_a_good_recipe_becomes_dataclasses(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, good()))
    assert recipe.model.experts.num_experts == 4
    assert recipe.model.parrot.num_experts == 6
    assert recipe.stages[1].learning_rates["projector"] == 1e-4  # YAML reads 1e-4 as text
    assert recipe.seed == 0


def test_several_mistakes_are_all_told_with_key_value_and_nearest_match(tmp_path: Path) -> None:
    values = good()
    values["sead"] = 3
    values["model"]["experts"]["gate"] = "scald"
    values["model"]["langage_model"] = "x"
    values["stages"][0]["steps"] = 0
    values["stages"][0]["kind"] = "warmstart"
    values["stages"][1]["warm_start"] = {"token_dropout": 2}
    values["data"]["sources"][0]["paht"] = "y"
    found = problems(tmp_path, values)
    assert len(found) == 7
    text = "\n".join(found)
    for expected in (
        "sead: unknown key; did you mean 'seed'?",
        "gate='scald'",
        "model.langage_model: unknown key; did you mean 'language_model'?",
        "stages.0.steps=0: must be at least 1",
        "stages.0.kind='warmstart': did you mean 'warm_start'?",
        "stages.1.warm_start.token_dropout=2.0: must be at most 0.95",
        "data.sources.0.paht: unknown key; did you mean 'path'?",
    ):
        assert expected in text, expected


def test_a_picture_may_be_shared_where_parrot_reads_no_text(tmp_path: Path) -> None:
    values = good()
    values["stages"][1]["parrot"] = True
    for condition, shares in (("turn", False), ("picture", True), ("nothing", True)):
        values["model"]["parrot"]["condition_on"] = condition
        if shares:
            load_recipe(write(tmp_path, values))
        else:
            [problem] = problems(tmp_path, values)
            assert "share_prefix=true: with Parrot on" in problem


@pytest.mark.parametrize("kind", [5, [], ["naming", 3], {"naming": 1}])
def test_a_warm_starts_kind_is_a_word_or_a_list_of_words(tmp_path: Path, kind: Any) -> None:
    values = good()
    values["stages"].insert(0, {"name": "warm", "kind": "warm_start", "warm_start": {"kind": kind}})
    [problem] = problems(tmp_path, values)
    assert "stages.0 (warm).warm_start.kind=" in problem
    values["stages"][0]["warm_start"]["kind"] = ["naming", "country"]
    load_recipe(write(tmp_path, values))


def test_what_no_single_key_can_tell_is_told_at_once_too(tmp_path: Path) -> None:
    values = good()
    values["stages"][1]["name"] = "align"
    values["stages"][0]["learning_rates"] = {"projectr": 1e-3, "experts": -1}
    values["stages"][1]["parrot"] = True
    values["training"] = {"max_gradnorm": 1, "seed": 4}
    values["minutes"] = 5
    text = "\n".join(problems(tmp_path, values))
    for expected in (
        "two are named 'align'",
        "learning_rates.projectr: unknown part; did you mean 'projector'?",
        "learning_rates.experts=-1.0: must be above 0",
        "share_prefix=true: with Parrot on",
        "training.max_gradnorm: no argument of TrainingArguments; did you mean 'max_grad_norm'?",
        "training.seed: set by seed of the recipe",
        "every stage needs its share_of_time",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["stages"], [], "stages: empty"),
        (["data", "sources"], [], "data.sources: empty"),
        (["stages", 0, "steps"], "ten", "stages.0.steps='ten': expected a whole number"),
        (["stages", 0, "steps"], True, "stages.0.steps=True: expected a whole number"),
        (["stages", 0, "share_prefix"], "no thanks", "expected true or false"),
        (["stages", 0, "learning_rates"], [1], "expected a mapping"),
        (["stages", 0, "learning_rates", "projector"], "fast", "expected a number"),
        (["stages", 1, "learning_rates"], {}, "nothing would be trained"),
        (["model"], "starter", "model='starter': expected a mapping"),
        (["model", "dtype"], "bf16", "model.dtype='bf16'"),
        (["model", "parrot", "top_k"], 9, "parrot.top_k=9: must be from 1 to num_experts=6"),
        (["model", "experts", "num_experts"], 0, "num_experts=0"),
        (["model", "experts", "kernel"], "fused", "kernel='fused'"),
        (["model", "experts", "method"], "molla", "did you mean 'mola'?"),
        (["model", "experts"], {"method": "mola", "gate": "none"}, "experts.gate: unknown key"),
        (["model", "experts"], {"method": "conditional_mixlora"}, "depend on the question"),
        (["seed"], -1, "seed=-1: must be at least 0"),
        (["minutes"], 0, "minutes=0.0: must be above 0"),
        (["stages", 0, "share_of_time"], 1.5, "share_of_time=1.5: must be at most 1"),
    ],
)
def test_a_value_out_of_range_is_refused(
    tmp_path: Path, keys: list[Any], value: Any, message: str
) -> None:
    values = good()
    node: Any = values
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert message in "\n".join(problems(tmp_path, values))


@pytest.mark.parametrize("key", ["output_dir", "model", "data", "stages"])
def test_a_missing_section_is_named(tmp_path: Path, key: str) -> None:
    values = good()
    del values[key]
    assert problems(tmp_path, values) == [f"  {key}: missing"]


def test_parrot_needs_its_description(tmp_path: Path) -> None:
    values = good()
    del values["model"]["parrot"]
    values["stages"][1] |= {"parrot": True, "share_prefix": False}
    assert "model.parrot is empty" in "\n".join(problems(tmp_path, values))


def test_overrides_reach_into_lists_by_name_and_number(tmp_path: Path) -> None:
    path = write(tmp_path, good())
    recipe = load_recipe(
        path,
        ["stages.instruct.steps=7", "--stages.0.learning_rates.projector=1e-5", "model.parrot=null",
         "training.bf16=false", "data.kind_weights={naming: 3}"],
    )  # fmt: skip
    assert recipe.stages[1].steps == 7
    assert recipe.stages[0].learning_rates == {"projector": 1e-5}
    assert recipe.model.parrot is None
    assert recipe.training["bf16"] is False
    assert recipe.data.kind_weights == {"naming": 3.0}


def test_bad_overrides_are_told_with_the_rest(tmp_path: Path) -> None:
    text = "\n".join(
        problems(tmp_path, good(), "seed", "stages.nothere.steps=1", "seeed=1", "stages.0=x")
    )
    assert "'seed': an override looks like" in text
    assert "nothing named 'nothere'" in text
    assert "seeed: unknown key; did you mean 'seed'?" in text
    assert "stages.0: '0' is a list entry" in text


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("data:\n  sources:\n    - name: a\n      path: x\n      name: b\n")
    with pytest.raises(ConfigError, match=r"'name' stands there twice \(first in line 3\)"):
        load_recipe(path)


def test_keys_that_a_merge_brings_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert read_mapping(path, "recipe")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.0.pictures_per_step=64", "say warm_start.pictures_per_step there"),
        ("stages.0.learning_rates.projector=0.5", "say warm_start.learning_rate there"),
        ("stages.1.warm_start.temperature=0.5", "stages.1 (instruct).warm_start: read by"),
        ("data.kind_weights.naming=-1", "data.kind_weights.naming=-1.0: must be"),
        ("stages.0.warm_start.also={colour: .nan}", "also.colour=nan"),
        ("data.variant_share=.nan", "data.variant_share=nan: must be a finite number"),
        ("training.label_smoothing_factor=0.5", "the loss is plain cross-entropy"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, change: str, message: str) -> None:
    values = good()
    values["stages"][0] = {"name": "warm", "kind": "warm_start"}
    assert message in "\n".join(problems(tmp_path, values, change))


RIDGE = ("stages.0.warm_start.method=ridge", "model.projector={type: rbf}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([RIDGE[0]], "method=ridge: needs 'model.projector={type: rbf}', found 'mlp2x_gelu'"),
        ([RIDGE[1]], "method=gradient: a projector of type rbf is solved for"),
        ([RIDGE[1], "stages.warm=null"], "type rbf knows no picture before a warm_start stage"),
        ([*RIDGE, "stages.0.steps=7"], "stages.0 (warm).steps=7: method ridge has no steps"),
        ([*RIDGE, "stages.0.warm_start.feature_noise=1"], "feature_noise: not read by"),
        ([*RIDGE, "stages.0.warm_start.alignment_weight=0", "stages.0.warm_start.also={a: 1}"],
         "alignment_weight=0.0: must be above 0"),
        (["stages.0.warm_start.ridge=0.5"], "warm_start.ridge: read by method ridge only"),
        (["model.projector={type: linear, units: 3}"], "only type 'rbf' has it"),
    ],
)  # fmt: skip
def test_a_projector_and_its_warm_start_belong_together(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    values = good()
    values["stages"][0] = {"name": "warm", "kind": "warm_start"}
    assert message in "\n".join(problems(tmp_path, values, *changes))
    load_recipe(write(tmp_path, values), list(RIDGE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("modules_to_save=[lm_head]", "whole modules are not trained"),
        ("bias=all", "allowed is 'none'"),
        ("lora_alpha=0", "must be a finite number above 0"),
        ("lora_alpha=.nan", "must be a finite number above 0"),
        ("task_type=SEQ_CLS", "it is always CAUSAL_LM"),
        ("task_type=CAUSAL_LM", "leave it out"),
    ],
)
def test_an_option_of_lora_without_effect_is_refused(
    tmp_path: Path, change: str, message: str
) -> None:
    [told] = problems(tmp_path, good(), f"model.lora.{change}")
    assert f"model.lora.{change.split('=')[0]}" in told
    assert message in told


@pytest.mark.parametrize("key", ["training", "stages.instruct.training"])
@pytest.mark.parametrize(
    "change", ["weight_decay=.nan", "max_grad_norm=.inf", "adam_epsilon=nan",
               "lr_scheduler_kwargs={a: -.inf}"],
)  # fmt: skip
def test_numbers_of_the_training_section_are_finite(tmp_path: Path, key: str, change: str) -> None:
    [told] = problems(tmp_path, good(), f"{key}.{change}")
    assert change.split("=")[0] in told
    assert "must be a finite number" in told


def test_with_minutes_the_schedule_is_linear(tmp_path: Path) -> None:
    values = {**good(), "minutes": 5}
    for stage in values["stages"]:
        stage["share_of_time"] = 0.5
    load_recipe(write(tmp_path, values), ["training.lr_scheduler_type=linear"])
    found = problems(tmp_path, values, "training.lr_scheduler_type=cosine")
    assert "lr_scheduler_type='cosine': with minutes" in "\n".join(found)


def test_a_stage_can_be_dropped(tmp_path: Path) -> None:
    names = [stage["name"] for stage in good()["stages"]]
    path = write(tmp_path, good())
    recipe = load_recipe(path, [f"stages.{names[0]}=null"])
    assert [stage.name for stage in recipe.stages] == names[1:]
    assert [stage.name for stage in load_recipe(path, ["stages.1=null"]).stages] == [names[0]]


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml not found"):
        load_recipe(tmp_path / "gone.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        load_recipe(broken)
    broken.write_text("- just\n- a list\n")
    with pytest.raises(ConfigError, match="holds no mapping"):
        load_recipe(broken)


SHIPPED = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    # Start from folders that a user makes; test_published_recipes.py and test_own_data.py do too.
    if path.stem not in ("llava-mole-7b-from-llava-1.5", "own-data")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_recipe_that_ships_is_valid(path: Path) -> None:
    assert load_recipe(path).stages
