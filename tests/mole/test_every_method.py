"""What must hold for every method in all its options: `arms.py` lists them.

Here: step 0, kernels, who learns from the task, decoding, padding, modes, auxiliary losses, saving
and copying. Training, adapters side by side and processes: `test_every_method_training.py`.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft import get_peft_model_state_dict as lora_state
from peft import set_peft_model_state_dict as set_lora_state
from torch import Tensor, nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    METHODS,
    ExpertBank,
    Route,
    RouteContext,
    add_experts,
    auxiliary_losses,
    disable_adapter,
    enable_adapter,
    expert_parameters,
    load,
    mole_context,
    route_statistics,
    router_parameters,
    save,
)
from llava_mole.mole.config import KERNELS
from llava_mole.mole.context import Record
from llava_mole.mole.io import as_in_file
from llava_mole.mole.router import Router
from tests.helpers import awaken, gradients, random_ids
from tests.mole.arms import (
    ALL,
    ARMS,
    WITH_LOSSES,
    assert_near,
    base_model,
    batch,
    build,
    prompt,
    put,
    step,
)

FAMILIES = ["llama", "gemma3_text"]
IDS = random_ids(2, 12)
SIDES = [("llama", "right"), ("gemma3_text", "left")]

# Whole models in float32, computed in another order: each of some hundred sums has an error of a
# few 2^-24 of its largest term, and layers pass it on.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-4}


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


# ---------------------------------------------------------------------- kernels

CASES = {
    "float32": (torch.float32, None),
    "float32, padded on the left": (torch.float32, "left"),
    "bfloat16, padded on the right": (torch.bfloat16, "right"),
}


def parity_step(name: str, kernel: str, case: str) -> dict[str, Tensor]:
    """One step with input embeddings that need a gradient, so that every linear's input does.

    In bfloat16 only linears that share their input have experts: rounding in one would flip the
    choices of a router behind it, and the step would be another one.
    """
    dtype, padding = CASES[case]
    model = base_model("llama").to(dtype)
    changes: dict[str, Any] = {"kernel": kernel}
    if dtype is torch.bfloat16:
        changes |= {"layers_to_transform": (1,), "target_modules": ("gate_proj", "up_proj")}
    put(model, ARMS[name], **changes)
    for parameter in model.model.layers.parameters():
        parameter.requires_grad_(False)
    for parameters in (expert_parameters(model), router_parameters(model)):
        for key, parameter in parameters.items():
            assert parameter.dtype == torch.float32
            parameter.requires_grad_("frozen_" not in key)
    return step(model, batch(padding))


@cache
def reference_step(name: str, case: str) -> dict[str, Tensor]:
    return parity_step(name, "reference", case)


# `auto` is one of the others, once for a route that may be sorted and once for one that may not.
USED = [(n, k) for n in ARMS for k in ARMS[n].kernels if k != "auto" or n in ("llava_mole", "mola")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "kernel"), USED)
def test_kernels_agree_in_logits_losses_and_every_gradient(
    name: str, kernel: str, case: str
) -> None:
    expected = reference_step(name, case)
    assert any("mole_bank" in key for key in expected)
    # bfloat16: each of up to six experts' parts is rounded to 8 bits in one order or another, in
    # the hidden units and again in the output; see FLOAT32 for the other.
    error = 2**-5 if CASES[case][0] is torch.bfloat16 else 1e-4
    assert_near(parity_step(name, kernel, case), expected, error)


@pytest.mark.parametrize(
    ("name", "kernel"), [(n, k) for n in ARMS for k in ALL if k not in (*ARMS[n].kernels, ALL[-1])]
)
def test_a_kernel_that_a_method_cannot_use_is_refused_before_anything_changes(
    name: str, kernel: str
) -> None:
    model = base_model("llama")
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match=kernel):
        add_experts(model, ARMS[name].config(kernel=kernel))
    assert list(model.state_dict()) == before


def test_every_kernel_is_either_used_or_refused_above() -> None:
    assert set(ALL) == set(KERNELS)


class Mlp(nn.Module):
    """Any MLP: gated, with biases on request."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def layer_step(layer: nn.Module, config: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential()
    model.add_module("mlp", layer)
    for parameter in layer.parameters():
        nn.init.normal_(parameter.requires_grad_(False), std=0.3)
    add_experts(model, config)
    awaken(model)
    x = torch.randn(shape, requires_grad=True)
    model(x).sin().sum().backward()
    assert x.grad is not None
    found = {"output": model(x).detach(), "input": x.grad} | gradients(model)
    if config.routers_learn():
        return found
    return {key: value for key, value in found.items() if "mole_router" not in key}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([name for name, arm in ARMS.items() if "tiled" in arm.kernels]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3).map(lambda n: 8 * n)),
    inner=st.integers(1, 4).map(lambda n: 8 * n),
    experts=st.integers(2, 20),
    rank=st.integers(2, 5),
    bias=st.booleans(),
)
def test_kernels_agree_on_layers_of_drawn_shapes(
    name: str, shape: tuple[int, ...], inner: int, experts: int, rank: int, bias: bool
) -> None:
    """More experts than tokens, tiles that end within an expert, a single token."""
    sizes: dict[str, Any] = {"num_experts": experts, "r": rank, "target_modules": "mlp-linears"}
    sizes |= ARMS[name].without_losses()

    def run(kernel: str) -> dict[str, Tensor]:
        layer = Mlp(shape[-1], inner, bias)
        return layer_step(layer, ARMS[name].config(kernel=kernel, **sizes), shape)

    expected = run("reference")
    for kernel in ARMS[name].kernels:
        # See FLOAT32; sums of drawn sizes may nearly cancel.
        assert_near(run(kernel), expected, 1e-3)


