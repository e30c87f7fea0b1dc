"""From what a record says to one Sample: the checks that every layout shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_mole.data.pictures import Pictures
from llava_mole.data.quoting import short
from llava_mole.data.sample import IMAGE, ImageRef, Role, Sample, Turn
from llava_mole.errors import DataError

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

SAMPLE_KEYS = frozenset({"domain", "language"})
"""Keys of a record, in any layout, that become fields of the sample."""


@dataclass(frozen=True)
class Defaults:
    """What holds for the records of a source that do not say it themselves."""

    domain: str
    language: str | None


class Layout(ABC):
    """How a record tells its conversation and its pictures. Stateless; may be pickled."""

    name: str
    """as `format` names it"""
    title: str
    """as `describe` prints it"""
    needs: str
    """the keys a record must have, in words"""

    @abstractmethod
    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether the record's keys are this layout's; values are not looked at."""

    @abstractmethod
    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        """The record's sample.

        Raises:
            DataError: with `where` and the offending value.
        """

    def identity(self) -> Any:
        """JSON-able; two layouts with the same identity read alike."""
        return self.name


def turn_of(
    entry: Any, where: str, *, roles: Mapping[str, Role], role_key: str, text_key: str
) -> Turn:
    """A turn from `{role_key: …, text_key: text}`."""
    if not isinstance(entry, dict) or role_key not in entry or text_key not in entry:
        raise DataError(
            f"{where}: expected {{'{role_key}': …, '{text_key}': …}}, found {short(entry)}"
        )
    text = entry[text_key]
    role = role_of(entry[role_key], where, roles)
    check_learnt(entry, role, where)
    if not isinstance(text, str):
        raise DataError(f"{where}: '{text_key}' is {short(text)}; expected a text")
    return Turn(role, text)


LEARNT_KEYS = ("loss", "weight", "train")
"""Of a turn: whether it is learnt, as ms-swift, OpenAI and Axolotl write it."""
PARTLY_LEARNT = ("train_detail", "training_detail")
"""Axolotl's: which characters of a turn are."""


def check_learnt(entry: Mapping[str, Any], role: Role, where: str) -> None:
    """Raise where a turn asks for another mask than here: every answer is learnt, nothing else."""
    refuse(entry, dict.fromkeys(PARTLY_LEARNT, "answers are learnt whole"), where)
    for key in LEARNT_KEYS:
        value = entry.get(key)
        if role == "assistant" and value is not None and value not in (True, "true", "True"):
            raise DataError(
                f"{where}: '{key}' is {short(value)}: every answer is learnt, once; one that is "
                "not, or is weighted, is not supported: drop the key or the record"
            )
        if role != "assistant" and key == "train" and value not in (None, False, 0):
            raise DataError(
                f"{where}: '{key}' is {short(value)}: only answers are learnt, not what the "
                f"{role} says"
            )


def role_of(value: Any, where: str, roles: Mapping[str, Role]) -> Role:
    if not isinstance(value, str) or value not in roles:
        raise DataError(
            f"{where}: unknown role {short(value)}; expected one of {', '.join(roles)} "
            "(tool calls are not supported)"
        )
    return roles[value]


def text_of(record: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    """A record's text; `default`, if there is one, where the key is missing or null."""
    value = record.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {short(value)}; expected a text")
    return value


def list_of(record: Mapping[str, Any], key: str) -> list[Any]:
    """A value that may be missing, one thing, or a list of them."""
    value = record.get(key)
    return [] if value is None else value if isinstance(value, list) else [value]


def refuse(record: Mapping[str, Any], reasons: Mapping[str, str], where: str) -> None:
    """Raise for the first key of `reasons` that holds anything."""
    for key, reason in reasons.items():
        if key in record and record[key] not in (None, "", [], {}):
            raise DataError(f"{where}: '{key}' is {short(record[key])}: {reason}")


def check_turns(turns: Sequence[Turn], where: str) -> None:
    """Something to learn, no empty answer, pictures shown by the user only."""
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(
            f"{where}: no answer: no turn is from 'gpt' or 'assistant', nothing to learn"
        )
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise DataError(f"{where}: turn {number}: the answer is empty")
        if turn.role != "user" and IMAGE in turn.text:
            raise DataError(
                f"{where}: turn {number}: {IMAGE} in what the {turn.role} says; "
                "only a user shows pictures"
            )
        if not turn.text.isascii():
            try:
                turn.text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{where}: turn {number}: half a character ({error.reason}) in "
                    f"{short(turn.text[max(0, error.start - 20) :])}"
                ) from error


def joined(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns of one role that follow each other as one, a line apart: chat templates want the roles
    to alternate, and a picture in a turn of its own belongs to the question after it."""
    spoken: list[Turn] = []
    for turn in turns:
        if spoken and spoken[-1].role == turn.role:
            turn = Turn(turn.role, f"{spoken.pop().text}\n{turn.text}")
        spoken.append(turn)
    return tuple(spoken)


def check_count(turns: Sequence[Turn], names: Sequence[Any], where: str, key: str) -> None:
    """One picture for each placeholder."""
    wanted = sum(turn.text.count(IMAGE) for turn in turns)
    if wanted != len(names):
        raise DataError(
            f"{where}: {wanted} {IMAGE} in the conversation but {len(names)} in '{key}' "
            f"({short(names)}); each picture needs exactly one {IMAGE}"
        )


def pictures_first(turns: Sequence[Turn], count: int) -> tuple[Turn, ...]:
    """`count` placeholders before the first user turn, where no turn has one of its own."""
    if not count or any(IMAGE in turn.text for turn in turns):
        return tuple(turns)
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return tuple(turns)
    shown = Turn("user", IMAGE * count + "\n" + turns[first].text)
    return (*turns[:first], shown, *turns[first + 1 :])


def finish(
    record: Mapping[str, Any],
    turns: Sequence[Turn],
    names: Sequence[Any],
    where: str,
    pictures: Pictures,
    defaults: Defaults,
    *,
    used: Collection[str],
    key: str,
) -> Sample:
    """The sample of checked turns.

    Args:
        names: its pictures, one for each placeholder, for `Pictures.find`.
        used: keys of the record that are in the turns or pictures; the rest is metadata.
        key: where in the record the pictures stand.
    """
    check_turns(turns, where)
    check_count(turns, names, where, key)
    language = record.get("language")
    if language is None:
        language = defaults.language
    if not isinstance(language, str) or not language or not language.isprintable():
        raise DataError(
            f"{where}: 'language' is {short(language)}; expected a code such as 'pt', in the item "
            "or for the whole file (recipe: data.sources.0.language=pt; inspect: --language pt)"
        )
    domain = record.get("domain")
    if domain is None:
        domain = defaults.domain
    if not isinstance(domain, str) or not domain or not domain.isprintable():
        raise DataError(f"{where}: 'domain' is {short(domain)}; expected a name such as 'document'")
    kind = record.get("kind")
    if kind is None:
        kind = ""
    if not isinstance(kind, str) or not (kind.isprintable() or not kind):
        raise DataError(f"{where}: 'kind' is {short(kind)}; expected a name such as 'naming'")
    images: tuple[ImageRef, ...] = tuple(pictures.find(name, where, key) for name in names)
    metadata = {
        name: value
        for name, value in record.items()
        if name not in used and name not in SAMPLE_KEYS and not (name == "kind" and value is None)
    }
    return Sample(joined(turns), images, domain, language, where, metadata)
