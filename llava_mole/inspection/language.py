"""Is a conversation in the language it is declared to be in? py3langid's opinion, if it is sure."""

from __future__ import annotations

from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from llava_mole.languages import LANGUAGES

CONSIDERED = (
    *LANGUAGES,
    "es", "fr", "de", "it", "nl", "pl", "uk", "ja", "ko", "hi", "vi", "id", "fa", "cs", "sv",
)  # fmt: skip
"""Languages a text may turn out to be in, beside the declared one. All of the model's 140 would
take short Russian for Bulgarian and short Turkish for Azerbaijani."""

SURE = 0.8
"""Probability from which another language than the declared one is reported. docs/inspect.md has
the figures."""

_CHARACTERS = 2000
"""Of a conversation that are looked at."""
_ALIASES = {"cn": "zh"}


def other_language(text: str, declared: str) -> tuple[str, float] | None:
    """(language, probability) if the text is surely not in the declared one, else None.

    Args:
        text: of a whole conversation.
        declared: a code such as "pt" or "pt-BR". One that the model does not know is not judged.
    """
    code = primary(declared)
    identifier = _identifier(code)
    if identifier is None:
        return None
    found, probability = identifier.classify(text[:_CHARACTERS])
    return (found, probability) if found != code and probability >= SURE else None


def likeliest(text: str) -> str | None:
    """Which of the six languages a question is in; None for one without letters."""
    if not any(letter.isalpha() for letter in text):
        return None
    return _of_the_six().classify(text[:_CHARACTERS])[0]


def is_known(declared: str) -> bool:
    return _identifier(primary(declared)) is not None


def primary(declared: str) -> str:
    """'pt-BR' -> 'pt'."""
    code = declared.replace("_", "-").split("-")[0].lower()
    return _ALIASES.get(code, code)


def _identifier(code: str) -> LanguageIdentifier | None:
    return _narrowed(None if code in CONSIDERED else code)


@lru_cache(maxsize=1)
def _of_the_six() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(set(LANGUAGES))
    return identifier


@lru_cache(maxsize=32)
def _narrowed(code: str | None) -> LanguageIdentifier | None:
    """For the languages considered, and one more; None if the model does not know that one."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if code is not None and code not in identifier.labels:
        return None
    identifier.set_languages({*CONSIDERED, *([] if code is None else [code])})
    return identifier
