"""Scores of replies whose answers are texts: ChartQA's, DocVQA's, PathVQA's, and equality.

Each metric takes a reply and the accepted answers and gives 0 … 1; of several answers the best
counts. Each follows its published definition, and is never kinder: what a definition does not strip
(a trailing full stop, a thousands comma, a unit) stays in. Before all of them comes `clean` alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from llava_mole.errors import DataError

LEFTOVER = r"(?:<[|｜][^<>\s]{1,40}[|｜]>|</?s>|<(?:pad|bos|eos|unk|(?:start|end)_of_turn)>)"
LEFTOVER_FIRST, LEFTOVER_LAST = re.compile(LEFTOVER), re.compile(rf"{LEFTOVER}\Z")

TOLERANCE = 0.05
"""ChartQA: relative error of a number that still counts as right."""


def clean(reply: str) -> str:
    """Without whitespace and left-over special tokens at its ends (`<|im_end|>`, `</s>`, `<eos>`).

    Published harnesses leave special tokens out when they decode.
    """
    text = reply.strip()
    while mark := LEFTOVER_FIRST.match(text) or LEFTOVER_LAST.search(text):
        text = (text[: mark.start()] + text[mark.end() :]).strip()
    return text


def exact(reply: str, answers: Sequence[str]) -> float:
    """Equality but for case and outer whitespace, as VLMEvalKit's "accuracy". "Cat." is not "cat".

    Raises:
        DataError: no accepted answer (every metric here).
    """
    said = clean(reply).lower()
    return _best(answers, lambda gold: float(said == gold.strip().lower()))


def relaxed_accuracy(reply: str, answers: Sequence[str]) -> float:
    """ChartQA (Masry et al. 2022, arXiv 2203.10244, section 5.1), as pix2struct's `metrics.py`.

    Two numbers: within 5 % of the gold one. Else, and if the gold number is 0: equal but for case.
    A number is what `float` reads, with `%` at the end a hundredth of it: "12." is one, "1,000",
    "$5" and "5 kg" are not. "nan" and "inf" are numbers too, so that a gold "nan" is never met.
    """
    said = clean(reply)
    number = _number(said)

    def score(gold: str) -> float:
        wanted = _number(gold)
        if number is not None and wanted:
            return float(abs(number - wanted) / abs(wanted) <= TOLERANCE)
        return float(said.lower() == gold.lower())

    return _best(answers, score)


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(reply: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """DocVQA: average normalised Levenshtein similarity (Biten et al. 2019, arXiv 1905.13648).

    1 - distance / length, and 0 below the threshold. The distance is between texts in lower case
    with single spaces; the length is the longer one's before that, as in the official script, which
    also keeps a similarity of exactly the threshold (the paper's formula drops it). Deviation: the
    reply's outer whitespace, which would count in its length, is gone by then; so a score can only
    be lower.
    """
    said = clean(reply)

    def score(gold: str) -> float:
        one, other = " ".join(said.lower().split()), " ".join(gold.lower().split())
        length = max(len(said), len(gold))
        if length == 0:
            return 1.0
        # The distance is at least the difference in length: a rambling reply is not compared.
        if 1 - abs(len(one) - len(other)) / length < threshold:
            return 0.0
        similarity = 1 - levenshtein(one, other) / length
        return similarity if similarity >= threshold else 0.0

    return _best(answers, score)


def levenshtein(one: str, other: str) -> int:
    """Insertions, deletions and substitutions from one text to the other; len(one) · len(other)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}


