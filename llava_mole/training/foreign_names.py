"""Names that other programs give to what a recipe says: whose they are, our key, how to say it.

LLaVA's are those of `llava/train/train.py` (LLaVA-NeXT's are marked), LLaMA-Factory's of
`src/llamafactory/hparams`, ms-swift's of its command line, Axolotl's of its YAML, transformers' of
version 4 and of from_pretrained. A name that several share stands once. `tests/training/
test_foreign_names.py` holds every key that is named here against the recipe's own classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

L, NEXT, F, S, A, T = "LLaVA", "LLaVA-NeXT", "LLaMA-Factory", "ms-swift", "Axolotl", "transformers"

Put = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Foreign:
    """One name of theirs."""

    whose: tuple[str, ...]
    ours: tuple[str, ...]
    """Dotted keys of a recipe, N for the number of a stage or source; empty where there is none."""
    say: str
    """How to say it with those keys, or why there is no such thing."""
    put: Put | None = None
    """Their value -> our keys and values, where that needs nothing else; for a sketch."""


def same(key: str) -> Put:
    return lambda value: {} if value in (None, "") else {key: value}


def listed(key: str) -> Put:
    """Theirs: `a,b`; ours: [a, b]."""
    return lambda value: {} if not value else {key: words(value)}


def words(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)


def targets(value: Any) -> dict[str, Any]:
    if not value:
        return {}
    names = [name.strip() for name in words(value)]
    linears = {"all", "all-linear", "ALL", "DEFAULT"} & set(names)
    return {"model.lora.target_modules": "all-linear" if linears else names}


def number(key: str) -> Put:
    return lambda value: {} if value in (None, "") else {key: float(value)}


def attention(value: Any) -> dict[str, Any]:
    known = {
        "fa2": "flash_attention_2", "flash_attn": "flash_attention_2", "flash_attention_2":
        "flash_attention_2", "flash_attention": "flash_attention_2", "sdpa": "sdpa",
        "eager": "eager", "disabled": "eager", "auto": "sdpa", "flex_attention": "flex_attention",
        "flex": "flex_attention",
    }  # fmt: skip
    return {"model.attn_implementation": known[value]} if value in known else {}


def bits(value: Any) -> dict[str, Any]:
    return {
        "4": {"model.quantization.load_in_4bit": True},
        "8": {"model.quantization.load_in_8bit": True},
    }.get(str(value), {})


def dtype(value: Any) -> dict[str, Any]:
    known = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16",
             "float32": "float32", "fp32": "float32"}  # fmt: skip
    return {"model.dtype": known[value]} if value in known else {}


def scheduler(value: Any) -> dict[str, Any]:
    return {"training.lr_scheduler_type": value} if value else {}


def epochs(value: Any) -> dict[str, Any]:
    return {"stages.0.passes": float(value)} if value else {}


def on(key: str, value: Any) -> Put:
    return lambda theirs: {key: value} if theirs in (True, "auto") else {}


LORA = "model.lora"
NO_TEMPLATE = "names are in docs/templates.md; tokenizer is the tokenizer's own"
PLAN = "the planner mixes by `weight`, `temperature` and `length`"
NO_CUT = "nothing is cut; data.too_long: drop leaves longer samples out and lists them"
HELD_OUT = "sources that are never trained on, each {path: FILE}; nothing is split off"
GO_ON = "a model folder of ours; a run that was stopped goes on by itself, or with --resume"
READ = "images and tokens are made as they are needed; nothing is preprocessed ahead"
LOGS = "losses are in OUT/log.jsonl"
FROZEN = "what stages.N.learning_rates does not name is frozen"
OWN = "written by itself, beside and renamed; no need to say so"

_TABLE: list[tuple[str, tuple[str, ...], tuple[str, ...], str, Put | None]] = [
    # ------------------------------------------------------------------ what is built
    ("model_name_or_path", (L, F), ("model.language_model", "model.vision_model"),
     "a language model and, apart from it, a tower; of a LLaVA: `llava-mole convert`, then "
     "model.start_from",
     same("model.language_model")),
    ("model_id_or_path", (S,), ("model.language_model", "model.vision_model"),
     "a language model and, apart from it, a tower", same("model.language_model")),
    ("base_model", (A,), ("model.language_model", "model.vision_model"),
     "a language model and, apart from it, a tower", same("model.language_model")),
    ("model_revision", (F, S), ("model.language_model_revision",), "the same value",
     same("model.language_model_revision")),
    ("revision_of_model", (A,), ("model.language_model_revision",), "the same value",
     same("model.language_model_revision")),
    ("revision", (T,), ("model.language_model_revision",), "the same value",
     same("model.language_model_revision")),
    ("vision_tower", (L,), ("model.vision_model", "model.vision_pretrained"),
     "open_clip's name and tag: openai/clip-vit-large-patch14-336 is "
     "ViT-L-14-336-quickgelu and openai; "
     "'hf-hub:org/name' where the repository is open_clip's", None),
    ("mm_vision_tower", (L,), ("model.vision_model", "model.vision_pretrained"),
     "open_clip's name and tag: openai/clip-vit-large-patch14-336 is "
     "ViT-L-14-336-quickgelu and openai",
     None),
    ("mm_vision_select_layer", (L,), ("model.vision_layer",), "the same number",
     same("model.vision_layer")),
    ("mm_vision_select_feature", (L,), ("model.vision_select",), "patch or cls_patch, as there",
     same("model.vision_select")),
    ("mm_projector_type", (L,), ("model.projector.type",), "linear or mlp2x_gelu, as there",
     same("model.projector.type")),
    ("pretrain_mm_mlp_adapter", (L,), ("model.start_from",),
     "`llava-mole convert mm_projector.bin --out models/aligned --language-model … --vision-model "
     "… --vision-pretrained …`, then model.start_from: models/aligned", None),
    ("mm_use_im_start_end", (L,), (), "no such marks: the placeholder alone stands for a picture",
     None),
    ("mm_use_im_patch_token", (L,), ("model.image_token",),
     "a reserved token of the vocabulary is found by itself", None),
    ("image_aspect_ratio", (L,), ("model.vision_resize",),
     "pad is vision_resize: longest; empty: as published with the tower's weights",
     lambda v: {"model.vision_resize": "longest"} if v == "pad" else {}),
    ("image_grid_pinpoints", (L,), ("model.vision_grid",),
     "no tiles; vision_grid averages patches to fewer tokens", None),
    ("mm_patch_merge_type", (NEXT,), (), "no tiles, so nothing to merge", None),
    ("mm_resampler_type", (NEXT,), ("model.vision_grid",), "patches are averaged, not resampled",
     None),
    ("version", (L,), ("model.chat_template",), f"v1 is vicuna_v1; {NO_TEMPLATE}",
     lambda v: {"model.chat_template": "vicuna_v1"} if v == "v1" else {}),
    ("template", (F, S), ("model.chat_template",), NO_TEMPLATE, None),
    ("template_type", (S,), ("model.chat_template",), NO_TEMPLATE, None),
    ("default_system", (F,), ("model.chat_template",), "a system turn in the data", None),
    ("system", (S,), ("model.chat_template",), "a system turn in the data", None),
    ("torch_dtype", (S, T), ("model.dtype",), "bfloat16, float16 or float32", dtype),
    ("infer_dtype", (F,), ("model.dtype",), "bfloat16, float16 or float32", dtype),
    ("pure_bf16", (F,), ("model.dtype",), "model.dtype: bfloat16; what is trained stays float32",
     on("model.dtype", "bfloat16")),
    ("bfloat16", (A,), ("model.dtype",), "model.dtype: bfloat16", on("model.dtype", "bfloat16")),
    ("float16", (A,), ("model.dtype",), "model.dtype: float16", on("model.dtype", "float16")),
    ("flash_attn", (F,), ("model.attn_implementation",),
     "fa2 is flash_attention_2, disabled is eager; sdpa as there", attention),
    ("attn_impl", (S,), ("model.attn_implementation",),
     "flash_attn is flash_attention_2; sdpa, eager as there", attention),
    ("use_flash_attn", (S,), ("model.attn_implementation",),
     "true is flash_attention_2, false is sdpa",
     lambda v: {"model.attn_implementation": "flash_attention_2" if v is True else "sdpa"}),
    ("flash_attention", (A,), ("model.attn_implementation",), "true is flash_attention_2",
     on("model.attn_implementation", "flash_attention_2")),
    ("flex_attention", (A,), ("model.attn_implementation",), "true is flex_attention",
     on("model.attn_implementation", "flex_attention")),
    ("sdp_attention", (A,), ("model.attn_implementation",), "true is sdpa",
     on("model.attn_implementation", "sdpa")),
    ("xformers_attention", (A,), ("model.attn_implementation",), "sdpa or flash_attention_2", None),
    ("mpt_attn_impl", (L,), ("model.attn_implementation",), "sdpa or flash_attention_2", None),
    ("rope_scaling", (F, S), (), "what the language model's own config says is used", None),
    ("trust_remote_code", (F, T, A), (), "no code of a repository is ever run", None),
    ("use_fast_tokenizer", (F,), (), "tokenizers are always the fast ones", None),
    ("tokenizer_type", (A,), (), "the language model's own, always the fast one", None),
    ("model_type", (S, A), (), "read from the language model's config", None),
    ("resize_vocab", (F,), ("model.image_token",), "the vocabulary stays as it is", None),
    ("add_tokens", (F,), ("model.image_token",), "the vocabulary stays as it is", None),
    ("special_tokens", (A,), ("model.image_token",), "those of the tokenizer", None),
    ("image_max_pixels", (F,), ("model.vision_grid",),
     "pictures have the tower's size; vision_grid sets how many tokens each becomes", None),
    ("image_min_pixels", (F,), (), "pictures have the tower's size", None),
    ("max_pixels", (S,), ("model.vision_grid",),
     "pictures have the tower's size; vision_grid sets how many tokens each becomes", None),
    ("image_size", (A,), (), "pictures have the tower's size", None),
    ("video_max_pixels", (F,), (), "pictures only, no video", None),
    ("video_fps", (F,), (), "pictures only, no video", None),
    ("device_map", (S, T), (), "the model is on one device; several by torchrun", None),
    ("low_cpu_mem_usage", (F, T), (), "weights are always read one by one", None),
    ("cache_dir", (L, F, T), (), "say HF_HOME=FOLDER in the environment", None),
    ("hf_hub_token", (F,), (), "no secrets in a recipe: `hf auth login`, or HF_TOKEN", None),
    ("use_hf", (S,), (), "parts come from the Hugging Face hub, or from folders", None),
    ("adapter_name_or_path", (F,), ("model.start_from",), GO_ON, None),
    ("adapters", (S,), ("model.start_from",), GO_ON, None),
    ("lora_model_dir", (A,), ("model.start_from",), GO_ON, None),
    ("lora_weight_path", (L,), ("model.start_from",), GO_ON, None),
    # ------------------------------------------------------------------ 4 and 8 bits
    ("bits", (L,), ("model.quantization.load_in_4bit", "model.quantization.load_in_8bit"),
     "4 is model.quantization: {load_in_4bit: true}, 8 is {load_in_8bit: true}", bits),
    ("quantization_bit", (F, S),
     ("model.quantization.load_in_4bit", "model.quantization.load_in_8bit"),
     "4 is model.quantization: {load_in_4bit: true}, 8 is {load_in_8bit: true}", bits),
    ("quant_bits", (S,), ("model.quantization.load_in_4bit", "model.quantization.load_in_8bit"),
     "4 is model.quantization: {load_in_4bit: true}, 8 is {load_in_8bit: true}", bits),
    ("quant_type", (L,), ("model.quantization.bnb_4bit_quant_type",), "nf4 or fp4, as there",
     None),
    ("quantization_type", (F,), ("model.quantization.bnb_4bit_quant_type",), "nf4 or fp4", None),
    ("double_quant", (L,), ("model.quantization.bnb_4bit_use_double_quant",), "true or false",
     None),
    ("double_quantization", (F,), ("model.quantization.bnb_4bit_use_double_quant",),
     "true or false", None),
    ("quantization_method", (F,), ("model.quantization",), "bitsandbytes alone", None),
    ("quant_method", (S,), ("model.quantization",), "bitsandbytes alone", None),
    ("quantization_config", (T,), ("model.quantization",),
     "BitsAndBytesConfig's arguments as a mapping", None),
    ("load_in_4bit", (T, A), ("model.quantization.load_in_4bit",),
     "model.quantization: {load_in_4bit: true}", on("model.quantization.load_in_4bit", True)),
    ("load_in_8bit", (T, A), ("model.quantization.load_in_8bit",),
     "model.quantization: {load_in_8bit: true}", on("model.quantization.load_in_8bit", True)),
    ("bnb_4bit_compute_dtype", (S, T), ("model.quantization.bnb_4bit_compute_dtype",),
     "bfloat16, float16 or float32; empty: model.dtype", None),
    # ------------------------------------------------------------------ LoRA
    ("lora_enable", (L,), (LORA, "stages.N.learning_rates"),
     "a section model.lora, and a rate for lora in a stage", None),
    ("use_lora", (NEXT,), (LORA, "stages.N.learning_rates"),
     "a section model.lora, and a rate for lora in a stage", None),
    ("lora_r", (L, A), ("model.lora.r", "model.experts.r"), "the same number",
     same("model.lora.r")),
    ("lora_rank", (F, S), ("model.lora.r", "model.experts.r"), "the same number",
     same("model.lora.r")),
    ("lora_alpha", (L, F, S, A), ("model.lora.lora_alpha", "model.experts.lora_alpha"),
     "the same number", same("model.lora.lora_alpha")),
    ("lora_dropout", (L, F, S, A), ("model.lora.lora_dropout", "model.experts.lora_dropout"),
     "the same number", same("model.lora.lora_dropout")),
    ("lora_bias", (L,), ("model.lora.bias",), "the same value", same("model.lora.bias")),
    ("lora_target", (F,), ("model.lora.target_modules", "model.experts.target_modules"),
     "names as a list; all is all-linear. Experts go on every MLP by default, so LoRA is mostly "
     "wanted on attention alone: [q_proj, k_proj, v_proj, o_proj]", targets),
    ("target_modules", (S,), ("model.lora.target_modules", "model.experts.target_modules"),
     "below model.lora; all-linear as there", targets),
    ("lora_target_modules", (A, S, NEXT),
     ("model.lora.target_modules", "model.experts.target_modules"), "names as a list", targets),
    ("lora_target_linear", (A,), ("model.lora.target_modules",), "true is all-linear",
     on("model.lora.target_modules", "all-linear")),
    ("target_regex", (S,), ("model.lora.target_modules",), "a text is a regular expression to PEFT",
     same("model.lora.target_modules")),
    ("additional_target", (F,), ("stages.N.learning_rates",),
     "parts have rates of their own: vision, projector, parrot, experts, routers, lora, "
     "language_model", None),
    ("modules_to_save", (S,), ("stages.N.learning_rates",),
     "parts have rates of their own; the projector is always saved whole", None),
    ("lora_modules_to_save", (A,), ("stages.N.learning_rates",),
     "parts have rates of their own; the projector is always saved whole", None),
    ("use_rslora", (F, S), ("model.lora.use_rslora",), "the same value",
     on("model.lora.use_rslora", True)),
    ("peft_use_rslora", (A,), ("model.lora.use_rslora",),
     "the same value", on("model.lora.use_rslora", True)),
    ("use_dora", (F, S), ("model.lora.use_dora",), "the same value",
     on("model.lora.use_dora", True)),
    ("peft_use_dora", (A,), ("model.lora.use_dora",), "the same value",
     on("model.lora.use_dora", True)),
    ("pissa_init", (F,), ("model.lora.init_lora_weights",), "init_lora_weights: pissa", None),
    ("init_weights", (S,), ("model.lora.init_lora_weights",), "the same value",
     same("model.lora.init_lora_weights")),
    ("loraplus_lr_ratio", (F, A), ("stages.N.learning_rates",), "one rate for A and B", None),
    ("lorap_lr_ratio", (S,), ("stages.N.learning_rates",), "one rate for A and B", None),
    ("finetuning_type", (F,), ("stages.N.learning_rates",),
     "lora: a section model.lora and a rate for lora; full: a rate for language_model", None),
    ("train_type", (S,), ("stages.N.learning_rates",),
     "lora: a section model.lora and a rate for lora; full: a rate for language_model", None),
    ("tuner_type", (S,), ("stages.N.learning_rates",),
     "lora: a section model.lora and a rate for lora; full: a rate for language_model", None),
    ("sft_type", (S,), ("stages.N.learning_rates",),
     "lora: a section model.lora and a rate for lora; full: a rate for language_model", None),
    ("tuner_backend", (S,), (LORA,), "PEFT", None),
    ("adapter", (A,), (LORA, "model.quantization"),
     "lora: a section model.lora; qlora: model.quantization beside it", None),
    # ------------------------------------------------------------------ what learns, how fast
    ("tune_mm_mlp_adapter", (L,), ("stages.N.learning_rates",),
     "a stage with learning_rates: {projector: 1e-3}, which trains nothing else", None),
    ("freeze_mm_mlp_adapter", (L,), ("stages.N.learning_rates",),
     f"leave projector out of the stage's rates: {FROZEN}", None),
    ("freeze_backbone", (L,), ("stages.N.learning_rates",), FROZEN, None),
    ("unfreeze_mm_vision_tower", (NEXT,), ("stages.N.learning_rates",), "a rate for vision", None),
    ("mm_tunable_parts", (NEXT,), ("stages.N.learning_rates",),
     "mm_mlp_adapter is projector, mm_vision_tower is vision, mm_language_model language_model",
     None),
    ("mm_projector_lr", (L,), ("stages.N.learning_rates",), "learning_rates: {projector: VALUE}",
     number("stages.0.learning_rates.projector")),
    ("mm_vision_tower_lr", (NEXT,), ("stages.N.learning_rates",),
     "learning_rates: {vision: VALUE}", number("stages.0.learning_rates.vision")),
    ("aligner_lr", (S,), ("stages.N.learning_rates",), "learning_rates: {projector: VALUE}",
     number("stages.0.learning_rates.projector")),
    ("vit_lr", (S,), ("stages.N.learning_rates",), "learning_rates: {vision: VALUE}",
     number("stages.0.learning_rates.vision")),
    ("freeze_vision_tower", (F,), ("stages.N.learning_rates",),
     f"{FROZEN}; to train the tower give vision a rate", None),
    ("freeze_multi_modal_projector", (F,), ("stages.N.learning_rates",),
     f"{FROZEN}; a projector that is new must have a rate", None),
    ("freeze_language_model", (F,), ("stages.N.learning_rates",), FROZEN, None),
    ("freeze_vit", (S,), ("stages.N.learning_rates",),
     f"{FROZEN}; to train the tower give vision a rate", None),
    ("freeze_aligner", (S,), ("stages.N.learning_rates",),
     f"{FROZEN}; a projector that is new must have a rate", None),
    ("freeze_llm", (S,), ("stages.N.learning_rates",), FROZEN, None),
    ("unfrozen_parameters", (A,), ("stages.N.learning_rates",), FROZEN, None),
    ("moe_aux_loss_coef", (F,), ("model.experts.balance_coef",), "of our experts",
     None),
    ("router_aux_loss_coef", (S,), ("model.experts.balance_coef",), "of our experts", None),
    ("stage", (F,), ("stages",), "sft is what a stage of kind language does; there is no dpo, ppo "
     "or pretraining", None),
    ("do_train", (F, T), ("stages",), "`llava-mole train` trains; leave it out", None),
    ("num_train_epochs", (), ("stages.N.passes",), "passes over the mixture", epochs),
    ("num_epochs", (A,), ("stages.N.passes",), "passes over the mixture", epochs),
    ("max_steps", (), ("stages.N.steps",), "of each stage",
     lambda v: {"stages.0.steps": v} if isinstance(v, int) and v > 0 else {}),
    ("per_device_train_batch_size", (), ("stages.N.pictures_per_step",),
     "rows of a micro-batch, of all processes together",
     same("stages.0.pictures_per_step")),
    ("micro_batch_size", (A,), ("stages.N.pictures_per_step",), "rows of a micro-batch",
     same("stages.0.pictures_per_step")),
    ("batch_size", (S, A), ("stages.N.pictures_per_step",), "rows of a micro-batch", None),
    ("per_gpu_train_batch_size", (T,), ("stages.N.pictures_per_step",), "rows of a micro-batch",
     same("stages.0.pictures_per_step")),
    ("learning_rate", (), ("stages.N.learning_rates",),
     "one for each part that learns: {projector: 1e-4, experts: 2e-4, routers: 2e-4, lora: 2e-4}",
     None),
    # ------------------------------------------------------------------ data
    ("data_path", (L,), ("data.sources.N.path",), "LLaVA's JSON is read as it is", None),
    ("image_folder", (L,), ("data.sources.N.image_root",), "the same folder", None),
    ("media_dir", (F,), ("data.sources.N.image_root",), "the same folder", None),
    ("dataset", (F, S), ("data.sources",),
     "a list, one entry a dataset: {path: DIR/dataset_info.json:NAME} reads LLaMA-Factory's, "
     "{path: FILE.jsonl} ms-swift's", None),
    ("datasets", (A,), ("data.sources",), "a list of {path: FILE, format: …}", None),
    ("dataset_dir", (F,), ("data.sources.N.path",), "DIR/dataset_info.json:NAME", None),
    ("dataset_prepared_path", (A,), (), READ, None),
    ("eval_dataset", (F,), ("data.held_out",), HELD_OUT, None),
    ("val_dataset", (S,), ("data.held_out",), HELD_OUT, None),
    ("val_size", (F,), ("data.held_out",), HELD_OUT, None),
    ("val_set_size", (A,), ("data.held_out",), HELD_OUT, None),
    ("test_datasets", (A,), ("data.held_out",), HELD_OUT, None),
    ("split_dataset_ratio", (S,), ("data.held_out",), HELD_OUT, None),
    ("custom_dataset_info", (S,), ("data.sources.N.path",), "name the file itself", None),
    ("mix_strategy", (F,), ("data.length",),
     "concat and interleave_over are all_exhausted, interleave_under is first_exhausted; concat "
     "needs no weights",
     lambda v: {"data.length": "first_exhausted"} if v == "interleave_under" else {}),
    ("stopping_strategy", (S,), ("data.length",), "first_exhausted or all_exhausted, as there",
     same("data.length")),
    ("interleave_probs", (F,), ("data.sources.N.weight",), "a weight on every source", None),
    ("interleave_prob", (S,), ("data.sources.N.weight",), "a weight on every source", None),
    ("max_samples", (F,), ("data.sources.N.samples",), "of each source in a pass", None),
    ("train_dataset_sample", (S,), ("data.sources.N.samples",), "of each source in a pass", None),
    ("cutoff_len", (F,), ("data.max_length",), NO_CUT, same("data.max_length")),
    ("model_max_length", (L,), ("data.max_length",), NO_CUT, same("data.max_length")),
    ("max_length", (S,), ("data.max_length",), NO_CUT, same("data.max_length")),
    ("sequence_len", (A,), ("data.max_length",), NO_CUT, same("data.max_length")),
    ("max_seq_length", (T,), ("data.max_length",), NO_CUT, same("data.max_length")),
    ("truncation_strategy", (S,), ("data.too_long",), "delete is drop; nothing is ever cut",
     lambda v: {"data.too_long": "drop"} if v == "delete" else {}),
    ("excess_length_strategy", (A,), ("data.too_long",), "drop, as there; nothing is ever cut",
     lambda v: {"data.too_long": "drop"} if v == "drop" else {}),
    ("packing", (F, S), ("stages.N.packing",), "tokens of a row, e.g. 4096, not true", None),
    ("neat_packing", (F,), ("stages.N.packing",),
     "tokens of a row, e.g. 4096; packed samples never see each other", None),
    ("sample_packing", (A,), ("stages.N.packing",),
     "tokens of a row, e.g. 4096; packed samples never see each other", None),
    ("padding_free", (S,), ("stages.N.packing",), "tokens of a row, e.g. 4096", None),
    ("pad_to_sequence_len", (A,), ("stages.N.packing",), "rows are padded to their longest", None),
    ("group_by_modality_length", (L,), ("stages.N.length_window",),
     "micro-batches among which rows of like length are put side by side; 8 by default", None),
    ("group_by_varlen", (NEXT,), ("stages.N.length_window",), "8 by default", None),
    ("group_by_length", (T, A), ("stages.N.length_window",),
     "micro-batches among which rows of like length are put side by side; 8 by default", None),
    ("length_column_name", (), ("stages.N.length_window",), "lengths are known", None),
    ("lazy_preprocess", (L,), (), READ, None),
    ("is_multimodal", (L,), (), "seen from the samples", None),
    ("lazy_tokenize", (S,), (), READ, None),
    ("preprocessing_num_workers", (F,), ("training.dataloader_num_workers",), READ, None),
    ("dataset_num_proc", (S,), ("training.dataloader_num_workers",), READ, None),
    ("dataset_processes", (A,), ("training.dataloader_num_workers",), READ, None),
    ("preprocessing_batch_size", (F,), (), READ, None),
    ("tokenized_path", (F,), (), READ, None),
    ("overwrite_cache", (F,), (), "the index of a file follows its content", None),
    ("load_from_cache_file", (S,), (), "the index of a file follows its content", None),
    ("streaming", (F, S), (), "files of any size are read where they are; hub:org/name too", None),
    ("buffer_size", (F,), (), PLAN, None),
    ("disable_shuffling", (F,), ("data.length",), f"{PLAN}, in a fixed random order", None),
    ("dataset_shuffle", (S,), ("data.length",), f"{PLAN}, in a fixed random order", None),
    ("shuffle_merged_datasets", (A,), ("data.length",), f"{PLAN}, in a fixed random order", None),
    ("data_seed", (), ("seed",), "one seed for the whole recipe", None),
    ("mask_history", (F,), (), "every assistant turn is learnt; put the last turn alone into the "
     "data", None),
    ("train_on_prompt", (F,), (), "the assistant's words alone are learnt", None),
    ("train_on_inputs", (A,), (), "the assistant's words alone are learnt", None),
    ("loss_scale", (S,), ("data.kind_weights",),
     "every supervised token counts the same; kinds of questions have weights", None),
    ("ignore_pad_token_for_loss", (F,), (), "padding is never learnt", None),
    # ------------------------------------------------------------------ transformers 4, and speed
    ("warmup_ratio", (T,), ("training.warmup_steps",),
     "the same value: below 1 it is a share", same("training.warmup_steps")),
    ("lr_scheduler", (A,), ("training.lr_scheduler_type",), "the same value", scheduler),
    ("optimizer", (A,), ("training.optim",), "the same value, e.g. adamw_torch",
     same("training.optim")),
    ("adafactor", (T,), ("training.optim",), "optim: adafactor", on("training.optim", "adafactor")),
    ("evaluation_strategy", (T,), ("training.eval_strategy", "data.held_out"),
     "it is called eval_strategy now, and evaluates the sources of data.held_out",
     None),
    ("evals_per_epoch", (A,), ("training.eval_steps",), "steps between two", None),
    ("saves_per_epoch", (A,), ("training.save_steps",), "steps between two", None),
    ("no_cuda", (T,), ("training.use_cpu",), "use_cpu: true", on("training.use_cpu", True)),
    ("bf16", (), ("model.dtype",), "model.dtype: bfloat16, which is the default",
     on("model.dtype", "bfloat16")),
    ("fp16", (), ("model.dtype",), "model.dtype: float16", on("model.dtype", "float16")),
    ("fp16_opt_level", (T,), ("model.dtype",), "apex is gone", None),
    ("fp16_backend", (T,), ("model.dtype",), "apex is gone", None),
    ("half_precision_backend", (T,), ("model.dtype",), "apex is gone", None),
    ("overwrite_output_dir", (T, F), (),
     "`llava-mole train --config FILE --no-resume` starts anew", None),
    ("auto_resume_from_checkpoints", (A,), (), "a run that was stopped goes on by itself", None),
    ("logging_dir", (T, S), ("output_dir",),
     "OUT/log.jsonl; TensorBoard's folder is TENSORBOARD_LOGGING_DIR", None),
    ("save_safetensors", (T,), (), "always; nothing is pickled", None),
    ("jit_mode_eval", (T,), ("training.torch_compile",), "torch_compile", None),
    ("torchdynamo", (T,), ("training.torch_compile_backend",), "torch_compile_backend", None),
    ("use_ipex", (T,), (), "torch's own kernels are used", None),
    ("use_mps_device", (T,), (), "an accelerator is used where there is one", None),
    ("tpu_num_cores", (T,), (), "no TPUs", None),
    ("past_index", (T,), (), "rows are whole", None),
    ("include_tokens_per_second", (T,), (), f"{LOGS}, with the share of real tokens", None),
    ("include_effective_tokens_per_second", (F,), (), LOGS, None),
    ("include_inputs_for_metrics", (T,), ("training.include_for_metrics",),
     "include_for_metrics: [inputs]", None),
    ("dispatch_batches", (T,), ("training.accelerator_config",), "a key of accelerator_config",
     None),
    ("split_batches", (T,), ("training.accelerator_config",), "a key of accelerator_config", None),
    ("fsdp_transformer_layer_cls_to_wrap", (T,), ("training.fsdp_config",), "a key of fsdp_config",
     None),
    ("fsdp_min_num_params", (T,), ("training.fsdp_config",), "a key of fsdp_config", None),
    ("push_to_hub_model_id", (T,), ("training.hub_model_id",), "the same value",
     same("training.hub_model_id")),
    ("push_to_hub_organization", (T,), ("training.hub_model_id",), "organization/name", None),
    ("push_to_hub_token", (T,), (), "no secrets in a recipe: `hf auth login`, or HF_TOKEN",
     None),
    ("disable_gradient_checkpointing", (F,), ("training.activation_checkpointing",),
     "off unless activation_checkpointing: true", None),
    ("vit_gradient_checkpointing", (S,), ("training.activation_checkpointing",),
     "of the language model only", None),
    ("enable_liger_kernel", (F,), ("training.use_liger_kernel",),
     "no use: logits are computed at supervised tokens only", None),
    ("use_liger", (S,), ("training.use_liger_kernel",),
     "no use: logits are computed at supervised tokens only", None),
    ("use_unsloth", (F,), (), "its patches replace the layers that experts sit on", None),
    ("use_galore", (F, S), ("training.optim",), "optim: galore_adamw", None),
    ("shift_attn", (F,), (), "rows are short; none of LongLoRA's", None),
    ("sequence_parallel_size", (S,), (), "none; rows are short", None),
    ("num_gpus", (S,), ("workers",), "torchrun --nproc-per-node, or workers on CPUs", None),
    # ------------------------------------------------------------------ reports
    ("plot_loss", (F,), (), LOGS, None),
    ("use_swanlab", (F,), ("training.report_to",), "report_to: [swanlab]",
     on("training.report_to", ["swanlab"])),
    ("wandb_project", (A,), ("training.report_to", "training.run_name"),
     "report_to: [wandb]; project and entity by WANDB_PROJECT and WANDB_ENTITY",
     lambda v: {"training.report_to": ["wandb"]} if v else {}),
    ("wandb_entity", (A,), ("training.report_to",), "WANDB_ENTITY in the environment", None),
    ("wandb_name", (A,), ("training.run_name",), "the same value", same("training.run_name")),
    ("add_version", (S,), ("output_dir",), "the folder is the one that output_dir names", None),
    ("check_model", (S,), ("model.language_model_revision",), "pin a revision instead", None),
    ("resume_only_model", (S,), (), OWN, None),
]  # fmt: skip

NAMES: dict[str, Foreign] = {
    name: Foreign(whose, ours, say, put) for name, whose, ours, say, put in _TABLE
}


def translation(name: str) -> str | None:
    """The end of an error about a key that is another program's, or None."""
    foreign = NAMES.get(name.lstrip("-").replace("-", "_"))
    if foreign is None:
        return None
    whose = " and ".join(filter(None, [", ".join(foreign.whose[:-1]), *foreign.whose[-1:]]))
    return f"a name of {whose}; {here(foreign)}" if whose else here(foreign)


def here(foreign: Foreign) -> str:
    if not foreign.ours:
        return f"there is no such key here: {foreign.say}"
    return f"here {' or '.join(foreign.ours)}: {foreign.say}"
