"""Words of the six languages that evaluation looks for."""

AFFIRMATION = {
    "en": (frozenset({"yes", "true"}), frozenset({"no", "false"})),
    "zh": (
        frozenset({"是", "是的", "对", "正确", "有"}),
        frozenset({"否", "不是", "不", "错", "错误", "没有"}),
    ),
    "pt": (frozenset({"sim", "verdadeiro"}), frozenset({"não", "falso"})),
    "ar": (frozenset({"نعم", "صحيح"}), frozenset({"لا", "خطأ"})),
    "tr": (frozenset({"evet", "doğru"}), frozenset({"hayır", "yanlış"})),
    "ru": (frozenset({"да", "верно"}), frozenset({"нет", "неверно"})),
}
"""Language -> (what says yes, what says no), casefolded."""
