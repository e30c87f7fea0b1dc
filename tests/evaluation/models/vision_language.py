"""Tiny random models of other makers' families, each a folder with weights, processor and chat
template, as `from_pretrained` reads them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests import helpers

IMAGE, VIDEO, END_OF_TURN, BEFORE, AFTER = 3, 4, 5, 6, 7
"""Ids of <image>, <start_of_turn>, <end_of_turn>, <|im_start|>, <|im_end|> in the tokenizer."""
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "image_size": 16, "initializer_range": 0.2}  # fmt: skip
QWEN_VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
               "patch_size": 4, "out_hidden_size": 32, "initializer_range": 0.2}  # fmt: skip
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": BEFORE,
               "vision_end_token_id": AFTER}  # fmt: skip

PICTURES = {
    "llava": "<image>\n",
    "gemma3": "<|im_start|>",
    "qwen2_5_vl": "<|im_start|><image><|im_end|>",
    "qwen3_vl": "<|im_start|><image><|im_end|>",
}
"""How each family's template writes a picture."""
FAMILIES = tuple(PICTURES)
TURNS = """{{ bos_token }}{% for message in messages %}{{ message.role }}: \
{% for part in message.content %}{% if part.type == 'image' %}PICTURE{% else %}{{ part.text }}\
{% endif %}{% endfor %}END{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=helpers.byte_tokenizer().backend_tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<start_of_turn>",
            "end_of_turn": "<end_of_turn>",
            "boi_token": "<|im_start|>",
            "eoi_token": "<|im_end|>",
            "vision_start_token": "<|im_start|>",
            "vision_end_token": "<|im_end|>",
        },
    )


def template(family: str) -> str:
    """LLaVA's puts no end token behind an answer, as the published one."""
    end = " " if family == "llava" else "<end_of_turn>\n"
    return TURNS.replace("PICTURE", PICTURES[family]).replace("END", end)


def processor(family: str, **changes: Any) -> Any:
    chat = {"tokenizer": tokenizer(), "chat_template": template(family), **changes}
    square = {"height": 16, "width": 16}
    if family == "llava":
        pictures = CLIPImageProcessor(size=square, crop_size=square)
        return LlavaProcessor(
            pictures, patch_size=8, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, **chat,
        )  # fmt: skip
    if family == "gemma3":
        return Gemma3Processor(Gemma3ImageProcessor(size=square), image_seq_length=4, **chat)
    # Pictures keep their shape: from 2 x 2 to 4 x 4 merged patches of 8 pixels.
    room = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pictures = Qwen2VLImageProcessor(size=room, **sizes)
    if family == "qwen2_5_vl":
        videos = Qwen2VLVideoProcessor(size=room, **sizes)
        return Qwen2_5_VLProcessor(pictures, video_processor=videos, **chat)
    return Qwen3VLProcessor(
        pictures, video_processor=Qwen3VLVideoProcessor(size=room, **sizes), **chat
    )


def model(family: str) -> Any:
    torch.manual_seed(0)
    small = helpers.SMALL
    if family == "llava":
        vision = CLIPVisionConfig(**TOWER, patch_size=8, projection_dim=16)
        config = LlavaConfig(
            text_config=LlamaConfig(**small), vision_config=vision, image_token_index=IMAGE
        )
        built: Any = LlavaForConditionalGeneration(config)
    elif family == "gemma3":
        # Its window is shorter than a prompt.
        text = {**small, "head_dim": 8, "query_pre_attn_scalar": 8,
                "sliding_window": helpers.WINDOW,
                "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
        config = Gemma3Config(
            text_config=text, vision_config={**TOWER, "patch_size": 4}, mm_tokens_per_image=4,
            image_token_index=IMAGE, boi_token_index=BEFORE, eoi_token_index=AFTER,
        )  # fmt: skip
        built = Gemma3ForConditionalGeneration(config)
        # transformers leaves it at zero, and pictures would all look alike.
        nn.init.normal_(built.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    elif family == "qwen2_5_vl":
        vision = {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]}
        built = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={**small, "rope_parameters": MROPE}, vision_config=vision, **QWEN_TOKENS
            )
        )
    else:
        vision = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text = {**small, "head_dim": 8, "rope_parameters": MROPE}
        built = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)
        )
    built.generation_config.eos_token_id = [2, END_OF_TURN]
    return built.eval()


def model_that_reads_both_ways() -> Any:
    """Every token of a prompt sees the whole prompt; goes with Gemma 3's processor."""
    torch.manual_seed(0)
    config = PaliGemmaConfig(
        text_config={**helpers.SMALL, "head_dim": 8, "model_type": "gemma"},
        vision_config={**TOWER, "patch_size": 8, "vision_use_head": False},
        image_token_index=IMAGE,
        projection_dim=32,
    )
    built: Any = PaliGemmaForConditionalGeneration(config)
    built.generation_config.eos_token_id = [2, END_OF_TURN]
    return built.eval()


def write(folder: Path, family: str) -> Path:
    model(family).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
