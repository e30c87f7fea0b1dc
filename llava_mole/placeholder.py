"""The token that stands for a picture until visual tokens replace it.

It must be one token that text never holds, and it needs a row in the embedding, because ids are
embedded before the rows are replaced. Growing the embedding for a placeholder would change the
language model's own weights, so, in this order:

1. a token that the vocabulary reserves (Gemma, Qwen2.5 and later, Llama 3, vision-language models);
2. a new token "<image>", where the embedding has more rows than the tokenizer has tokens: vendors
   round it up (Qwen1.5: 151,936 rows for 151,646 tokens);
3. the byte NUL, which vocabularies with byte fallback hold and text does not (Llama 1 and 2,
   Vicuna, Mistral: 32,000 rows, all in use). It is made a special token; its number stays.
"""

from __future__ import annotations

from transformers import AddedToken, PreTrainedTokenizerBase

from llava_mole.errors import ConfigError

RESERVED = (
    *("<image>", "<|image_pad|>", "<unused0>", "<|reserved_special_token_0|>", "<|fim_pad|>"),
    # Phi 3, Phi 4, Mistral v3 (SentencePiece and Tekken)
    *("<|placeholder1|>", "<|dummy_0|>", "[control_8]", "<SPECIAL_20>"),
)
NEW = "<image>"
NUL = "<0x00>"


def placeholder(
    tokenizer: PreTrainedTokenizerBase, rows: int | None = None, wanted: str | None = None
) -> str:
    """Choose the placeholder; the tokenizer then gives one token for it.

    Args:
        tokenizer: of the language model; cases 2 and 3 above change it.
        rows: of the embedding; None: not known, so none is taken to be spare.
        wanted: a token to use instead; must be in the vocabulary.

    Raises:
        ConfigError: there is none.
    """
    vocabulary = tokenizer.get_vocab()
    if wanted is not None:
        if wanted not in vocabulary:
            raise ConfigError(
                f"model.image_token={wanted!r} is not in the vocabulary; name a token that is, or "
                "leave it out"
            )
        make_special(tokenizer, wanted)
        return wanted
    for token in RESERVED:
        if token in vocabulary:
            return token
    if rows is not None and len(tokenizer) < rows:
        make_special(tokenizer, NEW)
        return NEW
    if NUL in vocabulary:
        make_special(tokenizer, NUL)
        return NUL
    raise ConfigError(
        f"model.image_token: none of {', '.join(RESERVED)} is in the vocabulary, the embedding has "
        f"no row to spare ({rows} for {len(tokenizer)} tokens) and there is no byte {NUL}; name a "
        "token that text never holds"
    )


def make_special(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Have it found in text as one token; a token of the vocabulary keeps its number."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
