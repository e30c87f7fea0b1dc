"""Hooks among other people's: what they see, what calls they meet, what a pass leaves behind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    MoleConfig,
    add_experts,
    auxiliary_losses,
    disabled_experts,
    mole_context,
    router_parameters,
)
from llava_mole.mole import route as route_module
from tests.helpers import SMALL, VOCABULARY, awaken, gradients, language_model, random_ids
from tests.mole.arms import build

WIDTH, INNER = 32, 48
IDS = random_ids(2, 12)
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Float32 sums of at most some hundred terms in another order, passed on by two layers."""
MANY = {"num_experts": 32, "r": 16}
"""So many units that `auto` sorts the tokens of an MLP."""


def with_experts(model: nn.Module, **options: Any) -> Any:
    """The model with experts that matter; the same each time."""
    torch.manual_seed(2)
    options = {"num_experts": 4, "r": 2, "lora_dropout": 0.0, **options}
    add_experts(model, MoleConfig(**options))
    return awaken(model)


def inputs(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """A model that is one block; `call` says how it calls it."""

    def __init__(self, mlp: nn.Module, call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.mlp = mlp
        self.call = call or (lambda block, *args: block(*args))

    def forward(self, *args: Tensor) -> Any:
        return self.call(self.mlp, *args)


class Mlp(nn.Module):
    """Linears and an activation, as a user writes one."""

    def __init__(self, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Any:
        return self.down(self.act(self.up(x)))


# ---------------------------------------------------------------------- compilation


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "scaled"},
        {"method": "mola", "target_modules": ("q_proj", "down_proj")},
        {"gate": "straight_through", "shared_expert_r": 3},
        {"shared_expert_r": 3, "kernel": "gathered"},
    ],
    ids=["a router per block", "a router per linear", "a shared expert", "before the kernel"],
)
def test_a_compiled_model_has_the_gradients_of_the_model(options: dict[str, Any]) -> None:
    eager = with_experts(language_model("llama", num_hidden_layers=1), **options)
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    try:
        torch.compile(compiled, backend="aot_eager")(input_ids=IDS, labels=IDS).loss.backward()
    finally:
        torch._dynamo.reset()
    eager(input_ids=IDS, labels=IDS).loss.backward()
    found, expected = gradients(compiled), gradients(eager)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, **NEAR, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------- encoder-decoders, towers


def t5(**options: Any) -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=2, num_heads=4,
        dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0, initializer_factor=1.0,
    )  # fmt: skip
    return with_experts(T5ForConditionalGeneration(config).eval(), **options)


@pytest.mark.parametrize("method", ["mola", "conditional_mixlora"])
def test_padding_of_the_encoder_is_not_padding_of_the_decoder(method: str) -> None:
    targets = ("SelfAttention.q", "SelfAttention.v", "wo")
    model = t5(method=method, target_modules=targets)
    source, target = random_ids(2, 9), random_ids(2, 6, seed=1)
    mask = torch.ones_like(source)
    mask[1, 5:] = 0
    found = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits[1:]
    assert (mole_context(model)[0].segment_ids >= 0).all()
    assert_close(
        found, model(input_ids=source[1:, :5], decoder_input_ids=target[1:]).logits, **NEAR
    )


def test_padding_of_the_decoder_is_told_by_its_own_mask() -> None:
    model = t5(method="mola", target_modules=("SelfAttention.q", "wo"))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = random_ids(2, 4)
    model(input_ids=random_ids(2, 9), decoder_input_ids=ids, decoder_attention_mask=mask)
    assert torch.equal(mole_context(model)[0].segment_ids, mask - 1)


def test_losses_of_a_tower_are_of_as_many_samples_as_they_are_told() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with_experts(model, method="mola", target_modules="all-linear")
    model(inputs(4, 3, 16, 16))
    whole = auxiliary_losses(model)
    assert whole["balance"] > 0
    assert_close(auxiliary_losses(model, num_samples=4, batch_samples=4), whole)
    half = {name: value / 2 for name, value in whole.items()}
    assert_close(auxiliary_losses(model, num_samples=8, batch_samples=4), half)


