"""Sweep files: every problem at once, each with its line; arms and grids unfolded into recipes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llava_mole.cli import build_parser
from llava_mole.errors import ConfigError
from llava_mole.sweeping.plan import in_one_line, plan_runs, recipe_digest
from llava_mole.sweeping.sweep_file import Arm, Choice, Claim, Evaluation, Sweep, read_sweep

ROOT = Path(__file__).resolve().parents[2]

WRONG = """\
base: recipe.yaml
output_dir: out
seeds: [0, 0, -1]
arms:
  lora:
    sett: {model.lora.r: 4}
  mo/e:
    set: {seed: 3}
evaluate:
  domains: {shapes: shapes}
  items: 0
  languages: [en, xx]
claims:
  first_claim: {first: lorra, second: lora}
  second: {first: {lora: 2}, second: lora, direction: up, measure: gain}
keep: modell
"""


def problems_of(folder: Path, text: str) -> list[str]:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_sweep(path)
    return str(error.value).splitlines()


def test_every_wrong_key_is_listed_with_its_line_and_the_nearest(tmp_path):
    head, *lines = problems_of(tmp_path, WRONG)
    assert head.endswith(": 4 problems")
    assert lines == [
        "  sweep.yaml:6: arms.lora.sett: unknown key; did you mean 'set'?",
        "  sweep.yaml:11: evaluate.items=0: must be at least 1",
        "  sweep.yaml:15: claims.second.direction='up': "
        "(known: greater, less, different, not_worse)",
        "  sweep.yaml:16: keep='modell': did you mean 'model'?",
    ]


def test_what_no_key_can_tell_alone_is_listed_too(tmp_path):
    text = WRONG.replace("sett:", "set:").replace("items: 0", "items: 3")
    text = text.replace("up", "less").replace("modell", "model")
    _, *lines = problems_of(tmp_path, text)
    found = {line.split(":")[1]: line for line in lines}
    assert "seeds: 0 stands there twice" in lines[0]
    assert any("seeds=-1: must be from 0 to" in line for line in lines)
    assert "arms.mo/e: a name is made of letters" in found["7"]
    assert "arms.mo/e.set.seed: a sweep sets it; say seeds" in found["8"]
    assert "unknown 'xx'" in found["12"]
    assert "claims.first_claim.first: unknown 'lorra'; did you mean 'lora'?" in found["14"]
    assert "measure=gain: needs evaluate.withheld" in lines[-1]
    assert any("add up to 2, of the second to 1" in line for line in lines)


def test_a_name_that_yaml_reads_as_something_else_is_refused(tmp_path):
    text = WRONG.replace("  lora:\n    sett: {model.lora.r: 4}", "  on: {}\n  2024: {}")
    text = text.replace("mo/e", "moe").replace("items: 0", "items: 3\n  kinds: []")
    text = text.replace("{shapes: shapes}", "{7: shapes}").replace("up", "less")
    text += "grid:\n  rank: {8: {model.lora.r: 8}}\n  rate: {}\n"
    _, *lines = problems_of(tmp_path, text.replace("modell", "model"))
    said = "\n".join(lines)
    assert "arms.True: YAML reads True here; a name in quotes" in said
    assert "arms.2024: YAML reads 2024 here" in said
    assert "evaluate.domains.7: YAML reads 7 here" in said
    assert "grid.rank.8: YAML reads 8 here" in said
    assert "grid.rate: empty" in said


def test_what_would_be_told_after_training_is_told_before(tmp_path):
    text = WRONG.replace("sett:", "set:").replace("mo/e:\n    set: {seed: 3}", "moe: {}")
    text = text.replace("-1]", f"{2**32}]").replace("items: 0", "kinds: []\n  normalization: mean")
    text = text.replace("{first: {lora: 2}, second: lora", "{first: {lora: 2.e+308}, second: lora")
    _, *lines = problems_of(tmp_path, text.replace("up", "less").replace("modell", "model"))
    said = "\n".join(lines)
    assert f"seeds={2**32}: must be from 0 to {2**32 - 1}" in said
    assert "evaluate.kinds: empty; leave the key out for all" in said
    assert "a weight is a number of at most 1000" in said
    wrong = text.replace("normalization: mean", "normalization: avg")
    assert any("evaluate.normalization='avg'" in line for line in problems_of(tmp_path, wrong))


def test_a_mistake_in_what_all_arms_share_is_told_there(sweep_file):
    path = sweep_file(set={"model.loraa.r": 4})
    with pytest.raises(ConfigError, match=r"sweep.yaml:\d+: set\.model\.loraa\.r: model\.loraa"):
        plan_runs(read_sweep(path), path)


def test_a_start_that_is_not_there_yet_keeps_no_other_arm(sweep_file):
    path = sweep_file(arms__moe__set={"model.start_from": "not/yet"})
    sweep = read_sweep(path)
    assert {run.arm for run in plan_runs(sweep, path, arms=["lora"])} == {"lora"}
    for arms in (["moe"], ["lora", "moe"], None):
        with pytest.raises(ConfigError, match=r"arms\.moe: model.start_from: no folder"):
            plan_runs(sweep, path, arms=arms)


def test_an_arm_counts_only_where_it_is_scored(sweep_file):
    path = sweep_file(
        arms__lora__domains=["shapes"],
        arms__moe__domains=["shapess"],
        composed={"both": {"shapes": "lora", "noise": "lora"}},
        claims={"all": {"first": "both", "second": "lora"},
                "there": {"first": "both", "second": "lora", "domains": ["shapes"]}},
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        read_sweep(path)
    said = [line.split(": ", 1)[1] for line in str(error.value).splitlines()[1:]]
    assert said == [
        "arms.moe.domains: unknown 'shapess'; did you mean 'shapes'?",
        "composed.both.noise: 'lora' is not scored on noise (arms.lora.domains)",
        "claims.all.second: 'lora' is not scored on noise (arms.lora.domains)",
    ]


def test_a_name_that_reads_like_a_grids_is_refused_among_the_others(sweep_file):
    path = sweep_file(arms={"a+b": {}, "c": {}}, claims={"it": {"first": "a+b", "second": "c"}})
    with pytest.raises(ConfigError, match=r"arms\.a\+b: a name is made of letters"):
        read_sweep(path)


def test_a_key_that_stands_there_twice_is_refused(sweep_file):
    path = sweep_file()
    path.write_text(path.read_text("utf-8") + "seeds: [3]\n", "utf-8")
    with pytest.raises(ConfigError, match="stands there twice"):
        read_sweep(path)


def test_problems_of_arms_are_told_with_the_arm_and_those_of_the_base_once(sweep_file):
    alpha = {"set": {"model.lora.lora_alpha": -1}}
    path = sweep_file(arms__bad={"set": {"stages.instruct.stepps": 5}}, arms__worse=alpha)
    with pytest.raises(ConfigError) as error:
        plan_runs(read_sweep(path), path)
    text = str(error.value)
    assert "arms.bad: stages.0.stepps: unknown key" in text
    assert "arms.worse: model.lora.lora_alpha=-1" in text
    assert "arms.lora" not in text
    recipe = yaml.safe_load(Path(path.parent / "recipe.yaml").read_text("utf-8"))
    recipe["stages"][0]["pictures_per_step"] = 0
    (path.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    with pytest.raises(ConfigError) as error:
        plan_runs(read_sweep(path), path)
    assert str(error.value).count("pictures_per_step") == 1


def test_arms_change_the_base_and_seeds_come_whole(sweep_file: Callable[..., Path]):
    path = sweep_file(set={"stages.instruct.steps": 2})
    sweep = read_sweep(path)
    runs = plan_runs(sweep, path)
    assert [run.name for run in runs] == ["lora/seed-0", "moe/seed-0", "lora/seed-1", "moe/seed-1"]
    lora, moe = runs[:2]
    assert lora.recipe.model.experts is None
    assert moe.recipe.model.experts.num_experts == 2
    assert moe.recipe.stages[0].steps == 2
    assert moe.recipe.output_dir == str(sweep.out / "runs" / "moe" / "seed-0")
    assert [run.recipe.seed for run in runs] == [0, 0, 1, 1]
    assert len({run.digest for run in runs}) == 4
    assert [run.name for run in plan_runs(sweep, path, arms=["moe"], seeds=[1])] == ["moe/seed-1"]
    with pytest.raises(ConfigError, match="--only: unknown 'mo'"):
        plan_runs(sweep, path, arms=["mo"])


def test_a_grid_makes_every_arm_with_every_label(sweep_file):
    rank = {"r2": {"model.lora.r": 2}, "r4": {"model.lora.r": 4, "model.lora.lora_alpha": 8}}
    steps = {"short": {"stages.instruct.steps": 1}, "long": {"stages.instruct.steps": 9}}
    claims = {"rank": {"first": "moe+r4+long", "second": "moe+r2+long"}}
    path = sweep_file(grid={"rank": rank, "steps": steps}, claims=claims)
    sweep = read_sweep(path)
    assert sweep.arm_names()[:3] == ["lora+r2+short", "lora+r2+long", "lora+r4+short"]
    (run,) = plan_runs(sweep, path, arms=["moe+r4+long"], seeds=[0])
    assert run.recipe.model.lora["lora_alpha"] == 8
    assert run.recipe.model.experts is not None
    assert run.recipe.stages[0].steps == 9


@pytest.mark.parametrize(
    "value", [1e-5, 3, True, None, "text: with colon", [1, "b"], {"a": {"b": [0.5, None]}}, "1e-3"]
)
def test_an_override_keeps_its_value(value):
    assert yaml.safe_load(in_one_line(value)) == value
    assert "\n" not in in_one_line(value)


def test_a_digest_is_of_what_moves_weights_and_of_the_data(sweep_file):
    path = sweep_file()
    (run,) = plan_runs(read_sweep(path), path, arms=["lora"], seeds=[0])
    recipe = run.recipe
    recipe.workers, recipe.training["logging_steps"], recipe.output_dir = 2, 7, "elsewhere"
    assert recipe_digest(recipe) == run.digest
    recipe.stages[0].learning_rates["lora"] = 0.02
    assert recipe_digest(recipe) != run.digest
    recipe.stages[0].learning_rates["lora"] = 0.01
    train = path.parent / "data" / "train.json"
    train.write_text(train.read_text("utf-8").replace("thing a", "thing z"), "utf-8")
    assert recipe_digest(recipe) != run.digest


def test_the_choice_may_be_a_file_that_is_not_written_yet(sweep_file):
    path = sweep_file(protocol="choice.yaml")
    assert read_sweep(path).protocol.chosen == []
    choice = {"chosen": ["moe"], "reason": "best on dev"}
    (path.parent / "choice.yaml").write_text(yaml.safe_dump(choice), "utf-8")
    assert read_sweep(path).protocol.chosen == ["moe"]
    (path.parent / "choice.yaml").write_text(yaml.safe_dump({"chosen": ["mole"]}), "utf-8")
    with pytest.raises(ConfigError, match=r"unknown 'mole'(.|\n)*protocol.reason: empty"):
        read_sweep(path)


# ---------------------------------------------------------------------- what ships


def test_the_example_is_read_and_its_arms_see_the_same_but_for_the_model(monkeypatch):
    monkeypatch.chdir(ROOT)
    path = Path("configs/experiments/example-sweep.yaml")
    sweep = read_sweep(path)
    runs = plan_runs(sweep, path)
    assert len(runs) == 4
    lora, moe = runs[0].recipe, runs[1].recipe
    assert lora.model.experts is None
    assert moe.model.experts.num_experts == 4
    assert lora.data == moe.data
    assert lora.stages[1].steps == moe.stages[1].steps == 10


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "configs").rglob("*-sweep.yaml"))
)
def test_every_sweep_that_ships_is_read_and_its_base_is_there(name):
    (path,) = (ROOT / "configs").rglob(name)
    sweep = read_sweep(path)
    assert (ROOT / sweep.base).is_file()


def test_the_page_has_a_file_that_is_read_and_names_every_key(tmp_path):
    page = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    (tmp_path / "sweep.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.S)[0], "utf-8")
    sweep = read_sweep(tmp_path / "sweep.yaml")
    assert sweep.trained_arms("alone") == ["only_charts", "only_flags"]
    for cls in (Sweep, Arm, Claim, Choice, Evaluation):
        for name in cls.__dataclass_fields__:
            assert f"`{name}" in page, name
    options = build_parser("sweep").parse_args(["sweep", "x"])
    for name in vars(options).keys() - {"command", "verbose", "file"}:
        assert f"--{name.replace('_', '-')}" in page, name
