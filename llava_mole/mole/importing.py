"""Plain PEFT LoRAs as experts: each folder becomes one, at exactly what it was trained to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from llava_mole.errors import CheckpointError
from llava_mole.mole.adapters import DEFAULT, adapter_of, delete_adapter
from llava_mole.mole.bank import ExpertBank
from llava_mole.mole.config import MoleConfig
from llava_mole.mole.inject import add_experts, decoder_of
from llava_mole.mole.io import CONFIG_FILE, WEIGHTS_FILE, read_json, read_tensors

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
UNSUPPORTED = {
    "use_dora": "DoRA scales the whole weight",
    "lora_bias": "it trains biases",
    "modules_to_save": "it carries whole modules",
    "trainable_token_indices": "it trains token embeddings",
    "target_parameters": "it adapts bare parameters",
    "rank_pattern": "ranks differ by module",
    "fan_in_fan_out": "its weights are transposed",
    "layer_replication": "it repeats layers",
    "alora_invocation_tokens": "it acts after these tokens only",
    "use_qalora": "it pools the input",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it routes",
    "kasa_config": "it changes the base",
    "monteclora_config": "it samples",
}
CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Values of init_lora_weights that leave less in the base than there was."""


def number(values: Any, key: str, path: Path) -> Any:
    """A positive number of a config. Raises CheckpointError naming the key."""
    value: Any = values.get(key) if isinstance(values, dict) else values
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {key}={value!r} is not a positive number")
    return value


class PlainLora:
    """A PEFT LoRA folder, read and checked.

    Attributes:
        factors: linear's name in the model -> A (r, d_in), B (d_out, r) with its scaling folded in.
        rank: r.
    """

    def __init__(self, folder: Path) -> None:
        values = read_json(folder / CONFIG_FILE)
        path = folder / CONFIG_FILE
        if values.get("peft_type") != "LORA":
            raise CheckpointError(f"{path}: peft_type is {values.get('peft_type')!r}, not LORA")
        for key, why in UNSUPPORTED.items():
            if values.get(key):
                raise CheckpointError(f"{path}: {key} is set ({why}); it is no plain LoRA")
        if values.get("bias", "none") != "none":
            raise CheckpointError(f"{path}: bias={values['bias']!r}; it is no plain LoRA")
        start = str(values.get("init_lora_weights")).lower()
        if start.startswith(CHANGE_THE_BASE):
            raise CheckpointError(
                f"{path}: init_lora_weights={values['init_lora_weights']!r} changed the base; save "
                "it as a plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
            )
        self.folder = folder
        self.rank = number(values, "r", path)
        if self.rank != int(self.rank):
            raise CheckpointError(f"{path}: r={values['r']!r} is no whole number")
        self.rank = int(self.rank)
        for key in values.get("alpha_pattern") or {}:
            number(values["alpha_pattern"], key, path)
        number(values, "lora_alpha", path)
        tensors = read_tensors(folder)
        self.factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name in sorted(tensors):
            if not name.endswith(A_SUFFIX):
                if not name.endswith(B_SUFFIX):
                    raise CheckpointError(f"{folder / WEIGHTS_FILE}: {name} belongs to no LoRA")
                continue
            linear = name.removesuffix(A_SUFFIX)
            if linear + B_SUFFIX not in tensors:
                raise CheckpointError(f"{folder / WEIGHTS_FILE}: {linear + B_SUFFIX} is missing")
            scaling = self.scaling(values, linear)
            self.factors[linear] = (tensors[name], tensors[linear + B_SUFFIX].float() * scaling)

    def scaling(self, values: dict[str, Any], linear: str) -> float:
        own: dict[str, float] = values.get("alpha_pattern") or {}
        alpha = float(own.get(get_pattern_key(list(own), linear), values["lora_alpha"]))
        return alpha / (math.sqrt(self.rank) if values.get("use_rslora") else self.rank)