def test_losses_of_cross_attention_are_of_as_many_samples_as_the_decoder_has() -> None:
    model = t5(method="mola", target_modules="all-linear")
    model(input_ids=random_ids(2, 9), decoder_input_ids=random_ids(2, 6, seed=1))
    whole = auxiliary_losses(model)
    assert whole["balance"] > 0
    assert_close(auxiliary_losses(model, num_samples=2), whole)


# ---------------------------------------------------------------------- sorting, where others look


@pytest.fixture(autouse=True)
def tiles_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens too few for two tiles are not sorted."""
    monkeypatch.setattr(route_module, "TILE_TOKENS", 4)


def sorting_and_reference(change: Callable[[nn.Module], None] = lambda model: None) -> list[Any]:
    """Two models alike but for the kernel, `change`d before they get experts."""
    models = []
    for kernel in ("auto", "reference"):
        model = language_model("llama", num_hidden_layers=1)
        change(model)
        models.append(with_experts(model, kernel=kernel, gate="scaled", **MANY))
    return models


def mlp_of(model: Any) -> nn.Module:
    return model.model.layers[0].mlp


def test_a_block_that_nobody_looks_into_is_sorted() -> None:
    """What the tests below are about does happen: a hook on all modules sees it."""
    seen = []
    for model in sorting_and_reference():
        down = mlp_of(model).down_proj

        def look(module: nn.Module, args: Any, down: nn.Module = down) -> None:
            if module is down:
                seen.append(args[0].detach().reshape(-1, INNER))

        handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
        try:
            model(IDS)
        finally:
            handle.remove()
    found, expected = seen
    assert not torch.allclose(found, expected, **NEAR)
    assert_close(found.sum(0), expected.sum(0), **NEAR)


@pytest.mark.parametrize("before", [True, False])
def test_a_hook_inside_a_block_sees_tokens_in_their_own_order(before: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(model: Any) -> None:
        mlp_of(model).down_proj.register_forward_hook(
            lambda module, args, output: seen.append((args[0].detach(), output.detach().clone()))
        )

    models = sorting_and_reference(look if before else lambda model: None)
    for model in models:
        if not before:
            look(model)
        model(IDS)
    found, expected = seen
    assert_close(found[0], expected[0], **NEAR)
    if not before:  # one from before sees what the linear alone gives
        assert_close(found[1], expected[1], **NEAR)


def test_a_hook_on_a_block_changes_the_token_that_it_means() -> None:
    def double_first(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.cat([2 * output[:, :1], output[:, 1:]], dim=1)

    sorting, reference = sorting_and_reference(
        lambda model: mlp_of(model).register_forward_hook(double_first)
    )
    assert_close(sorting(IDS).logits, reference(IDS).logits, **NEAR)


def test_rows_of_a_batch_may_each_use_another_lora_of_peft() -> None:
    found = []
    for kernel in ("auto", "reference"):
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["up_proj", "down_proj"])
        model = get_peft_model(language_model("llama", num_hidden_layers=1), lora, "a")
        model.add_adapter("b", lora)
        with_experts(model, kernel=kernel, **MANY).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B.b." in name or ".lora_A.b." in name:
                    parameter.mul_(-2.0)
        with torch.no_grad():
            found.append(model(input_ids=IDS, adapter_names=["a", "b"]).logits)
            assert not torch.allclose(found[-1], model(input_ids=IDS).logits, **NEAR)
    assert_close(*found, **NEAR)


class Mixing(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.up(x))
        return self.down(h * h.mean(1, keepdim=True))


class InTuple(Mlp):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


@pytest.mark.parametrize("block", [Mlp, Mixing, InTuple])
def test_a_block_of_a_users_own_may_mix_tokens_and_return_what_it_likes(block: type) -> None:
    x = inputs(2, 12, WIDTH)
    found, expected = (
        with_experts(Around(block()), kernel=kernel, **MANY)(x) for kernel in ("auto", "reference")
    )
    if block is InTuple:
        (found, _), (expected, _) = found, expected
    assert_close(found, expected, **NEAR)


# ---------------------------------------------------------------------- the fused gradient


def hook_before(linear: nn.Module) -> None:
    linear.register_forward_hook(lambda module, args, output: 3 * output)


def pre_hook_after(linear: nn.Module) -> None:
    linear.register_forward_pre_hook(lambda module, args: (3 * args[0],))


def other_forward(linear: nn.Module) -> None:
    own = linear.forward
    linear.forward = lambda x: 3 * own(x)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "first"),
    [(hook_before, True), (pre_hook_after, False), (other_forward, True), (other_forward, False)],
    ids=["hook before", "pre-hook after", "other forward before", "other forward after"],
)
def test_gradients_go_through_what_others_do_to_a_linear(
    change: Callable[[nn.Module], None], first: bool
) -> None:
    found = []
    for kernel in ("masked", "reference"):
        model = language_model("llama").requires_grad_(False)
        scaled = model.model.layers[1].mlp.down_proj
        if first:
            change(scaled)
        with_experts(model, kernel=kernel, gate="straight_through")
        if not first:
            change(scaled)
        model(IDS, labels=IDS).loss.backward()
        found.append(gradients(model))
    ours, expected = found
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(ours[name], value, **NEAR, msg=lambda m, n=name: f"{n}: {m}")
    upstream = [
        value for name, value in expected.items() if "layers.0" in name and "lora_A" in name
    ]
    assert all(value.abs().max() > 1e-3 for value in upstream)  # far above `atol`


class Tanh(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_an_output_that_a_later_function_keeps_is_not_overwritten(frozen: bool) -> None:
    found = []
    for kernel in ("auto", "reference"):
        model = Around(Mlp(Tanh)).requires_grad_(not frozen)
        x = inputs(2, 5, WIDTH).double().requires_grad_()
        output = with_experts(model, kernel=kernel, gate="scaled").double()(x)
        output.sin().sum().backward()
        found.append({"output": output.detach(), "x": x.grad, **gradients(model)})
    assert_close(*found, rtol=1e-10, atol=1e-10)  # float64: nothing but rounding


# ---------------------------------------------------------------------- calls


class Attention(nn.Module):
    """Two linears that read different tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.q(h) @ self.k(e).transpose(1, 2)


