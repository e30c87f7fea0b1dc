"""LLaVA's layout (LLaVA-665k, ShareGPT4V, Parrot's files), and its variants by other key names.

A record::

    {"id": "7", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

`image` may be a list, one for each `<image>` in reading order; a text-only record has none. The
same under `images` is LLaMA-Factory's `sharegpt`, whose keys and roles may be renamed there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_mole.data.layouts.base import (
    ROLES,
    Defaults,
    Layout,
    finish,
    list_of,
    refuse,
    text_of,
    turn_of,
)
from llava_mole.data.pictures import Pictures
from llava_mole.data.quoting import short
from llava_mole.data.sample import Role, Sample, Turn
from llava_mole.errors import DataError

UNSUPPORTED = {
    "tools": "tool calls are not supported",
    "videos": "videos are not supported",
    "video": "videos are not supported",
    "audios": "audio is not supported",
    "audio": "audio is not supported",
}


@dataclass(frozen=True)
class Conversations(Layout):
    """Turns in a list under one key, pictures under another, `<image>` where each is shown."""

    name: str
    title: str
    image_key: str
    turns_key: str = "conversations"
    role_key: str = "from"
    text_key: str = "value"
    system_key: str | None = None
    roles: Mapping[str, Role] = field(default_factory=lambda: ROLES)
    other_image_key: str | None = None
    """pictures under this key are another layout's"""

    @property
    def needs(self) -> str:  # type: ignore[override]
        return (
            f"'{self.turns_key}' [{{'{self.role_key}', '{self.text_key}'}}], '{self.image_key}' "
            "for its pictures"
        )

    def identity(self) -> Any:
        return [self.name, self.image_key, self.turns_key, self.role_key, self.text_key,
                self.system_key, dict(self.roles)]  # fmt: skip

    def matches(self, record: Mapping[str, Any]) -> bool:
        return self.turns_key in record and self.other_image_key not in record

    def sample(
        self, record: Mapping[str, Any], where: str, pictures: Pictures, defaults: Defaults
    ) -> Sample:
        refuse(record, UNSUPPORTED, where)
        said = record.get(self.turns_key)
        if not isinstance(said, list) or not said:
            raise DataError(
                f"{where}: '{self.turns_key}' is {short(said)}; expected a list with at least a "
                "question and an answer"
            )
        turns = [
            turn_of(
                entry,
                f"{where}: turn {number}",
                roles=self.roles,
                role_key=self.role_key,
                text_key=self.text_key,
            )
            for number, entry in enumerate(said, 1)
        ]
        if self.system_key and (system := text_of(record, self.system_key, where, default="")):
            turns.insert(0, Turn("system", system))
        names = list_of(record, self.image_key)
        used = {self.turns_key, self.image_key, self.system_key or self.turns_key}
        return finish(
            record, turns, names, where, pictures, defaults, used=used, key=self.image_key
        )


LLAVA = Conversations("llava", "LLaVA", "image", other_image_key="images")
SHAREGPT = Conversations("sharegpt", "ShareGPT", "images", other_image_key="image")
