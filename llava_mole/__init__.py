"""LLaVA-MoLE: instruction-tune one vision-language model on many kinds of data, in many languages.

Shape symbols used in every tensor docstring:

    B  rows of a batch            T  tokens of a row         N  images of a batch
    P  visual tokens per image    D  language-model width    D_v  vision-tower width
    E  experts                    R  rank units of a bank    r  rank of one expert
    S  samples (a row, or a branch of a row that shares its picture)
    V  vocabulary                 L  layers                  Q  question tokens that steer an image

Importing this package registers the model and its processor with transformers' Auto classes. The
shell's command alone (`llava_mole_cli`) puts that off until a command needs it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava_mole.errors import CheckpointError, ConfigError, DataError
from llava_mole.languages import LANGUAGES
from llava_mole.quiet import quieten

if TYPE_CHECKING:
    from llava_mole.configuration import LlavaMoleConfig
    from llava_mole.modeling import LlavaMoleForConditionalGeneration
    from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor

__version__ = "0.1.0"
__all__ = [
    "LANGUAGES",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LlavaMoleConfig",
    "LlavaMoleForConditionalGeneration",
    "LlavaMoleImageProcessor",
    "LlavaMoleProcessor",
]

_LATER = {
    "LlavaMoleConfig": "configuration",
    "LlavaMoleForConditionalGeneration": "modeling",
    "LlavaMoleImageProcessor": "processing",
    "LlavaMoleProcessor": "processing",
}
"""Names of this package -> the module that holds them, imported when they are asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


quieten()
if "llava_mole_cli" not in sys.modules:
    import_module(f"{__name__}.registration").register()
