"""What must hold for every method in use: decoding, padding, modes, folders and copies."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft import get_peft_model_state_dict as lora_state
from peft import set_peft_model_state_dict as set_lora_state
from torch import Tensor
from torch.testing import assert_close

from llava_mole.mole import (
    ExpertBank,
    auxiliary_losses,
    disable_adapter,
    enable_adapter,
    expert_parameters,
    load,
    mole_context,
    router_parameters,
    save,
)
from llava_mole.mole.router import Router
from tests.helpers import random_ids
from tests.mole.arms import (
    ARMS,
    FLOAT32,
    base_model,
    batch,
    build,
    prompt,
    step,
)

FAMILIES = ["llama", "gemma3_text"]
IDS = random_ids(2, 12)
SIDES = [("llama", "right"), ("gemma3_text", "left")]


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
            past = out.cache
            out = model(IDS[:, t : t + 1], cache=past, use_cache=True)
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
