"""Where the project keeps what it can make again: the starter, indexes, features, benchmarks."""

import os
from pathlib import Path


def default_cache() -> Path:
    """$LLAVA_MOLE_CACHE, else $XDG_CACHE_HOME/llava-mole, else ~/.cache/llava-mole."""
    if own := os.environ.get("LLAVA_MOLE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "llava-mole"
