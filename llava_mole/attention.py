"""`model.attn_implementation`: what each one needs, and what it can mask.

|                   | rows of their own | packing | share_prefix | trains on         |
|-------------------|-------------------|---------|--------------|-------------------|
| sdpa, eager       | yes               | yes     | yes          | CPU, accelerators |
| flex_attention    | yes               | yes     | yes          | accelerators      |
| flash_attention_2 | yes               | no      | no           | CUDA, 16 bits     |

FlashAttention takes no mask but a length per sequence. Branches that share a picture are no such
sequences; packed rows would be, but transformers hands them over for batches of one row only.
flex_attention takes any mask as a function of two positions (`tree.py`); torch has its backward
pass on accelerators, not on CPUs.
"""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

from llava_mole.errors import ConfigError

ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")
MASKED = ("sdpa", "eager", "flex_attention")
"""Those that take a mask of ours: share_prefix and packing."""

WITHOUT_MASK = {
    "share_prefix": "questions that share a picture need a mask, which FlashAttention has not",
    "packing": "packed rows are verified with masks only",
}
OFF = {"share_prefix": "false", "packing": "null"}


def mask_problem(attention: str | None, key: str) -> str | None:
    """Why `share_prefix` or `packing` cannot go with this attention, or None."""
    if attention is None or attention in MASKED:
        return None
    return (
        f"{key} needs model.attn_implementation {', '.join(MASKED[:-1])} or {MASKED[-1]}, not "
        f"{attention!r}: {WITHOUT_MASK[key]}; set {key}: {OFF[key]}, or take another"
    )


def missing_here(attention: str, dtype: str, *, training: bool = False) -> str | None:
    """Why this machine cannot run an attention, or None.

    Args:
        attention: of ATTENTIONS.
        dtype: of the language model.
        training: a backward pass is wanted too.
    """
    key = f"model.attn_implementation={attention!r}"
    if attention == "flash_attention_2":
        if not torch.cuda.is_available():
            return f"{key} needs a CUDA device; take sdpa or eager"
        if not is_flash_attn_2_available():
            return (
                f"{key} needs the package flash-attn, which is not installed: pip install "
                "flash-attn --no-build-isolation (it is compiled against torch), or take sdpa, or "
                "flex_attention, which need no package"
            )
        if dtype == "float32":
            return f"{key} computes in 16 bits; say model.dtype: bfloat16, or take sdpa"
    if attention == "flex_attention":
        if not is_torch_flex_attn_available():
            return f"{key} needs a torch that has it, 2.5 or newer; take sdpa"
        if training and not torch.accelerator.is_available():
            return (
                f"{key}: torch has no backward pass of it for CPUs; take sdpa, or eager, which is "
                "the fastest on CPUs with short rows"
            )
    return None


def check_installed(attention: str, dtype: str) -> None:
    """Before weights are loaded.

    Raises:
        ConfigError: this machine lacks what the attention needs.
    """
    problem = missing_here(attention, dtype)
    if problem is not None:
        raise ConfigError(problem)
