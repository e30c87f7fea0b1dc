"""The token that pictures stand at: one of the vocabulary's, or a new one.

LLaVA's authors have none: they cut the text where a picture comes. A vocabulary that reserves
tokens gives one of those; where the embedding has spare rows (Qwen2) `<image>` takes one; a full
vocabulary (Vicuna's 32,000) grows to the next multiple of 64, as Hugging Face's LLaVA-1.5 did.
"""

from __future__ import annotations

import math

from transformers import AddedToken, PreTrainedTokenizerBase

from llava_mole.errors import ConfigError
from llava_mole.placeholder import RESERVED

MULTIPLE = 64
"""Rows of a grown embedding are a multiple of it: matrix units want that."""


def ensure_placeholder(
    tokenizer: PreTrainedTokenizerBase, rows: int, asked: str | None = None
) -> tuple[str, int]:
    """The placeholder, now a single token of the tokenizer, and how many rows the embedding needs.

    Args:
        tokenizer: changed where the token is new.
        rows: that the embedding has.
        asked: a token that the user names.

    Raises:
        ConfigError: the named token is one that text or padding uses.
    """
    vocabulary = tokenizer.get_vocab()
    if asked is None:
        token = next((name for name in RESERVED if name in vocabulary), "<image>")
    else:
        token = asked
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    if token in used:
        raise ConfigError(f"--image-token={token!r}: the tokenizer uses it as one of {used}")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    if tokenizer(token, add_special_tokens=False)["input_ids"] != [
        tokenizer.convert_tokens_to_ids(token)
    ]:
        raise ConfigError(
            f"image token {token!r} does not become a single token: the tokenizer must be a fast "
            "one, and the token one of its special tokens; name another with --image-token"
        )
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed <= rows:
        return token, rows
    return token, math.ceil(needed / MULTIPLE) * MULTIPLE
