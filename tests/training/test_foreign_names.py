"""What LLaVA, LLaMA-Factory, ms-swift, Axolotl and transformers 4 call things: every name is told
with the key that a recipe has for it, and every such key exists."""

import dataclasses
import importlib.util
import typing
from pathlib import Path
from typing import Any

import open_clip
import pytest
import yaml
from peft import LoraConfig
from transformers import TrainingArguments

from llava_mole.cli import main
from llava_mole.errors import ConfigError
from llava_mole.mole.methods import METHODS
from llava_mole.quantization import KEYS
from llava_mole.training.arguments import OWN_ARGUMENTS
from llava_mole.training.foreign_files import TOWERS, is_llava, sketch
from llava_mole.training.foreign_names import NAMES, translation
from llava_mole.training.reading import flags
from llava_mole.training.recipe import Recipe
from llava_mole.training.schema import load_recipe
from tests.training.test_schema import good, write

ARGUMENTS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
FREE = {"training": ARGUMENTS, "experts": {key for one in METHODS.values() for key in
        one.__dataclass_fields__}, "quantization": set(KEYS),
        "lora": {field.name for field in dataclasses.fields(LoraConfig)}}  # fmt: skip


def exists(key: str) -> bool:
    """Whether a dotted key is one of a recipe's: N for a number, free mappings by their owners."""
    kind: Any = Recipe
    for part in key.split("."):
        if part == "N":
            kind = typing.get_args(kind)[0]
            continue
        if isinstance(kind, set):
            return part in kind
        options = [arg for arg in typing.get_args(kind) if dataclasses.is_dataclass(arg)]
        kind = options[0] if options else kind
        if not dataclasses.is_dataclass(kind) or part not in typing.get_type_hints(kind):
            return False
        kind = FREE.get(part, typing.get_type_hints(kind)[part])
    return True


@pytest.mark.parametrize("name", NAMES)
def test_our_keys_exist_and_theirs_are_not_ours(name: str) -> None:
    for key in NAMES[name].ours:
        assert exists(key), key
    assert NAMES[name].say
    # A name that still is an argument must be one that a stage sets itself, or is shared.
    shared = {"do_train", "data_seed", "bf16", "fp16", "length_column_name"}
    assert name not in ARGUMENTS or name in {*OWN_ARGUMENTS, *shared}, name


def test_a_key_that_does_not_exist_is_found_out() -> None:
    for key in ("model.lora.rank", "stages.N.step", "training.warmup_ratio", "data.sourcs"):
        assert not exists(key), key


VALUES = [True, False, "lora", "a,b", "all", "4", 8, "sdpa", "bf16", 0.1, 3, "drop", "v1", "", None]
VALUES += ["interleave_under", "delete", "pad"]


@pytest.mark.parametrize("name", [name for name, foreign in NAMES.items() if foreign.put])
def test_what_a_sketch_takes_over_lands_in_keys_that_exist(name: str) -> None:
    put = NAMES[name].put
    assert put is not None
    found: dict[str, Any] = {}
    for value in VALUES:
        try:
            found |= put(value)
        except (TypeError, ValueError):
            continue  # a word where their key takes a number
    assert found, name
    for key in found:
        parts = ["N" if part == "0" else part for part in key.split(".")]
        path = ".".join(parts[:3] if "learning_rates" in parts else parts)
        assert exists(path), key


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("model", "torch_dtype", "bfloat16", "model.torch_dtype: unknown key, a name of "
         "ms-swift and transformers; here model.dtype"),
        ("training", "warmup_ratio", 0.03, "training.warmup_ratio=0.03: a name of "
         "transformers; here training.warmup_steps: the same value: below 1 it is a share"),
        ("training", "evaluation_strategy", "no", "here training.eval_strategy"),
        ("data", "cutoff_len", 2048, "a name of LLaMA-Factory; here data.max_length"),
        (None, "mm_projector_lr", 2e-5, "a name of LLaVA; here stages.N.learning_rates: "
         "learning_rates: {projector: VALUE}"),
        (None, "lazy_preprocess", True, "there is no such key here"),
        (None, "weight_decay", 0.1, "transformers.TrainingArguments'; write it under training:"),
    ],
)  # fmt: skip
def test_a_foreign_name_in_a_recipe_is_answered_with_ours(
    tmp_path: Path, section: str | None, name: str, value: Any, said: str
) -> None:
    values = good()
    (values.setdefault(section, {}) if section else values)[name] = value
    with pytest.raises(ConfigError) as refused:
        load_recipe(write(tmp_path, values))
    assert said in str(refused.value)