@pytest.mark.parametrize("kernel", ["auto", "masked", "reference"])
def test_a_linear_that_reads_other_tokens_than_its_block_is_refused(kernel: str) -> None:
    model = with_experts(Around(Attention()), target_modules=("q", "k"), kernel=kernel)
    with pytest.raises(ConfigError, match=r"7 tokens where its block reads 5.*exclude_modules"):
        model(inputs(1, 5, WIDTH), inputs(1, 7, WIDTH))
    only = with_experts(Around(Attention()), target_modules=("q",), kernel=kernel)
    assert only(inputs(1, 5, WIDTH), inputs(1, 7, WIDTH)).shape == (1, 5, 7)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, WIDTH), (3, 0, WIDTH)], ids=str)
@pytest.mark.parametrize("kernel", ["auto", "gathered", "reference"])
@pytest.mark.parametrize("experts", [{}, MANY], ids=["few", "many"])
def test_no_tokens_go_through(
    experts: dict[str, int], kernel: str, shape: tuple[int, ...], graph: bool
) -> None:
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=INNER)
    model = with_experts(Around(LlamaMLP(config)), kernel=kernel, gate="scaled", **experts)
    with torch.set_grad_enabled(graph):
        output = model(inputs(*shape))
    assert output.shape == shape
    if graph:
        output.sum().backward()


class Flagged(Mlp):
    def forward(self, x: Tensor, flag: Any) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("order", [("x", "flag"), ("flag", "x")], ids=str)
@pytest.mark.parametrize("experts", [{}, MANY], ids=["few", "many"])
def test_a_block_may_be_called_by_keywords_in_any_order(
    experts: dict[str, int], order: tuple[str, str]
) -> None:
    def call(block: nn.Module, x: Tensor) -> Tensor:
        given = {"x": x, "flag": None}
        return block(**{key: given[key] for key in order})

    x = inputs(2, 12, WIDTH)
    found = with_experts(Around(Flagged(), call), **experts)(x)
    assert_close(found, with_experts(Around(Mlp()), **experts)(x), **NEAR)


# ---------------------------------------------------------------------- passes


