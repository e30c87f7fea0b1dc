"""The six languages of MMMB and of the starter, by ISO 639-1 code, in the order of every table."""

LANGUAGES = ("en", "zh", "pt", "ar", "tr", "ru")

LANGUAGE_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "pt": "Portuguese",
    "ar": "Arabic",
    "tr": "Turkish",
    "ru": "Russian",
}

RIGHT_TO_LEFT = frozenset({"ar"})
