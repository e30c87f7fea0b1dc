"""A message of a library that nobody here asked for.

peft imports bitsandbytes wherever that is installed, and bitsandbytes then warns on standard error
that an optional, faster CPU kernel is not: on every command, also where nothing is quantised.
`quantization.py` says so where a 4-bit base really runs on a CPU.
"""

from __future__ import annotations

import logging

NOISY = "bitsandbytes.backends.cpu.ops"
ABOUT = "Failed to load CPU gemm_4bit_forward"


def _not_about_the_kernel(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(ABOUT)


def quieten() -> None:
    """Before the first import of peft. Other messages of bitsandbytes pass."""
    logging.getLogger(NOISY).addFilter(_not_about_the_kernel)
