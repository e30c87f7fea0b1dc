"""Tell transformers' Auto classes about the model; done once, when the package is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llava_mole.configuration import LlavaMoleConfig
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor


def register() -> None:
    AutoConfig.register(LlavaMoleConfig.model_type, LlavaMoleConfig, exist_ok=True)
    AutoModelForImageTextToText.register(
        LlavaMoleConfig, LlavaMoleForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(LlavaMoleConfig, LlavaMoleProcessor, exist_ok=True)
