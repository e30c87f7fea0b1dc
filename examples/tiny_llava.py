"""Write a tiny LLaVA of random weights, as Hugging Face saves one, to try `convert` offline.

    python examples/tiny_llava.py models/tiny-llava
    llava-mole convert models/tiny-llava --out models/tiny
    llava-mole chat --model models/tiny --image picture.png "What is this?"

LLaVA-1.5's architecture at a width of 64: a CLIP ViT with a class token and QuickGELU, whose layer
-2 is read, a projector of two linears, a Llama, Mistral or Qwen2 core, and a byte tokenizer built
here. About 1 MB, a second to write, nothing downloaded; it has learnt nothing and says nonsense.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>")
IMAGE, PATCH = 56, 14
LAYERS = 4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% for p in m['content'] %}{{ '<image>\n' if p['type'] == 'image' else p['text'] }}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(image_token: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte; the special tokens come first."""
    special = [name for name in SPECIAL if image_token or name != "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={name: place for place, name in enumerate(special + alphabet)}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=special[3:],
    )


def write_tiny_llava(
    folder: Path,
    *,
    core: str = "llama",
    hidden_act: str = "quick_gelu",
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> LlavaForConditionalGeneration:
    """Write the model, its processor and tokenizer into `folder`, and return the model.

    Args:
        folder: made if it is not there.
        core: type of the language model: llama, mistral or qwen2.
        hidden_act: of the tower.
        vision, text: changes to the parts' configs.
        seed: of the weights.
        config: changes to LlavaConfig, e.g. vision_feature_select_strategy="full".
    """
    words = tokenizer()
    tower = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "hidden_act": hidden_act,
        "projection_dim": 32,
        # At this width transformers' 0.02 would leave attention next to nothing.
        "initializer_range": 0.2,
        **(vision or {}),
    }
    language = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "initializer_range": 0.2,
        **(text or {}),
    }
    settings = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower),
        text_config=AutoConfig.for_model(core, **language),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE // PATCH) ** 2,
        **config,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(settings).eval()
    with torch.no_grad():  # LayerNorms and biases too: a fresh model's hide mistakes
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "multi_modal_projector" in name:
                parameter.mul_(5)
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    (folder / "README.md").write_text(
        "---\nlicense: cc0-1.0\n---\n\nRandom weights: nothing was learnt.\n", encoding="utf-8"
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--core", choices=("llama", "mistral", "qwen2"), default="llama")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_tiny_llava(args.folder, core=args.core, seed=args.seed)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {size / 2**20:.1f} MiB")
    print(f"next: llava-mole convert {args.folder} --out models/llava")


if __name__ == "__main__":
    main()
