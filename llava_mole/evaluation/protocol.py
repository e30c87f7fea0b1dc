"""Protocol: everything that decides a score, said out loud and written into the result.

Nothing of it is inferred from the name of a benchmark, a file or a model.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace
from typing import Any

from llava_mole.errors import ConfigError

PASSES = {
    "vanilla": "each question once",
    "circular": "a question with N options N times, as the file's rows index + k·10^6 hold it; "
    "right only if all N are",
    "circular_generated": "as circular, the options rotated here: pass k moves each option k "
    "letters up",
    "paired": "two yes/no questions about one picture, one of each answer; right only if both are",
}
ANSWERS = {
    "generate": "the model writes, greedily; the option is read from its reply by extract_choice",
    "letters": "the option letter of highest likelihood as the reply's first token",
    "options": "the option whose whole text, end of turn included, has the highest log-likelihood "
    "per token",
}
STYLES = {
    "parrot": "Parrot's: hint, question, options, a closing line in the question's language",
    "llava": "LLaVA's: as parrot, the closing line in English, or Chinese for text with Han",
    "vlmevalkit": "VLMEvalKit's default: English words around hint, question and options",
    "lmms_eval": "lmms-eval's MMBench prompt",
    "letters": "ours, as `data/choices.py` trains: question, options, a short closing line",
    "question": "hint and question alone; for options, yes/no and open answers",
    "short": "question, then LLaVA's 'Answer the question using a single word or phrase.'",
    "template": "a template of your own",
}


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is asked and scored.

    Attributes:
        passes: one of PASSES.
        answer: one of ANSWERS.
        style: one of STYLES.
        template: with style "template": text with {question} and, where wanted, {hint} (ends in a
            line break if there is one) and {options} (a line each).
        max_new_tokens: bound on a reply; it ends earlier at the end of turn.
        picture: False withholds it ("blind").
    """

    passes: str = "vanilla"
    answer: str = "generate"
    style: str = "parrot"
    template: str | None = None
    max_new_tokens: int = 16
    picture: bool = True

    def check(self) -> None:
        """Raises ConfigError, with all problems at once."""
        problems = [
            problem
            for key, allowed in (("passes", PASSES), ("answer", ANSWERS), ("style", STYLES))
            if (problem := _unknown(key, getattr(self, key), allowed))
        ]
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.style == "template" and self.template is None:
            problems.append("style=template needs a template")
        if self.style != "template" and self.template is not None:
            problems.append(f"template: has no effect with style={self.style}; take style=template")
        if self.template is not None:
            problems += template_problems(self.template)
        shows = self.style not in ("question", "short")
        if self.style == "template" and self.template is not None:
            shows = "{options}" in self.template
        if not shows and self.passes.startswith("circular"):
            problems.append(
                f"passes={self.passes} with style={self.style}: a prompt without its options is "
                "the same in every pass; take a style that shows them, or passes=vanilla"
            )
        if not shows and self.answer == "letters":
            problems.append(f"answer=letters with style={self.style}: the prompt shows no letters")
        if problems:
            raise ConfigError("; ".join(problems))

    def changed(self, **values: Any) -> Protocol:
        """A copy with some values replaced, checked; None leaves a value as it is."""
        new = replace(self, **{key: value for key, value in values.items() if value is not None})
        new.check()
        return new

    def describe(self) -> dict[str, Any]:
        """Values, and what they mean in words: for reports."""
        return {
            **asdict(self),
            "meaning": {
                "passes": PASSES[self.passes],
                "answer": ANSWERS[self.answer],
                "style": STYLES[self.style],
            },
        }


def template_problems(template: str) -> list[str]:
    """What is wrong with a template: a name it does not know, no question."""
    import string

    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return [f"template {template!r}: {error}"]
    fields = [name for _, name, _, _ in parts if name is not None]
    known = {"hint", "question", "options"}
    found = [f"template: unknown field {{{name}}}" for name in fields if name not in known]
    found += [
        f"template: {{{name}}} is written without a format, found {spec or conversion!r}"
        for _, name, spec, conversion in parts
        if spec or conversion
    ]
    if "question" not in fields:
        found.append("template: no {question} in it")
    return found


def _unknown(key: str, value: str, allowed: dict[str, str]) -> str:
    if value in allowed:
        return ""
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{key}={value!r}: allowed are {', '.join(allowed)}.{hint}"