def normalized_words(text: str) -> list[str]:
    """Words as LLaVA-Med compares them (`llava/eval/eval_metrics/glossary.py`, from VQA).

    Lower case; each of MARKS becomes a space, or nothing where it stands beside a space somewhere
    in the text or the text has a comma between digits; full stops go, unless a digit follows;
    number words up to ten become digits, "none" 0; articles go. Deviation: "dont" and the like are
    not given their apostrophe back.
    """
    text = text.lower()
    grouped = re.search(r"\d,\d", text) is not None
    for mark in [mark for mark in MARKS if grouped or f"{mark} " in text or f" {mark}" in text]:
        text = text.replace(mark, "")
    text = text.translate(dict.fromkeys(map(ord, MARKS), " "))
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMBERS.get(word, word) for word in text.split()]
    return [word for word in words if word not in ARTICLES]


def pathvqa_open(reply: str, answers: Sequence[str]) -> float:
    """PathVQA, open questions: how much of the answer's words the reply has (LLaVA-Med's recall).

    Deviation: a word counts as often as both have it. LLaVA-Med counts it as often as the reply
    has it, so that repeating a right word makes up for missing ones; this score is never above its.
    """
    said = Counter(normalized_words(clean(reply)))

    def score(gold: str) -> float:
        wanted = Counter(normalized_words(gold))
        return (said & wanted).total() / wanted.total() if wanted else 0.0

    return _best(answers, score)


def pathvqa_closed(reply: str, answers: Sequence[str]) -> float:
    """PathVQA, yes/no questions: the reply has the right word of the two and not the other.

    Deviations from LLaVA-Med: it looks for "yes" and "no" inside words too ("not", "know"), takes a
    reply with both as right, and leaves a reply with the wrong one out of the count; here that
    counts 0. Its accuracies are never below these.
    """
    said = {"yes", "no"} & set(normalized_words(clean(reply)))
    return _best(answers, lambda gold: float(len(said) == 1 and [*said] == normalized_words(gold)))


def is_closed(answers: Sequence[str]) -> bool:
    """Whether every accepted answer is yes or no."""
    return bool(answers) and all(normalized_words(gold) in (["yes"], ["no"]) for gold in answers)


def pathvqa(reply: str, answers: Sequence[str]) -> float:
    """The closed rule where the answer is yes or no, else the open one.

    LLaVA-Med goes by the data's own `answer_type`.
    """
    return (pathvqa_closed if is_closed(answers) else pathvqa_open)(reply, answers)


def _best(answers: Sequence[str], score: Callable[[str], float]) -> float:
    if not answers:
        raise DataError(
            "no accepted answer to score against; are the answers of this split hidden?"
        )
    return max(score(gold) for gold in answers)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "relaxed": relaxed_accuracy,
    "anls": anls,
    "pathvqa": pathvqa,
    "exact": exact,
}
"""Name in a benchmark's file -> (reply, accepted answers) -> 0 … 1."""


def yes_no_rates(pairs: Sequence[tuple[str | None, str]]) -> dict[str, float]:
    """POPE's rates, as VLMEvalKit's `POPE_rating` computes them for one category.

    Args:
        pairs: (said, truth), "Yes" or "No"; said is None where a reply could not be read: wrong,
            and not a yes.

    Returns:
        accuracy, precision, recall and f1 of "Yes" (0 where their denominator is), and yes_share,
        how many of all were answered with yes; 0 … 1, VLMEvalKit prints them times 100. All NaN
        without a pair.

    Raises:
        DataError: another value than these.
    """
    for said, truth in pairs:
        if said not in ("Yes", "No", None) or truth not in ("Yes", "No"):
            raise DataError(f"said {said!r}, truth {truth!r}: expected 'Yes' or 'No'")
    if not pairs:
        return dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_share"), math.nan)
    counts = Counter(pairs)
    both, said_yes = counts["Yes", "Yes"], counts["Yes", "Yes"] + counts["Yes", "No"]
    truly_yes = sum(truth == "Yes" for _, truth in pairs)
    precision = both / said_yes if said_yes else 0.0
    recall = both / truly_yes if truly_yes else 0.0
    return {
        "accuracy": (both + counts["No", "No"]) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "yes_share": said_yes / len(pairs),
    }