@torch.no_grad()
def import_loras(
    model: nn.Module,
    folders: Sequence[str | Path],
    config: MoleConfig | None = None,
    adapter_name: str = DEFAULT,
) -> None:
    """Add experts to `model`, the e-th of them the LoRA of the e-th folder. Ranks may differ.

    Args:
        model: the base that the LoRAs were trained on.
        folders: as PEFT saves them.
        config: method and its options; experts, ranks, scaling and targets are taken from the
            folders. Default: LLaVA-MoLE's. Its router is new: two LoRAs together compute what
            neither did until it has been trained.
        adapter_name: of the new experts.

    Raises:
        CheckpointError: a folder is no plain LoRA, or the LoRAs adapt different linears.
        ConfigError: the model has no such linears, or the method's experts are no plain LoRAs.
    """
    loras = [PlainLora(Path(folder)) for folder in folders]
    if not loras:
        raise CheckpointError("import_loras: no folder given")
    targets = set(loras[0].factors)
    for lora in loras[1:]:
        different = sorted(targets ^ set(lora.factors))
        if different:
            raise CheckpointError(
                f"{lora.folder} and {loras[0].folder} adapt different linears, first "
                f"{different[0]}: experts of one mixture share them"
            )
    if isinstance(model, PeftModel):  # the folders have the names of the model that PEFT wrapped
        model = model.get_base_model()
    root = decoder_of(model)
    prefix = next(name for name, module in model.named_modules() if module is root)
    prefix = f"{prefix}." if prefix else ""
    outside = sorted(name for name in targets if not name.startswith(prefix))
    if outside:
        raise CheckpointError(
            f"{loras[0].folder} adapts {outside[0]}, outside of the decoder {prefix[:-1]!r} of "
            f"{type(model).__name__}"
        )
    names = {name for name, _ in model.named_modules()}
    missing = sorted(targets - names)
    if missing:
        raise CheckpointError(
            f"{loras[0].folder} adapts {missing[0]}, which {type(model).__name__} has not (another "
            "base model, with other layers?)"
        )
    ranks = [lora.rank for lora in loras]
    values = (config or MoleConfig()).to_dict() | {
        "num_experts": len(loras),
        "r": max(ranks),
        "expert_ranks": ranks if len(set(ranks)) > 1 else None,
        "lora_alpha": float(max(ranks)),
        "target_modules": sorted(name.removeprefix(prefix) for name in targets),
        "exclude_modules": [],
        "layers_to_transform": None,
        "root": None,
    }
    add_experts(model, MoleConfig.from_dict(values), adapter_name)
    try:
        for name, bank in adapter_of(model, adapter_name).banks.items():
            fill(bank, [lora.factors[prefix + name] for lora in loras], prefix + name, loras)
    except CheckpointError:
        delete_adapter(model, adapter_name)
        raise


def fill(
    bank: ExpertBank, factors: list[tuple[Tensor, Tensor]], name: str, loras: list[PlainLora]
) -> None:
    whole = bank.ranks == tuple(lora.rank for lora in loras)
    plain = type(bank) is ExpertBank and bank.shared_A is None and bank.frozen_A is None
    if not (plain and whole):
        raise CheckpointError(
            "import_loras: experts of this method are no plain LoRAs (they share A, scale outputs, "
            "pair factors or are frozen); choose another method"
        )
    start = bank.shared_rank  # whose B is zero: it adds nothing yet
    for (A, B), lora in zip(factors, loras, strict=True):
        expected = ((lora.rank, bank.in_features), (bank.out_features, lora.rank))
        if (tuple(A.shape), tuple(B.shape)) != expected:
            raise CheckpointError(
                f"{lora.folder}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}, the model "
                f"needs {expected[0]} and {expected[1]} (another base model?)"
            )
        rows = slice(start, start + lora.rank)
        assert bank.lora_A is not None
        bank.lora_A[rows] = A.to(bank.lora_A)
        bank.lora_B[rows] = (B.T / bank.scaling).to(bank.lora_B)
        start += lora.rank