def test_dashes_are_underscores() -> None:
    assert translation("--mm-projector-lr") == translation("mm_projector_lr") is not None


# ---------------------------------------------------------------------- whole files

LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
image_max_pixels: 262144
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
quantization_bit: 4
flash_attn: fa2
dataset: mllm_demo,identity
interleave_probs: 0.7,0.3
mix_strategy: interleave_under
template: qwen2_vl
cutoff_len: 2048
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
freeze_vision_tower: false
output_dir: saves/sft
logging_steps: 10
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
resume_from_checkpoint: null
"""
LLAVA = r"""
#!/bin/bash
deepspeed llava/train/train_mem.py \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path lmsys/vicuna-7b-v1.5 \
    --version v1 \
    --data_path ./playground/data/llava_v1_5_mix665k.json \
    --image_folder ./playground/data \
    --vision_tower openai/clip-vit-large-patch14-336 \
    --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --group_by_modality_length True \
    --bf16 True \
    --output_dir ./checkpoints/llava-v1.5-7b \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --learning_rate 2e-5 --mm_projector_lr 1e-5 \
    --weight_decay 0. \
    --warmup_ratio 0.03 \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --lazy_preprocess True \
    --report_to wandb
"""
SWIFT = """
model: Qwen/Qwen2.5-7B
dataset: [a.jsonl, b.jsonl]
train_type: lora
torch_dtype: bfloat16
attn_impl: sdpa
freeze_vit: false
vit_lr: 1e-5
aligner_lr: 1e-5
lora_rank: 16
target_modules: all-linear
max_length: 8192
learning_rate: 1e-4
deepspeed: zero2
"""
AXOLOTL = """
base_model: NousResearch/Meta-Llama-3-8B
load_in_4bit: true
datasets: [{path: tatsu-lab/alpaca, type: alpaca}]
adapter: qlora
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_target_linear: true
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
flash_attention: true
wandb_project:
"""


LLAMA_FACTORY_LLAVA = """
model_name_or_path: llava-hf/llava-1.5-7b-hf
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: mllm_demo
template: llava
cutoff_len: 2048
val_size: 0.1
eval_strategy: steps
eval_steps: 500
tf32: true
deepspeed: examples/deepspeed/ds_z3_config.json
gradient_checkpointing: true
output_dir: saves/llava
learning_rate: 1.0e-4
num_train_epochs: 3.0
warmup_ratio: 0.1
"""
LLAVA_ALIGNED = LLAVA.replace(
    "--version v1", "--version v1 --pretrain_mm_mlp_adapter ck/mm_projector.bin"
).replace("--mm_use_im_start_end False", "--mm_use_im_start_end False --image_aspect_ratio pad")


def read(text: str) -> dict[str, Any]:
    return flags(text) if "--" in text else yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "owner", "name"),
    [
        (LLAMA_FACTORY, "LLaMA-Factory", "their.yaml"),
        (LLAVA, "LLaVA", "finetune.sh"),
        (LLAMA_FACTORY_LLAVA, "LLaMA-Factory", "their.yaml"),
        (LLAVA_ALIGNED, "LLaVA", "finetune.sh"),
        (SWIFT, "ms-swift", "their.yaml"),
        (AXOLOTL, "Axolotl", "their.yaml"),
    ],
)
def test_a_whole_file_of_another_program_is_translated_key_by_key_and_sketched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, owner: str, name: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert f"was written for {owner}" in said
    for key in read(text):
        assert f"\n  {key}=" in said
    drawn = tmp_path / "sketch.yaml"
    drawn.write_text(sketch(read(text)))
    assert sketch(read(text)) in said
    # FlashAttention takes no masks, so the sketch never shares prefixes, and is a valid recipe.
    begun = yaml.safe_load(sketch(read(text)))["model"].get("start_from")
    if begun is None:
        load_recipe(drawn)
        return
    assert f"--out {begun}" in said
    with pytest.raises(ConfigError, match="one problem") as pending:  # the folder to be converted
        load_recipe(drawn)
    assert "model.start_from" in str(pending.value)


def test_a_sketch_of_a_whole_llava_starts_from_it_and_leaves_its_projector_frozen() -> None:
    drawn = yaml.safe_load(sketch(read(LLAMA_FACTORY_LLAVA)))
    assert drawn["model"] == {
        "start_from": "models/llava-1.5-7b-hf", "lora": {"r": 8, "target_modules": "all-linear"},
    }  # fmt: skip
    assert drawn["stages"][0]["learning_rates"] == {"lora": 1e-4}
    assert drawn["stages"][0]["questions_per_picture"] == 1
    assert drawn["training"] == {"warmup_steps": 0.1, "activation_checkpointing": True}
    assert drawn["data"]["too_long"] == "drop"
    assert drawn["data"]["sources"][0]["language"] == "en"


def test_a_base_that_ms_swift_names_is_the_sketchs_language_model() -> None:
    assert yaml.safe_load(sketch(read(SWIFT)))["model"]["language_model"] == "Qwen/Qwen2.5-7B"
    whole = {**read(SWIFT), "model": "swift/LLaVA-1.5"}
    assert yaml.safe_load(sketch(whole))["model"]["start_from"] == "models/LLaVA-1.5"


def test_a_folder_is_a_llava_by_its_config_and_not_by_its_name(tmp_path: Path) -> None:
    for name, kind in (("mine", "llava"), ("llava-text", "llama")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    assert is_llava(str(tmp_path / "mine"))
    assert not is_llava(str(tmp_path / "llava-text"))


def test_a_projector_of_the_first_stage_is_converted_and_started_from(tmp_path: Path) -> None:
    path = tmp_path / "finetune.sh"
    path.write_text(LLAVA_ALIGNED)
    with pytest.raises(ConfigError) as answer:
        load_recipe(path)
    assert (
        "llava-mole convert ck/mm_projector.bin --out models/aligned --language-model "
        "lmsys/vicuna-7b-v1.5 --vision-model ViT-L-14-336-quickgelu --vision-pretrained openai "
        "--image-aspect-ratio pad"
    ) in str(answer.value)
    assert yaml.safe_load(sketch(read(LLAVA_ALIGNED)))["model"] == {
        "start_from": "models/aligned", "dtype": "float32",
    }  # fmt: skip


def test_deepspeed_that_is_not_installed_is_told_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "deepspeed" else found(name)
    )
    values = good()
    values.setdefault("training", {})["deepspeed"] = "zero3.json"
    path = write(tmp_path, values)
    assert main(["train", "--config", str(path), "--dry-run"]) == 2
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[deepspeed\]"'):
        load_recipe(path)


def test_a_sketch_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(sketch(read(LLAMA_FACTORY)))
    recipe = load_recipe(path)
    stage = recipe.stages[0]
    assert recipe.model.language_model == "Qwen/Qwen2.5-7B-Instruct"
    assert recipe.model.lora == {"r": 8, "target_modules": "all-linear"}
    assert recipe.model.quantization == {"load_in_4bit": True}
    assert recipe.model.attn_implementation == "flash_attention_2"
    assert [(s.path, s.weight) for s in recipe.data.sources] == [
        ("data/dataset_info.json:mllm_demo", 0.7), ("data/dataset_info.json:identity", 0.3),
    ]  # fmt: skip
    assert recipe.data.length == "first_exhausted"
    assert recipe.data.max_length == 2048
    assert (stage.passes, stage.pictures_per_step) == (3.0, 1)
    assert stage.learning_rates == {"projector": 1e-4, "lora": 1e-4, "vision": 1e-4}
    assert recipe.training["gradient_accumulation_steps"] == 8
    assert recipe.training["warmup_steps"] == 0.1
    assert not {"lora_rank", "num_train_epochs", "plot_loss"} & set(recipe.training)


def test_llavas_full_fine_tuning_trains_the_language_model_and_pretraining_the_projector() -> None:
    full = yaml.safe_load(sketch(flags(LLAVA)))
    assert full["stages"][0]["learning_rates"] == {"projector": 1e-5, "language_model": 2e-5}
    assert full["model"]["vision_model"] == "ViT-L-14-336-quickgelu"
    assert full["model"]["vision_layer"] == -2
    assert full["model"]["chat_template"] == "vicuna_v1"
    first = yaml.safe_load(sketch({**flags(LLAVA), "tune_mm_mlp_adapter": True}))
    assert set(first["stages"][0]["learning_rates"]) == {"projector"}


def test_a_recipe_with_mistakes_is_not_taken_for_another_programs(tmp_path: Path) -> None:
    values = good()
    values |= {"lora_rank": 8, "cutoff_len": 1, "template": "x", "dataset": "y"}
    with pytest.raises(ConfigError, match="4 problems"):
        load_recipe(write(tmp_path, values))


def test_towers_are_open_clips() -> None:
    for model, tag in TOWERS.values():
        assert tag in open_clip.list_pretrained_tags_by_model(model)
