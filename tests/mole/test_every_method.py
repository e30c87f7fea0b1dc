"""What must hold for every method in all its options: `arms.py` lists them.

Here: step 0, who learns from the task, auxiliary losses. In files of their own: kernels, use
(decoding, padding, saving), training, adapters beside others, devices.
"""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.testing import assert_close

from llava_mole.mole import (
    METHODS,
    RouteContext,
    auxiliary_losses,
    expert_parameters,
    mole_context,
    route_statistics,
    router_parameters,
)
from llava_mole.mole.context import Record
from llava_mole.mole.io import as_in_file
from tests.helpers import random_ids
from tests.mole.arms import (
    ARMS,
    FLOAT32,
    WITH_LOSSES,
    assert_near,
    base_model,
    batch,
    build,
    step,
)

FAMILIES = ["llama", "gemma3_text"]
IDS = random_ids(2, 12)
SIDES = [("llama", "right"), ("gemma3_text", "left")]


def test_the_arms_cover_every_method() -> None:
    assert {arm.options["method"] for arm in ARMS.values()} == set(METHODS)


@pytest.mark.parametrize("name", ARMS)
def test_the_arms_use_more_than_one_route(name: str) -> None:
    """Otherwise what follows would prove little."""
    model = build(name)
    model(IDS)
    for use in route_statistics(model):
        assert len(use.load) == 1 or use.load.max() < 0.95


# ---------------------------------------------------------------------- step 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.tasks == 1])
def test_at_step_0_the_routed_model_equals_its_base(name: str, family: str) -> None:
    before = base_model(family)(IDS).logits
    for kernel in ("auto", "reference"):
        # What is added is a product with a matrix of zeros.
        logits = build(name, family, awake=False, kernel=kernel)(IDS).logits
        assert_close(logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.single])
def test_one_expert_equals_peft_lora_forward_and_gradients(name: str, kernel: str) -> None:
    """MALoRA with P = 1; MultiLoRA with output scales of 1; otherwise as they are."""
    single = ARMS[name].single
    assert single is not None
    without = ARMS[name].without_losses()
    ours = build(name, kernel=kernel, lora_alpha=6.0, **(single | without))
    with torch.no_grad():
        for key, parameter in expert_parameters(ours).items():
            if key.endswith("output_scale"):
                parameter.fill_(1)
            if "malora" in name and key.endswith("lora_A"):
                parameter.copy_(torch.eye(4))
    experts = expert_parameters(ours)
    linears = sorted({key.partition(".mole_bank")[0] for key in experts})
    theirs = base_model("llama")
    rank = single["r"]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=6.0, target_modules=linears, init_lora_weights=False), theirs
    )
    twins = {}
    for linear in linears:
        bank = f"{linear}.mole_bank.default"
        down = f"{bank}.shared_A" if f"{bank}.shared_A" in experts else f"{bank}.lora_A"
        module = theirs.get_submodule(linear)
        twins[down], twins[f"{bank}.lora_B"] = (
            module.lora_A["default"].weight, module.lora_B["default"].weight
        )  # fmt: skip
    with torch.no_grad():
        for key, twin in twins.items():
            twin.copy_(as_in_file(key, experts[key]))
    found, expected = ours(**batch()), theirs(**batch())
    assert_close(found.logits, expected.logits, **FLOAT32)
    found.loss.backward()
    expected.loss.backward()
    # The scaling is applied on the other side of B; see FLOAT32.
    assert_near(
        {key: as_in_file(key, experts[key].grad) for key in twins},
        {key: twin.grad for key, twin in twins.items()},
        1e-4,
    )


# ---------------------------------------------------------------------- who learns from the task


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ARMS)
def test_the_task_trains_every_router_where_the_config_says_so(name: str, family: str) -> None:
    model = build(name, family, **ARMS[name].without_losses())
    model(**batch()).loss.backward()
    config = mole_context(model)[1]
    assert auxiliary_losses(model) == {}
    for parameter in router_parameters(model).values():
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        # p / p of a single chosen expert has a gradient of rounding errors.
        assert size > 1e-6 if config.routers_learn() else size < 1e-7


