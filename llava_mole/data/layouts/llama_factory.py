"""LLaMA-Factory's dataset_info.json: which file a data set lies in, and what its keys are called.

`DIR/dataset_info.json:NAME` reads the entry NAME: `file_name` (relative to the json), `formatting`
(alpaca, sharegpt), `columns`, `tags`. What an entry asks for beyond that is refused by its name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_mole.data.layouts.base import Layout
from llava_mole.data.layouts.llava import Conversations
from llava_mole.data.layouts.pairs import Alpaca
from llava_mole.data.quoting import short, why
from llava_mole.data.sample import Role
from llava_mole.errors import DataError

FILE_NAME = "dataset_info.json"

_REFUSED = {
    "ranking": "preference data are not supported",
    "script_url": "loading scripts are not run; convert the data to JSON or Parquet",
    "hf_hub_url": "download the data and name the file in 'file_name'",
    "ms_hub_url": "download the data and name the file in 'file_name'",
    "om_hub_url": "download the data and name the file in 'file_name'",
    "cloud_file_name": "download the data and name the file in 'file_name'",
    "subset": "it belongs to data on a hub",
    "folder": "it belongs to data on a hub",
    "num_samples": "say how many in the mixture instead",
}
_REFUSED_COLUMNS = {
    "tools": "tool calls are not supported",
    "videos": "videos are not supported",
    "audios": "audio is not supported",
    "chosen": "preference data are not supported",
    "rejected": "preference data are not supported",
    "kto_tag": "preference data are not supported",
}
_KNOWN = {"file_name", "formatting", "columns", "tags", "split", "load_from", *_REFUSED}
_COLUMNS = {
    "alpaca": ("prompt", "query", "response", "history", "system", "images"),
    "sharegpt": ("messages", "system", "images"),
}
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
_UNUSED_TAGS = ("observation_tag", "function_tag")
"""Their turns are refused where they appear, as unknown roles."""


def read_dataset_info(path: Path, name: str) -> tuple[Path, Layout]:
    """(data file, layout) of one entry.

    Raises:
        DataError: names the entry and the key.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({why(error)})") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path}: expected an object of data sets, found {short(entries)}")
    where = f"{path}: {short(name)}"
    if name not in entries:
        near = difflib.get_close_matches(name, entries, 1)
        hint = f", did you mean {short(near[0])}?" if near else ""
        known = ", ".join(short(entry, 40) for entry in list(entries)[:20])
        raise DataError(f"{path}: no data set {short(name)}{hint}; it holds {known or 'none'}")
    entry = entries[name]
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {short(entry)}")
    for key, value in entry.items():
        if key not in _KNOWN:
            raise DataError(f"{where}: unknown key {short(key)}: {short(value)}")
        if key in _REFUSED and value:
            raise DataError(f"{where}: '{key}' is {short(value)}: {_REFUSED[key]}")
    if entry.get("split", "train") != "train" or entry.get("load_from", "file") != "file":
        raise DataError(f"{where}: 'split' and 'load_from' belong to data on a hub")
    return _file(path, entry, where), _layout(entry, where)


def _file(path: Path, entry: Mapping[str, Any], where: str) -> Path:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: 'file_name' is {short(name)}; expected a file beside {path}")
    file = path.parent / name
    try:
        real = file.resolve()
        there = real.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: 'file_name' {short(name)} is no usable path ({why(error)})"
        ) from error
    if not real.is_relative_to(path.parent.resolve()):
        raise DataError(
            f"{where}: 'file_name' {short(name)} leads outside '{path.parent}' "
            f"(to {short(str(real))})"
        )
    if not there:
        raise DataError(f"{where}: 'file_name' {short(name)}: no such file under '{path.parent}'")
    return file


def _layout(entry: Mapping[str, Any], where: str) -> Layout:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise DataError(
            f"{where}: 'formatting' is {short(formatting)}; expected alpaca or sharegpt"
        )
    family = "alpaca" if formatting == "alpaca" else "sharegpt"
    columns = _names(entry, "columns", where, _COLUMNS[family], _REFUSED_COLUMNS)
    if family == "alpaca":
        _names(entry, "tags", where, (), {})
        # LLaMA-Factory reads history and system only where they are named.
        unnamed: dict[str, Any] = {"history": None, "system": None}
        return Alpaca(**{**unnamed, **columns})
    tags = _names(entry, "tags", where, (*_TAGS, *_UNUSED_TAGS), {})
    roles: dict[str, Role] = {
        tags.get("user_tag", "human"): "user",
        tags.get("assistant_tag", "gpt"): "assistant",
        tags.get("system_tag", "system"): "system",
    }
    if len(roles) < 3:
        raise DataError(f"{where}: 'tags' give two roles the same name ({', '.join(roles)})")
    return Conversations(
        name="sharegpt",
        title="LLaMA-Factory sharegpt",
        image_key=columns.get("images", "images"),
        turns_key=columns.get("messages", "conversations"),
        role_key=tags.get("role_tag", "from"),
        text_key=tags.get("content_tag", "value"),
        system_key=columns.get("system"),
        roles=roles,
    )


def _names(
    entry: Mapping[str, Any],
    key: str,
    where: str,
    known: tuple[str, ...],
    refused: Mapping[str, str],
) -> dict[str, str]:
    """The renamings under `columns` or `tags`; a null is none."""
    value = entry.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: '{key}' is {short(value)}; expected an object")
    found: dict[str, str] = {}
    for name, column in value.items():
        if column is None:
            continue
        if name in refused:
            raise DataError(f"{where}: '{key}.{name}' is {short(column)}: {refused[name]}")
        if name not in known:
            raise DataError(
                f"{where}: '{key}' holds {short(name)}; expected {', '.join(known) or 'none'}"
            )
        if not isinstance(column, str) or not column:
            raise DataError(f"{where}: '{key}.{name}' is {short(column)}; expected a name")
        found[name] = column
    return found