class Attention(nn.Module):
    """Made of linears alone and called with its input alone, and yet it mixes tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("kernel", ["tiled", "grouped"])
def test_kernels_that_sort_leave_the_order_of_attention_alone(kernel: str) -> None:
    def run(kernel: str) -> dict[str, Tensor]:
        config = ARMS["llava_mole scaled"].config(kernel=kernel, target_modules=("qkv", "proj"))
        return layer_step(Attention(16), config, (2, 7, 16))

    assert_near(run(kernel), run("reference"), 1e-4)  # see FLOAT32


@pytest.mark.parametrize("kernel", sorted(ALL))
def test_experts_are_added_to_an_output_of_any_layout(kernel: str) -> None:
    bank = ExpertBank(8, 16, [4, 4], scaling=1.0, kernel=kernel)
    nn.init.normal_(bank.lora_B)
    x, out = torch.randn(3, 5, 8), torch.randn(5, 3, 16).transpose(0, 1)
    route = Route(torch.arange(15).remainder(2).unsqueeze(1))
    assert_close(bank(x, route, out.clone()), bank(x, route, out.contiguous()), rtol=0, atol=0)


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


# ---------------------------------------------------------------------- decoding and padding


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ARMS)
def test_cached_decoding_gives_the_logits_of_the_full_sequence(name: str, family: str) -> None:
    model = build(name, family)
    with torch.no_grad():
        prompt(model, 5, *IDS.shape)
        full = model(IDS).logits
        out = model(IDS[:, :5], use_cache=True)
        cached = [out.logits]
        for t in range(5, IDS.shape[1]):
            past = out.past_key_values
            out = model(IDS[:, t : t + 1], past_key_values=past, use_cache=True)
            cached.append(out.logits)
    assert_close(torch.cat(cached, dim=1), full, **FLOAT32)


# Without a cache every step is a prompt of its own to routers that read prompts.
GENERATED = [
    (n, cached) for n in ARMS for cached in (True, False) if cached or not ARMS[n].is_paired()
]


@pytest.mark.parametrize(("name", "use_cache"), GENERATED)
def test_generate_follows_the_logits_of_the_full_sequence(name: str, use_cache: bool) -> None:
    model = build(name, "gemma3_text")
    inputs = {key: batch("left")[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    out = model.generate(
        **inputs, **options, use_cache=use_cache, output_logits=True, return_dict_in_generate=True
    )
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    prompt(model, 12, *mask.shape)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        full = model(out.sequences, attention_mask=mask, position_ids=positions).logits
    assert_close(torch.stack(out.logits, dim=1), full[:, 11:15], **FLOAT32)


@pytest.mark.parametrize(("family", "padding"), SIDES)
@pytest.mark.parametrize("name", ARMS)
def test_a_padded_batch_gives_what_its_rows_give_alone(
    name: str, family: str, padding: str
) -> None:
    model = build(name, family)
    inputs = batch(padding)
    with torch.no_grad():
        together = model(**inputs).logits
        for row, length in enumerate((12, 7)):
            real = inputs["attention_mask"][row].bool()
            alone = model(
                inputs["input_ids"][row : row + 1, real], labels=batch(rows=(length,))["labels"]
            )
            assert_close(together[row, real], alone.logits[0], **FLOAT32)


# ---------------------------------------------------------------------- modes


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("name", ARMS)
def test_training_and_eval_mode_choose_the_same_routes(name: str, padding: str | None) -> None:
    model = build(name)
    logits, routes = [], []
    for training in (True, False):
        model.train(training)
        logits.append(model(**batch(padding)).logits)
        routes.append([record.route for record in mole_context(model)[0].records])
    assert_close(*logits, rtol=0, atol=0)
    assert len(routes[0]) == len(routes[1]) > 0
    for one, other in zip(*routes, strict=True):
        assert type(one) is type(other)
        for key, value in vars(one).items():
            if isinstance(value, Tensor):
                assert_close(value, getattr(other, key), rtol=0, atol=0)


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


# ---------------------------------------------------------------------- folders and copies


@pytest.mark.parametrize("name", ARMS)
def test_saved_and_loaded_beside_peft_lora_everything_is_identical(
    name: str, tmp_path: Path
) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = build(name)
    inject_adapter_in_model(lora, model)
    save(model, tmp_path)
    fresh = base_model("llama")
    load(fresh, tmp_path)
    inject_adapter_in_model(lora, fresh)
    plain = lora_state(model, adapter_name="default")
    assert len(plain) == 2 * 2 * model.config.num_hidden_layers
    set_lora_state(fresh, plain, adapter_name="default")
    assert mole_context(fresh)[1] == mole_context(model)[1]
    for trained in (True, False):
        model.train(trained)
        fresh.train(trained)
        assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)
        assert_close(auxiliary_losses(fresh), auxiliary_losses(model), rtol=0, atol=0)
    state = {key: value for key, value in model.state_dict().items() if "mole_" in key}
    assert_close({key: fresh.state_dict()[key] for key in state}, state, rtol=0, atol=0)
    assert ("smora" in name) is any(key.endswith("balance_bias") for key in state)


@pytest.mark.parametrize("name", ["llava_mole", "mola", "smora"])
def test_loaded_into_a_model_in_eval_mode_experts_are_in_eval_mode(
    name: str, tmp_path: Path
) -> None:
    save(build(name, lora_dropout=0.5), tmp_path)
    fresh = base_model("llama")
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, fresh(IDS).logits, rtol=0, atol=0)
    experts = [module for module in fresh.modules() if isinstance(module, ExpertBank | Router)]
    assert experts
    assert not any(module.training for module in experts)


@pytest.mark.parametrize("name", ARMS)
def test_a_copied_model_computes_the_same_and_goes_its_own_way(name: str) -> None:
    model = build(name).train()
    step(model, batch())  # a copy must not need a model without history
    model.eval()
    twin = copy.deepcopy(model)
    before = model(IDS).logits
    disable_adapter(twin)
    assert_close(model(IDS).logits, before, rtol=0, atol=0)
    enable_adapter(twin)
    assert_close(twin(IDS).logits, before, rtol=0, atol=0)
    assert_close(auxiliary_losses(twin), auxiliary_losses(model), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in (*expert_parameters(twin).values(), *router_parameters(twin).values()):
            parameter.mul_(-2)
    assert not torch.allclose(twin(IDS).logits, before)
    assert_close(model(IDS).logits, before, rtol=0, atol=0)
