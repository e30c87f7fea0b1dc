"""Named adapters: which there are, which are on, and which of their parameters learn."""

import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    METHODS,
    MoleConfig,
    active_adapters,
    adapter_names,
    add_experts,
    delete_adapter,
    disable_adapter,
    expert_parameters,
    mark_trainable,
    router_parameters,
    set_adapter,
)
from tests.helpers import language_model, random_ids

IDS = random_ids(2, 9)
NAMES = ["first", "second", "third"]
OF_TWO_LAYERS = {"mola": {"num_experts": 2}}
"""Options of methods whose defaults are for more layers."""


@pytest.fixture
def model() -> PreTrainedModel:
    """With three adapters, all on."""
    model = language_model("llama")
    for name in NAMES:
        add_experts(model, MoleConfig(num_experts=2, r=2), name)
    return model


def parameters_of(model: PreTrainedModel, *names: str) -> set[str]:
    """Names of all that these adapters learn."""
    found: set[str] = set()
    for name in names:
        found |= {*expert_parameters(model, name), *router_parameters(model, name)}
    return found


def learning(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------------- which learn


def test_without_a_name_all_adapters_that_are_on_learn(model: PreTrainedModel) -> None:
    mark_trainable(model)
    assert learning(model) == parameters_of(model, *NAMES)
    disable_adapter(model, "second")
    mark_trainable(model)
    assert learning(model) == parameters_of(model, "first", "third")


def test_one_that_is_named_learns_whether_or_not_it_is_on(model: PreTrainedModel) -> None:
    disable_adapter(model, "second")
    mark_trainable(model, "second")
    assert learning(model) == parameters_of(model, "second")


def test_several_that_are_named_learn_and_no_others(model: PreTrainedModel) -> None:
    mark_trainable(model, ["first", "third"])
    assert learning(model) == parameters_of(model, "first", "third")


def test_where_none_is_on_nothing_is_marked_and_it_is_said(model: PreTrainedModel) -> None:
    mark_trainable(model, "first")
    disable_adapter(model)
    with pytest.raises(ConfigError, match=r"no experts are on.*first.*second.*third"):
        mark_trainable(model)
    assert learning(model) == parameters_of(model, "first")


def test_an_unknown_name_marks_nothing(model: PreTrainedModel) -> None:
    mark_trainable(model, "first")
    with pytest.raises(ConfigError, match="fourth"):
        mark_trainable(model, ["second", "fourth"])
    assert learning(model) == parameters_of(model, "first")


def test_pefts_lora_does_not_learn_beside_experts_that_are_marked() -> None:
    model = get_peft_model(language_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    add_experts(model, MoleConfig(num_experts=2, r=2))
    mark_trainable(model)
    assert learning(model) == parameters_of(model, "default")


# ---------------------------------------------------------------------- which are on


def test_set_adapter_takes_one_or_several(model: PreTrainedModel) -> None:
    set_adapter(model, ["third", "first"])
    assert active_adapters(model) == ["first", "third"]
    set_adapter(model, "second")
    assert active_adapters(model) == ["second"]


def test_an_unknown_name_among_several_switches_nothing(model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="fourth"):
        set_adapter(model, ["first", "fourth"])
    assert active_adapters(model) == NAMES


def test_adapter_names_lists_those_that_are_off_too(model: PreTrainedModel) -> None:
    disable_adapter(model, "second")
    assert adapter_names(model) == NAMES
    assert active_adapters(model) == ["first", "third"]


def test_where_one_is_deleted_no_other_is_switched_on(model: PreTrainedModel) -> None:
    set_adapter(model, "second")
    delete_adapter(model, "second")
    assert adapter_names(model) == ["first", "third"]
    assert active_adapters(model) == []


# ---------------------------------------------------------------------- what they are made of


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_is_an_experts_or_a_routers_and_never_both(method: str) -> None:
    model = language_model("llama")
    add_experts(model, MoleConfig(method=method, **OF_TWO_LAYERS.get(method, {})))
    experts, routers = expert_parameters(model), router_parameters(model)
    assert experts
    assert not experts.keys() & routers.keys()
    base = {name for name, _ in language_model("llama").named_parameters()}
    assert experts.keys() | routers.keys() == {n for n, _ in model.named_parameters()} - base


@pytest.mark.parametrize("name", ["mole_bank", "mole_router"])
def test_a_name_by_which_the_two_groups_are_told_apart_is_no_adapters(name: str) -> None:
    model = language_model("llama")
    with pytest.raises(ConfigError, match=f"adapter name '{name}'"):
        add_experts(model, MoleConfig(num_experts=2, r=2), name)
    assert set(model.state_dict()) == set(language_model("llama").state_dict())


def test_a_context_is_shown_without_the_tensors_of_its_pass() -> None:
    model = language_model("llama")
    context = add_experts(model, MoleConfig(num_experts=2, r=2))
    model(IDS, attention_mask=IDS.new_ones(IDS.shape))
    assert context.records  # there is something to leave out
    assert len(repr(context)) < 500