def test_who_learns_from_the_task() -> None:
    learn = [n for n, arm in ARMS.items() if arm.config(**arm.without_losses()).routers_learn()]
    assert sorted(set(ARMS) - set(learn)) == [
        "amlora",  # the softmax of one task's score
        "amlora 2 tasks",  # its first task, likewise
        "conditional_mixlora",
        "llava_mole",
        "mola top-1",
        "multilora",  # has no router
    ]


@pytest.mark.parametrize("name", ["llava_mole", "mola top-1", "amlora"])
def test_where_the_task_does_not_the_auxiliary_loss_trains_every_router(name: str) -> None:
    model = build(name)
    step(model, batch())
    assert mole_context(model)[1].routers_learn()
    for parameter in router_parameters(model).values():
        assert parameter.grad.abs().max() > 1e-6


# ---------------------------------------------------------------------- auxiliary losses


@pytest.mark.parametrize("name", ARMS)
def test_exactly_the_named_losses_are_reported(name: str) -> None:
    model = build(name)
    model(IDS)
    losses = auxiliary_losses(model)
    assert set(losses) == set(ARMS[name].losses)
    assert all(loss.dim() == 0 and loss > 0 for loss in losses.values())


def repeated(context: RouteContext, times: int) -> RouteContext:
    """The context of a pass in which every token came `times` times."""
    longer = RouteContext()
    assert context.segment_ids is not None
    longer.segment_ids = context.segment_ids.repeat_interleave(times, dim=1)
    for record in context.records:
        route = copy.copy(record.route)
        for key in ("indices", "weights", "probs"):
            value = getattr(route, key)
            if value is not None:
                object.__setattr__(route, key, value.repeat_interleave(times, dim=0))
        extras = {k: v.repeat_interleave(times, dim=0) for k, v in route.extras.items()}
        object.__setattr__(route, "extras", extras)
        longer.records.append(Record(record.name, route, record.num_experts))
    return longer


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("name", WITH_LOSSES)
def test_a_loss_does_not_depend_on_length_at_fixed_routing(name: str, times: int) -> None:
    model = build(name)
    model(**batch("right"))
    context, config = mole_context(model)
    short, long = config.losses(context, None), config.losses(repeated(context, times), None)
    for key, value in short.items():
        assert_close(long[key], value, rtol=1e-5, atol=1e-7)  # means of more equal terms


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_a_loss_does_not_depend_on_how_often_a_token_is_said(name: str) -> None:
    """Attention over one token, however often, is that token: its routes do not change."""
    model = build(name)
    found = []
    for length in (1, 6, 11):
        model(torch.tensor([[40], [77], [150]]).expand(3, length))
        found.append(auxiliary_losses(model))
    for other in found[1:]:
        assert_close(other, found[0], rtol=1e-4, atol=1e-6)  # see FLOAT32


@pytest.mark.parametrize(("family", "padding"), SIDES)
@pytest.mark.parametrize("name", WITH_LOSSES)
def test_a_loss_ignores_padding(name: str, padding: str, family: str) -> None:
    model = build(name, family)
    model(IDS)
    expected = auxiliary_losses(model)
    empty, on = torch.zeros(2, 5, dtype=torch.long), torch.ones_like(IDS)
    order = (lambda pad, real: [pad, real]) if padding == "left" else (lambda p, r: [r, p])
    mask = torch.cat(order(empty, on), dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(torch.cat(order(empty, IDS), dim=1), attention_mask=mask, position_ids=positions)
    assert_close(auxiliary_losses(model), expected, rtol=1e-4, atol=1e-6)  # see FLOAT32


def test_padding_is_known_however_the_decoder_is_called() -> None:
    model = build("llava_mole")
    ids, mask = (batch("right")[key] for key in ("input_ids", "attention_mask"))
    model.model(ids, attention_mask=mask)
    expected = auxiliary_losses(model)
    model.model(ids, mask)
    assert_close(auxiliary_losses(model), expected, rtol=0, atol=0)
