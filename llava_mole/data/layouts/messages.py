"""`messages` with roles (OpenAI, Hugging Face, TRL, ms-swift): text, or typed parts with pictures.

A record, in either of the two ways to show a picture::

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"},
                                     {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A cat."}]}
    {"messages": [{"role": "user", "content": "<image>What is this?"}, …], "images": ["a.png"]}

A part names its picture itself (`image`, `path`, `url`, `image_url`, `base64`, `source`), by its
`index` in the record's `images`, or takes the next of these. Where nothing says where the pictures
of `images` stand, they stand before the first user turn, as TRL and ms-swift put them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava_mole.data.layouts.base import (
    ROLES,
    Defaults,
    Layout,
    check_learnt,
    finish,
    list_of,
    pictures_first,
    refuse,
    role_of,
    text_of,
)
from llava_mole.data.layouts.llava import UNSUPPORTED
from llava_mole.data.pictures import Pictures, decode_base64
from llava_mole.data.quoting import short
from llava_mole.data.sample import IMAGE, Sample, Turn
from llava_mole.errors import DataError

NOT_READ = {
    **UNSUPPORTED,
    "objects": "boxes and references are not supported; write them into the text",
    "rejected_response": "preference data are not supported",
    "rejected_messages": "preference data are not supported",
    "rejected": "preference data are not supported",
}
"""Keys of a record that would change what is learnt."""

_NOT_IN_MESSAGE = {
    "tool_calls": "tool calls are not supported",
    "function_call": "function calls are not supported",
    "reasoning_content": "it would be dropped; write it into 'content'",
}
_NEXT: Any = object()
"""The next of the record's own pictures."""


class Messages(Layout):
    """Turns with `role` and `content`."""

    name = "messages"
    title = "messages"
    needs = "'messages' [{'role', 'content'}], pictures in the content or in 'images'"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return "messages" in record

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        refuse(record, NOT_READ, where)
        said = record.get("messages")
        if not isinstance(said, list) or not said:
            raise DataError(
                f"{where}: 'messages' is {short(said)}; expected a list with at least a question "
                "and an answer"
            )
        turns: list[Turn] = []
        shown: list[Any] = []
        for number, message in enumerate(said, 1):
            turn, refs = _turn(message, f"{where}: message {number}")
            turns.append(turn)
            shown += refs
        if system := text_of(record, "system", where, default=""):
            turns.insert(0, Turn("system", system))
        key = side_key(record, where)
        side = list_of(record, key)
        if not shown:
            turns = list(pictures_first(turns, len(side)))
            shown = [_NEXT] * len(side)
        names = _named(shown, side, where, key)
        return finish(
            record, turns, names, where, pictures, defaults,
            used={"messages", "system", "image", "images"}, key=key,
        )  # fmt: skip


def side_key(record: Mapping[str, Any], where: str) -> str:
    """`images`, or `image` where it is the one that holds something; not both."""
    if record.get("image") is not None and record.get("images"):
        raise DataError(f"{where}: pictures in 'image' and in 'images'; expected one of the two")
    return "images" if record.get("image") is None else "image"


def _named(shown: Sequence[Any], side: Sequence[Any], where: str, key: str) -> list[Any]:
    """The pictures in reading order, those of the side list filled in; all must be shown."""
    names: list[Any] = []
    left = iter(range(len(side)))
    seen: set[int] = set()
    for ref in shown:
        if ref is not _NEXT and not isinstance(ref, int):
            names.append(ref)
            continue
        place: int | None = next(left, None) if ref is _NEXT else ref
        if place is None or not 0 <= place < len(side):
            raise DataError(
                f"{where}: {_count(shown)} {IMAGE} in the messages but {len(side)} in '{key}' "
                f"({short(list(side))}); each picture needs exactly one {IMAGE}"
            )
        seen.add(place)
        names.append(side[place])
    if len(seen) < len(side):
        raise DataError(
            f"{where}: {len(side)} pictures in '{key}' ({short(list(side))}), but the messages "
            f"show {len(seen)} of them; each picture needs exactly one {IMAGE}"
        )
    return names


def _count(shown: Sequence[Any]) -> int:
    return sum(ref is _NEXT or isinstance(ref, int) for ref in shown)


def _turn(message: Any, where: str) -> tuple[Turn, list[Any]]:
    """A turn, and what it shows: a picture, an index, or `_NEXT` for each placeholder."""
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise DataError(f"{where}: expected {{'role': …, 'content': …}}, found {short(message)}")
    refuse(message, _NOT_IN_MESSAGE, where)
    role = role_of(message["role"], where, ROLES)
    check_learnt(message, role, where)
    content = message["content"]
    if isinstance(content, str):
        return Turn(role, content), [_NEXT] * content.count(IMAGE)
    if not isinstance(content, list):
        raise DataError(f"{where}: 'content' is {short(content)}; expected a text or a list")
    text = ""
    refs: list[Any] = []
    after_picture = False
    for number, part in enumerate(content, 1):
        words, ref = _part(part, f"{where}: part {number}")
        # The line breaks are the separators that Sample.messages takes away again.
        if ref is not None:
            text += ("\n" if text and not after_picture else "") + IMAGE
            refs.append(ref)
            after_picture = True
        elif words:
            text += ("\n" if after_picture else "") + words
            after_picture = False
    return Turn(role, text), refs


def _part(part: Any, where: str) -> tuple[str, Any]:
    """(text, None) or ("", picture) of a typed part."""
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "text":
            text = text_of(part, "text", where)
            if IMAGE in text:
                raise DataError(
                    f"{where}: {IMAGE} written out in a typed text; a picture is a part of its own"
                )
            return text, None
        if kind in ("image", "image_url"):
            return "", _inline(part, where)
    raise DataError(
        f"{where}: expected a part of type 'text', 'image' or 'image_url', found {short(part)}"
    )


def _inline(part: Mapping[str, Any], where: str) -> Any:
    """The picture that an image part names; its index, or `_NEXT`, if it names none."""
    keys = ("image", "path", "url", "image_url", "bytes", "base64", "source")
    named = {key: part[key] for key in keys if part.get(key) is not None}
    if len(named) > 1:
        raise DataError(f"{where}: a picture named twice, by {' and '.join(named)}")
    if not named:
        index = part.get("index")
        if index is None:
            return _NEXT
        if isinstance(index, bool) or not isinstance(index, int):
            raise DataError(f"{where}: 'index' is {short(index)}; expected a whole number")
        return index
    [(key, value)] = named.items()
    if key == "image_url" and isinstance(value, dict):
        value = value.get("url")
    if key == "source" and isinstance(value, dict):
        key = "base64" if value.get("type") == "base64" else "url"
        value = value.get("data" if key == "base64" else "url")
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        return decode_base64(value, where, key)
    if not isinstance(value, str | bytes | dict) or not value:
        raise DataError(f"{where}: '{key}' is {short(value)}; expected a picture")
    return value