def test_a_pass_of_the_base_leaves_records_and_what_was_provided() -> None:
    model = with_experts(language_model("llama"), balance_coef=0.1)
    context, _ = mole_context(model)
    segments = torch.tensor([[0] * 12, [-1] * 3 + [0] * 9])
    model(IDS)
    before = auxiliary_losses(model)
    context.provide(segment_ids=segments)
    with disabled_experts(model):
        model(random_ids(3, 5, seed=4))
    assert before["balance"] > 0
    assert_close(auxiliary_losses(model), before, rtol=0, atol=0)
    model(IDS)
    assert torch.equal(context.segment_ids, segments)


BALANCED = ["llava_mole", "mola", "dynmole tsallis", "malora", "loramoe", "amlora 2 tasks"]


@pytest.mark.parametrize("name", BALANCED)
def test_losses_of_nothing_but_padding_are_finite(name: str) -> None:
    coefficient = {} if name.startswith("amlora") else {"balance_coef": 0.1}
    model = build(name, **coefficient)
    model(IDS, attention_mask=torch.zeros_like(IDS))
    losses = auxiliary_losses(model)
    assert losses
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(value).all() for value in gradients(model).values())


def test_segments_of_another_shape_than_the_tokens_are_refused() -> None:
    model = with_experts(language_model("llama"))
    mole_context(model)[0].provide(segment_ids=torch.zeros(2, 11, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"segment_ids .*\(2, 11\) .*\(2, 12\)"):
        model(IDS)


def by_prompt() -> Any:
    """Routed by the prompt: it matters which tokens are padding."""
    return with_experts(language_model("llama"), method="conditional_mixlora", num_experts=6)


def test_a_padded_row_in_a_static_cache_is_generated_as_alone() -> None:
    model = by_prompt()
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    ids[1, :4], mask[1, :4] = 0, 0
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    static = {"cache_implementation": "static", "disable_compile": True}
    both = model.generate(ids, attention_mask=mask, **how, **static)
    alone = model.generate(ids[1:, 4:], attention_mask=mask[1:, 4:], **how)
    assert torch.equal(both.sequences[1:, 9:], alone.sequences[:, 5:])
    for found, expected in zip(both.logits, alone.logits, strict=True):
        assert_close(found[1:], expected, **NEAR)


def test_routing_by_prompts_asks_for_padding_that_a_mask_does_not_tell() -> None:
    model = by_prompt()
    hidden = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, 12, 12).clone()
    hidden[..., 0] = False
    hidden[:, :, 0, 0] = True  # a token sees itself
    hidden[1, :, 3:, :3] = False
    with pytest.raises(ConfigError, match="provide"):
        model(IDS, attention_mask=hidden)
    mole_context(model)[0].provide(segment_ids=torch.zeros_like(IDS))
    assert torch.isfinite(model(IDS, attention_mask=hidden).logits).all()


def test_a_state_space_model_decodes_by_its_prompts_route() -> None:
    torch.manual_seed(0)
    small = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "initializer_range")}
    config = MambaConfig(**small, state_size=4, num_hidden_layers=2, pad_token_id=0, eos_token_id=2)
    model = with_experts(
        MambaForCausalLM(config).eval(),
        method="conditional_mixlora",
        target_modules=("in_proj",),
        num_experts=6,
    )
    context, decoding = mole_context(model)[0], []
    model.backbone.register_forward_hook(lambda *_: decoding.append(context.decoding))
    how = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    made = model.generate(random_ids(2, 7), **how)
    assert decoding == [False, True, True, True, True]
    sequences = made.sequences[:, :-1]
    context.provide(prompt_mask=(torch.arange(sequences.shape[1]) < 7).expand(sequences.shape))
    with torch.no_grad():
        whole = model(sequences).logits[:, 6:]
    assert_close(torch.stack(made.logits, dim=1), whole, **NEAR)


# ---------------------------------------------------------------------- far from all units


@pytest.mark.parametrize("bias_in", ["gates", "selection"])
def test_a_token_that_is_far_from_all_units_has_finite_weights(bias_in: str) -> None:
    model = with_experts(
        Around(Mlp()), method="smora", num_experts=8, top_k=2, r=1, bias_in=bias_in
    )
    with torch.no_grad():
        for weight in router_parameters(model).values():
            weight.fill_(-200.0 / WIDTH)
    x = torch.ones(1, 3, WIDTH, requires_grad=True)
    output = model(x)
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(value).all() for value in gradients(model).values())
