"""Values that a config refuses, each by its key, and spellings that it takes."""

import json
import math

import pytest

from llava_mole.errors import ConfigError
from llava_mole.mole import MoleConfig, add_experts
from tests.helpers import language_model

NOT_A_SCALE = [math.inf, math.nan, "32", None, True]
NOT_A_PROBABILITY = ["0.1", None, 1.0, -0.1, math.nan]
NOT_A_COEFFICIENT = [math.inf, math.nan, "1e-2", None, -1]
WITH_BALANCE = ["llava_mole", "mola", "dynmole", "malora", "loramoe"]


def refused(key: str, value: object, **others: object) -> str:
    """The message; that it names the key and the value is asserted here."""
    with pytest.raises(ConfigError) as error:
        MoleConfig(**{key: value}, **others)
    message = str(error.value)
    assert f"{key}={value!r}" in message
    return message


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", NOT_A_SCALE, ids=repr)
def test_a_scale_that_is_no_finite_number_is_refused(value: object) -> None:
    assert "must be a number above 0" in refused("lora_alpha", value)


@pytest.mark.parametrize("value", NOT_A_PROBABILITY, ids=repr)
def test_a_dropout_that_is_no_probability_is_refused(value: object) -> None:
    assert "must be a number in [0, 1)" in refused("lora_dropout", value)


@pytest.mark.parametrize("value", NOT_A_COEFFICIENT, ids=repr)
@pytest.mark.parametrize("method", WITH_BALANCE)
def test_a_coefficient_that_is_no_finite_number_is_refused(method: str, value: object) -> None:
    assert "must be a number of at least 0" in refused("balance_coef", value, method=method)


@pytest.mark.parametrize("key", ["entropy_index", "entropy_eps"])
@pytest.mark.parametrize("value", [math.inf, 0, "1.1"], ids=repr)
def test_an_entropy_of_no_finite_index_is_refused(key: str, value: object) -> None:
    assert "must be a number above 0" in refused(key, value, method="dynmole")


def test_whole_numbers_are_taken_where_any_number_is() -> None:
    assert MoleConfig(lora_alpha=8, lora_dropout=0, balance_coef=0).lora_alpha == 8


# ---------------------------------------------------------------------- experts


def test_experts_that_are_always_on_are_one_number_for_all_layers() -> None:
    with pytest.raises(ConfigError, match=r"keep_top_k=\(2,\): one number for all layers"):
        MoleConfig(method="dynmole", keep_top_k=[2])


def test_more_experts_always_on_than_there_are_is_refused() -> None:
    said = refused("keep_top_k", 5, method="dynmole", num_experts=4)
    assert "more than num_experts=4" in said


@pytest.mark.parametrize("method", ["mola", "malora", "smora"])
def test_more_experts_per_token_than_there_are_is_refused(method: str) -> None:
    said = refused("top_k", 5, method=method, num_experts=4)
    assert "more than num_experts=4" in said
    assert MoleConfig(method=method, num_experts=4, top_k=4).top_k == 4


@pytest.mark.parametrize("value", [8, (4, 8, 2)], ids=repr)
def test_ranks_of_experts_are_a_list_of_one_per_expert(value: object) -> None:
    assert "a list of num_experts=2 ranks" in refused("expert_ranks", value, num_experts=2)


def test_more_factors_chosen_than_there_are_is_refused() -> None:
    said = refused("r", 5, method="conditional_mixlora", num_experts=4)
    assert "num_experts=4" in said


def test_more_factors_chosen_than_a_layer_has_is_refused_and_names_the_layer() -> None:
    model = language_model("llama")
    before = set(dict(model.named_modules()))
    config = MoleConfig(method="conditional_mixlora", num_experts=(6, 4), r=(2, 5))
    with pytest.raises(ConfigError, match=r"layers\.1\..*r=5 .*num_experts=4"):
        add_experts(model, config)
    assert set(dict(model.named_modules())) == before


# ---------------------------------------------------------------------- where they go


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_set_of_names_is_taken_in_order_and_can_be_written(key: str, kind: type) -> None:
    config = MoleConfig(**{key: kind({"up_proj", "down_proj", "gate_proj"})})
    assert getattr(config, key) == ("down_proj", "gate_proj", "up_proj")
    assert MoleConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_empty_set_of_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="target_modules is empty"):
        MoleConfig(target_modules=set())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", 5),
        ("target_modules", ("a", 3)),
        ("exclude_modules", 7),
        ("exclude_modules", ("a", None)),
    ],
    ids=repr,
)
def test_names_of_modules_that_are_no_strings_are_refused(key: str, value: object) -> None:
    assert "must be a string or a list of strings" in refused(key, value)


def test_a_root_that_is_no_name_is_refused() -> None:
    assert "must be the dotted name of a module" in refused("root", 5)


def test_one_layer_is_taken_as_a_list_of_one() -> None:
    config = MoleConfig(num_experts=2, r=2, layers_to_transform=1)
    assert config.layers_to_transform == (1,)
    assert config == MoleConfig(num_experts=2, r=2, layers_to_transform=[1])


@pytest.mark.parametrize("value", [(), (True,), True, ("1",), "1", 1.0], ids=repr)
def test_layers_that_are_no_whole_numbers_are_refused(value: object) -> None:
    assert "must be a list of whole numbers" in refused("layers_to_transform", value)


# ---------------------------------------------------------------------- the method's name


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("LLaVA-MoLE", "llava_mole"),
        ("MoLA", "mola"),
        ("AM-LoRA", "amlora"),
        ("conditional mixlora", "conditional_mixlora"),
    ],
)
def test_a_methods_name_as_papers_write_it_gets_the_nearest(value: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refused("method", value)
