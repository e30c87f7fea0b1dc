"""AM-LoRA against its formula: a LoRA per task, mixed by attention over their outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from llava_mole.errors import ConfigError
from llava_mole.mole import (
    ExpertBank,
    MoleConfig,
    active_adapters,
    adapter_names,
    adapter_of,
    add_experts,
    append_task,
    auxiliary_losses,
    disable_adapter,
    expert_parameters,
    load,
    mark_trainable,
    router_parameters,
    save,
)
from llava_mole.mole.config import Place
from llava_mole.mole.methods.amlora import AmLora
from tests.helpers import awaken, language_model
from tests.mole.methods.by_hand import (
    CLOSE,
    IDS,
    PADDED,
    SINGLE,
    Array,
    Seen,
    array,
    model_with,
    per_sample,
    see,
    sigmoid,
    softmax,
)


def config(**changes: object) -> MoleConfig:
    small = {"num_experts": 1, "r": 2, "lora_alpha": 4.0}
    return MoleConfig(method="amlora", **{**small, **changes})


def grown(tasks: int, **changes: object) -> nn.Module:
    """A model that learnt `tasks` tasks one after the other, weights random."""
    model = language_model("llama")
    add_experts(model, config(**changes))
    awaken(model)
    for task in range(1, tasks):
        append_task(model)
        with torch.no_grad():
            for bank in adapter_of(model).banks.values():
                torch.manual_seed(task)
                nn.init.normal_(bank.lora_B, std=0.3)
    return model.double()


def banks(model: nn.Module) -> dict[str, ExpertBank]:
    return adapter_of(model).banks


def task_outputs(seen: Seen) -> Array:
    """(tasks, tokens, d_out): s B_e A_e x of each task, the frozen ones first."""
    bank = seen.bank
    A, B = array(bank.lora_A), array(bank.lora_B)
    if bank.frozen_A is not None:
        A = np.concatenate([array(bank.frozen_A), A])
        B = np.concatenate([array(bank.frozen_B), B])
    pairs = zip(np.split(A, len(bank.ranks)), np.split(B, len(bank.ranks)), strict=True)
    return np.stack([(4 / 2) * seen.x @ a.T @ b for a, b in pairs])


def scores(seen: Seen) -> Array:
    """(tokens, tasks): w_e . v_e + b_e, from the outputs themselves."""
    outputs = np.einsum("etd,ed->te", task_outputs(seen), array(seen.router.weight))
    return outputs + array(seen.router.bias)


@pytest.mark.parametrize("mix", ["softmax", "sigmoid"])
def test_a_token_mixes_the_tasks_by_attention_over_what_each_would_say(mix: str) -> None:
    for seen in see(grown(3, mix=mix)):
        a = softmax(scores(seen)) if mix == "softmax" else sigmoid(scores(seen))
        expected = np.einsum("te,etd->td", a, task_outputs(seen))
        assert_allclose(seen.delta, expected, **CLOSE)


def test_one_task_is_a_lora() -> None:
    for seen in see(model_with(config())):
        A, B = seen.experts[0]
        assert_allclose(seen.delta, 2 * seen.x @ A.T @ B.T, **CLOSE)


# ---------------------------------------------------------------------- append and freeze


def test_an_appended_task_keeps_the_old_parameters() -> None:
    model = awaken(grown(2))
    before = {name: (bank.A.clone(), bank.B.clone()) for name, bank in banks(model).items()}
    scorers = {name: p.clone() for name, p in router_parameters(model).items()}
    append_task(model)
    for name, bank in banks(model).items():
        assert torch.equal(bank.frozen_A.double(), before[name][0])
        assert torch.equal(bank.frozen_B.double(), before[name][1])
        assert not bank.lora_B.any()
        assert bank.num_experts == 3
    for name, parameter in router_parameters(model).items():
        assert torch.equal(parameter[:2].double(), scorers[name])


def test_training_the_new_task_leaves_the_old_ones_as_they_are() -> None:
    model = grown(2).float()
    append_task(model)
    mark_trainable(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss + sum(auxiliary_losses(model).values())
        loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    learnable = {n for n in expert_parameters(model) if ".lora_" in n}
    assert moved == learnable | set(router_parameters(model))


def test_a_new_task_that_is_never_chosen_changes_no_output() -> None:
    model = grown(2)
    before = model(IDS).logits
    append_task(model)
    with torch.no_grad():
        for bank in banks(model).values():
            nn.init.normal_(bank.lora_B)
        for router in adapter_of(model).routers:
            router.bias[-1] = -torch.inf
    assert_close(model(IDS).logits, before, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for router in adapter_of(model).routers:
            router.bias[-1] = 0
    assert not torch.allclose(model(IDS).logits, before, atol=1e-2)


def test_a_grown_model_saves_and_loads_to_identical_logits(tmp_path: Path) -> None:
    model = grown(3).float()
    save(model, tmp_path)
    fresh = language_model("llama")
    load(fresh, tmp_path)
    assert_close(fresh(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    frozen = [p for n, p in expert_parameters(fresh).items() if "frozen_" in n.rpartition(".")[2]]
    assert frozen
    assert not any(p.requires_grad for p in frozen)


def test_tasks_can_only_be_appended_to_this_method() -> None:
    with pytest.raises(ConfigError, match="append_task is for method 'amlora'"):
        append_task(model_with(MoleConfig(num_experts=2, r=2)))


@torch.no_grad()
def silence_the_last(model: nn.Module) -> None:
    """Give the newest task an output, and a score far below all others."""
    for bank in banks(model).values():
        nn.init.normal_(bank.lora_B)
    for router in adapter_of(model).routers:
        router.bias[-1] = -torch.inf


MEANT_OTHERWISE: list[dict[str, object]] = [
    {"target_modules": r"model\.layers\.\d+\.mlp\.\w+"},
    {"target_modules": "all-linear", "root": "model.layers.0"},
    {"target_modules": "all-linear", "root": "model"},
    {"target_modules": ["up_proj"], "layers_to_transform": [1]},
    {"target_modules": "all-linear", "exclude_modules": ["self_attn.q_proj"]},
]


@pytest.mark.parametrize("changes", MEANT_OTHERWISE, ids=str)
def test_a_task_is_appended_to_the_same_linears_after_peft_wrapped_the_model(
    changes: dict[str, object],
) -> None:
    model = language_model("llama")
    add_experts(model, config(**changes))
    awaken(model)
    linears = {name.replace(".base_layer", "") for name in banks(model)}
    before = model(IDS).logits
    # Its own LoRA starts at zero.
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj", "q_proj"])).eval()
    append_task(wrapped)
    assert {name.replace(".base_layer", "") for name in banks(wrapped)} == linears
    assert all(bank.num_experts == 2 for bank in banks(wrapped).values())
    assert adapter_of(wrapped).config == config(**{**changes, "num_experts": 2})
    silence_the_last(wrapped)
    # Softmax over one task more: the weight of the others is 1 up to a rounding.
    assert_close(wrapped(IDS).logits, before, rtol=1e-5, atol=1e-5)


def test_a_task_that_cannot_be_appended_leaves_the_old_ones_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = grown(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(IDS).logits
    built = []
    build = AmLora.build_bank

    def run_out(self: AmLora, place: Place) -> ExpertBank:
        built.append(place.name)
        if len(built) == 3:
            raise torch.OutOfMemoryError("no memory for another bank")
        return build(self, place)

    monkeypatch.setattr(AmLora, "build_bank", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        append_task(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert adapter_of(model).config.num_experts == 2
    assert torch.equal(model(IDS).logits, output)


def test_frozen_tasks_keep_every_digit_of_a_wider_dtype() -> None:
    model = grown(1)  # float64
    with torch.no_grad():
        for bank in banks(model).values():
            bank.lora_A.mul_(1 / 3)  # digits that float32 has not
    before = {name: (bank.A.clone(), bank.B.clone()) for name, bank in banks(model).items()}
    append_task(model)
    for name, bank in banks(model).items():
        assert torch.equal(bank.frozen_A, before[name][0])
        assert torch.equal(bank.frozen_B, before[name][1])
        assert bank.frozen_A.dtype == bank.lora_A.dtype == torch.float64


def test_a_task_appended_to_a_named_adapter_keeps_name_context_and_whether_it_is_on() -> None:
    model = language_model("llama")
    context = add_experts(model, config(), "tasks")
    add_experts(model, config(), "others")
    disable_adapter(model, "tasks")
    append_task(model, "tasks")
    assert set(adapter_names(model)) == {"tasks", "others"}
    assert active_adapters(model) == ["others"]
    assert adapter_of(model, "tasks").context is context


def test_what_was_left_out_gets_no_task_though_its_name_ends_as_anothers() -> None:
    model = language_model("llama")
    # Below this root there are `up_proj` and `inner.up_proj`.
    mlp = model.model.layers[0].mlp
    mlp.inner = nn.ModuleDict({"up_proj": nn.Linear(4, 4)})
    add_experts(model, config(root="model.layers.0.mlp", exclude_modules=["inner.up_proj"]))
    linears = set(banks(model))
    append_task(model)
    assert set(banks(model)) == linears
    assert all(bank.num_experts == 2 for bank in banks(model).values())


def test_a_task_appended_to_one_adapter_leaves_another_of_a_longer_name_alone() -> None:
    model = language_model("llama")
    add_experts(model, config(), "a")
    add_experts(model, config(num_experts=3), "a-grown")
    append_task(model, "a")
    tasks = {n: adapter_of(model, n).banks["layers.0.mlp.up_proj"] for n in adapter_names(model)}
    assert {name: bank.num_experts for name, bank in tasks.items()} == {"a": 2, "a-grown": 3}


# ---------------------------------------------------------------------- sparsity


def test_the_l1_term_is_of_sigmoids_over_attended_tokens_of_all_linears() -> None:
    model = grown(3, l1_coef=0.5)
    means = np.zeros(2)
    seen = see(model, attention_mask=PADDED)
    for linear in seen:
        mass = sigmoid(scores(linear)).sum(1, keepdims=True)
        means += [rows.mean() for rows in per_sample(mass, PADDED)]
    assert_allclose(
        array(auxiliary_losses(model)["l1"]), 0.5 * (means / len(seen)).mean(), **SINGLE
    )


def test_l1_of_the_softmax_would_teach_nothing_and_ours_does() -> None:
    model = grown(3, l1_coef=1.0)
    model(IDS)
    context = adapter_of(model).context
    selectors = list(router_parameters(model).values())
    published = sum(record.route.weights.abs().sum(1).mean() for record in context.records)
    silent = torch.autograd.grad(published, selectors, retain_graph=True)
    ours = torch.autograd.grad(auxiliary_losses(model)["l1"], selectors)
    assert max(grad.abs().max() for grad in silent) < 1e-12
    assert min(grad.abs().max() for grad in ours) > 1e-5


# ---------------------------------------------------------------------- options


def test_the_documented_choices_are_the_defaults() -> None:
    default = MoleConfig(method="amlora")
    assert (default.num_experts, default.r) == (1, 8)
    assert (default.mix, default.l1_coef) == ("softmax", 0.001)
    assert (default.target_modules, default.scope) == ("all-linear", "linear")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mix", "top1"), ("l1_coef", -1), ("num_experts", (1, 2)), ("expert_ranks", (2,))],
)
def test_an_impossible_option_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        config(**{key: value})
