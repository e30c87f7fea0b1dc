"""Tokenizers that cut as the families' do, with the marks of every chat format as single tokens.

None is a vendor's (nothing is downloaded): pre-tokenizers and decoders are the published ones, but
merges are learnt from the sentences below.
"""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

MARKS = (
    "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|im_sep|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|end|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "<|vision_start|>", "<|image_pad|>", "<|vision_end|>",
)  # fmt: skip
"""Turn marks of the published formats, and Qwen's marks around a picture."""

SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: What is this?\nsure "
    "ASSISTANT: It is a cat, a big cat. I see. system user assistant model [INST] [/INST]",
    "O que é isto? É um gato. Bu nedir? Bu bir kedi, kırmızı. Что это? Это кошка, яблоко.",
    "这是什么？这是一只猫。红苹果 ما هذا؟ هذه قطة. تفاحة",
    "<|im_start|> <|im_end|> </s> <think>\n\n</think>\n\n Cutting Knowledge Date: December 2023",
]

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3, Qwen 2 to 3 and Phi 4 cut text before merging."""


@cache
def bytes_gpt4(
    *, bos: str | None = "<s>", mark_flags: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE behind GPT-4's expression.

    Args:
        bos: None as in Qwen.
        mark_flags: of the marks' AddedToken, e.g. "rstrip" as in Phi 3.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 20, trainer)
    flags = dict.fromkeys(mark_flags, True)
    core.add_special_tokens([AddedToken(mark, special=True, **flags) for mark in MARKS])
    core.add_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("\n\n")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token="</s>", pad_token="<pad>"
    )


@cache
def llama2(*, legacy: bool = False, marks: bool = True) -> PreTrainedTokenizerFast:
    """transformers' own LlamaTokenizer: SentencePiece's ▁, bytes to fall back on.

    Args:
        legacy: the older files' way, a ▁ behind every special token.
        marks: without, a vocabulary as Vicuna's, which has no chat marks.
    """
    trained = Tokenizer(models.BPE(byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    pieces = [f"<0x{number:02X}>" for number in range(256)]
    letters = [c for c in pre_tokenizers.ByteLevel.alphabet() if c.isascii()]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", "<s>", "</s>", *pieces],
        initial_alphabet=["▁", *letters],
        limit_alphabet=120,
        show_progress=False,
    )
    # Line breaks are bytes to SentencePiece.
    trained.train_from_iterator([s.replace("\n", " ") for s in SENTENCES] * 20, trainer)
    described = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in described["merges"]]
    tokenizer = LlamaTokenizer(vocab=described["vocab"], merges=merges, legacy=legacy)
    if legacy:
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    if marks:
        special = [*MARKS, "<image>", "<pad>"]
        tokenizer.add_special_tokens({"additional_special_tokens": special, "pad_token": "<pad>"})
    return tokenizer


FAMILIES = {
    "llama 3, qwen": bytes_gpt4,
    "no bos, as qwen": lambda: bytes_gpt4(bos=None),
    "phi 3": lambda: bytes_gpt4(mark_flags=("rstrip",)),
    "llama 2": llama2,
    "llama 2, legacy": lambda: llama2(legacy=True),
}
