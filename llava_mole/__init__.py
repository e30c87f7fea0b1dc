"""LLaVA-MoLE: instruction-tune one vision-language model on many kinds of data, in many languages.

Shape symbols used in every tensor docstring:

    B  rows of a batch            T  tokens of a row         N  images of a batch
    P  visual tokens per image    D  language-model width    D_v  vision-tower width
    E  experts                    R  rank units of a bank    r  rank of one expert
    S  samples (a row, or a branch of a row that shares its picture)
    V  vocabulary                 L  layers                  Q  question tokens that steer an image

Importing this package registers the model and its processor with transformers' Auto classes.
"""

from llava_mole.environment import is_asked_for

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

if not is_asked_for():  # `llava-mole env` answers where what follows cannot be imported
    try:
        from llava_mole.configuration import LlavaMoleConfig
        from llava_mole.errors import CheckpointError, ConfigError, DataError
        from llava_mole.languages import LANGUAGES
        from llava_mole.modeling import LlavaMoleForConditionalGeneration
        from llava_mole.processing import LlavaMoleImageProcessor, LlavaMoleProcessor
        from llava_mole.registration import register

        register()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        error.add_note("llava-mole: `llava-mole env` says which package is broken, and the remedy")
        raise
