"""The option that VLMEvalKit's rule reads from a reply: to show the difference, not to score.

Follows `can_infer` of `vlmeval/utils/matching_util.py` as released in `ms-vlmeval` 0.0.20 (May
2026), with its VERBOSE switch off. The rule of 2024 took a letter wherever it stood and an option's
text in a reply of any length; a published number may come from either.

What VLMEvalKit does where the rule cannot tell decides how a score compares. Under exact matching
the row counts as wrong. With a judge, the judge is asked three times; if its replies cannot be read
either, one of the options and Z is drawn at random.

Deviations: None in place of False; the options are left as they are (the original lower-cases the
caller's).
"""

from __future__ import annotations

from collections.abc import Mapping

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "Failed to obtain answer via API"
REFUSED = "Z"
"""None of the options; a row that says so is wrong."""

STRIPPED = ".()[],:;!*#{}"
"""What counts as space around a letter. Quotes, `<>`, `-`, `/`, `?` and every mark that is not
ASCII stay with it."""

FROM_THE_END = 4
"""A letter has to be among that many last tokens."""
LENGTH_RATIO = 2
"""An option's text is looked for in replies of at most that many times the options' length."""


def rule_choice(reply: str, options: Mapping[str, str]) -> str | None:
    """The option under today's rule.

    1. The one option letter, a capital, that stands alone as a token, among the last four at its
       first occurrence. Or "Z" for one of four refusals, or for a token Z and no letter.
    2. Else the one option whose text is a part of the reply, both lower-cased, if the reply is at
       most twice as long as all options together.

    Args:
        reply: as the model gave it.
        options: letter -> text.

    Returns:
        The letter, "Z", or None where the rule cannot tell (wrong, or the judge's: see above).
    """
    return _letter(reply, options, FROM_THE_END) or _text(reply, options, LENGTH_RATIO)


def rule_choice_2024(reply: str, options: Mapping[str, str]) -> str | None:
    """As `rule_choice`, the letter anywhere in the reply and the reply of any length."""
    return _letter(reply, options, None) or _text(reply, options, None)


def expected_hit(reply: str, options: Mapping[str, str], answer: str) -> float:
    """What the row counts on average with a judge that never helps.

    1 or 0 where the rule decides, else 1 / (options + 1): the chance that the draw among the
    options and Z gives the right one. Under exact matching it would be 0 there.
    """
    choice = rule_choice(reply, options)
    return 1 / (len(options) + 1) if choice is None else float(choice == answer)


def _letter(reply: str, options: Mapping[str, str], from_the_end: int | None) -> str | None:
    if FAILED in reply:
        return None
    if any(refusal in reply for refusal in REFUSALS):
        return REFUSED
    tokens = reply.translate(dict.fromkeys(map(ord, STRIPPED), " ")).split()
    found = [letter for letter in options if letter in tokens]
    if not found and REFUSED in tokens:
        return REFUSED
    if len(found) != 1:
        return None
    # The first occurrence counts, even where the letter comes again at the end.
    behind = len(tokens) - tokens.index(found[0])
    return found[0] if from_the_end is None or behind <= from_the_end else None


def _text(reply: str, options: Mapping[str, str], ratio: int | None) -> str | None:
    said = reply.lower()
    if ratio is not None and len(said) > ratio * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in said]
    return found[0] if len(found) == 1 else None
